//! A disk under a guest and a host that do what a byte string says.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress};

use super::{Input, Outside, change, drive, limit};
use crate::test_driver::{Driver, Piece, buffer_gpa};
use crate::virtio::{Block, BlockConfig, DeviceUpdate, DiskFile};

const NSECTORS: u64 = 64;

/// A disk under a guest, and a host that shrinks it, that do what `bytes` says.
pub fn drive_block(bytes: &[u8]) {
    drive(bytes, || {
        // Each device its own image: the one before still has its lock when it is restored.
        let image = memfd_create("disk", MemfdFlags::CLOEXEC).expect("a file in memory");
        let image = File::from(image);
        image.set_len(NSECTORS * 512).expect("room for a disk");
        let block = Block::new(&BlockConfig {
            path: path_of(&image),
            read_only: false,
            rate_limiter: limit(8),
            id: "fuzzed".to_owned(),
        });
        (Box::new(block.expect("a disk")), Host(image))
    });
}

fn path_of(image: &File) -> PathBuf {
    format!("/proc/self/fd/{}", image.as_raw_fd()).into()
}

/// Who else has the image open.
struct Host(File);

impl Outside for Host {
    fn act(&mut self, action: u8, input: &mut Input<'_>, driver: &mut Driver) {
        match action {
            7 => {
                // A request that is mostly right.
                let gpa = buffer_gpa(0, driver.rings[0].avail_idx % 16);
                let kind = u32::from(input.u8() % 16);
                let sector = match input.u8() {
                    255 => u64::from_le_bytes(input.bytes()),
                    near => u64::from(near) % (NSECTORS + 8),
                };
                let mut header = [0; 16];
                header[..4].copy_from_slice(&kind.to_le_bytes());
                header[8..].copy_from_slice(&sector.to_le_bytes());
                // Of a discard or a writing of zeroes.
                let mut range = [0; 16];
                range[0] = input.u8() % (NSECTORS as u8 + 8);
                range[8] = input.u8() % 16;
                range[12] = input.u8() % 4;
                let _ = driver.mem.write_slice(&header, GuestAddress(gpa));
                let _ = driver.mem.write_slice(&range, GuestAddress(gpa + 0x400));
                let len = match input.u8() {
                    255 => input.u32(),
                    near => u32::from(near % 8) * 512,
                };
                let is_range = matches!(kind, 11 | 13);
                let data = Piece {
                    gpa: gpa + 0x400,
                    len: if is_range { 16 } else { len },
                    writable: matches!(kind, 0 | 8),
                };
                let piece = |gpa, len, writable| Piece { gpa, len, writable };
                driver.offer(
                    0,
                    &[piece(gpa, 16, false), data, piece(gpa + 0x3fff, 1, true)],
                );
                driver.kick(0);
                driver.transport.process_pending();
            }
            8 => {
                let sectors = u64::from(input.u8()) % (NSECTORS * 2);
                self.0.set_len(sectors * 512).expect("a shorter disk");
            }
            9 => {
                let rest = driver.transport.prepare_save();
                rest.expect("a disk comes to rest");
            }
            _ => {
                while driver.take_used(0).is_some() {}
                // The host changes the disk under the guest: its own file, whole again, or limits.
                let file = input.u8().is_multiple_of(2).then(|| {
                    self.0.set_len(NSECTORS * 512).expect("room for a disk");
                    DiskFile::open(&path_of(&self.0), false).expect("the disk's file")
                });
                let update = DeviceUpdate::Block {
                    file,
                    rate_limiter: limit(input.u8() % 16),
                };
                change(driver, update);
            }
        }
    }
}
