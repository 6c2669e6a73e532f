//! What a virtio device is to its transport, and what the transport lends it.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_queue::DescriptorChain;

use super::balloon::BalloonState;
use super::block::{BlockError, BlockState, DiskFile};
use super::net::NetState;
use super::queue::{QueueError, Virtqueue};
use super::rng::RngState;
use super::vsock::VsockState;
use crate::GuestMemory;
use crate::rate_limiter::{RateLimiterConfig, RateLimiterError};

/// What a device lets a snapshot keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VirtioDeviceState {
    /// An entropy device.
    Rng(RngState),
    /// A socket device.
    Vsock(VsockState),
    /// A disk.
    Block(BlockState),
    /// A network device.
    Net(NetState),
    /// A memory balloon.
    Balloon(BalloonState),
}

/// Why a device cannot start to work.
#[derive(Debug, Error)]
#[error("the device cannot be activated: {0}")]
pub struct ActivateError(pub String);

/// Why a device cannot be saved.
#[derive(Debug, Error)]
#[error("the device cannot be saved: {0}")]
pub struct SaveDeviceError(pub String);

/// Why a device cannot take a saved state.
#[derive(Debug, Error)]
pub enum RestoreDeviceError {
    /// The state is another kind of device's.
    #[error("the saved state is not that of a {expected} device")]
    OtherDevice {
        /// The kind of the device that was to be restored.
        expected: &'static str,
    },
    /// No device can be in that state.
    #[error("the saved state of the {device} device is not valid: {reason}")]
    Invalid {
        /// The kind of device.
        device: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// What may be changed of a device that works. Buckets of rate limiters that are not named stay as
/// they are; see [`RateLimiter::change`](crate::rate_limiter::RateLimiter::change).
#[derive(Debug)]
pub enum DeviceUpdate {
    /// Of a disk.
    Block {
        /// Another file in the place of the one that it has.
        file: Option<DiskFile>,
        /// Changes of its limits.
        rate_limiter: RateLimiterConfig,
    },
    /// Of a network device.
    Net {
        /// Changes of the limits of what the guest receives.
        rx_rate_limiter: RateLimiterConfig,
        /// Changes of the limits of what the guest sends.
        tx_rate_limiter: RateLimiterConfig,
    },
    /// Of a balloon.
    Balloon {
        /// Seconds between two requests for the guest's statistics.
        stats_polling_interval_s: u16,
    },
}

/// Why a device is not changed. It goes on as it was, unless the host failed it.
#[derive(Debug, Error)]
pub enum UpdateDeviceError {
    /// The change is one for another kind of device.
    #[error("the device has nothing of what is to be changed")]
    OtherDevice,
    /// The file.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The new file is not for this disk.
    #[error("the disk is {}, and a guest cannot be told otherwise", if *.read_only { "read-only" } else { "writable" })]
    Access {
        /// What the disk is.
        read_only: bool,
    },
    /// A limit.
    #[error(transparent)]
    RateLimiter(#[from] RateLimiterError),
    /// Statistics that the guest was not offered, or that it was.
    #[error(
        "statistics of the balloon cannot be turned on or off while the machine lives: only their \
         interval can be changed"
    )]
    StatisticsSwitch,
    /// The device stopped working meanwhile.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The transport has found that out, and told the driver to reset the device.
    #[error("the device stopped working before it could be changed: {0}")]
    Stopped(String),
}

/// Why a device stopped working: the driver is told to reset it (2.1.2).
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The driver broke a queue.
    #[error("queue {index} is broken")]
    Queue {
        /// The queue's index.
        index: usize,
        /// What is wrong with it.
        source: QueueError,
    },
    /// The host failed the device.
    #[error("the host failed the device: {0}")]
    Host(String),
}

/// Whether a device did all that there was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Nothing is left to be done until the next event.
    Done,
    /// The device used up its turn: the queue is to be processed again after the other events.
    More {
        /// The queue that has work left.
        queue_index: usize,
    },
}

/// What a transport lends its device for the time of one call: guest memory and the queues. The
/// transport decides, once after the call, whether the driver is interrupted.
#[derive(Debug)]
pub struct DeviceIo<'a> {
    mem: &'a GuestMemory,
    queues: &'a mut [Virtqueue],
    /// Queues in which buffers were used in this call, a bit each.
    used: u32,
    /// Whether the configuration space changed in this call.
    config_changed: bool,
}

impl<'a> DeviceIo<'a> {
    pub(crate) fn new(mem: &'a GuestMemory, queues: &'a mut [Virtqueue]) -> Self {
        Self {
            mem,
            queues,
            used: 0,
            config_changed: false,
        }
    }

    /// Guest memory.
    pub fn mem(&self) -> &'a GuestMemory {
        self.mem
    }

    fn queue(
        &mut self,
        index: usize,
    ) -> Result<(&mut Virtqueue, impl Fn(QueueError) -> DeviceError), DeviceError> {
        let as_device_error = move |source| DeviceError::Queue { index, source };
        let queue = self
            .queues
            .get_mut(index)
            .ok_or_else(|| as_device_error(QueueError::NoSuchQueue))?;
        Ok((queue, as_device_error))
    }

    /// Takes the next buffer that the driver made available, or `None`.
    ///
    /// # Errors
    /// When the ring is broken.
    pub fn pop(
        &mut self,
        index: usize,
    ) -> Result<Option<DescriptorChain<&'a GuestMemory>>, DeviceError> {
        let mem = self.mem;
        let (queue, err) = self.queue(index)?;
        queue.pop(mem).map_err(err)
    }

    /// Puts the buffer that was taken last back.
    pub fn undo_pop(&mut self, index: usize) {
        if let Some(queue) = self.queues.get_mut(index) {
            queue.undo_pop();
        }
    }

    /// Gives a buffer back to the driver, with `len_bytes` bytes written to it.
    ///
    /// # Errors
    /// When the ring is broken.
    pub fn add_used(
        &mut self,
        index: usize,
        head_index: u16,
        len_bytes: u32,
    ) -> Result<(), DeviceError> {
        let mem = self.mem;
        let (queue, err) = self.queue(index)?;
        queue.add_used(mem, head_index, len_bytes).map_err(err)?;
        self.used |= 1u32.checked_shl(index as u32).unwrap_or(0);
        Ok(())
    }

    /// Asks the driver to notify when it makes buffers available. `true`: it made some while this
    /// was said, and the queue is to be looked at again.
    ///
    /// # Errors
    /// When the ring is broken.
    pub fn enable_notification(&mut self, index: usize) -> Result<bool, DeviceError> {
        let mem = self.mem;
        let (queue, err) = self.queue(index)?;
        queue.enable_notification(mem).map_err(err)
    }

    /// Tells the driver that notifications of this queue are not needed: each is an exit.
    ///
    /// # Errors
    /// When the ring is broken.
    pub fn disable_notification(&mut self, index: usize) -> Result<(), DeviceError> {
        let mem = self.mem;
        let (queue, err) = self.queue(index)?;
        queue.disable_notification(mem).map_err(err)
    }

    /// Tells the driver that the configuration space changed (2.5.2), after this call.
    pub fn notify_config_change(&mut self) {
        self.config_changed = true;
    }

    pub(crate) fn config_changed(&self) -> bool {
        self.config_changed
    }

    /// Whether the driver wants to be interrupted for what was used in this call.
    pub(crate) fn wants_interrupt(&mut self) -> Result<bool, DeviceError> {
        let mut wanted = false;
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if self.used & 1u32.checked_shl(index as u32).unwrap_or(0) != 0 {
                // Every queue is asked, for asking moves its mark of what was told.
                wanted |= queue
                    .needs_interrupt(self.mem)
                    .map_err(|source| DeviceError::Queue { index, source })?;
            }
        }
        self.used = 0;
        Ok(wanted)
    }
}

/// A virtio device. The transport owns its queues and its registers; the device does the work,
/// on the event loop's thread for queues and events, on a vCPU's thread for configuration.
pub trait VirtioDevice: Send {
    /// The device's type (5).
    fn device_id(&self) -> u32;

    /// The device's own feature bits. The transport adds `VIRTIO_F_VERSION_1` and
    /// `VIRTIO_F_EVENT_IDX`.
    fn device_features(&self) -> u64;

    /// The largest size of each queue: powers of 2, at most 32 queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// Reads `data.len()` bytes of the configuration space at `offset`; what is beyond it reads as
    /// zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the configuration space.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Descriptors, other than the queues', whose readability is an event for the device. They are
    /// the same as long as the device lives.
    fn event_fds(&self) -> Vec<RawFd>;

    /// Whether an event comes only when a descriptor becomes readable, and not as long as it is.
    /// A device that leaves what it cannot take yet in a descriptor needs it so: the event loop
    /// would otherwise go round without end.
    fn events_are_edge_triggered(&self) -> bool {
        false
    }

    /// The driver is up, with `acked_features`, or was when the device was saved.
    ///
    /// # Errors
    /// When the device cannot work: the driver is told to reset it.
    fn activate(&mut self, acked_features: u64) -> Result<(), ActivateError>;

    /// Does what there is to do in the queue.
    ///
    /// # Errors
    /// When the device cannot go on until it is reset.
    fn process_queue(
        &mut self,
        io: &mut DeviceIo<'_>,
        queue_index: usize,
    ) -> Result<Progress, DeviceError>;

    /// Handles the event of the descriptor `event_fds()[event_index]`. `io` is `None` when no
    /// driver is up: the event has to be consumed nevertheless, or it comes back at once.
    ///
    /// # Errors
    /// When the device cannot go on until it is reset.
    fn process_event(
        &mut self,
        io: Option<&mut DeviceIo<'_>>,
        event_index: usize,
    ) -> Result<Progress, DeviceError>;

    /// Back to the state before the driver came. All that it was doing for the driver ends.
    fn reset(&mut self);

    /// Changes what may be changed while the device works, all of it or nothing. Returns the queues
    /// that have to be processed for the device to go on. `io` is `None` when no driver is up.
    ///
    /// # Errors
    /// When there is no such thing to be changed, or the change cannot be made.
    fn update(
        &mut self,
        _io: Option<&mut DeviceIo<'_>>,
        _update: DeviceUpdate,
    ) -> Result<Vec<usize>, UpdateDeviceError> {
        Err(UpdateDeviceError::OtherDevice)
    }

    /// Comes to rest for a save: what is on its way for the driver ends, with its outcome told to
    /// the driver, and nothing new is begun. Afterwards the device writes to guest memory no more
    /// until its next event, so that state and memory go together. `io` is `None` when no driver
    /// is up.
    ///
    /// A virtual machine that goes on after the save needs no counterpart: a device that left
    /// something to be done has an event pending.
    ///
    /// # Errors
    /// When the host fails the device, or the driver broke a queue.
    fn prepare_save(&mut self, _io: Option<&mut DeviceIo<'_>>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The device's state, to be given to [`restore`](Self::restore) of a new device. The device
    /// is at rest: see [`prepare_save`](Self::prepare_save).
    ///
    /// # Errors
    /// When the device cannot be saved: there is no default that pretends.
    fn save(&self) -> Result<VirtioDeviceState, SaveDeviceError>;

    /// Takes a saved state, on a new device. Returns the queues that have to be processed for the
    /// device to go on. It must not touch guest memory: nobody serves its faults yet.
    ///
    /// # Errors
    /// When the state is not one of this device.
    fn restore(&mut self, state: &VirtioDeviceState) -> Result<Vec<usize>, RestoreDeviceError>;
}
