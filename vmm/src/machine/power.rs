//! The sleep registers of a hardware-reduced ACPI machine (ACPI 6.5, 4.8.3.7), of which soft off
//! is there: a guest that powers itself off ends.

use reapvm_devices::bus::BusDevice;
use vmm_sys_util::eventfd::EventFd;

/// The value of SLP_TYP that the tables name for soft off.
pub(crate) const SOFT_OFF_SLEEP_TYPE: u8 = 5;
/// SLP_EN of the sleep control register; SLP_TYP is in the three bits below.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;

/// The two registers. They have no state to be saved.
pub(super) struct SleepRegisters {
    off_event: EventFd,
}

impl SleepRegisters {
    /// Registers that write to `off_event` when the guest powers itself off.
    pub(super) fn new(off_event: EventFd) -> Self {
        Self { off_event }
    }
}

impl BusDevice for SleepRegisters {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let soft_off = SLEEP_ENABLE | SOFT_OFF_SLEEP_TYPE << SLEEP_TYPE_SHIFT;
        if offset == 0
            && data == [soft_off]
            && let Err(error) = self.off_event.write(1)
        {
            tracing::error!(%error, "cannot signal that the guest powered itself off");
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn only_soft_off_ends_the_machine() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut registers = SleepRegisters::new(event.try_clone().unwrap());
        for (offset, data) in [
            (0, &[0x14][..]),
            (0, &[0x20]),
            (1, &[0x34]),
            (0, &[0x34, 0]),
            (0, &[]),
        ] {
            registers.write(offset, data);
            assert!(event.read().is_err(), "{offset} {data:?}");
        }
        registers.write(0, &[0x34]);
        assert_eq!(event.read().unwrap(), 1);
    }
}
