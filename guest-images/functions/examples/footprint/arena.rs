//! The guest's heap in one mapping whose pages can be watched.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use reapvm_guest::heap::Heap;

/// The size of the mapping in bytes.
pub(crate) const ARENA_BYTES: usize = 256 << 20;
/// The size of a page in bytes.
pub(crate) const PAGE_BYTES: usize = 4096;

/// The guest's heap as this process's allocator.
pub(crate) struct Arena {
    locked: AtomicBool,
    /// The address of the mapping; 0 before the first allocation.
    base: AtomicUsize,
    heap: UnsafeCell<Heap>,
}

// SAFETY: `heap` is only reached in `with_heap`, which holds the lock.
unsafe impl Sync for Arena {}

impl Arena {
    /// An arena whose mapping is made by the first allocation.
    pub(crate) const fn new() -> Self {
        Self {
            locked: AtomicBool::new(false),
            base: AtomicUsize::new(0),
            heap: UnsafeCell::new(Heap::new()),
        }
    }

    /// The address of the mapping; 0 before the first allocation.
    pub(crate) fn base(&self) -> usize {
        self.base.load(Ordering::Acquire)
    }

    fn with_heap<T>(&self, work: impl FnOnce(&mut Heap) -> T) -> T {
        while self.locked.swap(true, Ordering::Acquire) {
            std::hint::spin_loop();
        }
        // SAFETY: the lock is held, so this is the only reference.
        let heap = unsafe { &mut *self.heap.get() };
        if self.base() == 0
            && let Some(base) = map()
        {
            // SAFETY: the mapping is new: zero, writable, and used by nothing else; it is never
            // unmapped.
            unsafe { heap.init(base, base + ARENA_BYTES) };
            self.base.store(base, Ordering::Release);
        }
        let result = work(heap);
        self.locked.store(false, Ordering::Release);
        result
    }
}

/// Maps the arena; `None` if there is no room.
fn map() -> Option<usize> {
    // SAFETY: a new anonymous mapping touches no memory that is in use.
    let mapping = unsafe {
        libc::mmap(
            null_mut(),
            ARENA_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if mapping == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the range is the mapping that was just made. Huge pages would make untouched pages
    // resident.
    unsafe { libc::madvise(mapping, ARENA_BYTES, libc::MADV_NOHUGEPAGE) };
    Some(mapping as usize)
}

// SAFETY: the guest's heap hands a block out once until it is freed, with the layout's size and
// alignment; before its mapping exists it hands out none.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.with_heap(|heap| heap.allocate(layout))
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.with_heap(|heap| heap.allocate_zeroed(layout))
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller gives back a block that this heap handed out with this layout.
        self.with_heap(|heap| unsafe { heap.deallocate(block, layout) });
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as for `dealloc`; the size is not 0 by this trait's contract.
        self.with_heap(|heap| unsafe { heap.reallocate(block, layout, new_size) })
    }
}
