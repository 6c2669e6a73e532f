//! The devices of one machine: built from its configuration, put on the buses, saved and
//! restored together.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::{IoEventAddress, VmFd};
use reapvm_devices::bus::BusInsertError;
use reapvm_devices::legacy::i8042::{I8042_BASE_PORT, I8042_PORT_COUNT, I8042Device};
use reapvm_devices::legacy::pvpanic::{GuestPanic, PVPANIC_SIZE_BYTES, PvPanic};
use reapvm_devices::legacy::serial::{
    SERIAL_BASE_PORT, SERIAL_GSI, SERIAL_PORT_COUNT, SerialDevice, SerialDeviceState, SerialError,
};
use reapvm_devices::virtio::balloon::{BalloonError, BalloonHandle};
use reapvm_devices::virtio::block::BlockError;
use reapvm_devices::virtio::mmio::{
    MMIO_DEVICE_SIZE_BYTES, MmioTransport, MmioTransportState, NOTIFY_OFFSET, TransportError,
};
use reapvm_devices::virtio::net::NetError;
use reapvm_devices::virtio::vsock::{VsockError, VsockHandle};
use reapvm_devices::virtio::{DeviceUpdate, UpdateDeviceError};
use reapvm_devices::{Bus, GuestMemory};
use reapvm_snapshot::{Persist, StateError, StateFile};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::console::{Console, ConsoleInput};
use super::event_loop::{OnEvent, Subscriber};
use super::exits::ExitEvents;
use super::power::SleepRegisters;
use super::virtio_devices::{self, VirtioDevices};
use crate::arch::layout;
use crate::boot::MmioWindow;
use crate::config::VmConfig;
use crate::vcpu::GuestExit;

/// Devices cannot be made, saved or restored.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// Two devices on one address: a fault of the layout.
    #[error(transparent)]
    Bus(#[from] BusInsertError),
    /// The serial port.
    #[error(transparent)]
    Serial(#[from] SerialError),
    /// A virtio device.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A drive.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A network device.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The vsock device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The balloon.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
    /// The snapshot's state file lacks a device or holds nonsense for it.
    #[error(transparent)]
    State(#[from] StateError),
    /// No eventfd.
    #[error("cannot create an eventfd")]
    EventFd(#[source] std::io::Error),
    /// KVM does not connect the device.
    #[error("KVM does not connect a device's {what}")]
    Kvm {
        /// "interrupt" or "queue notification".
        what: &'static str,
        /// The errno.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// All devices of a machine.
pub(super) struct DeviceSet {
    serial: Arc<Mutex<SerialDevice>>,
    transports: Vec<Arc<Mutex<MmioTransport>>>,
    pub(super) vsock: Option<VsockHandle>,
    pub(super) balloon: Option<BalloonHandle>,
    /// Tells the guest of a new generation id, if it can be told.
    pub(super) generation_id_irq: Option<EventFd>,
    pub(super) pio: Arc<Bus>,
    pub(super) mmio: Arc<Bus>,
    pub(super) subscribers: Vec<Subscriber>,
    /// Interrupts and the lines that they are to be connected to.
    irqs: Vec<(EventFd, u32)>,
}

fn eventfd() -> Result<EventFd, DeviceError> {
    EventFd::new(EFD_NONBLOCK).map_err(DeviceError::EventFd)
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A device that panicked has ended the process or its thread already; its state is plain.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn window(index: u32) -> MmioWindow {
    MmioWindow {
        gpa: layout::VIRTIO_MMIO_BASE + u64::from(index) * MMIO_DEVICE_SIZE_BYTES,
        size_bytes: MMIO_DEVICE_SIZE_BYTES,
        gsi: layout::VIRTIO_MMIO_FIRST_GSI + index,
    }
}

/// Where the virtio devices of `config` lie.
pub(super) fn windows(config: &VmConfig) -> Vec<MmioWindow> {
    (0..config.virtio_device_count() as u32)
        .map(window)
        .collect()
}

impl DeviceSet {
    /// Makes the devices of `config`: fresh ones, or those of `saved`. A guest that ends itself is
    /// told to `exits`. Their interrupts reach nobody until
    /// [`connect_interrupts`](Self::connect_interrupts). Guest memory is not touched.
    pub(super) fn build(
        config: &VmConfig,
        vm: &VmFd,
        memory: &GuestMemory,
        console: Console,
        saved: Option<&StateFile>,
        exits: &Arc<ExitEvents>,
    ) -> Result<Self, DeviceError> {
        let mut pio = Bus::new();
        let mut mmio = Bus::new();
        let mut subscribers: Vec<Subscriber> = Vec::new();

        let mut irqs: Vec<(EventFd, u32)> = Vec::new();
        let serial_irq = irq(&mut irqs, SERIAL_GSI)?;
        let serial = match saved {
            None => SerialDevice::new(serial_irq, console.output)?,
            Some(saved) => {
                let state: SerialDeviceState =
                    saved.get(SerialDevice::KIND, SerialDevice::VERSION)?;
                SerialDevice::restore(serial_irq, console.output, &state)?
            }
        };
        let serial = Arc::new(Mutex::new(serial));
        pio.insert(
            SERIAL_BASE_PORT,
            SERIAL_PORT_COUNT,
            Arc::clone(&serial) as _,
        )?;
        if let Some(input) = console.input {
            let fifo_empty = lock(&serial)
                .in_buffer_empty_evt()
                .map_err(DeviceError::Serial)?;
            let input = ConsoleInput::new(input, Arc::clone(&serial), fifo_empty);
            subscribers.push(Arc::new(Mutex::new(input)));
        }

        let reset = eventfd()?;
        let reset_seen = reset.try_clone().map_err(DeviceError::EventFd)?;
        let power_off = reset.try_clone().map_err(DeviceError::EventFd)?;
        let on_reset = {
            let exits = Arc::clone(exits);
            move || exits.end(GuestExit::Reset)
        };
        subscribers.push(Arc::new(Mutex::new(OnEvent::new(reset_seen, on_reset))));
        pio.insert(
            I8042_BASE_PORT,
            I8042_PORT_COUNT,
            Arc::new(Mutex::new(I8042Device::new(reset))),
        )?;

        pio.insert(
            layout::SLEEP_CONTROL_PORT,
            layout::SLEEP_STATUS_PORT - layout::SLEEP_CONTROL_PORT + 1,
            Arc::new(Mutex::new(SleepRegisters::new(power_off))),
        )?;
        // Every machine has it, and only ACPI tells of it: a guest that was saved by a version
        // without it does not look for it.
        let pvpanic = PvPanic::new(panic_handler(Arc::clone(exits)));
        mmio.insert(
            layout::PVPANIC,
            PVPANIC_SIZE_BYTES,
            Arc::new(Mutex::new(pvpanic)),
        )?;
        let generation_id_irq = if config.has_acpi() {
            Some(irq(&mut irqs, layout::GENERATION_ID_GSI)?)
        } else {
            None
        };

        let VirtioDevices {
            devices,
            vsock,
            balloon,
        } = virtio_devices::make(config)?;
        let mut transports = Vec::with_capacity(devices.len());
        for (index, device) in (0_u32..).zip(devices) {
            let MmioWindow { gpa, gsi, .. } = window(index);
            let irq = irq(&mut irqs, gsi)?;
            let transport = match saved {
                None => MmioTransport::new(memory.clone(), device, irq)?,
                Some(saved) => {
                    let state: MmioTransportState = saved.get_instance(
                        MmioTransport::KIND,
                        index as usize,
                        MmioTransport::VERSION,
                    )?;
                    MmioTransport::restore(memory.clone(), device, irq, &state)?
                }
            };
            for queue in 0..transport.queue_count() {
                if let Some(event) = transport.queue_event_fd(queue) {
                    let address = IoEventAddress::Mmio(gpa + NOTIFY_OFFSET);
                    vm.register_ioevent(event, &address, queue as u32)
                        .map_err(|source| DeviceError::Kvm {
                            what: "queue notification",
                            source,
                        })?;
                }
            }
            let transport = Arc::new(Mutex::new(transport));
            mmio.insert(gpa, MMIO_DEVICE_SIZE_BYTES, Arc::clone(&transport) as _)?;
            subscribers.push(Arc::clone(&transport) as _);
            transports.push(transport);
        }
        Ok(Self {
            serial,
            transports,
            vsock,
            balloon,
            generation_id_irq,
            pio: Arc::new(pio),
            mmio: Arc::new(mmio),
            subscribers,
            irqs,
        })
    }

    /// Connects the devices' interrupts to the interrupt controllers, whose state must have been
    /// restored: what a restored device has raised meanwhile is injected by this (KVM looks whether
    /// an eventfd is signalled when it takes it), and restoring them later would lose it.
    pub(super) fn connect_interrupts(&mut self, vm: &VmFd) -> Result<(), DeviceError> {
        for (irq, gsi) in self.irqs.drain(..) {
            // KVM keeps the eventfd; this copy of the descriptor is not needed any more.
            vm.register_irqfd(&irq, gsi)
                .map_err(|source| DeviceError::Kvm {
                    what: "interrupt",
                    source,
                })?;
        }
        Ok(())
    }

    /// Changes the virtio device `index`, in the order of their windows.
    pub(super) fn update(
        &self,
        index: usize,
        update: DeviceUpdate,
    ) -> Result<(), UpdateDeviceError> {
        match self.transports.get(index) {
            Some(transport) => lock(transport).update(update),
            None => Err(UpdateDeviceError::OtherDevice),
        }
    }

    /// Saves all devices into `file` and keeps them still until the guard is dropped, so that
    /// none writes into guest memory while that is being saved.
    pub(super) fn save(&self, file: &mut StateFile) -> Result<Quiesced<'_>, DeviceError> {
        let serial = lock(&self.serial);
        file.push(SerialDevice::KIND, SerialDevice::VERSION, &serial.save())?;
        let mut transports = Vec::with_capacity(self.transports.len());
        for transport in &self.transports {
            let mut transport = lock(transport);
            transport.prepare_save()?;
            file.push(
                MmioTransport::KIND,
                MmioTransport::VERSION,
                &transport.save()?,
            )?;
            transports.push(transport);
        }
        Ok(Quiesced {
            _serial: serial,
            _transports: transports,
        })
    }
}

/// Devices that do nothing while this lives.
pub(super) struct Quiesced<'a> {
    _serial: MutexGuard<'a, SerialDevice>,
    _transports: Vec<MutexGuard<'a, MmioTransport>>,
}

/// An eventfd that will be connected to the line `gsi`.
fn irq(irqs: &mut Vec<(EventFd, u32)>, gsi: u32) -> Result<EventFd, DeviceError> {
    let irq = eventfd()?;
    irqs.push((irq.try_clone().map_err(DeviceError::EventFd)?, gsi));
    Ok(irq)
}

fn panic_handler(exits: Arc<ExitEvents>) -> impl FnMut(GuestPanic) + Send {
    move |panic| match panic {
        // On the vCPU's thread: a kernel that resets the machine right after it comes second.
        GuestPanic::Panicked => exits.end(GuestExit::Panicked),
        GuestPanic::CrashLoaded => {
            tracing::warn!("the guest's kernel panicked, and its crash kernel takes over");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_lie_one_window_and_one_line_apart() {
        let mut config = VmConfig::for_function("helloworld").unwrap();
        config.entropy = Some(crate::config::EntropySettings::default());
        assert_eq!(
            windows(&config),
            [(0xd000_0000, 5), (0xd000_1000, 6)].map(|(gpa, gsi)| MmioWindow {
                gpa,
                size_bytes: 0x1000,
                gsi,
            })
        );
    }
}
