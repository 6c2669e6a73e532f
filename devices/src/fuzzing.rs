//! Drivers of the fuzz targets: a byte string plays a hostile guest.
#![allow(missing_docs, clippy::expect_used, clippy::panic)]

mod balloon;
mod block;
mod net;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vm_memory::{Bytes, GuestAddress};

use crate::bus::BusDevice;
use crate::rate_limiter::{RateLimiterConfig, TokenBucketConfig};
use crate::test_driver::{Driver, MEMORY_BYTES, Piece, avail_gpa, buffer_gpa, desc_gpa, evt};
use crate::virtio::{
    DeviceUpdate, MmioTransport, Rng, UpdateDeviceError, VirtioDevice, Vsock, VsockConfig,
    VsockHandle,
};

pub use balloon::drive_balloon;
pub use block::drive_block;
pub use net::drive_net;

/// Takes values off a byte string; of an empty one, zeroes.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let len = self.0.len().min(N);
        let (head, tail) = self.0.split_at(len);
        out[..len].copy_from_slice(head);
        self.0 = tail;
        out
    }
    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.bytes())
    }
    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }
}

/// What is on the host's side of a device.
trait Outside {
    /// One of the actions 7 to 10, which are the device's own.
    fn act(&mut self, action: u8, input: &mut Input<'_>, driver: &mut Driver);
}

/// Nothing is there.
impl Outside for () {
    fn act(&mut self, _action: u8, _input: &mut Input<'_>, _driver: &mut Driver) {}
}

/// An entropy device under a guest that does what `bytes` says.
pub fn drive_rng(bytes: &[u8]) {
    drive(bytes, || (Box::new(Rng::new()), ()));
}

/// A socket device under a guest and clients that do what `bytes` says.
pub fn drive_vsock(bytes: &[u8]) {
    drive(bytes, || {
        let vsock = Vsock::new(VsockConfig::default()).expect("a vsock device without a path");
        let clients = VsockClients {
            handle: vsock.handle(),
            streams: Vec::new(),
        };
        (Box::new(vsock), clients)
    });
}

struct VsockClients {
    handle: VsockHandle,
    streams: Vec<UnixStream>,
}

impl Outside for VsockClients {
    fn act(&mut self, action: u8, input: &mut Input<'_>, driver: &mut Driver) {
        match action {
            7 => {
                // A packet with a header that is mostly right.
                let gpa = buffer_gpa(1, driver.rings[1].avail_idx % 16);
                let mut header = [0u8; 44];
                header[0] = 3;
                header[8] = 2;
                header[16..20].copy_from_slice(&u32::from(input.u8() % 4).to_le_bytes());
                let host_port = (1u32 << 30) + u32::from(input.u8() % 4);
                header[20..24].copy_from_slice(&host_port.to_le_bytes());
                let len = input.u16();
                header[24..26].copy_from_slice(&len.to_le_bytes());
                header[28] = 1;
                header[30] = input.u8() % 9;
                header[32] = input.u8();
                header[36..40].copy_from_slice(&input.bytes::<4>());
                header[40..44].copy_from_slice(&input.bytes::<4>());
                let _ = driver.mem.write_slice(&header, GuestAddress(gpa));
                driver.offer(
                    1,
                    &[Piece {
                        gpa,
                        len: 44 + u32::from(len),
                        writable: false,
                    }],
                );
                driver.kick(1);
                driver.transport.process_pending();
            }
            8 => {
                if self.streams.len() < 8
                    && let Ok((ours, theirs)) = UnixStream::pair()
                {
                    let _ = ours.set_nonblocking(true);
                    let _ = self.handle.connect(u32::from(input.u8() % 4), theirs);
                    self.streams.push(ours);
                }
            }
            9 => {
                let data = input.bytes::<16>();
                if let Some(stream) = self.streams.last_mut() {
                    let _ = stream.write(&data);
                    let _ = stream.read(&mut [0; 64]);
                }
            }
            _ => drop(self.streams.pop()),
        }
    }
}

/// So many operations a millisecond; 0 is no limit.
fn limit(size: u8) -> RateLimiterConfig {
    RateLimiterConfig {
        bandwidth: None,
        ops: Some(TokenBucketConfig {
            size: size.into(),
            one_time_burst: None,
            refill_time_ms: 1,
        }),
    }
}

/// The host changes the device under the guest, who alone can be in the way of it.
fn change(driver: &mut Driver, update: DeviceUpdate) {
    match driver.transport.update(update) {
        Ok(()) | Err(UpdateDeviceError::Stopped(_)) => {}
        Err(err) => panic!("the device is not changed: {err}"),
    }
}

fn drive<O: Outside>(bytes: &[u8], device: impl Fn() -> (Box<dyn VirtioDevice>, O)) {
    let mut input = Input(bytes);
    let (first, mut outside) = device();
    let mut driver = Driver::new(first);
    while !input.0.is_empty() {
        match input.u8() % 12 {
            0 => driver.boot(u64::from(input.u32())),
            1 => {
                let (register, value) = (u32::from(input.u8()) * 4, input.u32());
                driver.write(register, value);
            }
            2 => {
                let mut data = [0; 8];
                let len = usize::from(input.u8() % 9);
                driver.transport.read(input.u16().into(), &mut data[..len]);
            }
            3 => {
                let gpa = desc_gpa(usize::from(input.u8() % 3)) + u64::from(input.u16() & 0x7fff);
                let value = input.bytes::<8>();
                let _ = driver.mem.write_slice(&value, GuestAddress(gpa));
            }
            4 => driver.kick(usize::from(input.u8() % 4)),
            5 => driver.transport.process_pending(),
            6 if !driver.rings.is_empty() => {
                let queue = usize::from(input.u8()) % driver.rings.len();
                let len = input.u16().into();
                let gpa = buffer_gpa(queue, driver.rings[queue].avail_idx % 16);
                driver.offer(
                    queue,
                    &[Piece {
                        gpa,
                        len,
                        writable: queue != 1,
                    }],
                );
            }
            action @ 7..=10 => outside.act(action, &mut input, &mut driver),
            _ => {
                let rest = driver.transport.prepare_save();
                rest.expect("every device comes to rest");
                let state = driver.transport.save().expect("every device can be saved");
                let (new, new_outside) = device();
                let transport = MmioTransport::restore(driver.mem.clone(), new, evt(), &state)
                    .expect("what was saved can be restored");
                outside = new_outside;
                let rings = driver.rings.clone();
                driver = Driver::over(driver.mem.clone(), transport, evt());
                driver.rings = rings;
            }
        }
    }
    // Whatever came before, a driver that resets the device gets a working one.
    driver.boot(0);
    assert_eq!(driver.read(0x70), 0xf, "the device does not boot again");
    assert_eq!(driver.bytes(0, 8).len(), 8);
    assert!(avail_gpa(2) < MEMORY_BYTES as u64);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn nothing_that_a_guest_does_stops_the_devices(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            boot_first in any::<bool>(),
        ) {
            let mut bytes = bytes;
            if boot_first {
                bytes.splice(..0, [0, 0, 0, 0, 0x20]);
            }
            super::drive_rng(&bytes);
            super::drive_vsock(&bytes);
            super::drive_block(&bytes);
            super::drive_net(&bytes);
            super::drive_balloon(&bytes);
        }
    }
}
