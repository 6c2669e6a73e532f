//! The guest's side for tests: a driver that works a virtio-mmio device by its registers and its
//! rings alone.
// The fuzz targets do with less of it than the tests.
#![cfg_attr(not(test), allow(dead_code))]

use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use vm_memory::bitmap::{AtomicBitmap, NewBitmap};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap};
#[cfg(test)]
use vm_memory::{GuestMemoryBackend, bitmap::Bitmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::GuestMemory;
use crate::bus::BusDevice;
use crate::virtio::{MmioTransport, VirtioDevice};

/// Bytes of guest memory.
pub(crate) const MEMORY_BYTES: usize = 0x20_0000;
/// Entries of each queue.
pub(crate) const QUEUE_SIZE: u16 = 64;
/// Descriptors that a chain may have.
const CHAIN_DESCS: u16 = 4;
/// Chains that can be in flight.
pub(crate) const CHAINS: u16 = QUEUE_SIZE / CHAIN_DESCS;

const VERSION_1: u64 = 1 << 32;
pub(crate) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// GPA of the descriptor table of queue `index`; the rings follow.
pub(crate) fn desc_gpa(index: usize) -> u64 {
    0x1_0000 + index as u64 * 0x1_0000
}
pub(crate) fn avail_gpa(index: usize) -> u64 {
    desc_gpa(index) + 0x4000
}
pub(crate) fn used_gpa(index: usize) -> u64 {
    desc_gpa(index) + 0x6000
}
/// GPA of 16 KiB for chain `chain` of queue `index`.
pub(crate) fn buffer_gpa(index: usize, chain: u16) -> u64 {
    0x10_0000 + index as u64 * 0x4_0000 + u64::from(chain) * 0x4000
}

/// A piece of a buffer.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) gpa: u64,
    pub(crate) len: u32,
    pub(crate) writable: bool,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Ring {
    pub(crate) avail_idx: u16,
    pub(crate) last_used: u16,
}

pub(crate) struct Driver {
    pub(crate) mem: GuestMemory,
    pub(crate) transport: MmioTransport,
    pub(crate) irq: EventFd,
    pub(crate) rings: Vec<Ring>,
}

pub(crate) fn memory() -> GuestMemory {
    memory_of(&[(GuestAddress(0), MEMORY_BYTES)])
}

/// Guest memory that, for tests, keeps which pages were written.
pub(crate) fn memory_of(ranges: &[(GuestAddress, usize)]) -> GuestMemory {
    let regions = ranges.iter().map(|&(gpa, size)| {
        let bitmap = cfg!(test).then(|| AtomicBitmap::with_len(size));
        let mapping = MmapRegionBuilder::new_with_bitmap(size, bitmap)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .build()
            .expect("a mapping of a test");
        GuestRegionMmap::new(mapping, gpa).expect("a region of a test")
    });
    GuestMemory::from_regions(regions.collect()).expect("guest memory of a test")
}

/// The numbers of the pages of `mem` that are marked as written.
#[cfg(test)]
pub(crate) fn dirty_pages(mem: &GuestMemory) -> Vec<u64> {
    let pages = 0..mem.last_addr().0 / 4096 + 1;
    pages
        .filter(|page| {
            let slice = mem.get_slice(GuestAddress(page * 4096), 4096);
            slice.is_ok_and(|slice| slice.bitmap().dirty_at(0))
        })
        .collect()
}

pub(crate) fn evt() -> EventFd {
    EventFd::new(EFD_NONBLOCK).expect("an eventfd of a test")
}

impl Driver {
    /// A device that no driver has touched.
    pub(crate) fn new(device: Box<dyn VirtioDevice>) -> Self {
        let (mem, irq) = (memory(), evt());
        let irq_copy = irq.try_clone().expect("an eventfd of a test");
        let transport =
            MmioTransport::new(mem.clone(), device, irq_copy).expect("a device of a test");
        Self::over(mem, transport, irq)
    }

    pub(crate) fn over(mem: GuestMemory, transport: MmioTransport, irq: EventFd) -> Self {
        let rings = vec![Ring::default(); transport.queue_count()];
        Self {
            mem,
            transport,
            irq,
            rings,
        }
    }

    /// A device whose driver is up, with these features beside `VERSION_1`.
    pub(crate) fn booted(device: Box<dyn VirtioDevice>, features: u64) -> Self {
        let mut driver = Self::new(device);
        driver.boot(features);
        driver
    }

    pub(crate) fn boot(&mut self, features: u64) {
        self.negotiate(features | VERSION_1);
        for index in 0..self.rings.len() {
            self.set_up_queue(index);
        }
        self.write(VIRTIO_MMIO_STATUS, 0xf);
    }

    pub(crate) fn negotiate(&mut self, features: u64) {
        self.write(VIRTIO_MMIO_STATUS, 0);
        self.write(VIRTIO_MMIO_STATUS, 1);
        self.write(VIRTIO_MMIO_STATUS, 3);
        for (sel, bits) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, sel);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, bits);
        }
        self.write(VIRTIO_MMIO_STATUS, 0xb);
    }

    pub(crate) fn set_up_queue(&mut self, index: usize) {
        self.write(VIRTIO_MMIO_QUEUE_SEL, index as u32);
        self.write(VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE.into());
        for (low, high, gpa) in [
            (
                VIRTIO_MMIO_QUEUE_DESC_LOW,
                VIRTIO_MMIO_QUEUE_DESC_HIGH,
                desc_gpa(index),
            ),
            (
                VIRTIO_MMIO_QUEUE_AVAIL_LOW,
                VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
                avail_gpa(index),
            ),
            (
                VIRTIO_MMIO_QUEUE_USED_LOW,
                VIRTIO_MMIO_QUEUE_USED_HIGH,
                used_gpa(index),
            ),
        ] {
            self.write(low, gpa as u32);
            self.write(high, (gpa >> 32) as u32);
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        if let Some(ring) = self.rings.get_mut(index) {
            *ring = Ring::default();
        }
        // A driver hands in clean rings.
        let _ = self
            .mem
            .write_slice(&[0; 0x8000], GuestAddress(desc_gpa(index)));
    }

    pub(crate) fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    pub(crate) fn read(&mut self, register: u32) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(register.into(), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Makes a buffer of these pieces available, without a notification. Returns its chain.
    pub(crate) fn offer(&mut self, index: usize, pieces: &[Piece]) -> u16 {
        let ring = &mut self.rings[index];
        let chain = ring.avail_idx % CHAINS;
        for (i, piece) in (0u16..).zip(pieces) {
            let last = usize::from(i) + 1 == pieces.len();
            let desc_index = chain * CHAIN_DESCS + i;
            let mut flags = 0;
            if !last {
                flags |= VRING_DESC_F_NEXT as u16;
            }
            if piece.writable {
                flags |= VRING_DESC_F_WRITE as u16;
            }
            let mut raw = [0u8; 16];
            raw[..8].copy_from_slice(&piece.gpa.to_le_bytes());
            raw[8..12].copy_from_slice(&piece.len.to_le_bytes());
            raw[12..14].copy_from_slice(&flags.to_le_bytes());
            raw[14..].copy_from_slice(&(desc_index + 1).to_le_bytes());
            let at = desc_gpa(index) + u64::from(desc_index) * 16;
            self.mem
                .write_slice(&raw, GuestAddress(at))
                .expect("a descriptor of a test");
        }
        let slot = avail_gpa(index) + 4 + u64::from(ring.avail_idx % QUEUE_SIZE) * 2;
        self.put_u16(slot, chain * CHAIN_DESCS);
        self.rings[index].avail_idx = self.rings[index].avail_idx.wrapping_add(1);
        self.put_u16(avail_gpa(index) + 2, self.rings[index].avail_idx);
        chain
    }

    pub(crate) fn put_u16(&self, gpa: u64, value: u16) {
        self.mem
            .write_obj(value, GuestAddress(gpa))
            .expect("guest memory of a test");
    }

    pub(crate) fn get_u16(&self, gpa: u64) -> u16 {
        self.mem
            .read_obj(GuestAddress(gpa))
            .expect("guest memory of a test")
    }

    pub(crate) fn kick(&mut self, index: usize) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, index as u32);
    }

    /// The next buffer that the device gave back: its chain and the bytes written.
    pub(crate) fn take_used(&mut self, index: usize) -> Option<(u16, u32)> {
        let last = self.rings[index].last_used;
        if self.get_u16(used_gpa(index) + 2) == last {
            return None;
        }
        let at = used_gpa(index) + 4 + u64::from(last % QUEUE_SIZE) * 8;
        let id: u32 = self.mem.read_obj(GuestAddress(at)).expect("a used element");
        let len: u32 = self
            .mem
            .read_obj(GuestAddress(at + 4))
            .expect("a used element");
        self.rings[index].last_used = last.wrapping_add(1);
        // Interrupt for the next one, as a driver with EVENT_IDX says it.
        self.put_u16(
            avail_gpa(index) + 4 + u64::from(QUEUE_SIZE) * 2,
            last.wrapping_add(1),
        );
        Some((id as u16 / CHAIN_DESCS, len))
    }

    /// Lets the device work until it has nothing more to do.
    pub(crate) fn run(&mut self) {
        for _ in 0..4 {
            self.transport.process_pending();
        }
    }

    /// Interrupts since it was asked last.
    pub(crate) fn interrupts(&self) -> u64 {
        self.irq.read().unwrap_or(0)
    }

    pub(crate) fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem
            .read_slice(&mut bytes, GuestAddress(gpa))
            .expect("guest memory of a test");
        bytes
    }
}
