//! A virtio-block disk.

use std::fs;
use std::path::Path;

use reapvm_guest_init::protocol::Request;
use reapvm_guest_init::seeded;

use crate::nested::vm::{Image, Vm, scratch};
use crate::nested::{say, snapshot};

const DISK_BYTES: u64 = 24 << 20;
/// What is written while the snapshot is taken; the rest stays as it was.
const WRITTEN_BYTES: u64 = 16 << 20;
const OLD_SEED: u64 = 1;
const NEW_SEED: u64 = 2;

fn seeded_disk() -> std::path::PathBuf {
    let path = scratch("disk");
    let mut bytes = vec![0; DISK_BYTES as usize];
    seeded::fill(OLD_SEED, 0, &mut bytes);
    fs::write(&path, bytes).unwrap();
    path
}

fn digest(seed: u64, offset: u64, bytes: u64) -> String {
    let mut all = vec![0; bytes as usize];
    seeded::fill(seed, offset / 8, &mut all);
    seeded::sha256_hex(&all)
}

/// A read-only disk can be read and not written.
pub(super) fn read_only(series: &str) {
    let disk = seeded_disk();
    let option = format!("path={},readonly=on", disk.display());
    let vm = Vm::boot(series, Image::Vmlinux, &["--drive", &option]);
    let info = vm.ask(&Request::BlockInfo {});
    assert_eq!(info["sectors"], DISK_BYTES / 512, "{info}");
    assert_eq!(info["read_only"], true, "{info}");
    let (offset, bytes) = (4096, 1 << 20);
    let read = vm.ask(&Request::BlockDigest { offset, bytes });
    assert_eq!(read["sha256"], digest(OLD_SEED, offset, bytes));
    let write = Request::BlockWrite {
        offset,
        bytes,
        seed: NEW_SEED,
    };
    let refusal = vm.refusal(&write);
    assert!(refusal.contains("/dev/vda"), "{refusal}");
    drop(vm);
    let kept = seeded::sha256_hex(&fs::read(&disk).unwrap());
    assert_eq!(kept, digest(OLD_SEED, 0, DISK_BYTES));
    say(&format!(
        "{series}: a read-only disk is read and not written"
    ));
}

/// How many bytes of the file's beginning are already those that the guest writes.
fn new_bytes(disk: &Path) -> u64 {
    const PIECE_BYTES: usize = 4096;
    let bytes = fs::read(disk).unwrap();
    let new = bytes
        .chunks(PIECE_BYTES)
        .enumerate()
        .take_while(|(index, chunk)| {
            let mut expected = vec![0; chunk.len()];
            seeded::fill(NEW_SEED, (index * PIECE_BYTES / 8) as u64, &mut expected);
            expected == *chunk
        });
    (new.count() * PIECE_BYTES) as u64
}

/// What the guest was writing when it was saved is written after the restore, once and whole.
pub(super) fn written_through_a_snapshot(series: &str, mode: &str) {
    let disk = seeded_disk();
    let option = format!("path={},id=data", disk.display());
    let write = Request::BlockWriteStart {
        offset: 0,
        bytes: WRITTEN_BYTES,
        seed: NEW_SEED,
    };
    let snapshot = snapshot::create(series, &["--drive", &option, "--vcpus", "2"], &write);
    let written = new_bytes(&disk);
    say(&format!(
        "{series}: {written} of {WRITTEN_BYTES} bytes were written at the snapshot"
    ));
    assert!(written > 0 && written < WRITTEN_BYTES, "not in mid-write");
    let clone = scratch("clone");
    fs::copy(&disk, &clone).unwrap();

    let option = format!("id=data,path={}", clone.display());
    let vm = Vm::restore(&snapshot, mode, &["--drive", &option]);
    let end = vm.ask(&Request::BlockWriteWait {});
    assert_eq!(end["done_bytes"], WRITTEN_BYTES, "{end}");
    let rest_bytes = DISK_BYTES - WRITTEN_BYTES;
    for (seed, offset, bytes) in [
        (NEW_SEED, 0, WRITTEN_BYTES),
        (OLD_SEED, WRITTEN_BYTES, rest_bytes),
    ] {
        let read = vm.ask(&Request::BlockDigest { offset, bytes });
        assert_eq!(read["sha256"], digest(seed, offset, bytes), "from {offset}");
    }
    vm.check_kernel_log();
    drop(vm);
    assert_eq!(new_bytes(&clone), WRITTEN_BYTES);
    // The clone's writes went to the clone's disk alone.
    assert_eq!(new_bytes(&disk), written);
    say(&format!(
        "{series}, {mode}: the disk is whole after the restore"
    ));
}
