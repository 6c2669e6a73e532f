//! What the reader refuses, and what `verify` finds.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use common::{PAGES, SIZE_BYTES, chain, memory, write};
use proptest::prelude::*;
use proptest::sample::Index;
use reapvm_snapshot::checksum::crc32c;
use reapvm_snapshot::{
    MAX_MANIFEST_BYTES, MAX_REPORTED_BAD_PAGES, ManifestError, MemoryIndexError, OpenError,
    PAGE_SIZE, PageError, ReadError, Snapshot, VerifyError,
};
use tempfile::TempDir;

fn snapshot() -> (TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("s");
    write(&dir, 1).unwrap();
    (parent, dir)
}

fn flip(path: &std::path::Path, at: usize, bit: u32) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1 << bit;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_was_written_is_read() {
    let (_parent, dir) = snapshot();
    let snapshot = Snapshot::open(&dir).unwrap();
    assert_eq!(snapshot.dir(), dir);
    assert_eq!(snapshot.manifest().memory.regions, common::parts().regions);
    assert_eq!(snapshot.read_state().unwrap(), common::state(1));
    let index = snapshot.memory_index().unwrap();
    assert_eq!(index.page_count(), PAGES as u64);
    assert_eq!(index.snapshot_id(), snapshot.id());
    assert_eq!(index.zero_page_count(), PAGES as u64 / 3);
    for (number, page) in memory(1).chunks_exact(PAGE_SIZE).enumerate() {
        assert_eq!(index.is_zero(number as u64), number % 3 == 2);
        assert_eq!(index.page_crc32c(number as u64), crc32c(page));
        index.verify_page(number as u64, page).unwrap();
    }
    assert_eq!(
        snapshot.open_memory().unwrap().metadata().unwrap().len(),
        SIZE_BYTES
    );
    assert_eq!(snapshot.working_set_path(), dir.join("working-set"));
    assert_eq!(snapshot.trace_path(), dir.join("trace"));
}

#[test]
fn what_is_not_a_snapshot_is_refused() {
    let (parent, dir) = snapshot();
    let absent = Snapshot::open(&parent.path().join("absent")).unwrap_err();
    assert!(matches!(absent, OpenError::NotFound { .. }), "{absent:?}");
    let file = Snapshot::open(&dir.join("state")).unwrap_err();
    assert!(matches!(file, OpenError::NotADirectory { .. }), "{file:?}");
    fs::remove_file(dir.join("manifest.json")).unwrap();
    let half = Snapshot::open(&dir).unwrap_err();
    assert!(matches!(half, OpenError::NoManifest { .. }), "{half:?}");
    assert!(half.to_string().contains("half written"), "{half}");
}

#[test]
fn a_manifest_of_another_version_or_length_is_refused() {
    let (_parent, dir) = snapshot();
    let path = dir.join("manifest.json");
    let inner = "{\"format_version\": 7}";
    let crc = crc32c(inner.as_bytes());
    fs::write(
        &path,
        format!("{{\n\"crc32c\": \"{crc:08x}\",\n\"manifest\": {inner}\n}}\n"),
    )
    .unwrap();
    let other = Snapshot::open(&dir).unwrap_err();
    let text = chain(&other);
    assert!(
        text.contains("version 7") && text.contains("version 1"),
        "{text}"
    );

    File::create(&path)
        .unwrap()
        .set_len(MAX_MANIFEST_BYTES + 1)
        .unwrap();
    let long = Snapshot::open(&dir).unwrap_err();
    assert!(
        matches!(
            long,
            OpenError::Manifest {
                source: ManifestError::TooLong,
                ..
            }
        ),
        "{long:?}"
    );
}

#[test]
fn missing_and_truncated_files_are_refused_on_open() {
    for name in ["state", "memory", "memory-index"] {
        let (_parent, dir) = snapshot();
        let path = dir.join(name);
        let expected = fs::metadata(&path).unwrap().len();
        for actual in [0, 1, expected / 2, expected - 1, expected + 1, 1 << 45] {
            // The filesystem may not have so long files; the longest of these is only a claim.
            if File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(actual)
                .is_err()
            {
                assert_eq!(actual, 1 << 45);
                continue;
            }
            let error = Snapshot::open(&dir).unwrap_err();
            let OpenError::File {
                source:
                    ReadError::Length {
                        expected_bytes,
                        actual_bytes,
                        ..
                    },
                ..
            } = error
            else {
                panic!("{error:?}")
            };
            assert_eq!((expected_bytes, actual_bytes), (expected, actual));
        }
        fs::remove_file(&path).unwrap();
        let error = Snapshot::open(&dir).unwrap_err();
        assert!(
            matches!(
                error,
                OpenError::File {
                    source: ReadError::Missing { .. },
                    ..
                }
            ),
            "{error:?}"
        );
    }
}

#[test]
fn files_that_are_not_plain_files_are_refused_and_not_waited_for() {
    for name in ["state", "memory", "memory-index"] {
        let (parent, dir) = snapshot();
        let (path, elsewhere) = (dir.join(name), parent.path().join("elsewhere"));
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        let error = Snapshot::open(&dir).unwrap_err();
        assert!(
            matches!(
                error,
                OpenError::File {
                    source: ReadError::NotAFile { .. },
                    ..
                }
            ),
            "{error:?}"
        );
    }
    let (_parent, dir) = snapshot();
    let path = dir.join("manifest.json");
    fs::remove_file(&path).unwrap();
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    let error = Snapshot::open(&dir).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::File {
                source: ReadError::NotAFile { .. },
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn files_that_change_after_the_opening_are_refused() {
    let (_parent, dir) = snapshot();
    let snapshot = Snapshot::open(&dir).unwrap();
    File::options()
        .write(true)
        .open(dir.join("memory"))
        .unwrap()
        .set_len(4096)
        .unwrap();
    assert!(matches!(
        snapshot.open_memory(),
        Err(ReadError::Length { .. })
    ));
    fs::remove_file(dir.join("state")).unwrap();
    assert!(matches!(
        snapshot.read_state(),
        Err(ReadError::Missing { .. })
    ));
    fs::remove_file(dir.join("memory-index")).unwrap();
    symlink("memory", dir.join("memory-index")).unwrap();
    assert!(matches!(
        snapshot.memory_index(),
        Err(ReadError::NotAFile { .. })
    ));
}

/// Both manifests are valid, so the index passes its checksum in neither; with the checksum and
/// the length made to fit, the id remains.
#[test]
fn the_index_of_another_snapshot_is_refused() {
    let (_first, first) = snapshot();
    let (_second, second) = snapshot();
    let foreign = fs::read(second.join("memory-index")).unwrap();
    fs::write(first.join("memory-index"), &foreign).unwrap();
    let error = Snapshot::open(&first).unwrap().memory_index().unwrap_err();
    assert!(matches!(error, ReadError::Checksum { .. }), "{error:?}");

    let text = fs::read_to_string(first.join("manifest.json")).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["manifest"]["files"]["memory_index"]["crc32c"] = crc32c(&foreign).into();
    let inner = value["manifest"].to_string();
    let crc = crc32c(inner.as_bytes());
    let text = format!("{{\n\"crc32c\": \"{crc:08x}\",\n\"manifest\": {inner}\n}}\n");
    fs::write(first.join("manifest.json"), text).unwrap();
    let error = Snapshot::open(&first).unwrap().memory_index().unwrap_err();
    assert!(
        matches!(
            error,
            ReadError::MemoryIndex {
                source: MemoryIndexError::OtherSnapshot { .. },
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_snapshot_that_was_replaced_is_never_mixed_with_its_successor() {
    let (_parent, dir) = snapshot();
    let old = Snapshot::open(&dir).unwrap();
    let memory = old.open_memory().unwrap();
    write(&dir, 2).unwrap();
    assert!(matches!(old.read_state(), Err(ReadError::Missing { .. })));
    assert!(matches!(old.open_memory(), Err(ReadError::Missing { .. })));
    let mut bytes = vec![0; SIZE_BYTES as usize];
    std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, 0).unwrap();
    assert_eq!(bytes, common::memory(1));
}

#[test]
fn verify_reports_progress_and_caps_its_list() {
    let (_parent, dir) = snapshot();
    let snapshot = Snapshot::open(&dir).unwrap();
    let mut seen = Vec::new();
    let report = snapshot
        .verify_with_progress(&mut |progress| seen.push(progress))
        .unwrap();
    assert!(report.is_intact());
    assert_eq!((report.zero_pages, report.data_pages), (4, 8));
    let last = seen.last().unwrap();
    assert_eq!(
        (last.checked_bytes, last.total_bytes),
        (SIZE_BYTES, SIZE_BYTES)
    );

    // The second region begins in the middle of the file.
    fs::write(dir.join("memory"), vec![0xee; SIZE_BYTES as usize]).unwrap();
    let report = snapshot.verify().unwrap();
    assert_eq!(report.bad_page_count, PAGES as u64);
    assert_eq!(report.bad_pages.len(), PAGES.min(MAX_REPORTED_BAD_PAGES));
    assert_eq!(report.bad_pages[PAGES / 2].gpa, 16 << 20);
    assert!(matches!(
        report.bad_pages[2].error,
        PageError::NotZero { page_index: 2 }
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_flipped_bit_in_memory_is_found_where_it_is(at in any::<Index>(), bit in 0..8_u32) {
        let (_parent, dir) = snapshot();
        let at = at.index(SIZE_BYTES as usize);
        flip(&dir.join("memory"), at, bit);
        let report = Snapshot::open(&dir).unwrap().verify().unwrap();
        prop_assert_eq!(report.bad_page_count, 1);
        let offset = (at / PAGE_SIZE * PAGE_SIZE) as u64;
        let half = SIZE_BYTES / 2;
        let gpa = if offset < half { offset } else { (16 << 20) + offset - half };
        prop_assert_eq!(report.bad_pages[0].gpa, gpa);
    }

    #[test]
    fn a_flipped_bit_elsewhere_is_refused(at in any::<Index>(), bit in 0..8_u32) {
        let (_parent, dir) = snapshot();
        for name in ["state", "memory-index", "manifest.json"] {
            let path = dir.join(name);
            let at = at.index(fs::metadata(&path).unwrap().len() as usize);
            flip(&path, at, bit);
            match (name, Snapshot::open(&dir)) {
                ("manifest.json", opened) => {
                    let refused = matches!(opened, Err(OpenError::Manifest { .. }));
                    prop_assert!(refused, "{:?}", opened);
                }
                (_, opened) => {
                    let snapshot = opened.unwrap();
                    let state = snapshot.read_state().map(drop);
                    let index = snapshot.memory_index().map(drop);
                    let read = if name == "state" { state } else { index };
                    prop_assert!(matches!(read, Err(ReadError::Checksum { .. })), "{:?}", read);
                    let verified = snapshot.verify();
                    prop_assert!(matches!(verified, Err(VerifyError::File(_))), "{:?}", verified);
                }
            }
            flip(&path, at, bit);
        }
    }
}
