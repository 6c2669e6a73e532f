//! Snapshots of the tests' memory.

use std::path::Path;
use std::sync::Arc;

use reapvm_snapshot::{HostInfo, ManifestParts, RegionInfo, Snapshot, SnapshotWriter, StateFile};

use super::{PAGE, expected_page};

/// A snapshot in `dir` whose memory has so many pages, each as [`expected_page`] says.
pub fn write_snapshot(dir: &Path, pages: usize) -> Arc<Snapshot> {
    let size_bytes = (pages * PAGE) as u64;
    let mut writer = SnapshotWriter::create(dir).unwrap();
    writer.write_state(&StateFile::new()).unwrap();
    let mut memory = writer.memory_writer(size_bytes).unwrap();
    for page in 0..pages as u64 {
        let gpa = page * PAGE as u64;
        memory.write_pages(gpa, &expected_page(gpa)).unwrap();
    }
    memory.finish().unwrap();
    writer
        .finish(ManifestParts {
            creator: "test".to_owned(),
            vm: serde_json::json!({}),
            host: HostInfo {
                cpu_vendor: String::new(),
                cpu_model: String::new(),
                kernel_release: String::new(),
            },
            regions: vec![RegionInfo {
                gpa: 0,
                size_bytes,
                file_offset: 0,
            }],
            booted_resident_bytes: 0,
        })
        .unwrap();
    Arc::new(Snapshot::open(dir).unwrap())
}
