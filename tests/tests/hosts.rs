//! Hosts that lack what a machine needs: permissions, devices, room on the disk. What is missing is
//! named with its remedy, and what was there stays.
#![allow(clippy::unwrap_used, clippy::panic)]

use reapvm_tests::guest::{self, Image};
use reapvm_tests::launcher;
use reapvm_tests::watchdog::guarded;
use reapvm_tests::{namespace, scratch};

const RUN: [&str; 5] = ["run", "--function", "helloworld", "--timeout", "30"];
const NOBODY: u32 = 65534;
const KVM_ONLY: &str = "mount -t tmpfs tmpfs /dev; mknod -m 666 /dev/kvm c 10 232";

fn run(prepare: &str, uid: u32, more: &[&str]) -> launcher::Ended {
    namespace::run(prepare, uid, &[&RUN[..], more].concat())
}

#[test]
fn a_disk_that_may_not_be_written_is_not_attached_for_writing() {
    guarded(|| {
        let drive = ["--drive", "path=/mnt/d/disk"];
        let named = ["/mnt/d/disk", "attach it read-only"];
        let disk = "mkdir /mnt/d; mount -t tmpfs tmpfs /mnt/d; truncate -s 1M /mnt/d/disk";
        // Nobody may: the file system is read-only.
        let read_only = format!("{disk}; mount -o remount,ro /mnt/d");
        run(&read_only, 0, &drive).failure(&named);
        // Not everybody may.
        let private = format!("{KVM_ONLY}; {disk}; chmod 755 /mnt/d; chmod 444 /mnt/d/disk");
        run(&private, NOBODY, &drive).failure(&named);
        let secret = format!("{private}; chmod 400 /mnt/d/disk");
        let attached = ["--drive", "path=/mnt/d/disk,readonly=on"];
        run(&secret, NOBODY, &attached).failure(&["/mnt/d/disk", "may not be read"]);
        // As it can be attached, it gets as far as a machine that does not end.
        let ends = [&attached[..], &["--timeout", "0.2"]].concat();
        run(&read_only, 0, &ends).failure(&["--timeout"]);
    });
}

#[test]
fn a_tap_that_is_not_there_and_may_not_be_made() {
    guarded(|| {
        let net = ["--net", "tap=rvmnone0"];
        run(KVM_ONLY, NOBODY, &net).failure(&["rvmnone0", "modprobe tun"]);
        let tun = format!("{KVM_ONLY}; mkdir /dev/net; mknod /dev/net/tun c 10 200");
        let private = format!("{tun}; chmod 600 /dev/net/tun");
        run(&private, NOBODY, &net).failure(&["rvmnone0", "/dev/net/tun", "permission"]);
        let public = format!("{tun}; chmod 666 /dev/net/tun");
        run(&public, NOBODY, &net).failure(&["rvmnone0", "CAP_NET_ADMIN", "ip tuntap add"]);
    });
}

#[test]
fn a_disk_that_fills_up_leaves_the_older_snapshot_and_no_half_one() {
    guarded(|| {
        let scratch = scratch::dir();
        let kernel = scratch.path().join("kernel");
        Image::long_mode(guest::SAY_HI_AND_HALT).write(&kernel);
        // A file system of a few pages, first with room for one snapshot, then for a part of the
        // next, page by page; and one without an older snapshot.
        let script = r#"
            mkdir /mnt/s
            mount -t tmpfs -o size=16m tmpfs /mnt/s
            create() {
                /mnt/reapvm snapshot create --kernel "$1" --mem 32M --wait-for hi -o "$2"
            }
            create "$1" /mnt/s/snap >/dev/null
            id=$(sed -n 's/.*"id": *"\([^"]*\)".*/\1/p' /mnt/s/snap/manifest.json | head -n 1)
            test -n "$id"
            used=$(du -s -k /mnt/s/snap | cut -f 1)
            free=0
            failed=0
            while true; do
                mount -o remount,size=$((used + free))k /mnt/s
                if create "$1" /mnt/s/snap >/dev/null 2>/mnt/error; then break; fi
                failed=$((failed + 1))
                grep -q '^error: .*No space left on device' /mnt/error || cat /mnt/error
                ls -A /mnt/s
                grep -q "$id" /mnt/s/snap/manifest.json || echo another snapshot
                /mnt/reapvm snapshot verify /mnt/s/snap >/dev/null
                if create "$1" /mnt/s/other >/dev/null 2>&1; then
                    rm -r /mnt/s/other
                fi
                ls -A /mnt/s
                free=$((free + 4))
                test $free -lt $((4 * used))
            done
            test $failed -gt 3
            grep -q "$id" /mnt/s/snap/manifest.json && echo the same snapshot
            /mnt/reapvm snapshot verify /mnt/s/snap >/dev/null
            ls -A /mnt/s
        "#;
        let said = namespace::shell(script, &[kernel.to_str().unwrap()]).success();
        assert!(said.lines().count() > 8, "{said}");
        assert!(said.lines().all(|line| line == "snap"), "{said}");
    });
}
