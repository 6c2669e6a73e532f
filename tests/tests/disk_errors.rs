//! Disks that fail while a machine comes back from them: a file system on a loop device whose file
//! was cut short, so that the kernel reports the error that a broken disk gives.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use reapvm_tests::watchdog::guarded;
use reapvm_tests::{launcher, namespace, scratch, snapshots};
use serde_json::Value;

/// Puts a copy of `$1/$2` on a disk that fails from somewhere inside it on, and mounts that over
/// the file. `$3` is an empty directory on a real disk, `$4` the disk's size in MiB, which is cut in
/// sixteenths.
const BREAK_A_FILE: &str = r#"
    # Opening it also has the kernel load what is behind it.
    (exec 3<>/dev/loop-control) 2>/dev/null || { echo SKIP: no loop devices; exit 0; }
    mkdir /mnt/broken
    truncate -s "$4M" "$3/disk"
    mkfs.ext4 -q -F -O ^has_journal -m 0 "$3/disk"
    mount -o loop "$3/disk" /mnt/broken
    cp --sparse=always "$1/$2" /mnt/broken/file
    umount /mnt/broken
    mount -o loop,ro "$3/disk" /mnt/broken
    size=$4
    while dd if=/mnt/broken/file iflag=direct of=/dev/null bs=1M status=none 2>/dev/null; do
        size=$((size - $4 / 16))
        test $size -gt 0
        truncate -s ${size}M "$3/disk"
    done
    mount --bind /mnt/broken/file "$1/$2"
"#;

/// Breaks `file` of a copy of a snapshot and says what `script` prints, which finds the copy in
/// `$1`. `None`: this host has no loop devices.
fn with_broken(file: &str, disk_mib: u32, script: &str) -> Option<(String, Value)> {
    let scratch = scratch::dir();
    let dir = scratch.path().join("snap");
    let expected = snapshots::create("helloworld", &dir, &[1]).remove(0);
    record(&dir);
    let disk = scratch.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let arguments = [
        dir.to_str().unwrap(),
        file,
        disk.to_str().unwrap(),
        &disk_mib.to_string(),
    ];
    let said = namespace::shell(&format!("{BREAK_A_FILE}{script}"), &arguments).success();
    if said.starts_with("SKIP") {
        eprint!("{said}");
        return None;
    }
    Some((said, expected))
}

fn record(dir: &Path) {
    launcher::run([
        "invoke",
        dir.to_str().unwrap(),
        "--memory=record",
        r#"--input={"seed":0}"#,
    ])
    .success();
}

/// A block of a script: what a start with `arguments` says and how it ends.
fn start(arguments: &str) -> String {
    format!(
        "/mnt/reapvm invoke \"$1\" --json --input '{{\"seed\":1}}' {arguments} 2>&1 || \
         echo \"exit $?\"\n"
    )
}

#[test]
fn a_working_set_that_cannot_be_read_ends_the_start_or_is_made_good_as_the_user_allows() {
    guarded(|| {
        let methods = [
            "one-read",
            "buffered",
            "streamed",
            "streamed --install-read pread",
            "move",
            "direct",
            "overlapped",
            "auto",
        ];
        let script: String = methods
            .iter()
            .flat_map(|method| {
                let prefetch = format!("--memory prefetch --install {method}");
                [
                    start(&prefetch),
                    start(&format!("{prefetch} --install-fallback")),
                ]
            })
            .collect();
        let Some((said, expected)) = with_broken("working-set", 32, &script) else {
            return;
        };
        let mut lines = said.lines();
        for method in methods {
            let mut next = || lines.next().unwrap_or_else(|| panic!("{method}: {said}"));
            let error = next();
            if method == "move" && error.contains("UFFDIO_MOVE") {
                // A kernel that moves no pages refuses the method before it reads.
                assert_eq!(next(), "exit 1", "{method}: {said}");
                next();
                continue;
            }
            assert!(
                error.starts_with("error: ")
                    && error.contains("snap/working-set")
                    && error.contains("Input/output error"),
                "{method}: {error}"
            );
            assert_eq!(next(), "exit 1", "{method}: {said}");
            let report: Value = serde_json::from_str(next()).unwrap();
            assert_eq!(report["response"], expected, "{method}");
            let reason = report["install_ms"]["fell_back"].as_str().unwrap();
            assert!(reason.contains("Input/output error"), "{method}: {reason}");
        }
        assert_eq!(lines.next(), None, "{said}");
    });
}

#[test]
fn memory_that_cannot_be_read_ends_every_start_that_needs_it() {
    guarded(|| {
        let modes = [
            ("copy", "Input/output error"),
            ("ondemand", "Input/output error"),
            ("record", "Input/output error"),
            ("prefetch --install memory-file", "Input/output error"),
            // By a vCPU's touch or a device's.
            ("file", "memory"),
        ];
        let mut script = String::from(
            // Half of what was left, so that every mode meets what is missing.
            "truncate -s $((size / 2))M \"$3/disk\"\n",
        );
        for (mode, _) in modes {
            script.push_str(&start(&format!("--memory {mode}")));
        }
        let Some((said, _)) = with_broken("memory", 256, &script) else {
            return;
        };
        let mut lines = said.lines();
        for (mode, needle) in modes {
            let error = lines.next().unwrap_or_else(|| panic!("{mode}: {said}"));
            assert!(
                error.starts_with("error: ") && error.contains(needle),
                "{mode}: {error}"
            );
            assert_eq!(lines.next(), Some("exit 1"), "{mode}: {said}");
        }
        assert_eq!(lines.next(), None, "{said}");
    });
}
