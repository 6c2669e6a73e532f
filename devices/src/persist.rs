//! The devices as parts of a snapshot.

use std::io;

use reapvm_snapshot::Persist;
use vmm_sys_util::eventfd::EventFd;

use crate::GuestMemory;
use crate::legacy::{SerialDevice, SerialDeviceState, SerialError};
use crate::virtio::{MmioTransport, MmioTransportState, TransportError, VirtioDevice};

/// What a serial port needs beside its state.
pub struct SerialArgs {
    /// Raises the interrupt.
    pub irq_evt: EventFd,
    /// Takes what the guest sends.
    pub out: Box<dyn io::Write + Send>,
}

impl Persist for SerialDevice {
    const KIND: &'static str = "serial";
    const VERSION: u32 = 1;
    type State = SerialDeviceState;
    type Args<'a> = SerialArgs;
    type Error = SerialError;

    fn save(&self) -> Result<Self::State, Self::Error> {
        Ok(SerialDevice::save(self))
    }

    fn restore(args: Self::Args<'_>, state: &Self::State) -> Result<Self, Self::Error> {
        SerialDevice::restore(args.irq_evt, args.out, state)
    }
}

/// What a virtio-mmio device needs beside its state.
pub struct MmioTransportArgs {
    /// Guest memory.
    pub mem: GuestMemory,
    /// A new device, made as for a new virtual machine.
    pub device: Box<dyn VirtioDevice>,
    /// Raises the interrupt.
    pub irq_evt: EventFd,
}

impl Persist for MmioTransport {
    const KIND: &'static str = "virtio-mmio";
    const VERSION: u32 = 1;
    type State = MmioTransportState;
    type Args<'a> = MmioTransportArgs;
    type Error = TransportError;

    fn save(&self) -> Result<Self::State, Self::Error> {
        MmioTransport::save(self)
    }

    fn restore(args: Self::Args<'_>, state: &Self::State) -> Result<Self, Self::Error> {
        MmioTransport::restore(args.mem, args.device, args.irq_evt, state)
    }
}
