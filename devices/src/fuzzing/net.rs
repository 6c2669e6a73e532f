//! A network device under a guest and a network that do what a byte string says.

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vm_memory::{Bytes, GuestAddress};

use super::{Input, Outside, change, drive, limit};
use crate::test_driver::{Driver, Piece, buffer_gpa};
use crate::virtio::{DeviceUpdate, Net, NetConfig};

const HEADER_BYTES: usize = 12;

/// A network device under a guest and a network that do what `bytes` says.
pub fn drive_net(bytes: &[u8]) {
    drive(bytes, || {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )
        .expect("a socket pair");
        let config = NetConfig {
            id: "eth0".to_owned(),
            tap: "none".to_owned(),
            mac: "02:00:00:00:00:01".parse().ok(),
            rx_rate_limiter: limit(8),
            tx_rate_limiter: limit(8),
        };
        let net = Net::over(config, theirs).expect("a network device");
        (Box::new(net), Network(ours))
    });
}

/// The other end of what is in the tap's place.
struct Network(OwnedFd);

/// A frame with its header: what it asks for, and how long it is, are the input's.
fn frame(input: &mut Input<'_>) -> Vec<u8> {
    let mut frame = input.bytes::<HEADER_BYTES>().to_vec();
    let len = usize::from(input.u16()) % 3000;
    frame.extend((0..len).map(|i| i as u8));
    frame
}

impl Outside for Network {
    fn act(&mut self, action: u8, input: &mut Input<'_>, driver: &mut Driver) {
        match action {
            7 => {
                let frame = frame(input);
                let gpa = buffer_gpa(1, driver.rings[1].avail_idx % 16);
                let _ = driver.mem.write_slice(&frame, GuestAddress(gpa));
                let cut = usize::from(input.u16()) % (frame.len() + 1);
                let piece = |from: usize, to: usize| Piece {
                    gpa: gpa + from as u64,
                    len: (to - from) as u32,
                    writable: false,
                };
                driver.offer(1, &[piece(0, cut), piece(cut, frame.len())]);
                driver.kick(1);
            }
            8 => {
                let _ = rustix::io::write(&self.0, &frame(input));
                driver.transport.process_pending();
            }
            9 => {
                let mut buf = [0; 4096];
                let _ = rustix::io::read(&self.0, &mut buf);
                let update = DeviceUpdate::Net {
                    rx_rate_limiter: limit(input.u8() % 16),
                    tx_rate_limiter: limit(input.u8() % 16),
                };
                change(driver, update);
            }
            _ => {
                for _ in 0..input.u8() % 8 {
                    let gpa = buffer_gpa(0, driver.rings[0].avail_idx % 16);
                    let piece = |gpa, len| Piece {
                        gpa,
                        len,
                        writable: true,
                    };
                    let (first, second) = (u32::from(input.u8()), u32::from(input.u16()));
                    driver.offer(0, &[piece(gpa, first), piece(gpa + 0x100, second)]);
                }
                driver.kick(0);
            }
        }
    }
}
