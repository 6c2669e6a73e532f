//! A small snapshot to write and to look at.
#![allow(dead_code, unreachable_pub)]

use std::path::Path;

use reapvm_snapshot::{
    CreateError, HostInfo, Manifest, ManifestParts, PAGE_SIZE, RegionInfo, Snapshot,
    SnapshotWriter, StateFile,
};

/// Pages of two regions, the second 16 MiB up; every third page is zero.
pub const PAGES: usize = 12;
pub const SIZE_BYTES: u64 = (PAGES * PAGE_SIZE) as u64;

pub fn memory(fill: u8) -> Vec<u8> {
    let mut memory = vec![0; PAGES * PAGE_SIZE];
    for (number, page) in memory.chunks_exact_mut(PAGE_SIZE).enumerate() {
        if number % 3 != 2 {
            page.fill(fill);
            page[0] = number as u8;
        }
    }
    memory
}

pub fn state(fill: u8) -> StateFile {
    let mut state = StateFile::new();
    state.push("vcpu", 1, &[fill; 32]).unwrap();
    state
}

pub fn parts() -> ManifestParts {
    let half_bytes = SIZE_BYTES / 2;
    ManifestParts {
        creator: "a test 1.0".to_owned(),
        vm: serde_json::json!({ "vcpus": 1 }),
        host: HostInfo {
            cpu_vendor: "a vendor".to_owned(),
            cpu_model: "a model".to_owned(),
            kernel_release: "a release".to_owned(),
        },
        regions: vec![
            RegionInfo {
                gpa: 0,
                size_bytes: half_bytes,
                file_offset: 0,
            },
            RegionInfo {
                gpa: 16 << 20,
                size_bytes: half_bytes,
                file_offset: half_bytes,
            },
        ],
        booted_resident_bytes: 4096,
    }
}

/// Writes a snapshot whose contents are told by `fill`, which is not 0.
pub fn write(dir: &Path, fill: u8) -> Result<Manifest, CreateError> {
    let mut writer = SnapshotWriter::create(dir)?;
    writer.write_state(&state(fill))?;
    let mut memory_writer = writer.memory_writer(SIZE_BYTES)?;
    memory_writer.write_pages(0, &memory(fill))?;
    memory_writer.finish()?;
    writer.finish(parts())
}

/// The `fill` of the snapshot, every part of which has the same.
pub fn fill_of(dir: &Path) -> u8 {
    let snapshot = Snapshot::open(dir).unwrap();
    assert!(snapshot.verify().unwrap().is_intact());
    let fill: [u8; 32] = snapshot.read_state().unwrap().get("vcpu", 1).unwrap();
    assert_eq!(std::fs::read(dir.join("memory")).unwrap(), memory(fill[0]));
    fill[0]
}

pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A message and those of its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
