//! The bus: which device answers at an address. One for port I/O, one for MMIO.

use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

/// A device that answers to reads and writes of its range of a [`Bus`].
pub trait BusDevice: Send {
    /// Fills `data` with what the guest reads at `offset` bytes into the device's range.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes `data`, which the guest wrote at `offset` bytes into the device's range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Why a device could not be put on a [`Bus`].
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusInsertError {
    /// The range has no address.
    #[error("the bus range at {base:#x} is empty: give it at least one address")]
    Empty {
        /// First address of the range.
        base: u64,
    },
    /// The range runs past the last address.
    #[error(
        "the bus range at {base:#x} of {len:#x} addresses runs past the end of the address space"
    )]
    PastTheEnd {
        /// First address of the range.
        base: u64,
        /// Number of addresses in the range.
        len: u64,
    },
    /// The range shares addresses with another one.
    #[error(
        "the bus range at {base:#x} of {len:#x} addresses overlaps the device at {other_base:#x} \
         of {other_len:#x}: choose a free range"
    )]
    Overlap {
        /// First address of the range.
        base: u64,
        /// Number of addresses in the range.
        len: u64,
        /// First address of the range that is there already.
        other_base: u64,
        /// Number of addresses of the range that is there already.
        other_len: u64,
    },
}

struct Range {
    base: u64,
    len: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// An address space with devices in ranges that do not overlap.
///
/// It is built once and then shared by the vCPU threads as an `Arc<Bus>`: a look-up takes no lock
/// but that of the device it finds.
#[derive(Default)]
pub struct Bus {
    /// Sorted by base.
    ranges: Vec<Range>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.ranges.iter().map(|r| (r.base, r.len)))
            .finish()
    }
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at the `len` addresses from `base`.
    ///
    /// # Errors
    /// When the range is empty, runs past the end of the address space, or overlaps another one.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), BusInsertError> {
        let Some(last_offset) = len.checked_sub(1) else {
            return Err(BusInsertError::Empty { base });
        };
        let Some(last) = base.checked_add(last_offset) else {
            return Err(BusInsertError::PastTheEnd { base, len });
        };
        let at = self.ranges.partition_point(|r| r.base < base);
        let before = at.checked_sub(1).and_then(|i| self.ranges.get(i));
        let overlapped = before
            .filter(|r| r.base + (r.len - 1) >= base)
            .or_else(|| self.ranges.get(at).filter(|r| r.base <= last));
        if let Some(other) = overlapped {
            return Err(BusInsertError::Overlap {
                base,
                len,
                other_base: other.base,
                other_len: other.len,
            });
        }
        self.ranges.insert(at, Range { base, len, device });
        Ok(())
    }

    /// The device of the whole access and the access's offset in its range. An access that runs
    /// past the end of a range belongs to nobody.
    fn find(&self, addr: u64, len: usize) -> Option<(&Range, u64)> {
        let at = self.ranges.partition_point(|r| r.base <= addr);
        let range = self.ranges.get(at.checked_sub(1)?)?;
        let offset = addr - range.base;
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        (offset < range.len && end <= range.len).then_some((range, offset))
    }

    /// Reads `data.len()` bytes at `addr`. `false` means that nobody is there and `data` is as it
    /// was: a real bus reads as all ones then.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        let Some((range, offset)) = self.find(addr, data.len()) else {
            return false;
        };
        // A device that panicked on another thread is still the only one that can answer.
        let mut device = range.device.lock().unwrap_or_else(PoisonError::into_inner);
        device.read(offset, data);
        true
    }

    /// Writes `data` at `addr`. `false` means that nobody is there.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        let Some((range, offset)) = self.find(addr, data.len()) else {
            return false;
        };
        let mut device = range.device.lock().unwrap_or_else(PoisonError::into_inner);
        device.write(offset, data);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Echo(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    fn echo() -> Arc<Mutex<Echo>> {
        Arc::new(Mutex::new(Echo(Vec::new())))
    }

    #[test]
    fn finds_the_device_of_an_address() {
        let mut bus = Bus::new();
        let (a, b) = (echo(), echo());
        bus.insert(0x10, 8, a.clone()).unwrap();
        bus.insert(0x18, 8, b.clone()).unwrap();
        let mut byte = [0xaa];
        assert!(bus.read(0x17, &mut byte));
        assert_eq!(byte, [7]);
        assert!(bus.read(0x18, &mut byte));
        assert_eq!(byte, [0]);
        assert!(bus.write(0x1e, &[1, 2]));
        assert_eq!(b.lock().unwrap().0, [(6, vec![1, 2])]);
        assert!(a.lock().unwrap().0.is_empty());
        // Before, after, and across the end of a range.
        assert!(!bus.read(0xf, &mut byte));
        assert!(!bus.read(0x20, &mut byte));
        assert!(!bus.write(0x16, &[0; 4]));
        assert!(!bus.write(u64::MAX, &[0; 4]));
        assert_eq!(byte, [0]);
    }

    #[test]
    fn refuses_empty_overlapping_and_endless_ranges() {
        let mut bus = Bus::new();
        assert_eq!(
            bus.insert(1, 0, echo()),
            Err(BusInsertError::Empty { base: 1 })
        );
        assert_eq!(
            bus.insert(u64::MAX, 2, echo()),
            Err(BusInsertError::PastTheEnd {
                base: u64::MAX,
                len: 2
            })
        );
        bus.insert(u64::MAX, 1, echo()).unwrap();
        bus.insert(0x100, 0x10, echo()).unwrap();
        for (base, len) in [
            (0x100, 0x10),
            (0xff, 2),
            (0x10f, 1),
            (0, u64::MAX),
            (0x104, 1),
        ] {
            assert!(matches!(
                bus.insert(base, len, echo()),
                Err(BusInsertError::Overlap { .. })
            ));
        }
        bus.insert(0xff, 1, echo()).unwrap();
        bus.insert(0x110, 1, echo()).unwrap();
    }

    proptest! {
        #[test]
        fn agrees_with_a_list_of_ranges(
            inserts in prop::collection::vec((0u64..200, 0u64..20), 0..30),
            accesses in prop::collection::vec((0u64..230, 1usize..9), 0..50),
        ) {
            let mut bus = Bus::new();
            let mut model: Vec<(u64, u64)> = Vec::new();
            for (base, len) in inserts {
                let free = len > 0 && model.iter().all(|&(b, l)| base + len <= b || b + l <= base);
                prop_assert_eq!(bus.insert(base, len, echo()).is_ok(), free);
                if free {
                    model.push((base, len));
                }
            }
            for (addr, len) in accesses {
                let expected = model
                    .iter()
                    .find(|&&(b, l)| b <= addr && addr + len as u64 <= b + l)
                    .map(|&(b, _)| (addr - b) as u8);
                let mut data = vec![0xff; len];
                prop_assert_eq!(bus.read(addr, &mut data), expected.is_some());
                prop_assert_eq!(data[0], expected.unwrap_or(0xff));
            }
        }
    }
}
