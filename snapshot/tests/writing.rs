//! How a snapshot comes into its place, and what does not come there.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::Duration;

use common::{PAGES, SIZE_BYTES, fill_of, memory, names, parts, state, write};
use proptest::prelude::*;
use reapvm_snapshot::{
    CreateError, LockError, MAX_MEMORY_BYTES, PAGE_SIZE, RegionInfo, Snapshot, SnapshotWriter,
};

#[test]
fn creates_and_replaces() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("s");
    for fill in 1..4 {
        let manifest = write(&dir, fill).unwrap();
        assert_eq!(*Snapshot::open(&dir).unwrap().manifest(), manifest);
        assert_eq!(fill_of(&dir), fill);
        // What was made for the older snapshot goes with it.
        fs::write(dir.join("working-set"), "of this one").unwrap();
        fs::write(dir.join("trace"), "of this one").unwrap();
        assert_eq!(names(parent.path()), ["s"]);
    }
    write(&dir, 4).unwrap();
    assert_eq!(
        names(&dir),
        ["manifest.json", "memory", "memory-index", "state"]
    );
}

#[test]
fn nothing_is_at_the_destination_before_the_end() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("s");
    let mut writer = SnapshotWriter::create(&dir).unwrap();
    writer.write_state(&state(1)).unwrap();
    let mut memory_writer = writer.memory_writer(SIZE_BYTES).unwrap();
    memory_writer.write_pages(0, &memory(1)).unwrap();
    memory_writer.finish().unwrap();
    assert!(!dir.exists());
    let hidden = names(parent.path());
    assert!(
        hidden.len() == 1 && hidden[0].starts_with(".s.partial-"),
        "{hidden:?}"
    );
    assert!(Snapshot::open(&parent.path().join(&hidden[0])).is_err());
    drop(writer);
    assert!(names(parent.path()).is_empty());
}

#[test]
fn takes_the_place_of_an_empty_directory_and_follows_a_link() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("s");
    fs::create_dir(&dir).unwrap();
    symlink("s", parent.path().join("link")).unwrap();
    write(&parent.path().join("link"), 1).unwrap();
    assert_eq!(fill_of(&dir), 1);
    write(&parent.path().join("link/"), 2).unwrap();
    assert_eq!(fill_of(&dir), 2);
    assert_eq!(names(parent.path()), ["link", "s"]);
    assert!(
        fs::symlink_metadata(parent.path().join("link"))
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn what_is_not_a_snapshot_is_never_replaced() {
    type Make = fn(&Path);
    let cases: [(&str, Make); 6] = [
        ("not a directory", |path| {
            fs::write(path, "precious").unwrap()
        }),
        ("`notes.txt`", |path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("notes.txt"), "precious").unwrap();
        }),
        // Another program's, under the same name.
        ("`popup.html`", |path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("manifest.json"), "{}").unwrap();
            fs::write(path.join("popup.html"), "precious").unwrap();
        }),
        ("`memory`", |path| {
            fs::create_dir_all(path.join("memory")).unwrap()
        }),
        ("no manifest.json", |path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("state"), "precious").unwrap();
        }),
        ("not a directory", |path| symlink("nowhere", path).unwrap()),
    ];
    for (reason, make) in cases {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("s");
        make(&dir);
        let before = fs::symlink_metadata(&dir).unwrap();
        let error = SnapshotWriter::create(&dir).unwrap_err();
        assert!(matches!(error, CreateError::Foreign { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{error}");
        let after = fs::symlink_metadata(&dir).unwrap();
        assert_eq!(
            (before.ino(), before.mtime_nsec()),
            (after.ino(), after.mtime_nsec())
        );
        assert_eq!(names(parent.path()), ["s"]);
    }
}

/// The destination changes while the snapshot is written.
#[test]
fn what_comes_in_between_is_not_replaced_either() {
    for old in [false, true] {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("s");
        if old {
            write(&dir, 1).unwrap();
        }
        let mut writer = SnapshotWriter::create(&dir).unwrap();
        writer.write_state(&state(2)).unwrap();
        let mut memory_writer = writer.memory_writer(SIZE_BYTES).unwrap();
        memory_writer.write_pages(0, &memory(2)).unwrap();
        memory_writer.finish().unwrap();
        if !old {
            fs::create_dir(&dir).unwrap();
        }
        fs::write(dir.join("notes.txt"), "precious").unwrap();
        let error = writer.finish(parts()).unwrap_err();
        assert!(matches!(error, CreateError::Foreign { .. }), "{error:?}");
        assert_eq!(
            fs::read_to_string(dir.join("notes.txt")).unwrap(),
            "precious"
        );
        assert_eq!(names(parent.path()), ["s"]);
    }
}

#[test]
fn refuses_places_that_cannot_be() {
    let parent = tempfile::tempdir().unwrap();
    let root = SnapshotWriter::create(Path::new("/")).unwrap_err();
    assert!(
        matches!(
            root,
            CreateError::NoName { .. } | CreateError::Foreign { .. }
        ),
        "{root:?}"
    );
    let empty = SnapshotWriter::create(Path::new("")).unwrap_err();
    assert!(matches!(empty, CreateError::NoName { .. }), "{empty:?}");
    let absent = SnapshotWriter::create(&parent.path().join("absent/s")).unwrap_err();
    assert!(matches!(absent, CreateError::Parent { .. }), "{absent:?}");
    fs::write(parent.path().join("file"), "").unwrap();
    let below_a_file = SnapshotWriter::create(&parent.path().join("file/s")).unwrap_err();
    assert!(
        matches!(below_a_file, CreateError::Parent { .. }),
        "{below_a_file:?}"
    );
    assert_eq!(names(parent.path()), ["file"]);
}

#[test]
fn a_snapshot_needs_all_its_parts_once() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("s");
    let create = || SnapshotWriter::create(&dir).unwrap();

    let error = create().finish(parts()).unwrap_err();
    assert!(
        matches!(error, CreateError::NotWritten { what: "state" }),
        "{error:?}"
    );

    let mut writer = create();
    writer.write_state(&state(1)).unwrap();
    let error = writer.write_state(&state(1)).unwrap_err();
    assert!(
        matches!(error, CreateError::WrittenTwice { what: "state" }),
        "{error:?}"
    );
    let error = writer.finish(parts()).unwrap_err();
    assert!(
        matches!(error, CreateError::NotWritten { what: "memory" }),
        "{error:?}"
    );

    // Regions that do not cover the memory that was written.
    let mut writer = create();
    writer.write_state(&state(1)).unwrap();
    let mut memory_writer = writer.memory_writer(SIZE_BYTES).unwrap();
    memory_writer.write_pages(0, &memory(1)).unwrap();
    memory_writer.finish().unwrap();
    let regions = vec![RegionInfo {
        gpa: 0,
        size_bytes: SIZE_BYTES - 4096,
        file_offset: 0,
    }];
    let error = writer
        .finish(reapvm_snapshot::ManifestParts { regions, ..parts() })
        .unwrap_err();
    assert!(matches!(error, CreateError::Manifest(_)), "{error:?}");

    assert!(names(parent.path()).is_empty());
}

#[test]
fn memory_is_written_whole_once_and_aligned() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("s");
    for size_bytes in [0, 1, 4095, MAX_MEMORY_BYTES + 4096, u64::MAX] {
        let mut writer = SnapshotWriter::create(&dir).unwrap();
        let error = writer.memory_writer(size_bytes).unwrap_err();
        assert!(matches!(error, CreateError::MemorySize { .. }), "{error:?}");
    }
    let mut writer = SnapshotWriter::create(&dir).unwrap();
    let mut memory_writer = writer.memory_writer(SIZE_BYTES).unwrap();
    let page = [1; PAGE_SIZE];
    for (offset, len) in [
        (1, 4096),
        (0, 4095),
        (SIZE_BYTES, 4096),
        (u64::MAX - 4095, 4096),
    ] {
        let error = memory_writer.write_pages(offset, &page[..len]).unwrap_err();
        assert!(matches!(error, CreateError::PageRange { .. }), "{error:?}");
        let error = memory_writer
            .write_zero_pages(offset, len as u64)
            .unwrap_err();
        assert!(matches!(error, CreateError::PageRange { .. }), "{error:?}");
    }
    memory_writer.write_pages(4096, &page).unwrap();
    let error = memory_writer.write_zero_pages(0, SIZE_BYTES).unwrap_err();
    assert!(
        matches!(error, CreateError::PageTwice { page_index: 1 }),
        "{error:?}"
    );
    let error = memory_writer.finish().unwrap_err();
    assert!(
        matches!(error, CreateError::PagesMissing { count, first_page_index: 0 } if count == PAGES as u64 - 1),
        "{error:?}"
    );
}

#[test]
fn zero_pages_take_no_blocks() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("s");
    let size_bytes = 64_u64 << 20;
    let mut writer = SnapshotWriter::create(&dir).unwrap();
    writer.write_state(&state(1)).unwrap();
    let mut memory_writer = writer.memory_writer(size_bytes).unwrap();
    memory_writer
        .write_pages(0, &vec![0; size_bytes as usize / 2])
        .unwrap();
    memory_writer
        .write_zero_pages(size_bytes / 2, size_bytes / 2 - 4096)
        .unwrap();
    memory_writer
        .write_pages(size_bytes - 4096, &[1; PAGE_SIZE])
        .unwrap();
    memory_writer.finish().unwrap();
    let regions = vec![RegionInfo {
        gpa: 0,
        size_bytes,
        file_offset: 0,
    }];
    let manifest = writer
        .finish(reapvm_snapshot::ManifestParts { regions, ..parts() })
        .unwrap();
    assert_eq!(manifest.memory.data_pages, 1);
    assert_eq!(manifest.memory.zero_pages, size_bytes / 4096 - 1);
    let metadata = fs::metadata(dir.join("memory")).unwrap();
    assert_eq!(metadata.len(), size_bytes);
    assert!(
        metadata.blocks() * 512 <= 1 << 20,
        "{} blocks",
        metadata.blocks()
    );
    assert!(Snapshot::open(&dir).unwrap().verify().unwrap().is_intact());
}

#[test]
fn concurrent_writers_leave_one_whole_snapshot() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("s");
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=6)
            .map(|fill| {
                let dir = &dir;
                scope.spawn(move || (0..6).map(|_| write(dir, fill)).collect::<Vec<_>>())
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    for result in results {
        result.unwrap();
    }
    assert!((1..=6).contains(&fill_of(&dir)));
    assert_eq!(names(parent.path()), ["s"]);
}

#[test]
fn a_snapshot_into_which_a_working_set_is_being_written_is_replaced_when_that_is_done() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("s");
    write(&dir, 1).unwrap();
    let older = Snapshot::open(&dir).unwrap();
    let lock = older.directory().lock().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_secs(3));
            drop(lock);
        });
        write(&dir, 2).unwrap();
    });
    assert_eq!(fill_of(&dir), 2);
    let error = older.directory().lock().unwrap_err();
    assert!(matches!(error, LockError::Replaced { .. }), "{error}");
    drop(Snapshot::open(&dir).unwrap().directory().lock().unwrap());
}

#[test]
fn leftovers_of_the_dead_are_removed_and_the_living_are_left() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("s");
    let leftover = parent.path().join(".s.partial-0123456789abcdef");
    fs::create_dir(&leftover).unwrap();
    fs::write(leftover.join("memory"), "half").unwrap();
    // Others that only look alike.
    for other in [
        ".s.partial-0123",
        ".t.partial-0123456789abcdef",
        ".s.partial-0123456789abcdeX",
    ] {
        fs::create_dir(parent.path().join(other)).unwrap();
    }
    fs::write(parent.path().join(".s.partial-fedcba9876543210"), "a file").unwrap();
    let living = SnapshotWriter::create(&dir).unwrap();
    assert!(!leftover.exists());
    assert_eq!(names(parent.path()).len(), 5);
    write(&dir, 1).unwrap();
    assert_eq!(names(parent.path()).len(), 6);
    drop(living);
    assert_eq!(
        names(parent.path()),
        [
            ".s.partial-0123",
            ".s.partial-0123456789abcdeX",
            ".s.partial-fedcba9876543210",
            ".t.partial-0123456789abcdef",
            "s"
        ]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Any memory, given in any pieces in any order, is read back and verifies.
    #[test]
    fn memory_round_trips(
        kinds in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 1..40),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        reverse in any::<bool>(),
    ) {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("s");
        let mut memory = vec![0; kinds.len() * PAGE_SIZE];
        for (page, kind) in memory.chunks_exact_mut(PAGE_SIZE).zip(&kinds) {
            // A single byte at its end is what a careless test for zeros overlooks.
            page[PAGE_SIZE - 1] = *kind;
        }
        let mut bounds: Vec<usize> = cuts.iter().map(|cut| cut.index(kinds.len())).collect();
        bounds.extend([0, kinds.len()]);
        bounds.sort_unstable();
        let mut pieces: Vec<_> = bounds.windows(2).map(|pair| pair[0]..pair[1]).collect();
        if reverse {
            pieces.reverse();
        }

        let mut writer = SnapshotWriter::create(&dir).unwrap();
        writer.write_state(&state(1)).unwrap();
        let mut memory_writer = writer.memory_writer(memory.len() as u64).unwrap();
        for pages in pieces {
            let bytes = &memory[pages.start * PAGE_SIZE..pages.end * PAGE_SIZE];
            memory_writer.write_pages((pages.start * PAGE_SIZE) as u64, bytes).unwrap();
        }
        memory_writer.finish().unwrap();
        let regions =
            vec![RegionInfo { gpa: 0, size_bytes: memory.len() as u64, file_offset: 0 }];
        let manifest =
            writer.finish(reapvm_snapshot::ManifestParts { regions, ..parts() }).unwrap();
        let zero_pages = kinds.iter().filter(|kind| **kind == 0).count() as u64;
        prop_assert_eq!(manifest.memory.zero_pages, zero_pages);
        prop_assert_eq!(fs::read(dir.join("memory")).unwrap(), memory);
        let snapshot = Snapshot::open(&dir).unwrap();
        prop_assert!(snapshot.verify().unwrap().is_intact());
        let index = snapshot.memory_index().unwrap();
        for (page_index, kind) in kinds.iter().enumerate() {
            prop_assert_eq!(index.is_zero(page_index as u64), *kind == 0);
        }
    }
}
