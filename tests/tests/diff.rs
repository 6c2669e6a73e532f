//! Differential snapshots: what a machine has written since its last one, and nothing else.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use reapvm::config::VmConfig;
use reapvm::function_vm::FunctionVm;
use reapvm::machine::{BuildError, Machine, RestoreOptions, SaveError};
use reapvm::memory::MemoryError;
use reapvm::residency::resident_bytes;
use reapvm_reap::MemoryRestoreMode;
use reapvm_snapshot::{Manifest, PAGE_SIZE, PageKind, Snapshot, SnapshotId};
use reapvm_tests::launcher::{self, Ended};
use reapvm_tests::scratch;
use reapvm_tests::snapshots::{self, TIMEOUT, call, input};
use reapvm_tests::watchdog::guarded;
use serde_json::Value;

/// A machine that serves and tracks what it writes.
fn tracked(function: &str) -> FunctionVm {
    let mut config = VmConfig::for_function(function).unwrap();
    config.machine_config.track_dirty_pages = true;
    let vm = FunctionVm::boot(config, TIMEOUT).unwrap();
    vm.invoke(&input(0), TIMEOUT).unwrap();
    vm
}

/// Pauses a machine when nothing is on its way to or from the guest.
fn pause(machine: &mut Machine) {
    let vsock = machine.vsock().unwrap();
    let deadline = std::time::Instant::now() + TIMEOUT;
    while vsock.connection_count() > 0 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    machine.pause().unwrap();
}

fn memory_of(dir: &Path) -> Vec<u8> {
    fs::read(dir.join("memory")).unwrap()
}

/// Checks that two snapshots have the same memory, byte by byte, and the same kinds of pages.
fn assert_same_memory(a: &Path, b: &Path) {
    let [index_a, index_b] = [a, b].map(|dir| snapshots::open(dir).memory_index().unwrap());
    let (bytes_a, bytes_b) = (memory_of(a), memory_of(b));
    assert_eq!(bytes_a.len(), bytes_b.len());
    let pages = bytes_a.chunks(PAGE_SIZE).zip(bytes_b.chunks(PAGE_SIZE));
    for (number, (page_a, page_b)) in (0..).zip(pages) {
        assert!(page_a == page_b, "page {number} differs");
        assert_eq!(index_a.page_kind(number), index_b.page_kind(number));
        assert_eq!(index_a.page_crc32c(number), index_b.page_crc32c(number));
    }
}

fn merge(base: &Path, diffs: &[&Path], output: &Path) -> Ended {
    let mut command = launcher::command(["snapshot", "merge", "--base"]);
    command.arg(base).arg("-o").arg(output);
    for diff in diffs {
        command.arg("--diff").arg(diff);
    }
    launcher::finish(launcher::start(&mut command))
}

fn verify(dir: &Path) -> Ended {
    launcher::run(["snapshot", "verify", dir.to_str().unwrap()])
}

/// A full snapshot, two diffs that follow it, a full snapshot made in the place of the second diff
/// and what the machine that went on answered.
struct Chain {
    base: PathBuf,
    first: PathBuf,
    second: PathBuf,
    full: PathBuf,
    expected: Vec<Value>,
}

const SEEDS: [u64; 2] = [21, 22];

fn make_chain(scratch: &Path) -> Chain {
    let [base, first, second, full] =
        ["base", "first", "second", "full"].map(|name| scratch.join(name));
    let mut vm = tracked("json_serdes");
    pause(&mut vm.machine);
    assert_eq!(vm.machine.memory().diff_base(), None);
    let of_base = vm.machine.save(&base).unwrap();
    assert_eq!(vm.machine.memory().diff_base(), Some(of_base.id));
    vm.machine.resume().unwrap();
    vm.invoke(&input(1), TIMEOUT).unwrap();
    pause(&mut vm.machine);
    let of_first = vm.machine.save_diff(&first, &of_base.id).unwrap();
    vm.machine.resume().unwrap();
    vm.invoke(&input(2), TIMEOUT).unwrap();
    pause(&mut vm.machine);
    let of_second = vm.machine.save_diff(&second, &of_first.id).unwrap();
    assert_eq!(of_first.memory.base, Some(of_base.id));
    assert_eq!(of_second.memory.base, Some(of_first.id));
    vm.machine.save(&full).unwrap();
    vm.machine.resume().unwrap();
    let expected = SEEDS
        .iter()
        .map(|&seed| vm.invoke(&input(seed), TIMEOUT).unwrap())
        .collect();
    Chain {
        base,
        first,
        second,
        full,
        expected,
    }
}

/// One that all tests read and none changes.
fn shared_chain() -> &'static Chain {
    static CHAIN: OnceLock<Chain> = OnceLock::new();
    // Beside the snapshots that are shared too, which the next run removes.
    CHAIN.get_or_init(|| make_chain(snapshots::shared("helloworld").parent().unwrap()))
}

fn disk_bytes(dir: &Path) -> u64 {
    fs::metadata(dir.join("memory")).unwrap().blocks() * 512
}

#[test]
fn merged_diffs_are_the_machine_that_went_on() {
    guarded(|| {
        let chain = shared_chain();
        let scratch = scratch::dir();
        let merged = scratch.path().join("merged");
        merge(&chain.base, &[&chain.first, &chain.second], &merged).success();
        assert_same_memory(&merged, &chain.full);
        for dir in [&chain.base, &chain.first, &chain.second, &merged] {
            verify(dir).success();
        }
        // Something was written, and it is little.
        for diff in [&chain.first, &chain.second] {
            let memory = snapshots::open(diff).manifest().memory.clone();
            assert!(memory.data_pages > 0 && memory.unchanged_pages > 0);
            assert!(
                disk_bytes(diff) * 3 < disk_bytes(&chain.full),
                "{} of {}",
                disk_bytes(diff),
                disk_bytes(&chain.full)
            );
        }
        for mode in MemoryRestoreMode::ALL {
            for (&seed, expected) in SEEDS.iter().zip(&chain.expected) {
                let mut command = launcher::command(["invoke", "--json", "--memory"]);
                command.arg(mode.as_str()).arg(&merged);
                command.arg("--input").arg(input(seed).to_string());
                let report = launcher::finish(launcher::start(&mut command)).json();
                assert_eq!(&report["response"], expected, "{mode}");
            }
        }
        // One after the other is the same.
        let [half, whole] = ["half", "whole"].map(|name| scratch.path().join(name));
        merge(&chain.base, &[&chain.first], &half).success();
        let error = merge(&half, &[&chain.second], &whole);
        error.failure(&["second", "half", "order"]);
        assert!(!whole.exists());
    });
}

#[test]
fn a_machine_that_was_restored_in_any_mode_saves_what_it_wrote() {
    guarded(|| {
        let base = &shared_chain().base;
        let scratch = scratch::dir();
        let copy = scratch.path().join("copy");
        snapshots::copy(base, &copy);
        let id = snapshots::open(&copy).id();
        launcher::run([
            "invoke",
            copy.to_str().unwrap(),
            "--memory",
            "record",
            "--input",
            &input(1).to_string(),
        ])
        .success();
        for mode in MemoryRestoreMode::ALL {
            let [diff, full, merged] = ["diff", "full", "merged"]
                .map(|name| scratch.path().join(format!("{name}-{mode}")));
            let mut machine = snapshots::restore(&copy, mode);
            assert_eq!(machine.memory().diff_base(), Some(id));
            call(&machine, 3);
            pause(&mut machine);
            let manifest = machine.save_diff(&diff, &id).unwrap();
            let memory = &manifest.memory;
            assert!(
                memory.data_pages * 3 < snapshots::open(&copy).manifest().memory.data_pages,
                "{mode}: {memory:?}"
            );
            machine.save(&full).unwrap();
            merge(&copy, &[&diff], &merged).success();
            assert_same_memory(&merged, &full);
        }
    });
}

#[test]
fn a_machine_that_was_not_tracked_is_when_it_is_restored_so() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = snapshots::shared("helloworld");
        let diff = scratch.path().join("diff");
        let snapshot = snapshots::open(&dir);
        let machine = snapshots::restore(&dir, MemoryRestoreMode::OnDemand);
        let error = machine.save_diff(&diff, &snapshot.id()).unwrap_err();
        assert!(matches!(error, SaveError::NotTracked), "{error}");
        drop(machine);
        let mut options = RestoreOptions::new(MemoryRestoreMode::OnDemand);
        options.track_dirty_pages = true;
        let mut machine = Machine::restore(&snapshot, options).unwrap();
        // Nothing has run yet.
        let nothing = machine.save_diff(&diff, &snapshot.id()).unwrap();
        machine.resume().unwrap();
        call(&machine, 1);
        pause(&mut machine);
        let second = scratch.path().join("second");
        let something = machine.save_diff(&second, &nothing.id).unwrap();
        let written =
            |manifest: &Manifest| manifest.memory.page_count() - manifest.memory.unchanged_pages;
        assert!(written(&nothing) < written(&something) / 2, "{nothing:?}");
        let full = scratch.path().join("full");
        machine.save(&full).unwrap();
        let merged = scratch.path().join("merged");
        merge(&dir, &[&diff, &second], &merged).success();
        assert_same_memory(&merged, &full);
    });
}

#[test]
fn diffs_that_make_no_sense_are_refused_and_change_nothing() {
    guarded(|| {
        let scratch = scratch::dir();
        let [base, diff] = ["base", "diff"].map(|name| scratch.path().join(name));
        let mut vm = tracked("helloworld");
        let other = SnapshotId::from_bytes([3; 16]);
        pause(&mut vm.machine);
        let error = vm.machine.save_diff(&diff, &other).unwrap_err();
        assert!(matches!(error, SaveError::NoBase), "{error}");
        let id = vm.machine.save(&base).unwrap().id;
        let error = vm.machine.save_diff(&diff, &other).unwrap_err();
        assert!(matches!(error, SaveError::OtherBase { since, .. } if since == id));
        let error = vm.machine.save_diff(&base, &id).unwrap_err();
        assert!(matches!(error, SaveError::OverBase { .. }), "{error}");
        vm.machine.resume().unwrap();
        let error = vm.machine.save_diff(&diff, &id).unwrap_err();
        assert!(matches!(error, SaveError::Machine(_)), "{error}");
        assert_eq!(snapshots::open(&base).id(), id);
        assert_eq!(scratch::names_in(scratch.path()), ["base"]);
    });
}

#[test]
fn a_diff_is_not_restored_and_says_what_to_do() {
    guarded(|| {
        let chain = shared_chain();
        for mode in MemoryRestoreMode::ALL {
            let options = RestoreOptions::new(mode);
            let error = Machine::restore(&snapshots::open(&chain.first), options).unwrap_err();
            assert!(
                matches!(error, BuildError::Memory(MemoryError::Diff { .. })),
                "{mode}: {error}"
            );
        }
        let base = snapshots::open(&chain.base).id().to_string();
        let dir = chain.first.to_str().unwrap();
        launcher::run(["invoke", dir]).failure(&["diff", "snapshot merge", &base, dir]);
        launcher::run(["restore", dir]).failure(&["diff", "snapshot merge", &base, dir]);
        let text = launcher::run(["snapshot", "info", dir]).success();
        let memory = snapshots::open(&chain.first).manifest().memory.clone();
        for needle in [
            base.clone(),
            format!("{} data pages", memory.data_pages),
            format!("{} pages as in the base", memory.unchanged_pages),
        ] {
            assert!(text.contains(&needle), "no '{needle}' in:\n{text}");
        }
        let json = launcher::run(["snapshot", "info", "--json", dir]).json();
        assert_eq!(json["memory"]["base"], base);
        assert_eq!(json["memory"]["unchanged_pages"], memory.unchanged_pages);
        assert_eq!(json["vm"]["machine-config"]["track_dirty_pages"], true);
        let of_base = launcher::run(["snapshot", "info", chain.base.to_str().unwrap()]).success();
        assert!(!of_base.contains("diff"), "{of_base}");
    });
}

/// A page of the kind in the diff.
fn page_of(dir: &Path, kind: PageKind) -> u64 {
    let index = snapshots::open(dir).memory_index().unwrap();
    (0..index.page_count())
        .find(|&page| index.page_kind(page) == Some(kind))
        .unwrap()
}

#[test]
fn a_merge_that_fails_leaves_everything_as_it_was() {
    guarded(|| {
        let chain = shared_chain();
        let scratch = scratch::dir();
        let [diff, other, output] =
            ["diff", "other", "output"].map(|name| scratch.path().join(name));
        snapshots::copy(&chain.first, &diff);
        snapshots::copy(&snapshots::shared("helloworld"), &output);
        let before = snapshots::open(&output).id();
        let refused = |base: &Path, needles: &[&str]| {
            let ended = merge(base, &[&diff], &output);
            ended.failure(needles);
            assert!(ended.stdout.is_empty(), "{ended:?}");
            assert_eq!(snapshots::open(&output).id(), before);
            verify(&output).success();
            let names = scratch::names_in(scratch.path());
            assert!(names.iter().all(|name| !name.starts_with('.')), "{names:?}");
        };

        snapshots::create("helloworld", &other, &[]);
        refused(&other, &["diff", "other", "order"]);
        refused(&chain.first, &["first cannot be the base"]);

        let memory = diff.join("memory");
        let page = page_of(&diff, PageKind::Data);
        let offset = page * PAGE_SIZE as u64;
        snapshots::flip_bit(&memory, offset + 99);
        refused(
            &chain.base,
            &["damaged", &format!("page {page} "), "diff/memory"],
        );
        verify(&diff).failure(&["damaged"]);
        snapshots::flip_bit(&memory, offset + 99);
        // A page that is not there any more.
        let file = File::options()
            .read(true)
            .write(true)
            .open(&memory)
            .unwrap();
        let mut saved = [0; PAGE_SIZE];
        file.read_exact_at(&mut saved, offset).unwrap();
        file.write_all_at(&[0; PAGE_SIZE], offset).unwrap();
        refused(
            &chain.base,
            &["damaged", &format!("page {page} "), "diff/memory"],
        );
        file.write_all_at(&saved, offset).unwrap();
        for name in ["state", "memory-index", "manifest.json"] {
            let path = diff.join(name);
            let middle = fs::metadata(&path).unwrap().len() / 2;
            snapshots::flip_bit(&path, middle);
            refused(&chain.base, &["damaged", name]);
            snapshots::flip_bit(&path, middle);
        }
        // No room: a limit on the size of files, which may not kill the program.
        let mut command = launcher::command(["snapshot", "merge", "--base"]);
        command
            .arg(&chain.base)
            .arg("--diff")
            .arg(&diff)
            .arg("-o")
            .arg(&output);
        launcher::limit_file_size(&mut command, 512_000);
        let ended = launcher::finish(launcher::start(&mut command));
        ended.failure(&["no space left"]);
        assert_eq!(snapshots::open(&output).id(), before);
        assert_eq!(
            scratch::names_in(scratch.path()),
            ["diff", "other", "output"]
        );
        // And nothing of this has harmed them.
        merge(&chain.base, &[&diff], &output).success();
        assert_ne!(snapshots::open(&output).id(), before);
    });
}

/// Where page `page` of the memory file is in this process.
fn host_address(machine: &Machine, page: u64) -> u64 {
    // The memory of these guests is one region, from guest address 0 on.
    let ranges = machine.memory().host_ranges();
    assert_eq!(ranges.len(), 1);
    ranges[0].0 + page * PAGE_SIZE as u64
}

fn is_resident(machine: &Machine, page: u64) -> bool {
    let start = host_address(machine, page);
    resident_bytes(&[(start, start + PAGE_SIZE as u64)]) > 0
}

/// A page with data in the snapshot that the machine has not touched.
fn untouched_page(machine: &Machine, snapshot: &Snapshot) -> u64 {
    let index = snapshot.memory_index().unwrap();
    (0..index.page_count())
        .find(|&page| index.page_kind(page) == Some(PageKind::Data) && !is_resident(machine, page))
        .unwrap()
}

/// Has every page of guest memory served by the pager.
fn touch_everything(machine: &Machine) {
    for (start, end) in machine.memory().host_ranges() {
        for address in (start..end).step_by(PAGE_SIZE) {
            // SAFETY: the address is in the mapping of guest memory, which the machine owns.
            unsafe { std::ptr::read_volatile(address as *const u8) };
        }
    }
}

#[test]
fn a_machine_that_is_still_restoring_is_saved_without_being_restored() {
    guarded(|| {
        let dir = snapshots::shared("json_serdes");
        let snapshot = snapshots::open(&dir);
        let scratch = scratch::dir();
        let [lazy, eager] = ["lazy", "eager"].map(|name| scratch.path().join(name));
        let mut machine = snapshots::restore(&dir, MemoryRestoreMode::OnDemand);
        call(&machine, 4);
        pause(&mut machine);
        // As a balloon does: pages that were touched, and one that never was.
        let dropped = untouched_page(&machine, &snapshot);
        let touched = (0..).find(|&page| is_resident(&machine, page)).unwrap();
        for page in [dropped, touched] {
            let start = host_address(&machine, page) as *mut libc::c_void;
            // SAFETY: the page is guest memory of a paused machine, to which no reference exists.
            let result = unsafe { libc::madvise(start, PAGE_SIZE, libc::MADV_DONTNEED) };
            assert_eq!(result, 0);
        }
        let ranges = machine.memory().host_ranges();
        let resident = resident_bytes(&ranges);
        let faults = machine.memory().pager_stats().faults;
        let manifest = machine.save(&lazy).unwrap();
        // A few pages for the devices' rings, if at all.
        let grown = resident_bytes(&ranges) - resident;
        let untouched = manifest.memory.data_pages * PAGE_SIZE as u64 - resident;
        assert!(untouched > 2 << 20, "{untouched} bytes are no test");
        assert!(grown <= 64 << 10, "{grown} bytes became resident");
        assert!(machine.memory().pager_stats().faults - faults <= 16);

        touch_everything(&machine);
        assert!(resident_bytes(&ranges) > resident + untouched / 2);
        machine.save(&eager).unwrap();
        assert_same_memory(&lazy, &eager);
        let index = snapshots::open(&lazy).memory_index().unwrap();
        assert_eq!(index.page_kind(dropped), Some(PageKind::Zero));
        assert_eq!(index.page_kind(touched), Some(PageKind::Zero));
        verify(&lazy).success();
    });
}

#[test]
fn what_is_saved_of_a_machine_that_is_still_restoring_goes_on() {
    guarded(|| {
        let scratch = scratch::dir();
        let [first, second, third] =
            ["first", "second", "third"].map(|name| scratch.path().join(name));
        let expected = snapshots::create("json_serdes", &first, &[5, 6, 7]);
        let mut from = first.clone();
        // Each from the one before, which is gone by then.
        for (to, (seed, expected)) in [&second, &third].into_iter().zip((5..).zip(&expected)) {
            let mut machine = snapshots::restore(&from, MemoryRestoreMode::OnDemand);
            assert_eq!(&call(&machine, seed), expected);
            pause(&mut machine);
            machine.save(to).unwrap();
            // Over what it was restored from: what it has not read yet goes with that.
            machine.save(&from).unwrap();
            machine.save(&from).unwrap();
            machine.resume().unwrap();
            assert_eq!(&call(&machine, seed), expected);
            drop(machine);
            fs::remove_dir_all(&from).unwrap();
            from = to.clone();
        }
        for mode in [MemoryRestoreMode::Copy, MemoryRestoreMode::OnDemand] {
            let machine = snapshots::restore(&third, mode);
            assert_eq!(call(&machine, 7), expected[2], "{mode}");
        }
    });
}

#[test]
fn a_save_that_fails_loses_no_dirty_page_and_finds_a_damaged_source() {
    guarded(|| {
        let scratch = scratch::dir();
        let [base, failed, diff, full, merged] =
            ["base", "failed", "diff", "full", "merged"].map(|name| scratch.path().join(name));
        snapshots::copy(&shared_chain().base, &base);
        let snapshot = snapshots::open(&base);
        let mut machine = snapshots::restore(&base, MemoryRestoreMode::OnDemand);
        call(&machine, 8);
        pause(&mut machine);
        let page = untouched_page(&machine, &snapshot);
        let offset = page * PAGE_SIZE as u64 + 5;
        snapshots::flip_bit(&base.join("memory"), offset);
        let error = machine.save(&failed).unwrap_err();
        assert!(
            matches!(error, SaveError::Memory(MemoryError::Page(_))),
            "{error}"
        );
        assert!(!failed.exists());
        assert_eq!(machine.memory().diff_base(), Some(snapshot.id()));
        snapshots::flip_bit(&base.join("memory"), offset);
        // What was written before the save that failed is still known, although neither KVM nor
        // this process has a mark of it any more.
        machine.save_diff(&diff, &snapshot.id()).unwrap();
        machine.save(&full).unwrap();
        merge(&base, &[&diff], &merged).success();
        assert_same_memory(&merged, &full);
    });
}

#[test]
fn the_option_is_kept_in_the_snapshot() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        launcher::run([
            "snapshot",
            "create",
            "--function",
            "helloworld",
            "--track-dirty-pages",
            "-o",
            dir.to_str().unwrap(),
        ])
        .success();
        let machine = snapshots::restore(&dir, MemoryRestoreMode::File);
        assert!(machine.config().machine_config.track_dirty_pages);
        assert_eq!(
            machine.memory().diff_base(),
            Some(snapshots::open(&dir).id())
        );
    });
}
