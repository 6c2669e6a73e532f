//! The virtio-mmio transport, version 2 (4.2): registers, queues and interrupts of one device.

mod registers;
mod state;
mod status;
#[cfg(test)]
mod tests;

use std::error::Error as _;
use std::io;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use thiserror::Error;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK_BIT,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_QUEUE_NOTIFY,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{
    DeviceError, DeviceIo, DeviceUpdate, Progress, RestoreDeviceError, SaveDeviceError,
    UpdateDeviceError, VirtioDevice,
};
use super::queue::{QueueError, QueueLayout, Virtqueue};
use crate::GuestMemory;

pub use state::{MmioTransportState, QueueSlotState};

/// Bytes of the window of guest-physical addresses that a device occupies.
pub const MMIO_DEVICE_SIZE_BYTES: u64 = 0x1000;
/// Offset of the `QueueNotify` register: an ioeventfd for queue `i` is put here, with `i` as
/// datamatch and a length of 4 bytes.
pub const NOTIFY_OFFSET: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const INTERRUPT_BITS: u32 = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;
/// Marks the events of the device's own descriptors, as against the queues'.
const DEVICE_EVENT: u32 = 1 << 16;
/// A device has no more queues than bits in the mask of `DeviceIo`.
const MAX_QUEUES: usize = 32;

/// Why a virtio-mmio device could not be made, saved or restored.
#[derive(Debug, Error)]
pub enum TransportError {
    /// An eventfd could not be made or used.
    #[error("cannot make or use an eventfd for a virtio-mmio device")]
    EventFd(#[source] io::Error),
    /// The device asks for more queues than a transport has.
    #[error("a virtio device with {0} queues is not supported: at most 32")]
    TooManyQueues(usize),
    /// The device does not come to rest.
    #[error("the virtio device cannot be brought to rest for a save")]
    PrepareSave(#[source] DeviceError),
    /// The device cannot be saved.
    #[error(transparent)]
    Save(#[from] SaveDeviceError),
    /// The state is another device's.
    #[error("the saved virtio-mmio state is of device type {saved}, not {expected}")]
    OtherDevice {
        /// Device type in the state.
        saved: u32,
        /// Device type of the device that was to be restored.
        expected: u32,
    },
    /// No device can be in that state.
    #[error("the saved virtio-mmio state is not valid: {0}")]
    InvalidState(String),
    /// A queue that no device can have.
    #[error("the saved queue {index} is not valid")]
    InvalidQueue {
        /// The queue's index.
        index: usize,
        /// What is wrong with it.
        source: QueueError,
    },
    /// The device does not take its own part of the state.
    #[error("the virtio device cannot be restored")]
    Device(#[from] RestoreDeviceError),
    /// The device does not start again.
    #[error(transparent)]
    Activate(#[from] super::device::ActivateError),
}

/// A queue as its registers have it. Nothing of it is checked before the driver is up.
#[derive(Debug)]
struct Slot {
    max_size: u16,
    size: u32,
    desc_gpa: u64,
    driver_gpa: u64,
    device_gpa: u64,
    ready: bool,
    /// Notifications of the driver, from the register or from KVM's ioeventfd.
    evt: EventFd,
}

impl Slot {
    fn new(max_size: u16) -> Result<Self, TransportError> {
        Ok(Self {
            max_size,
            size: max_size.into(),
            desc_gpa: 0,
            driver_gpa: 0,
            device_gpa: 0,
            ready: false,
            evt: EventFd::new(EFD_NONBLOCK).map_err(TransportError::EventFd)?,
        })
    }

    fn reset(&mut self) {
        self.size = self.max_size.into();
        self.desc_gpa = 0;
        self.driver_gpa = 0;
        self.device_gpa = 0;
        self.ready = false;
        // A notification of the driver that went is not one of the driver that comes.
        self.take_kick();
    }

    fn take_kick(&self) -> bool {
        self.evt.read().is_ok()
    }

    fn kick(&self) -> Result<(), TransportError> {
        match self.evt.write(1) {
            Err(err) if err.kind() != io::ErrorKind::WouldBlock => {
                Err(TransportError::EventFd(err))
            }
            _ => Ok(()),
        }
    }

    fn build(
        &self,
        mem: &GuestMemory,
        event_idx: bool,
        (next_avail, next_used): (u16, u16),
    ) -> Result<Virtqueue, QueueError> {
        if !self.ready {
            return Ok(Virtqueue::unused());
        }
        Virtqueue::new(
            mem,
            &QueueLayout {
                max_size: self.max_size,
                size: self.size,
                desc_gpa: self.desc_gpa,
                driver_gpa: self.driver_gpa,
                device_gpa: self.device_gpa,
                next_avail,
                next_used,
                event_idx,
            },
        )
    }
}

#[derive(Debug)]
struct Interrupt {
    evt: EventFd,
    status: u32,
}

impl Interrupt {
    fn raise(&mut self, bits: u32) {
        self.status |= bits;
        if let Err(err) = self.evt.write(1)
            && err.kind() != io::ErrorKind::WouldBlock
        {
            tracing::error!(%err, "virtio-mmio: cannot raise the interrupt");
        }
    }
}

/// One virtio device with its transport.
///
/// It is a [`BusDevice`](crate::BusDevice), for the vCPU threads, and an event subscriber, for the
/// event loop's thread, both behind one `Arc<Mutex<_>>`.
pub struct MmioTransport {
    mem: GuestMemory,
    device: Box<dyn VirtioDevice>,
    interrupt: Interrupt,
    slots: Vec<Slot>,
    /// The queues of a device whose driver is up; empty otherwise.
    queues: Vec<Virtqueue>,
    device_features_sel: u32,
    driver_features_sel: u32,
    acked_features: u64,
    acked_beyond: bool,
    queue_sel: u32,
    status: u32,
    config_generation: u32,
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device_id", &self.device.device_id())
            .field("status", &self.status)
            .field("interrupt", &self.interrupt)
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// A device after power-on. It raises its interrupt by `irq_evt`.
    ///
    /// # Errors
    /// When the host has no eventfd left, or the device has more than 32 queues.
    pub fn new(
        mem: GuestMemory,
        device: Box<dyn VirtioDevice>,
        irq_evt: EventFd,
    ) -> Result<Self, TransportError> {
        let sizes = device.queue_max_sizes();
        if sizes.len() > MAX_QUEUES {
            return Err(TransportError::TooManyQueues(sizes.len()));
        }
        let slots = sizes
            .iter()
            .map(|&max_size| Slot::new(max_size))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            mem,
            device,
            interrupt: Interrupt {
                evt: irq_evt,
                status: 0,
            },
            slots,
            queues: Vec::new(),
            device_features_sel: 0,
            driver_features_sel: 0,
            acked_features: 0,
            acked_beyond: false,
            queue_sel: 0,
            status: 0,
            config_generation: 0,
        })
    }

    /// Brings the device to rest, to be called right before [`save`](Self::save) with the vCPUs
    /// paused: waits for what is on its way, and tells the driver the outcome. The device must not
    /// handle an event between the two.
    ///
    /// # Errors
    /// When the host fails the device. One whose queue the driver broke is saved as it is then: in
    /// need of a reset.
    pub fn prepare_save(&mut self) -> Result<(), TransportError> {
        if self.queues.is_empty() {
            return self
                .device
                .prepare_save(None)
                .map_err(TransportError::PrepareSave);
        }
        let mut failed = None;
        self.run(|device, io| match device.prepare_save(Some(io)) {
            Err(err @ DeviceError::Host(_)) => {
                failed = Some(err);
                Ok(Progress::Done)
            }
            other => other.map(|()| Progress::Done),
        });
        match failed {
            Some(err) => Err(TransportError::PrepareSave(err)),
            None => Ok(()),
        }
    }

    /// Changes the device while it works: see [`VirtioDevice::update`]. The driver is interrupted
    /// if its configuration changed.
    ///
    /// # Errors
    /// When the device cannot be changed so.
    pub fn update(&mut self, update: DeviceUpdate) -> Result<(), UpdateDeviceError> {
        if self.queues.is_empty() {
            let _ = self.device.update(None, update)?;
            // For a driver that reads the configuration right now (2.5.1).
            self.config_generation = self.config_generation.wrapping_add(1);
            return Ok(());
        }
        let mut to_process = Ok(Vec::new());
        self.run(|device, io| match device.update(Some(io), update) {
            Err(UpdateDeviceError::Device(err)) => {
                to_process = Err(UpdateDeviceError::Stopped(match err.source() {
                    Some(source) => format!("{err}: {source}"),
                    None => err.to_string(),
                }));
                Err(err)
            }
            other => {
                to_process = other;
                Ok(Progress::Done)
            }
        });
        for index in to_process? {
            if let Some(slot) = self.slots.get(index)
                && let Err(err) = slot.kick()
            {
                self.fail(&err);
            }
        }
        Ok(())
    }

    /// The device's state. The vCPUs must be paused: a notification that comes later is lost. The
    /// device must be at rest: see [`prepare_save`](Self::prepare_save).
    ///
    /// # Errors
    /// When the device cannot be saved, or an eventfd fails.
    pub fn save(&self) -> Result<MmioTransportState, TransportError> {
        let mut queues = Vec::with_capacity(self.slots.len());
        for (index, slot) in self.slots.iter().enumerate() {
            let (next_avail, next_used) = self.queues.get(index).map_or((0, 0), |q| q.position());
            // An eventfd cannot be looked at without taking its events: they are put back.
            let kicked = slot.take_kick();
            if kicked {
                slot.kick()?;
            }
            let in_use = slot.ready && !self.queues.is_empty();
            queues.push(QueueSlotState {
                size: slot.size,
                desc_gpa: slot.desc_gpa,
                driver_gpa: slot.driver_gpa,
                device_gpa: slot.device_gpa,
                ready: slot.ready,
                next_avail: if in_use { next_avail } else { 0 },
                next_used: if in_use { next_used } else { 0 },
                kick_pending: kicked && in_use,
            });
        }
        Ok(MmioTransportState {
            device_id: self.device.device_id(),
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            acked_features: self.acked_features,
            acked_beyond: self.acked_beyond,
            queue_sel: self.queue_sel,
            status: self.status,
            interrupt_status: self.interrupt.status,
            config_generation: self.config_generation,
            queues,
            device: self.device.save()?,
        })
    }

    /// A device as it was when `state` was saved; `device` is a new one. Notifications that were
    /// pending are handled as soon as the event loop runs; an interrupt that the driver did not
    /// acknowledge is raised again.
    ///
    /// Guest memory is not touched: nobody may be there yet to serve its faults. A queue whose
    /// rings in memory do not go with the state is found out at its first use, and the driver is
    /// told to reset the device.
    ///
    /// # Errors
    /// When no such device can be in that state, or the host has no eventfd left.
    pub fn restore(
        mem: GuestMemory,
        device: Box<dyn VirtioDevice>,
        irq_evt: EventFd,
        state: &MmioTransportState,
    ) -> Result<Self, TransportError> {
        let mut new = Self::new(mem, device, irq_evt)?;
        state.check(new.device.device_id(), new.offered_features(), &new.slots)?;
        for (slot, saved) in new.slots.iter_mut().zip(&state.queues) {
            slot.size = saved.size;
            slot.desc_gpa = saved.desc_gpa;
            slot.driver_gpa = saved.driver_gpa;
            slot.device_gpa = saved.device_gpa;
            slot.ready = saved.ready;
        }
        new.device_features_sel = state.device_features_sel;
        new.driver_features_sel = state.driver_features_sel;
        new.acked_features = state.acked_features;
        new.acked_beyond = state.acked_beyond;
        new.queue_sel = state.queue_sel;
        new.status = state.status;
        new.config_generation = state.config_generation;
        let to_process = new.device.restore(&state.device)?;
        if status::is_working(new.status) {
            new.queues = new.build_queues(|index| {
                let saved = state.queues.get(index);
                saved.map_or((0, 0), |q| (q.next_avail, q.next_used))
            })?;
            new.device.activate(new.acked_features)?;
            for (index, (slot, saved)) in new.slots.iter().zip(&state.queues).enumerate() {
                if saved.kick_pending || to_process.contains(&index) {
                    slot.kick()?;
                }
            }
        }
        if state.interrupt_status != 0 {
            new.interrupt.raise(state.interrupt_status);
        }
        Ok(new)
    }

    /// Number of the device's queues.
    pub fn queue_count(&self) -> usize {
        self.slots.len()
    }

    /// The eventfd that notifies the device of queue `index`: for KVM's ioeventfd at
    /// [`NOTIFY_OFFSET`]. A write to the register does the same.
    pub fn queue_event_fd(&self, index: usize) -> Option<&EventFd> {
        self.slots.get(index).map(|slot| &slot.evt)
    }

    fn offered_features(&self) -> u64 {
        self.device.device_features() | 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn features_accepted(&self) -> bool {
        status::has_version_1(self.acked_features)
            && self.acked_features & !self.offered_features() == 0
            && !self.acked_beyond
    }

    fn build_queues(
        &self,
        position: impl Fn(usize) -> (u16, u16),
    ) -> Result<Vec<Virtqueue>, TransportError> {
        let event_idx = self.acked_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        self.slots
            .iter()
            .enumerate()
            .map(|(index, slot)| {
                slot.build(&self.mem, event_idx, position(index))
                    .map_err(|source| TransportError::InvalidQueue { index, source })
            })
            .collect()
    }

    /// The driver set `DRIVER_OK`.
    fn activate(&mut self) {
        let activated = self.build_queues(|_| (0, 0)).and_then(|queues| {
            self.device.activate(self.acked_features)?;
            Ok(queues)
        });
        match activated {
            Ok(queues) => {
                self.queues = queues;
                // Buffers that came before the driver was up, without a notification that counted.
                for slot in self.slots.iter().filter(|slot| slot.ready) {
                    if let Err(err) = slot.kick() {
                        tracing::error!(%err, "virtio-mmio: cannot start a queue");
                    }
                }
            }
            Err(err) => self.fail(&err),
        }
    }

    /// The device cannot go on: the driver is told to reset it (2.1.2).
    fn fail(&mut self, err: &dyn std::error::Error) {
        let device_id = self.device.device_id();
        let source = err.source().map(ToString::to_string).unwrap_or_default();
        tracing::warn!(device_id, %err, source, "virtio-mmio: the device needs a reset");
        self.queues.clear();
        self.device.reset();
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        if self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.interrupt.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    fn reset(&mut self) {
        self.queues.clear();
        self.device.reset();
        for slot in &mut self.slots {
            slot.reset();
        }
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.acked_features = 0;
        self.acked_beyond = false;
        self.queue_sel = 0;
        self.status = 0;
        self.interrupt.status = 0;
    }

    /// Runs the device on its queues, then interrupts the driver once for all that was used.
    fn run(
        &mut self,
        work: impl FnOnce(&mut dyn VirtioDevice, &mut DeviceIo<'_>) -> Result<Progress, DeviceError>,
    ) {
        let mut io = DeviceIo::new(&self.mem, &mut self.queues);
        let result = work(self.device.as_mut(), &mut io);
        let wants_interrupt = io.wants_interrupt();
        if io.config_changed() {
            self.config_generation = self.config_generation.wrapping_add(1);
            self.interrupt.raise(VIRTIO_MMIO_INT_CONFIG);
        }
        let outcome = result.and_then(|progress| wants_interrupt.map(|wants| (progress, wants)));
        match outcome {
            Ok((progress, wants)) => {
                if wants {
                    self.interrupt.raise(VIRTIO_MMIO_INT_VRING);
                }
                if let Progress::More { queue_index } = progress
                    && let Some(slot) = self.slots.get(queue_index)
                    && let Err(err) = slot.kick()
                {
                    self.fail(&err);
                }
            }
            Err(err) => self.fail(&err),
        }
    }

    fn process_kick(&mut self, index: usize) {
        let Some(slot) = self.slots.get(index) else {
            return;
        };
        slot.take_kick();
        // Without a driver there is nothing to do: its buffers are looked at when it is up.
        if slot.ready && !self.queues.is_empty() {
            self.run(|device, io| device.process_queue(io, index));
        }
    }

    fn process_device_event(&mut self, index: usize) {
        if self.queues.is_empty() {
            if let Err(err) = self.device.process_event(None, index) {
                tracing::warn!(%err, "virtio-mmio: an event of a device without a driver failed");
            }
        } else {
            self.run(|device, io| device.process_event(Some(io), index));
        }
    }

    /// Handles what is pending, once, as the event loop would: for those who have none.
    pub fn process_pending(&mut self) {
        for index in 0..self.device.event_fds().len() {
            self.process_device_event(index);
        }
        for index in 0..self.slots.len() {
            let kicked = self.slots.get(index).is_some_and(Slot::take_kick);
            if kicked {
                self.process_kick(index);
            }
        }
    }
}

impl MutEventSubscriber for MmioTransport {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let queues = (0u32..)
            .zip(&self.slots)
            .map(|(i, slot)| Events::with_data(&slot.evt, i, EventSet::IN));
        let mut event_set = EventSet::IN;
        if self.device.events_are_edge_triggered() {
            event_set |= EventSet::EDGE_TRIGGERED;
        }
        let device = (DEVICE_EVENT..)
            .zip(self.device.event_fds())
            .map(|(i, fd)| Events::with_data_raw(fd, i, event_set));
        for events in queues.chain(device) {
            if let Err(err) = ops.add(events) {
                tracing::error!(%err, "virtio-mmio: a device's events will not be seen");
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        match events.data().checked_sub(DEVICE_EVENT) {
            Some(index) => self.process_device_event(index as usize),
            None => self.process_kick(events.data() as usize),
        }
    }
}
