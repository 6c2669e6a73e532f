//! Devices of the PC beside virtio: the 16550 serial port, the i8042 controller and pvpanic.

pub mod i8042;
pub mod pvpanic;
pub mod serial;

use std::io;

use vm_superio::Trigger;
use vmm_sys_util::eventfd::EventFd;

pub use i8042::I8042Device;
pub use pvpanic::{GuestPanic, PvPanic};
pub use serial::{SerialDevice, SerialDeviceState, SerialError};

/// Raises an interrupt, or any event, by an eventfd.
#[derive(Debug)]
pub struct EventFdTrigger(EventFd);

impl EventFdTrigger {
    /// A trigger that writes to `evt`.
    pub fn new(evt: EventFd) -> Self {
        Self(evt)
    }
}

impl Trigger for EventFdTrigger {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        match self.0.write(1) {
            // The counter is full of events that nobody took yet: one more says nothing new.
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }
}
