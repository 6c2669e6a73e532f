//! What the fuzz targets drive, by the name of the target. The replay of the corpus and the
//! targets themselves both call this.

use std::path::Path;

use reapvm_devices::fuzzing;
use reapvm_reap::study::{self, Study};
use reapvm_reap::trace::{self, TraceReader};
use reapvm_reap::{WorkingSet, WorkingSetState};
use reapvm_snapshot::{MemoryIndex, Snapshot, SnapshotId, StateFile};

/// The id that the seeds of the file formats carry.
pub const SEED_ID: [u8; 16] = *b"reapvm-seed-0001";
/// The guest memory that working sets are read for, in bytes.
pub const MEMORY_BYTES: u64 = 128 << 20;

/// The names of all targets.
pub const TARGETS: [&str; 12] = [
    "rng",
    "vsock",
    "block",
    "net",
    "balloon",
    "state_file",
    "memory_index",
    "working_set",
    "working_set_state",
    "trace",
    "manifest",
    "study",
];

/// Gives `bytes` to the target `name`; `scratch` is a directory for those that read files.
///
/// # Panics
/// If there is no such target, or it found a defect.
pub fn drive(name: &str, bytes: &[u8], scratch: &Path) {
    let id = SnapshotId::from_bytes(SEED_ID);
    let file = scratch.join(name);
    match name {
        "rng" => fuzzing::drive_rng(bytes),
        "vsock" => fuzzing::drive_vsock(bytes),
        "block" => fuzzing::drive_block(bytes),
        "net" => fuzzing::drive_net(bytes),
        "balloon" => fuzzing::drive_balloon(bytes),
        "state_file" => {
            if let Ok(state) = StateFile::decode(bytes) {
                // What was read is what is written.
                assert_eq!(state.encode().unwrap(), bytes);
            }
        }
        "memory_index" => {
            if let Ok(index) = MemoryIndex::decode(bytes.to_vec(), &id) {
                for page in 0..index.page_count() {
                    let _ = (index.page_kind(page), index.page_crc32c(page));
                }
            }
        }
        "working_set" => {
            std::fs::write(&file, bytes).unwrap();
            if let Ok(set) = WorkingSet::verify(&file, &id, MEMORY_BYTES) {
                assert_eq!(set.len_bytes(), bytes.len() as u64);
                let end = set.extents().iter().map(|e| e.gpa + e.pages * 4096).max();
                assert!(end <= Some(MEMORY_BYTES));
            }
            // The other reader has to agree as far as it looks.
            if let Ok(reader) = WorkingSet::open(&file, &id, MEMORY_BYTES) {
                let _ = reader.read_tables();
            }
        }
        "working_set_state" => {
            std::fs::write(&file, bytes).unwrap();
            if let Ok(Some(state)) = WorkingSetState::read(&file, &id, MEMORY_BYTES) {
                // What was read is what is written.
                state.write(&file, &id).unwrap();
                assert_eq!(std::fs::read(&file).unwrap(), bytes);
            }
        }
        "trace" => {
            std::fs::write(&file, bytes).unwrap();
            if let Ok(records) = trace::read(&file, &id) {
                // What was read can be written, and is then read again.
                let reader = TraceReader::open(&file, Some(&id)).unwrap();
                let (header, summary) = (reader.header().clone(), reader.summary().clone());
                assert_eq!(summary.records, records.len() as u64);
                trace::write(&file, &header, &records, summary).unwrap();
                assert_eq!(trace::read(&file, &id).unwrap(), records);
            }
        }
        "manifest" => {
            let dir = scratch.join("snapshot");
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(reapvm_snapshot::MANIFEST_FILE), bytes).unwrap();
            let _ = Snapshot::open(&dir);
        }
        "study" => {
            let dir = scratch.join("a-study");
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(study::MEASUREMENTS_FILE), bytes).unwrap();
            if let Ok(study) = Study::read(&dir) {
                let _ = study.missing();
                // What was read can be written, and is then read again.
                study.write(&dir).unwrap();
                assert_eq!(Study::read(&dir).unwrap(), study);
            }
        }
        other => panic!("there is no fuzz target '{other}'"),
    }
}
