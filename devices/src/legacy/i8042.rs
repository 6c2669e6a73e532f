//! The i8042 keyboard controller, of which only the reset line is there: a guest that writes 0xfe
//! to port 0x64 asks to be reset.

use vmm_sys_util::eventfd::EventFd;

use super::EventFdTrigger;
use crate::bus::BusDevice;

/// First port of the controller: data.
pub const I8042_BASE_PORT: u64 = 0x60;
/// Ports of the controller's range: 0x60 is data, 0x64 is command and status.
pub const I8042_PORT_COUNT: u64 = 5;

/// The controller. It has no state to be saved.
#[derive(Debug)]
pub struct I8042Device {
    inner: vm_superio::I8042Device<EventFdTrigger>,
}

impl I8042Device {
    /// A controller that writes to `reset_evt` when the guest asks to be reset.
    pub fn new(reset_evt: EventFd) -> Self {
        Self {
            inner: vm_superio::I8042Device::new(EventFdTrigger::new(reset_evt)),
        }
    }
}

impl BusDevice for I8042Device {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (i, byte) in (0u64..).zip(data) {
            *byte = u8::try_from(offset.saturating_add(i)).map_or(0, |port| self.inner.read(port));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (i, byte) in (0u64..).zip(data) {
            let Ok(port) = u8::try_from(offset.saturating_add(i)) else {
                return;
            };
            if let Err(err) = self.inner.write(port, *byte) {
                tracing::error!(%err, "i8042: cannot signal the reset");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        let evt = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut device = I8042Device::new(evt.try_clone().unwrap());
        device.write(4, &[0xd1]);
        device.write(0, &[0xfe]);
        assert!(evt.read().is_err());
        device.write(4, &[0xfe]);
        assert_eq!(evt.read().unwrap(), 1);
        let mut status = [0xff];
        device.read(4, &mut status);
        assert_eq!(status, [0]);
        device.write(u64::MAX, &[0xfe; 8]);
        assert!(evt.read().is_err());
    }
}
