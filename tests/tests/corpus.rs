//! Every file of the fuzz targets' corpus goes through its target once more.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use reapvm_tests::fuzzed;
use reapvm_tests::scratch;
use reapvm_tests::watchdog::guarded;

/// `REAPVM_TEST_CORPUS` says where the corpus is if not where the test was built.
fn corpus(target: &str) -> PathBuf {
    std::env::var_os("REAPVM_TEST_CORPUS")
        .map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus"),
            PathBuf::from,
        )
        .join(target)
}

#[test]
fn the_corpus_finds_nothing() {
    guarded(|| {
        let scratch = scratch::dir();
        for target in fuzzed::TARGETS {
            let names = scratch::names_in(&corpus(target));
            assert!(!names.is_empty(), "{target} has a corpus");
            for name in names {
                let bytes = std::fs::read(corpus(target).join(&name)).unwrap();
                // Shown if it fails: which file it was.
                println!("{target}/{name}");
                fuzzed::drive(target, &bytes, scratch.path());
            }
        }
    });
}

#[test]
fn a_cut_or_flipped_file_of_a_format_is_read_without_a_panic() {
    guarded(|| {
        let scratch = scratch::dir();
        for target in fuzzed::TARGETS {
            if matches!(target, "rng" | "vsock" | "block" | "net" | "balloon") {
                continue;
            }
            for name in scratch::names_in(&corpus(target)) {
                let whole = std::fs::read(corpus(target).join(&name)).unwrap();
                let step = whole.len() / 64 + 1;
                for at in (0..whole.len()).step_by(step) {
                    fuzzed::drive(target, &whole[..at], scratch.path());
                    let mut flipped = whole.clone();
                    flipped[at] ^= 0x80;
                    fuzzed::drive(target, &flipped, scratch.path());
                }
            }
        }
    });
}

#[test]
fn the_seeds_of_the_file_formats_are_accepted() {
    let scratch = scratch::dir();
    let id = reapvm_snapshot::SnapshotId::from_bytes(fuzzed::SEED_ID);
    let seed = |target: &str| std::fs::read(corpus(target).join("seed")).unwrap();
    assert!(reapvm_snapshot::StateFile::decode(&seed("state_file")).is_ok());
    assert!(reapvm_snapshot::MemoryIndex::decode(seed("memory_index"), &id).is_ok());
    let diff = std::fs::read(corpus("memory_index").join("seed-diff")).unwrap();
    let diff = reapvm_snapshot::MemoryIndex::decode(diff, &id).unwrap();
    assert_eq!(diff.unchanged_page_count(), 6);
    let file = scratch.path().join("f");
    std::fs::write(&file, seed("working_set")).unwrap();
    reapvm_reap::WorkingSet::verify(&file, &id, fuzzed::MEMORY_BYTES).unwrap();
    std::fs::write(&file, seed("working_set_state")).unwrap();
    let state = reapvm_reap::WorkingSetState::read(&file, &id, fuzzed::MEMORY_BYTES);
    assert_eq!(state.unwrap().unwrap().untouched_in_a_row, [0, 2, 1, 0]);
    std::fs::write(&file, seed("trace")).unwrap();
    assert!(!reapvm_reap::trace::read(&file, &id).unwrap().is_empty());
    let measurements = reapvm_reap::study::MEASUREMENTS_FILE;
    std::fs::write(scratch.path().join(measurements), seed("study")).unwrap();
    let study = reapvm_reap::study::Study::read(scratch.path()).unwrap();
    assert_eq!(study.functions[0].starts.len(), 2);
}
