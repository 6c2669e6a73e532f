//! The 16550 serial port: the guest's console.

use std::io;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_superio::serial::{SerialEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::EventFdTrigger;
use crate::bus::BusDevice;

/// First port of the first serial port of a PC.
pub const SERIAL_BASE_PORT: u64 = 0x3f8;
/// Ports of a 16550.
pub const SERIAL_PORT_COUNT: u64 = 8;
/// Interrupt line of the first serial port of a PC.
pub const SERIAL_GSI: u32 = 4;

/// Interrupts that a 16550 can enable: the low four bits of IER.
const IER_VALID_BITS: u8 = 0x0f;
/// Bytes that the receive FIFO holds.
const FIFO_SIZE_BYTES: usize = 64;
/// LSR: a received byte waits.
const LSR_DATA_READY: u8 = 0x01;

/// Why the serial port could not do something.
#[derive(Debug, Error)]
pub enum SerialError {
    /// An eventfd could not be made.
    #[error("cannot make an eventfd for the serial port")]
    EventFd(#[source] io::Error),
    /// The interrupt could not be raised.
    #[error("cannot raise the interrupt of the serial port")]
    Interrupt(#[source] io::Error),
    /// A saved state that no serial port can be in.
    #[error("the saved state of the serial port is not valid: {0}")]
    InvalidState(&'static str),
}

/// The registers and the receive FIFO of a serial port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialDeviceState {
    /// DLL: low byte of the divisor.
    pub baud_divisor_low: u8,
    /// DLM: high byte of the divisor.
    pub baud_divisor_high: u8,
    /// IER.
    pub interrupt_enable: u8,
    /// IIR.
    pub interrupt_identification: u8,
    /// LCR.
    pub line_control: u8,
    /// LSR.
    pub line_status: u8,
    /// MCR.
    pub modem_control: u8,
    /// MSR.
    pub modem_status: u8,
    /// SCR.
    pub scratch: u8,
    /// Bytes received and not yet read by the guest, oldest first.
    pub in_buffer: Vec<u8>,
}

impl From<SerialState> for SerialDeviceState {
    fn from(state: SerialState) -> Self {
        Self {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }
}

impl TryFrom<&SerialDeviceState> for SerialState {
    type Error = SerialError;

    fn try_from(state: &SerialDeviceState) -> Result<Self, SerialError> {
        if state.in_buffer.len() > FIFO_SIZE_BYTES {
            return Err(SerialError::InvalidState("more bytes than the FIFO holds"));
        }
        if state.interrupt_enable & !IER_VALID_BITS != 0 {
            return Err(SerialError::InvalidState("unknown interrupts are enabled"));
        }
        if (state.line_status & LSR_DATA_READY != 0) == state.in_buffer.is_empty() {
            return Err(SerialError::InvalidState(
                "the line status does not agree with the FIFO",
            ));
        }
        Ok(SerialState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer.clone(),
        })
    }
}

/// Tells whoever feeds the serial port that there is room again.
struct FifoEvents {
    in_buffer_empty_evt: EventFd,
}

impl SerialEvents for FifoEvents {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        if let Err(err) = self.in_buffer_empty_evt.write(1)
            && err.kind() != io::ErrorKind::WouldBlock
        {
            tracing::error!(%err, "serial: cannot signal that the FIFO is empty");
        }
    }
}

type Output = Box<dyn io::Write + Send>;

/// A 16550 that writes what the guest sends to any writer.
pub struct SerialDevice {
    inner: Serial<EventFdTrigger, FifoEvents, Output>,
    /// Whether an error of the output was logged: a closed console would log every byte.
    output_failed: bool,
}

impl std::fmt::Debug for SerialDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialDevice")
            .field("state", &self.save())
            .finish_non_exhaustive()
    }
}

impl SerialDevice {
    /// A serial port after power-on, that raises its interrupt by `irq_evt` and sends to `out`.
    ///
    /// # Errors
    /// When the host has no eventfd left.
    pub fn new(irq_evt: EventFd, out: Output) -> Result<Self, SerialError> {
        Self::with_state(irq_evt, out, &SerialState::default())
    }

    /// A serial port as it was when `state` was saved. An interrupt that was pending is raised
    /// again.
    ///
    /// # Errors
    /// When no serial port can be in that state, or the interrupt cannot be raised.
    pub fn restore(
        irq_evt: EventFd,
        out: Output,
        state: &SerialDeviceState,
    ) -> Result<Self, SerialError> {
        Self::with_state(irq_evt, out, &SerialState::try_from(state)?)
    }

    fn with_state(irq_evt: EventFd, out: Output, state: &SerialState) -> Result<Self, SerialError> {
        let events = FifoEvents {
            in_buffer_empty_evt: EventFd::new(EFD_NONBLOCK).map_err(SerialError::EventFd)?,
        };
        let inner = Serial::from_state(state, EventFdTrigger::new(irq_evt), events, out)
            .map_err(from_superio)?;
        Ok(Self {
            inner,
            output_failed: false,
        })
    }

    /// The registers and the FIFO as they are now.
    pub fn save(&self) -> SerialDeviceState {
        self.inner.state().into()
    }

    /// Gives the guest input: as many of `bytes` as the FIFO has room for, whose number is
    /// returned (0 when it is full, or the guest has put the port in loop-back mode). The rest is
    /// to be offered again when [`in_buffer_empty_evt`](Self::in_buffer_empty_evt) is signalled.
    ///
    /// # Errors
    /// When the interrupt cannot be raised.
    pub fn enqueue_bytes(&mut self, bytes: &[u8]) -> Result<usize, SerialError> {
        match self.inner.enqueue_raw_bytes(bytes) {
            Ok(taken) => Ok(taken),
            Err(vm_superio::serial::Error::FullFifo) => Ok(0),
            Err(err) => Err(from_superio(err)),
        }
    }

    /// Bytes that [`enqueue_bytes`](Self::enqueue_bytes) would take now.
    pub fn fifo_capacity_bytes(&self) -> usize {
        self.inner.fifo_capacity()
    }

    /// A copy of the eventfd that is written when the guest has read the last byte of the FIFO.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn in_buffer_empty_evt(&self) -> Result<EventFd, SerialError> {
        self.inner
            .events()
            .in_buffer_empty_evt
            .try_clone()
            .map_err(SerialError::EventFd)
    }
}

fn from_superio(err: vm_superio::serial::Error<<EventFdTrigger as Trigger>::E>) -> SerialError {
    match err {
        vm_superio::serial::Error::FullFifo => {
            SerialError::InvalidState("more bytes than the FIFO holds")
        }
        vm_superio::serial::Error::Trigger(err) | vm_superio::serial::Error::IOError(err) => {
            SerialError::Interrupt(err)
        }
    }
}

impl BusDevice for SerialDevice {
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
            match self.inner.write(port, *byte) {
                Ok(()) => {}
                Err(vm_superio::serial::Error::IOError(err)) => {
                    // The guest cannot be told: a 16550 has no way to fail a transmission.
                    if !self.output_failed {
                        tracing::warn!(%err, "serial: the console's output is lost");
                        self.output_failed = true;
                    }
                }
                Err(err) => tracing::error!(%err, "serial: cannot raise the interrupt"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Shared {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn evt() -> EventFd {
        EventFd::new(EFD_NONBLOCK).unwrap()
    }

    #[test]
    fn output_reaches_the_writer() {
        let out = Shared::default();
        let mut serial = SerialDevice::new(evt(), Box::new(out.clone())).unwrap();
        for byte in b"ready\n" {
            serial.write(0, &[*byte]);
        }
        assert_eq!(*out.0.lock().unwrap(), b"ready\n");
    }

    #[test]
    fn input_is_bounded_by_the_fifo_and_interrupts() {
        let irq = evt();
        let mut serial = SerialDevice::new(irq.try_clone().unwrap(), Box::new(io::sink())).unwrap();
        let empty = serial.in_buffer_empty_evt().unwrap();
        serial.write(1, &[1]);
        assert_eq!(serial.enqueue_bytes(&[7; 100]).unwrap(), 64);
        assert_eq!(serial.enqueue_bytes(&[8; 100]).unwrap(), 0);
        assert_eq!(serial.fifo_capacity_bytes(), 0);
        assert!(irq.read().unwrap() >= 1);
        for _ in 0..64 {
            assert!(empty.read().is_err());
            let mut byte = [0];
            serial.read(0, &mut byte);
            assert_eq!(byte, [7]);
        }
        assert!(empty.read().is_ok());
        assert_eq!(serial.enqueue_bytes(b"x").unwrap(), 1);
    }

    #[test]
    fn restores_what_it_saved_and_raises_what_was_pending() {
        let mut serial = SerialDevice::new(evt(), Box::new(io::sink())).unwrap();
        serial.write(1, &[1]);
        serial.write(7, &[0x5a]);
        serial.enqueue_bytes(b"abc").unwrap();
        let state = serial.save();
        let irq = evt();
        let mut restored =
            SerialDevice::restore(irq.try_clone().unwrap(), Box::new(io::sink()), &state).unwrap();
        assert_eq!(restored.save(), state);
        assert!(irq.read().is_ok());
        let mut byte = [0];
        restored.read(0, &mut byte);
        assert_eq!(byte, *b"a");
    }

    #[test]
    fn refuses_states_that_cannot_be() {
        let good = SerialDevice::new(evt(), Box::new(io::sink()))
            .unwrap()
            .save();
        let bad: [fn(&mut SerialDeviceState); 4] = [
            |s| s.in_buffer = vec![0; 65],
            |s| s.in_buffer = vec![0; 1],
            |s| s.line_status |= LSR_DATA_READY,
            |s| s.interrupt_enable = 0x10,
        ];
        for spoil in bad {
            let mut state = good.clone();
            spoil(&mut state);
            assert!(matches!(
                SerialDevice::restore(evt(), Box::new(io::sink()), &state),
                Err(SerialError::InvalidState(_))
            ));
        }
    }

    proptest! {
        #[test]
        fn any_access_leaves_a_state_that_restores(
            accesses in prop::collection::vec((any::<bool>(), 0u64..10, any::<u8>()), 0..100),
            input in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut serial = SerialDevice::new(evt(), Box::new(io::sink())).unwrap();
            for (write, offset, value) in accesses {
                if write {
                    serial.write(offset, &[value; 2]);
                } else {
                    serial.read(offset, &mut [0; 2]);
                }
                serial.enqueue_bytes(&input).unwrap();
            }
            let state = serial.save();
            let restored = SerialDevice::restore(evt(), Box::new(io::sink()), &state).unwrap();
            prop_assert_eq!(restored.save(), state);
        }
    }
}
