//! A virtqueue in use: the split ring of 2.7 by `virtio-queue`, with what that leaves to its user.

use std::sync::atomic::Ordering;

use thiserror::Error;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;

/// What is wrong with a queue.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The device has no such queue.
    #[error("the device has no such queue")]
    NoSuchQueue,
    /// The size is 0, no power of 2, or above what the device offers.
    #[error("its size {size} is not a power of 2 from 1 to {max_size}")]
    Size {
        /// The size that the driver chose.
        size: u32,
        /// The largest size that the device offers.
        max_size: u16,
    },
    /// A ring is not where it may be.
    #[error("its rings are not aligned, or not in guest memory")]
    Address,
    /// The position in the used ring does not follow from that in the available ring.
    #[error(
        "its used index {next_used} is not within its size of its available index {next_avail}"
    )]
    Position {
        /// Next index in the available ring.
        next_avail: u16,
        /// Next index in the used ring.
        next_used: u16,
    },
    /// An access to a ring failed, or found nonsense.
    #[error("its ring is broken: {0}")]
    Ring(String),
}

impl From<virtio_queue::Error> for QueueError {
    fn from(err: virtio_queue::Error) -> Self {
        Self::Ring(err.to_string())
    }
}

/// What a driver said of a queue, unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueLayout {
    pub(crate) max_size: u16,
    pub(crate) size: u32,
    pub(crate) desc_gpa: u64,
    pub(crate) driver_gpa: u64,
    pub(crate) device_gpa: u64,
    pub(crate) next_avail: u16,
    pub(crate) next_used: u16,
    pub(crate) event_idx: bool,
}

/// A virtqueue whose rings were checked to be in guest memory, or one that the driver did not set
/// up: that is empty for ever.
#[derive(Debug)]
pub struct Virtqueue(Option<Queue>);

impl Virtqueue {
    /// A queue that the driver does not use.
    pub(crate) fn unused() -> Self {
        Self(None)
    }

    /// Checks the layout, without a look into guest memory.
    pub(crate) fn new(mem: &GuestMemory, layout: &QueueLayout) -> Result<Self, QueueError> {
        let size_error = || QueueError::Size {
            size: layout.size,
            max_size: layout.max_size,
        };
        let size = u16::try_from(layout.size).map_err(|_| size_error())?;
        if !size.is_power_of_two() || size > layout.max_size {
            return Err(size_error());
        }
        // A device of ours gives each buffer back before it takes the next turn, so at most the
        // buffers of one queue are between the two positions.
        if layout.next_avail.wrapping_sub(layout.next_used) > size {
            return Err(QueueError::Position {
                next_avail: layout.next_avail,
                next_used: layout.next_used,
            });
        }
        // `virtio-queue` takes an available ring at 0 for one that was not set.
        if layout.driver_gpa == 0 {
            return Err(QueueError::Address);
        }
        let queue = Queue::try_from(QueueState {
            max_size: layout.max_size,
            next_avail: layout.next_avail,
            next_used: layout.next_used,
            event_idx_enabled: layout.event_idx,
            size,
            ready: true,
            desc_table: layout.desc_gpa,
            avail_ring: layout.driver_gpa,
            used_ring: layout.device_gpa,
        })
        .map_err(|_| QueueError::Address)?;
        if !queue.is_valid(mem) {
            return Err(QueueError::Address);
        }
        Ok(Self(Some(queue)))
    }

    /// The next positions in the available and in the used ring.
    pub(crate) fn position(&self) -> (u16, u16) {
        self.0
            .as_ref()
            .map_or((0, 0), |q| (q.next_avail(), q.next_used()))
    }

    pub(crate) fn pop<'m>(
        &mut self,
        mem: &'m GuestMemory,
    ) -> Result<Option<DescriptorChain<&'m GuestMemory>>, QueueError> {
        match &mut self.0 {
            // `iter` rather than `pop_descriptor_chain`: that hides an index that jumped.
            Some(queue) => Ok(queue.iter(mem)?.next()),
            None => Ok(None),
        }
    }

    pub(crate) fn undo_pop(&mut self) {
        if let Some(queue) = &mut self.0 {
            queue.go_to_previous_position();
        }
    }

    pub(crate) fn add_used(
        &mut self,
        mem: &GuestMemory,
        head_index: u16,
        len_bytes: u32,
    ) -> Result<(), QueueError> {
        match &mut self.0 {
            Some(queue) => Ok(queue.add_used(mem, head_index, len_bytes)?),
            None => Ok(()),
        }
    }

    pub(crate) fn enable_notification(&mut self, mem: &GuestMemory) -> Result<bool, QueueError> {
        match &mut self.0 {
            Some(queue) => Ok(queue.enable_notification(mem)?),
            None => Ok(false),
        }
    }

    pub(crate) fn disable_notification(&mut self, mem: &GuestMemory) -> Result<(), QueueError> {
        match &mut self.0 {
            Some(queue) => Ok(queue.disable_notification(mem)?),
            None => Ok(()),
        }
    }

    /// Whether the driver wants an interrupt for what was used since it was asked last (2.7.7).
    pub(crate) fn needs_interrupt(&mut self, mem: &GuestMemory) -> Result<bool, QueueError> {
        let Some(queue) = &mut self.0 else {
            return Ok(false);
        };
        if !queue.needs_notification(mem)? {
            return Ok(false);
        }
        if queue.event_idx_enabled() {
            return Ok(true);
        }
        // `virtio-queue` leaves the flag of the available ring to its user. The fence that has to
        // be before this load is in `needs_notification`.
        let flags: u16 = mem
            .load(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
            .map_err(|err| QueueError::Ring(err.to_string()))?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}
