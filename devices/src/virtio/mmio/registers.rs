//! The registers of a virtio-mmio device (4.2.2), as a vCPU reads and writes them.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_mmio::*;

use super::{MmioTransport, Slot, status};
use crate::bus::BusDevice;

/// "virt" in little-endian order.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "REAP" in little-endian order.
const VENDOR_ID: u32 = 0x5041_4552;
const CONFIG_OFFSET: u64 = VIRTIO_MMIO_CONFIG as u64;
/// `QueueReset`: there is a register, but the feature is not offered.
const QUEUE_RESET: u32 = 0x0c0;

impl MmioTransport {
    fn selected(&self) -> Option<&Slot> {
        self.slots.get(usize::try_from(self.queue_sel).ok()?)
    }

    /// The selected queue, while the driver may still set it up.
    fn selected_for_setup(&mut self) -> Option<&mut Slot> {
        let setup = self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0
            && self.status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET) == 0;
        if !setup {
            return None;
        }
        let slot = self.slots.get_mut(usize::try_from(self.queue_sel).ok()?)?;
        Some(slot)
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.device_id(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR_ID,
            VIRTIO_MMIO_DEVICE_FEATURES => match self.device_features_sel {
                0 => self.offered_features() as u32,
                1 => (self.offered_features() >> 32) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.selected().map_or(0, |slot| slot.max_size.into()),
            VIRTIO_MMIO_QUEUE_READY => self.selected().map_or(0, |slot| slot.ready.into()),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status,
            VIRTIO_MMIO_STATUS => self.status,
            // All ones is the length of a shared memory region that is not there (4.2.2.1).
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            QUEUE_RESET => 0,
            VIRTIO_MMIO_CONFIG_GENERATION => self.config_generation,
            // The others are for writing, or not there.
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        let low = |old: u64| (old & !0xffff_ffff) | u64::from(value);
        let high = |old: u64| (old & 0xffff_ffff) | u64::from(value) << 32;
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(value),
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            VIRTIO_MMIO_QUEUE_READY => self.write_queue_ready(value),
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                let kicked = self.slots.get(value as usize).map(Slot::kick);
                if let Some(Err(err)) = kicked {
                    self.fail(&err);
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.status &= !value,
            VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => {
                // What is left sets a queue up, and not while that queue is enabled.
                let Some(slot) = self.selected_for_setup().filter(|slot| !slot.ready) else {
                    return;
                };
                match offset {
                    VIRTIO_MMIO_QUEUE_NUM => slot.size = value,
                    VIRTIO_MMIO_QUEUE_DESC_LOW => slot.desc_gpa = low(slot.desc_gpa),
                    VIRTIO_MMIO_QUEUE_DESC_HIGH => slot.desc_gpa = high(slot.desc_gpa),
                    VIRTIO_MMIO_QUEUE_AVAIL_LOW => slot.driver_gpa = low(slot.driver_gpa),
                    VIRTIO_MMIO_QUEUE_AVAIL_HIGH => slot.driver_gpa = high(slot.driver_gpa),
                    VIRTIO_MMIO_QUEUE_USED_LOW => slot.device_gpa = low(slot.device_gpa),
                    VIRTIO_MMIO_QUEUE_USED_HIGH => slot.device_gpa = high(slot.device_gpa),
                    _ => {}
                }
            }
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        // Features are settled once FEATURES_OK is set.
        if self.status & VIRTIO_CONFIG_S_DRIVER == 0
            || self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0
        {
            return;
        }
        match self.driver_features_sel {
            0 => {
                self.acked_features = (self.acked_features & !0xffff_ffff) | u64::from(value);
            }
            1 => {
                self.acked_features = (self.acked_features & 0xffff_ffff) | u64::from(value) << 32;
            }
            // No feature is offered up there.
            _ => self.acked_beyond |= value != 0,
        }
    }

    fn write_queue_ready(&mut self, value: u32) {
        if value & 1 != 0 {
            if let Some(slot) = self.selected_for_setup() {
                slot.ready = true;
            }
            return;
        }
        // A driver may stop a queue at any time, and waits until it reads 0 back.
        let Ok(index) = usize::try_from(self.queue_sel) else {
            return;
        };
        if let Some(slot) = self.slots.get_mut(index) {
            slot.ready = false;
            slot.take_kick();
        }
        if let Some(queue) = self.queues.get_mut(index) {
            *queue = super::Virtqueue::unused();
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let worked = status::is_working(self.status);
        self.status = status::after_write(self.status, value, self.features_accepted());
        match (worked, status::is_working(self.status)) {
            (false, true) => self.activate(),
            // The driver gave up: it wants nothing of the device until it resets it.
            (true, false) => {
                self.queues.clear();
                self.device.reset();
            }
            _ => {}
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG_OFFSET) {
            self.device.read_config(offset, data);
            return;
        }
        // Registers are 32 bits wide and read as such only (4.2.2.2).
        if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read_register(offset as u32).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG_OFFSET) {
            // Before DRIVER there is no driver that could want anything (3.1.1).
            if self.status & VIRTIO_CONFIG_S_DRIVER != 0 {
                self.device.write_config(offset, data);
            }
            return;
        }
        if let Ok(bytes) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.write_register(offset as u32, u32::from_le_bytes(bytes));
        }
    }
}
