//! The pvpanic device (QEMU, "PVPANIC DEVICE"), by which a guest's kernel says that it panicked:
//! one register in memory, described by ACPI as `QEMU0001`. Linux's driver is `pvpanic-mmio`.

use crate::bus::BusDevice;

/// Addresses of the register's range: it has one byte, and QEMU gives it two.
pub const PVPANIC_SIZE_BYTES: u64 = 2;

/// The guest panicked.
const PANICKED: u8 = 1 << 0;
/// The guest panicked, and handles it itself: a kernel that it has kept for this takes over.
const CRASH_LOADED: u8 = 1 << 1;

/// What a guest says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestPanic {
    /// It panicked and goes no further.
    Panicked,
    /// It panicked, and its crash kernel takes over.
    CrashLoaded,
}

/// The device. It has no state to be saved.
pub struct PvPanic {
    on_panic: Box<dyn FnMut(GuestPanic) + Send>,
}

impl std::fmt::Debug for PvPanic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PvPanic").finish_non_exhaustive()
    }
}

impl PvPanic {
    /// A device that calls `on_panic`, on the thread of the vCPU that panicked: what the guest
    /// does next comes after the call.
    pub fn new(on_panic: impl FnMut(GuestPanic) + Send + 'static) -> Self {
        Self {
            on_panic: Box::new(on_panic),
        }
    }
}

impl BusDevice for PvPanic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // The events that the device knows.
        if let (0, [events, ..]) = (offset, data) {
            *events = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (0, [events, ..]) = (offset, data) else {
            return;
        };
        if events & PANICKED != 0 {
            (self.on_panic)(GuestPanic::Panicked);
        } else if events & CRASH_LOADED != 0 {
            (self.on_panic)(GuestPanic::CrashLoaded);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn the_driver_finds_both_events_and_each_is_reported() {
        let (sender, panics) = channel();
        let mut device = PvPanic::new(move |panic| sender.send(panic).unwrap());
        for (offset, len, expected) in
            [(0, 1, &[3][..]), (0, 2, &[3, 0]), (1, 1, &[0]), (0, 0, &[])]
        {
            let mut data = vec![0xff; len];
            device.read(offset, &mut data);
            assert_eq!(data, expected);
        }
        for (offset, data, expected) in [
            (0, &[1][..], Some(GuestPanic::Panicked)),
            (0, &[2], Some(GuestPanic::CrashLoaded)),
            (0, &[3], Some(GuestPanic::Panicked)),
            (0, &[1, 0], Some(GuestPanic::Panicked)),
            (0, &[0], None),
            // Of a later version of the device: not offered.
            (0, &[4], None),
            (1, &[1], None),
            (0, &[], None),
        ] {
            device.write(offset, data);
            assert_eq!(panics.try_recv().ok(), expected, "{offset} {data:?}");
        }
    }
}
