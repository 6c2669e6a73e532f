//! Diffs, and the full snapshots that are made of them.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use common::{PAGES, SIZE_BYTES, chain, memory, names, parts, state, write};
use proptest::prelude::*;
use reapvm_snapshot::{
    CreateError, FORMAT_VERSION, Manifest, MemoryReadError, MemoryReader, MergeError, OpenError,
    PAGE_SIZE, PageError, PageKind, Snapshot, SnapshotId, SnapshotWriter, merge,
};

/// What a diff does to a page: leave it, make it zero, fill it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Leave,
    Zero,
    Fill(u8),
}

fn open(dir: &Path) -> Arc<Snapshot> {
    Arc::new(Snapshot::open(dir).unwrap())
}

fn write_diff(dir: &Path, base: SnapshotId, fill: u8, changes: &[Change]) -> Manifest {
    let mut writer = SnapshotWriter::create(dir).unwrap();
    writer.write_state(&state(fill)).unwrap();
    let mut memory = writer.diff_memory_writer(SIZE_BYTES, base).unwrap();
    for (offset, change) in (0..).step_by(PAGE_SIZE).zip(changes) {
        match change {
            Change::Leave => memory.write_unchanged_pages(offset, 4096).unwrap(),
            Change::Zero => memory.write_zero_pages(offset, 4096).unwrap(),
            Change::Fill(byte) => memory.write_pages(offset, &[*byte; PAGE_SIZE]).unwrap(),
        }
    }
    memory.finish().unwrap();
    writer.finish(parts()).unwrap()
}

/// Some of each.
fn some_changes() -> Vec<Change> {
    let mut changes = vec![Change::Leave; PAGES];
    changes[1] = Change::Fill(0xd1);
    changes[2] = Change::Fill(0xd2);
    changes[4] = Change::Zero;
    changes
}

fn merge_quietly(base: &Path, diffs: &[&Path], dir: &Path) -> Result<Manifest, MergeError> {
    let diffs: Vec<_> = diffs.iter().map(|dir| open(dir)).collect();
    merge(&open(base), &diffs, dir, "a merger 1.0", &mut |_| ())
}

#[test]
fn a_diff_holds_what_was_written_and_names_its_base() {
    let parent = tempfile::tempdir().unwrap();
    let [base_dir, dir] = ["base", "diff"].map(|name| parent.path().join(name));
    let base = write(&base_dir, 1).unwrap();
    let manifest = write_diff(&dir, base.id, 2, &some_changes());
    let diff = open(&dir);
    assert_eq!(*diff.manifest(), manifest);
    let info = &manifest.memory;
    assert_eq!(info.base, Some(base.id));
    assert_eq!(
        (info.data_pages, info.zero_pages, info.unchanged_pages),
        (2, 1, PAGES as u64 - 3)
    );
    assert_eq!(info.page_count(), PAGES as u64);
    let memory = fs::metadata(dir.join("memory")).unwrap();
    assert_eq!(memory.len(), SIZE_BYTES);
    assert_eq!(memory.blocks() * 512, 2 * 4096, "only what was written");
    let report = diff.verify().unwrap();
    assert!(report.is_intact());
    assert_eq!(report.unchanged_pages, PAGES as u64 - 3);
    let index = diff.memory_index().unwrap();
    assert_eq!(index.page_kind(1), Some(PageKind::Data));
    assert_eq!(index.page_kind(4), Some(PageKind::Zero));
    assert_eq!(index.page_kind(0), Some(PageKind::Unchanged));
    assert_eq!(index.page_kind(PAGES as u64), None);

    // What it does not have it does not give, least of all as zeros.
    let reader = MemoryReader::open(Arc::clone(&diff)).unwrap();
    let mut page = [0; PAGE_SIZE];
    reader.read_pages(1, &mut page).unwrap();
    assert_eq!(page, [0xd1; PAGE_SIZE]);
    let error = reader.read_pages(0, &mut page).unwrap_err();
    assert!(
        matches!(
            error,
            MemoryReadError::Page {
                source: PageError::Unchanged { page_index: 0 },
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn only_a_diff_leaves_pages_to_a_base() {
    let parent = tempfile::tempdir().unwrap();
    let mut writer = SnapshotWriter::create(&parent.path().join("s")).unwrap();
    let mut memory = writer.memory_writer(SIZE_BYTES).unwrap();
    let error = memory.write_unchanged_pages(0, 4096).unwrap_err();
    assert!(matches!(error, CreateError::NoBase), "{error:?}");
    drop(writer);
    let mut writer = SnapshotWriter::create(&parent.path().join("s")).unwrap();
    let base = SnapshotId::from_bytes([1; 16]);
    let mut memory = writer.diff_memory_writer(SIZE_BYTES, base).unwrap();
    memory.write_unchanged_pages(0, 8192).unwrap();
    let error = memory.write_pages(4096, &[1; PAGE_SIZE]).unwrap_err();
    assert!(matches!(error, CreateError::PageTwice { page_index: 1 }));
    let error = memory.finish().unwrap_err();
    assert!(matches!(
        error,
        CreateError::PagesMissing {
            first_page_index: 2,
            ..
        }
    ));
}

#[test]
fn a_merged_snapshot_is_a_full_one_of_its_own() {
    let parent = tempfile::tempdir().unwrap();
    let [base, diff, dir] = ["base", "diff", "merged"].map(|name| parent.path().join(name));
    let of_base = write(&base, 1).unwrap();
    let of_diff = write_diff(&diff, of_base.id, 2, &some_changes());
    let manifest = merge_quietly(&base, &[&diff], &dir).unwrap();
    let merged = open(&dir);
    assert_eq!(*merged.manifest(), manifest);
    assert_eq!(manifest.format_version, FORMAT_VERSION);
    assert_eq!(manifest.memory.base, None);
    assert!(manifest.id != of_base.id && manifest.id != of_diff.id);
    assert_eq!(manifest.creator, "a merger 1.0");
    assert_eq!(merged.read_state().unwrap(), state(2));
    assert!(merged.verify().unwrap().is_intact());
    // Over one of its parts.
    merge_quietly(&base, &[&diff], &base).unwrap();
    assert_eq!(
        fs::read(base.join("memory")).unwrap(),
        fs::read(dir.join("memory")).unwrap()
    );
    assert!(open(&base).verify().unwrap().is_intact());
    // The diff is not one against that.
    let error = merge_quietly(&base, &[&diff], &dir).unwrap_err();
    assert!(matches!(error, MergeError::OtherBase { .. }), "{error:?}");
    assert_eq!(open(&dir).id(), manifest.id);
    assert_eq!(names(parent.path()), ["base", "diff", "merged"]);
}

#[test]
fn what_does_not_follow_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let [base, other, first, second, dir] =
        ["base", "other", "first", "second", "merged"].map(|name| parent.path().join(name));
    let of_base = write(&base, 1).unwrap();
    write(&other, 1).unwrap();
    let of_first = write_diff(&first, of_base.id, 2, &some_changes());
    write_diff(&second, of_first.id, 3, &some_changes());
    let refused = |base: &Path, diffs: &[&Path], needles: &[&str]| {
        let error = merge_quietly(base, diffs, &dir).unwrap_err();
        let text = chain(&error);
        for needle in needles {
            assert!(text.contains(needle), "no '{needle}' in: {text}");
        }
        assert!(!dir.exists());
    };
    let id = of_base.id.to_string();
    refused(&base, &[], &["no diff"]);
    refused(&other, &[&first], &["first", "other", &id, "order"]);
    refused(&base, &[&second], &["second", "order"]);
    refused(&base, &[&second, &first], &["order"]);
    refused(&base, &[&first, &first], &["order"]);
    refused(&base, &[&other], &["other is not a diff"]);
    refused(&first, &[&second], &["first cannot be the base", &id]);
    merge_quietly(&base, &[&first, &second], &dir).unwrap();
}

#[test]
fn a_damaged_part_is_found_and_everything_else_stays() {
    let parent = tempfile::tempdir().unwrap();
    let [base, diff, dir] = ["base", "diff", "merged"].map(|name| parent.path().join(name));
    let of_base = write(&base, 1).unwrap();
    write_diff(&diff, of_base.id, 2, &some_changes());
    write(&dir, 9).unwrap();
    let before = open(&dir).id();
    let flip = |path: &Path, at: u64| {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    // A page that the diff replaces is not read from the base, one that it leaves is.
    flip(&base.join("memory"), 4096 + 7);
    merge_quietly(&base, &[&diff], &parent.path().join("x")).unwrap();
    flip(&base.join("memory"), 4096 + 7);
    let page_3 = 3 * 4096 + 7;
    for (part, file, at) in [
        (&base, "memory", page_3),
        (&base, "memory-index", 60),
        (&diff, "memory", 4096 + 7),
        (&diff, "memory-index", 45),
        (&diff, "memory-index", 60),
        (&diff, "state", 20),
    ] {
        flip(&part.join(file), at);
        let error = merge_quietly(&base, &[&diff], &dir).unwrap_err();
        let text = chain(&error);
        let path = part.join(file);
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        assert!(text.contains("damaged"), "{text}");
        flip(&part.join(file), at);
    }
    // A page of the diff that is gone: its place is a hole.
    let hole = fs::File::options()
        .write(true)
        .open(diff.join("memory"))
        .unwrap();
    hole.write_all_at(&[0; PAGE_SIZE], 2 * 4096).unwrap();
    let text = chain(&merge_quietly(&base, &[&diff], &dir).unwrap_err());
    assert!(text.contains("page 2"), "{text}");
    assert!(!open(&diff).verify().unwrap().is_intact());
    hole.write_all_at(&[0xd2; PAGE_SIZE], 2 * 4096).unwrap();
    // Something in the place of a page that it leaves: never read by a merge, but damage.
    hole.write_all_at(&[1], 3 * 4096).unwrap();
    let report = open(&diff).verify().unwrap();
    let error = PageError::NotEmpty { page_index: 3 };
    assert_eq!(report.bad_page_count, 1);
    assert_eq!(report.bad_pages[0].error, error);
    hole.write_all_at(&[0], 3 * 4096).unwrap();
    // Cut short or lengthened.
    for len in [SIZE_BYTES - 1, SIZE_BYTES + 4096] {
        hole.set_len(len).unwrap();
        let error = Snapshot::open(&diff).unwrap_err();
        assert!(matches!(error, OpenError::File { .. }), "{error:?}");
    }
    assert_eq!(open(&dir).id(), before);
    assert!(open(&base).verify().unwrap().is_intact());
    assert_eq!(names(parent.path()), ["base", "diff", "merged", "x"]);
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        3 => Just(Change::Leave),
        1 => Just(Change::Zero),
        2 => any::<u8>().prop_map(Change::Fill),
    ];
    proptest::collection::vec(change, PAGES)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against plain memory to which the changes are made.
    #[test]
    fn merging_equals_overlaying(diffs in proptest::collection::vec(changes(), 1..5)) {
        let parent = tempfile::tempdir().unwrap();
        let base = parent.path().join("base");
        let mut before = write(&base, 0x77).unwrap().id;
        let mut expected = memory(0x77);
        let mut dirs = Vec::new();
        for (number, changes) in (1..).zip(&diffs) {
            let dir = parent.path().join(format!("diff-{number}"));
            before = write_diff(&dir, before, number, changes).id;
            dirs.push(dir);
            for (page, change) in expected.chunks_exact_mut(PAGE_SIZE).zip(changes) {
                match change {
                    Change::Leave => {}
                    Change::Zero => page.fill(0),
                    Change::Fill(byte) => page.fill(*byte),
                }
            }
        }
        let dir = parent.path().join("merged");
        let dirs: Vec<&Path> = dirs.iter().map(std::path::PathBuf::as_path).collect();
        let manifest = merge_quietly(&base, &dirs, &dir).unwrap();
        prop_assert!(fs::read(dir.join("memory")).unwrap() == expected);
        let merged = open(&dir);
        prop_assert!(merged.verify().unwrap().is_intact());
        prop_assert_eq!(merged.read_state().unwrap(), state(diffs.len() as u8));
        // As if it had been saved at once.
        let mut writer = SnapshotWriter::create(&parent.path().join("at-once")).unwrap();
        let mut memory = writer.memory_writer(SIZE_BYTES).unwrap();
        memory.write_pages(0, &expected).unwrap();
        memory.finish().unwrap();
        writer.write_state(&state(1)).unwrap();
        let at_once = writer.finish(parts()).unwrap();
        prop_assert_eq!(manifest.memory, at_once.memory);
    }
}
