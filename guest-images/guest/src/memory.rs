//! The heap as Rust's global allocator, and as the pages that virtio queues are made of.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use reapvm_guest::heap::Heap;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

struct GuestHeap(UnsafeCell<Heap>);

// SAFETY: the guest has one vCPU and one thread, and its interrupt handler allocates nothing.
unsafe impl Sync for GuestHeap {}

#[global_allocator]
static HEAP: GuestHeap = GuestHeap(UnsafeCell::new(Heap::new()));

/// Gives the heap the memory from `start` to `end`, guest-physical addresses.
///
/// # Safety
/// As for [`Heap::init`].
pub(crate) unsafe fn init(start: u64, end: u64) {
    // SAFETY: one thread, and no call into the heap is under way; the range is the caller's word.
    unsafe { (*HEAP.0.get()).init(start as usize, end as usize) }
}

// SAFETY: the heap keeps `GlobalAlloc`'s contract, and with one thread no two calls meet.
unsafe impl GlobalAlloc for GuestHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above.
        unsafe { (*self.0.get()).allocate(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above.
        unsafe { (*self.0.get()).allocate_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: see above; the block is the caller's word.
        unsafe { (*self.0.get()).deallocate(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: see above; the block is the caller's word.
        unsafe { (*self.0.get()).reallocate(block, layout, new_size) }
    }
}

/// Memory as devices see it: every address is the same for both sides.
pub(crate) struct Identity;

// SAFETY: pages come from the global allocator, zeroed, page-aligned and owned by the caller until
// they are given back; addresses are physical ones because the page tables are an identity.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let block = pages_layout(pages).and_then(|layout| {
            // SAFETY: the layout is not empty.
            NonNull::new(unsafe { alloc::alloc::alloc_zeroed(layout) })
        });
        // Address 0 is the trait's word for failure.
        block.map_or((0, NonNull::dangling()), |block| {
            (block.as_ptr() as PhysAddr, block)
        })
    }

    unsafe fn dma_dealloc(_address: PhysAddr, block: NonNull<u8>, pages: usize) -> i32 {
        if let Some(layout) = pages_layout(pages) {
            // SAFETY: the caller returns what `dma_alloc` gave it for as many pages.
            unsafe { alloc::alloc::dealloc(block.as_ptr(), layout) };
        }
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _size: usize) -> NonNull<u8> {
        NonNull::new(address as *mut u8).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_address: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}

fn pages_layout(pages: usize) -> Option<Layout> {
    let bytes = pages.checked_mul(PAGE_SIZE).filter(|bytes| *bytes > 0)?;
    Layout::from_size_align(bytes, PAGE_SIZE).ok()
}
