//! A balloon under a guest and a host that do what a byte string says.

use vm_memory::{Bytes, GuestAddress};

use super::{Input, Outside, change, drive};
use crate::test_driver::{Driver, Piece, buffer_gpa};
use crate::virtio::{Balloon, BalloonConfig, BalloonHandle, DeviceUpdate, release_anonymous};

/// A balloon under a guest and a host that do what `bytes` says.
pub fn drive_balloon(bytes: &[u8]) {
    drive(bytes, || {
        let config = BalloonConfig {
            amount_mib: 1,
            deflate_on_oom: true,
            stats_polling_interval_s: 1,
        };
        let balloon = Balloon::new(config, Box::new(release_anonymous)).expect("a balloon");
        let handle = balloon.handle();
        (Box::new(balloon), handle)
    });
}

impl Outside for BalloonHandle {
    fn act(&mut self, action: u8, input: &mut Input<'_>, driver: &mut Driver) {
        match action {
            7 | 9 => {
                // A list of pages, most of them in memory, or statistics.
                let queue = if action == 9 { 2 } else { input.u8() % 2 };
                let queue = usize::from(queue);
                let mut bytes = Vec::new();
                for _ in 0..input.u8() % 32 {
                    if action == 9 {
                        bytes.extend(u16::from(input.u8() % 12).to_le_bytes());
                        bytes.extend(input.bytes::<8>());
                    } else {
                        bytes.extend(u32::from(input.u16() % 0x240).to_le_bytes());
                    }
                }
                let gpa = buffer_gpa(queue, driver.rings[queue].avail_idx % 16);
                let _ = driver.mem.write_slice(&bytes, GuestAddress(gpa));
                let cut = usize::from(input.u8()).min(bytes.len());
                let piece = |from: usize, to: usize| Piece {
                    gpa: gpa + from as u64,
                    len: (to - from) as u32,
                    writable: false,
                };
                driver.offer(queue, &[piece(0, cut), piece(cut, bytes.len())]);
                driver.kick(queue);
                driver.transport.process_pending();
            }
            8 => {
                let mib = u32::from(input.u16());
                self.set_target_mib(mib).expect("the target can be counted");
                assert_eq!(self.stats().target_mib, mib);
            }
            _ => {
                let _ = self.stats();
                let update = DeviceUpdate::Balloon {
                    stats_polling_interval_s: u16::from(input.u8()) + 1,
                };
                change(driver, update);
            }
        }
    }
}
