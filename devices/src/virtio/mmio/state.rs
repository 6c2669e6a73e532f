//! What a snapshot keeps of a virtio-mmio device, and whether it can be believed.

use serde::{Deserialize, Serialize};

use super::{FEATURES_OK_BIT, Slot, TransportError, status};
use crate::virtio::device::VirtioDeviceState;

/// A queue as its registers describe it, and how far the device got in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSlotState {
    /// Entries, as the driver wrote it.
    pub size: u32,
    /// GPA of the descriptor table.
    pub desc_gpa: u64,
    /// GPA of the available ring.
    pub driver_gpa: u64,
    /// GPA of the used ring.
    pub device_gpa: u64,
    /// Whether the driver enabled the queue.
    pub ready: bool,
    /// Next position in the available ring.
    pub next_avail: u16,
    /// Next position in the used ring.
    pub next_used: u16,
    /// Whether the driver notified the device and the device did not come to it.
    pub kick_pending: bool,
}

/// A virtio-mmio device: its registers, its queues and the device itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioTransportState {
    /// The device's type.
    pub device_id: u32,
    /// `DeviceFeaturesSel`.
    pub device_features_sel: u32,
    /// `DriverFeaturesSel`.
    pub driver_features_sel: u32,
    /// Features that the driver acknowledged.
    pub acked_features: u64,
    /// Whether the driver acknowledged a feature above bit 63.
    pub acked_beyond: bool,
    /// `QueueSel`.
    pub queue_sel: u32,
    /// `Status`.
    pub status: u32,
    /// `InterruptStatus`.
    pub interrupt_status: u32,
    /// `ConfigGeneration`.
    pub config_generation: u32,
    /// The queues, in the device's order.
    pub queues: Vec<QueueSlotState>,
    /// The device's own state.
    pub device: VirtioDeviceState,
}

impl MmioTransportState {
    /// Whether a device with these features and queues can be in this state. Queues of a device
    /// that works are checked when they are built.
    pub(super) fn check(
        &self,
        device_id: u32,
        offered_features: u64,
        slots: &[Slot],
    ) -> Result<(), TransportError> {
        let invalid = |reason: &str| Err(TransportError::InvalidState(reason.to_owned()));
        if self.device_id != device_id {
            return Err(TransportError::OtherDevice {
                saved: self.device_id,
                expected: device_id,
            });
        }
        if self.queues.len() != slots.len() {
            return invalid("it has another number of queues than the device");
        }
        if self.acked_features & !offered_features != 0 && self.status & FEATURES_OK_BIT != 0 {
            return invalid("it has features that the device does not offer");
        }
        if !status::is_consistent(self.status, self.acked_features, self.acked_beyond) {
            return invalid("its status is not one that the device can be in");
        }
        if self.interrupt_status & !super::INTERRUPT_BITS != 0 {
            return invalid("its interrupt status has unknown bits");
        }
        let works = status::is_working(self.status);
        for queue in &self.queues {
            let moved = queue.next_avail != 0 || queue.next_used != 0 || queue.kick_pending;
            if moved && !(works && queue.ready) {
                return invalid("a queue that is not in use has a position");
            }
        }
        Ok(())
    }
}
