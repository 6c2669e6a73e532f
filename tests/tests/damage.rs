//! Snapshots that are damaged, incomplete or foreign are refused, clearly and at once.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use reapvm_reap::{WorkingSet, trace};
use reapvm_snapshot::{PAGE_SIZE, Snapshot};
use reapvm_tests::launcher::{self, Ended};
use reapvm_tests::scratch;
use reapvm_tests::snapshots;
use reapvm_tests::watchdog::guarded;
use tempfile::TempDir;

const FILES: [&str; 6] = [
    "manifest.json",
    "state",
    "memory-index",
    "memory",
    "working-set",
    "trace",
];

fn invoke(dir: &Path, mode: &str) -> Ended {
    let mut command = launcher::command(["invoke", "--memory", mode, "--timeout", "60"]);
    command.arg(dir).args(["--input", r#"{"seed":1}"#]);
    launcher::finish(launcher::start(&mut command))
}

fn verify(dir: &Path) -> Ended {
    launcher::run(["snapshot", "verify", dir.to_str().unwrap()])
}

/// A snapshot with a working set, to be damaged.
fn recorded() -> (TempDir, PathBuf) {
    let scratch = scratch::dir();
    let dir = scratch.path().join("snap");
    snapshots::copy(&snapshots::shared("helloworld"), &dir);
    invoke(&dir, "record").success();
    assert_eq!(scratch::names_in(&dir).len(), FILES.len());
    (scratch, dir)
}

/// The mode in which the file matters.
fn mode_that_reads(file: &str) -> &'static str {
    match file {
        "memory-index" => "ondemand",
        "working-set" => "prefetch",
        _ => "copy",
    }
}

#[test]
fn an_undamaged_copy_is_accepted() {
    guarded(|| {
        let (_scratch, dir) = recorded();
        verify(&dir).success();
        for mode in ["copy", "file", "ondemand", "record", "prefetch"] {
            invoke(&dir, mode).success();
        }
    });
}

#[test]
fn a_directory_without_a_manifest_is_no_snapshot() {
    guarded(|| {
        let (_scratch, dir) = recorded();
        fs::remove_file(dir.join("manifest.json")).unwrap();
        for mode in ["copy", "file", "ondemand", "record", "prefetch"] {
            invoke(&dir, mode).failure(&["manifest"]);
        }
        verify(&dir).failure(&["manifest"]);
        launcher::run(["snapshot", "info", dir.to_str().unwrap()]).failure(&["manifest"]);
        invoke(Path::new("/nonexistent/snap"), "copy").failure(&["/nonexistent/snap"]);
    });
}

#[test]
fn a_file_that_is_cut_short_or_missing_is_named() {
    guarded(|| {
        let (scratch, whole) = recorded();
        for file in FILES {
            for keep in ["none", "half", "all but a byte", "missing"] {
                let dir = scratch.path().join("cut");
                snapshots::copy(&whole, &dir);
                let path = dir.join(file);
                let len = fs::metadata(&path).unwrap().len();
                let handle = File::options().write(true).open(&path).unwrap();
                match keep {
                    "none" => handle.set_len(0).unwrap(),
                    "half" => handle.set_len(len / 2).unwrap(),
                    "missing" => fs::remove_file(&path).unwrap(),
                    _ => handle.set_len(len - 1).unwrap(),
                }
                // Nobody has to have a trace, and only prefetch needs a working set.
                let optional = keep == "missing" && matches!(file, "trace" | "working-set");
                if optional {
                    verify(&dir).success();
                } else {
                    verify(&dir).failure(&[file]);
                }
                if file == "trace" {
                    invoke(&dir, "prefetch").success();
                } else {
                    invoke(&dir, mode_that_reads(file)).failure(&[file]);
                }
                fs::remove_dir_all(&dir).unwrap();
            }
        }
    });
}

#[test]
fn a_manifest_of_another_format_version_is_refused_by_number() {
    guarded(|| {
        let (_scratch, dir) = recorded();
        let path = dir.join("manifest.json");
        let text = fs::read_to_string(&path).unwrap();
        let start = text.find("\"manifest\": ").unwrap() + "\"manifest\": ".len();
        let end = text.trim_end().len() - 2;
        let inner = text[start..end].replacen(
            &format!("\"format_version\": {}", reapvm_snapshot::FORMAT_VERSION),
            "\"format_version\": 4711",
            1,
        );
        assert!(inner.contains("4711"), "{inner}");
        // With a checksum that is right, so that the version alone is wrong.
        let crc32c = reapvm_snapshot::checksum::crc32c(inner.as_bytes());
        let changed = format!("{{\n\"crc32c\": \"{crc32c:08x}\",\n\"manifest\": {inner}\n}}\n");
        assert_eq!(changed.len(), text.len() + 3);
        fs::write(&path, changed).unwrap();
        invoke(&dir, "copy").failure(&["4711"]);
        verify(&dir).failure(&["4711"]);
    });
}

#[test]
fn a_flipped_bit_anywhere_in_a_small_file_is_found() {
    guarded(|| {
        let (_scratch, dir) = recorded();
        for file in ["manifest.json", "state", "memory-index"] {
            let path = dir.join(file);
            let whole = fs::read(&path).unwrap();
            // At a bit within each seventh, and at both ends.
            let mut offsets: Vec<usize> = (1..7).map(|part| whole.len() * part / 7).collect();
            offsets.extend([0, whole.len() - 1]);
            for offset in offsets {
                snapshots::flip_bit(&path, offset as u64);
                let seen = Snapshot::open(&dir).map_err(|error| error.to_string());
                let found = match &seen {
                    Err(_) => true,
                    Ok(snapshot) => snapshot.verify().is_err(),
                };
                // White space around the manifest says nothing.
                let blank = whole[offset].is_ascii_whitespace() && file == "manifest.json";
                assert!(found || blank, "{file} at {offset}");
                fs::write(&path, &whole).unwrap();
            }
            snapshots::flip_bit(&path, (whole.len() / 2) as u64);
            verify(&dir).failure(&[]);
            invoke(&dir, mode_that_reads(file)).failure(&[]);
            fs::write(&path, &whole).unwrap();
        }
        verify(&dir).success();
    });
}

#[test]
fn a_flipped_bit_in_the_working_set_or_trace_is_found() {
    guarded(|| {
        let (_scratch, dir) = recorded();
        for file in ["working-set", "trace"] {
            let path = dir.join(file);
            let whole = fs::read(&path).unwrap();
            for offset in [0, 9, 20, 60, whole.len() / 2, whole.len() - 1] {
                snapshots::flip_bit(&path, offset as u64);
                let snapshot = snapshots::open(&dir);
                let memory_bytes = snapshot.manifest().memory.page_count() * PAGE_SIZE as u64;
                let refused = if file == "trace" {
                    trace::read(&path, &snapshot.id()).is_err()
                } else {
                    WorkingSet::verify(&path, &snapshot.id(), memory_bytes).is_err()
                };
                assert!(refused, "{file} at {offset}");
                verify(&dir).failure(&[]);
                if file == "working-set" {
                    let ended = invoke(&dir, "prefetch");
                    ended.failure(&["working"]);
                    assert!(ended.stdout.is_empty(), "{ended:?}");
                }
                fs::write(&path, &whole).unwrap();
            }
        }
        verify(&dir).success();
    });
}

#[test]
fn a_flipped_bit_in_memory_is_found_by_verify_and_copy_and_by_the_fault_that_reads_it() {
    guarded(|| {
        let (_scratch, dir) = recorded();
        let snapshot = snapshots::open(&dir);
        let touched = trace::read(&snapshot.trace_path(), &snapshot.id()).unwrap();
        let index = snapshot.memory_index().unwrap();
        let manifest = snapshot.manifest();
        // A page with data that each invocation needs, in the middle of what it touches.
        let data: Vec<u64> = touched
            .iter()
            .filter_map(|record| manifest.memory.page_index_of_gpa(record.gpa))
            .filter(|&page| !index.is_zero(page))
            .collect();
        let page = data[data.len() / 2];
        let gpa = manifest.memory.gpa_of_page_index(page).unwrap();
        snapshots::flip_bit(&dir.join("memory"), page * PAGE_SIZE as u64 + 17);
        verify(&dir).failure(&["damaged", &format!("{gpa:#x}")]);
        // A launcher that hung would run into the limit of `launcher::finish`.
        for mode in ["copy", "ondemand", "record"] {
            let ended = invoke(&dir, mode);
            ended.failure(&["damaged"]);
            assert!(ended.stdout.is_empty(), "{ended:?}");
        }
        // The record that failed has left the older working set, whose pages are whole.
        invoke(&dir, "prefetch").success();

        // A page that was zero and is not any more.
        snapshots::flip_bit(&dir.join("memory"), page * PAGE_SIZE as u64 + 17);
        verify(&dir).success();
        let zero = (0..index.page_count()).find(|&page| index.is_zero(page));
        File::options()
            .write(true)
            .open(dir.join("memory"))
            .unwrap()
            .write_all_at(b"x", zero.unwrap() * PAGE_SIZE as u64)
            .unwrap();
        verify(&dir).failure(&["damaged"]);
    });
}

#[test]
fn a_working_set_of_another_snapshot_or_none_is_refused_and_not_replaced_by_another_mode() {
    guarded(|| {
        let (scratch, dir) = recorded();
        let other = scratch.path().join("other");
        snapshots::create("helloworld", &other, &[]);
        let ended = invoke(&other, "prefetch");
        ended.failure(&["working set", "record"]);
        assert!(ended.stdout.is_empty(), "{ended:?}");
        fs::copy(dir.join("working-set"), other.join("working-set")).unwrap();
        let ended = invoke(&other, "prefetch");
        ended.failure(&[
            "working",
            &snapshots::open(&dir).id().to_string(),
            &snapshots::open(&other).id().to_string(),
        ]);
        assert!(ended.stdout.is_empty(), "{ended:?}");
        verify(&other).failure(&["working"]);
        // The other modes do not look at it.
        invoke(&other, "ondemand").success();
        invoke(&other, "record").success();
        invoke(&other, "prefetch").success();
    });
}

#[test]
fn a_file_of_another_snapshot_is_refused() {
    guarded(|| {
        let (scratch, dir) = recorded();
        let other = scratch.path().join("other");
        snapshots::create("helloworld", &other, &[]);
        for file in ["state", "memory-index"] {
            let damaged = scratch.path().join(format!("mixed-{file}"));
            snapshots::copy(&dir, &damaged);
            fs::copy(other.join(file), damaged.join(file)).unwrap();
            invoke(&damaged, mode_that_reads(file)).failure(&[file]);
            verify(&damaged).failure(&[file]);
        }
    });
}

#[test]
fn a_killed_create_leaves_the_old_snapshot_whole_and_no_other() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        let create = || {
            let mut command = launcher::command(["snapshot", "create", "--function", "helloworld"]);
            launcher::start(command.arg("-o").arg(&dir))
        };
        let begun = Instant::now();
        launcher::finish(create()).success();
        let step = begun.elapsed() / 8;
        let first = snapshots::open(&dir).id();
        let mut killed = 0;
        // Killed at ever later moments, until one is done before it is killed.
        for steps in 1.. {
            let mut child = create();
            thread::sleep(step * steps);
            child.kill().unwrap();
            if launcher::finish(child).code.is_some() {
                break;
            }
            killed += 1;
            // Whatever the moment: what is there is a whole snapshot, the old one or a new one.
            let snapshot = Snapshot::open(&dir).unwrap();
            assert!(snapshot.verify().unwrap().is_intact());
            for name in scratch::names_in(scratch.path()) {
                assert!(name == "snap" || name.starts_with(".snap."), "{name}");
            }
        }
        assert!(killed > 0, "it has to be killed at least once");
        assert_ne!(snapshots::open(&dir).id(), first);
        // The one that was done has also removed what the killed ones had left.
        assert_eq!(scratch::names_in(scratch.path()), ["snap"]);
        invoke(&dir, "ondemand").success();
    });
}

#[test]
fn a_snapshot_is_not_written_over_what_is_none() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("home");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("letter"), "dear").unwrap();
        let create = |target: &Path| {
            let mut command = launcher::command(["snapshot", "create", "--function", "helloworld"]);
            command.arg("-o").arg(target);
            launcher::finish(launcher::start(&mut command))
        };
        create(&dir).failure(&["home"]);
        create(&dir.join("letter")).failure(&["letter"]);
        create(Path::new("/nonexistent/snap")).failure(&["/nonexistent"]);
        assert_eq!(fs::read_to_string(dir.join("letter")).unwrap(), "dear");
        assert_eq!(scratch::names_in(scratch.path()), ["home"]);
        assert_eq!(scratch::names_in(&dir), ["letter"]);
    });
}
