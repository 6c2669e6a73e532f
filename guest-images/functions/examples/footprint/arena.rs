//! A heap like the guest's, in one mapping whose pages can be watched.
//!
//! Small blocks come from size classes, each a last-in-first-out list of free blocks; a class
//! without a free block carves one from a region that only grows, so that blocks lie in the order
//! in which they were first allocated. Large blocks are whole pages, first fit.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::ptr::{null_mut, without_provenance_mut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The size of the mapping in bytes.
pub(crate) const ARENA_BYTES: usize = 256 << 20;
/// The size of a page in bytes.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Blocks up to this size come from the size classes.
const SMALL_BYTES_MAX: usize = 32 * 1024;
/// Classes up to here are 16 bytes apart; above there are four for each doubling.
const FINE_BYTES_MAX: usize = 1024;
const CLASS_COUNT: usize = FINE_BYTES_MAX / 16 + 4 * 5;
/// How many free large blocks can be remembered.
const LARGE_FREE_MAX: usize = 4096;

/// The allocator. One thread allocates at a time: a spin lock makes sure of it.
pub(crate) struct Arena {
    locked: AtomicBool,
    base: AtomicUsize,
    heap: UnsafeCell<Heap>,
}

struct Heap {
    /// Where the region that was never allocated begins, as an offset into the mapping.
    bump: usize,
    classes: [*mut u8; CLASS_COUNT],
    /// Free large blocks (offset, size), by offset.
    large: [(usize, usize); LARGE_FREE_MAX],
    large_count: usize,
}

// SAFETY: `heap` is only reached in `with_heap`, which holds the lock.
unsafe impl Sync for Arena {}

impl Arena {
    /// An arena whose mapping is made by the first allocation.
    pub(crate) const fn new() -> Self {
        Self {
            locked: AtomicBool::new(false),
            base: AtomicUsize::new(0),
            heap: UnsafeCell::new(Heap {
                bump: 0,
                classes: [null_mut(); CLASS_COUNT],
                large: [(0, 0); LARGE_FREE_MAX],
                large_count: 0,
            }),
        }
    }

    /// The address of the mapping; 0 before the first allocation.
    pub(crate) fn base(&self) -> usize {
        self.base.load(Ordering::Acquire)
    }

    fn with_heap<T>(&self, work: impl FnOnce(usize, &mut Heap) -> T) -> T {
        while self.locked.swap(true, Ordering::Acquire) {
            std::hint::spin_loop();
        }
        let mut base = self.base.load(Ordering::Relaxed);
        if base == 0 {
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
            if mapping != libc::MAP_FAILED {
                // SAFETY: the range is the mapping that was just made. Huge pages would make
                // untouched pages resident.
                unsafe { libc::madvise(mapping, ARENA_BYTES, libc::MADV_NOHUGEPAGE) };
                base = mapping as usize;
                self.base.store(base, Ordering::Release);
            }
        }
        // SAFETY: the lock is held, so this is the only reference.
        let result = work(base, unsafe { &mut *self.heap.get() });
        self.locked.store(false, Ordering::Release);
        result
    }
}

/// The class of a block of `bytes`, and the size of that class's blocks.
fn class(bytes: usize) -> (usize, usize) {
    if bytes <= FINE_BYTES_MAX {
        let class = bytes.div_ceil(16).max(1) - 1;
        return (class, (class + 1) * 16);
    }
    let doubling = (bytes - 1).ilog2() as usize;
    let step = 1usize << (doubling - 2);
    let quarter = (bytes - 1 - (1 << doubling)) / step;
    let class = FINE_BYTES_MAX / 16 + (doubling - 10) * 4 + quarter;
    (class, (1 << doubling) + (quarter + 1) * step)
}

impl Heap {
    fn carve(&mut self, base: usize, bytes: usize, align: usize) -> *mut u8 {
        let start = self.bump.next_multiple_of(align);
        if base == 0 || start + bytes > ARENA_BYTES {
            return null_mut();
        }
        self.bump = start + bytes;
        without_provenance_mut(base + start)
    }

    fn allocate_large(&mut self, base: usize, bytes: usize) -> *mut u8 {
        let free = &mut self.large[..self.large_count];
        if let Some(found) = free.iter().position(|&(_, size)| size >= bytes) {
            let (offset, size) = free[found];
            if size == bytes {
                free.copy_within(found + 1.., found);
                self.large_count -= 1;
            } else {
                free[found] = (offset + bytes, size - bytes);
            }
            return without_provenance_mut(base + offset);
        }
        self.carve(base, bytes, PAGE_BYTES)
    }

    fn free_large(&mut self, offset: usize, bytes: usize) {
        let free = &self.large[..self.large_count];
        let at = free.partition_point(|&(start, _)| start < offset);
        let joins_previous = at > 0 && free[at - 1].0 + free[at - 1].1 == offset;
        let joins_next = at < free.len() && offset + bytes == free[at].0;
        match (joins_previous, joins_next) {
            (true, true) => {
                self.large[at - 1].1 += bytes + self.large[at].1;
                self.large.copy_within(at + 1..self.large_count, at);
                self.large_count -= 1;
            }
            (true, false) => self.large[at - 1].1 += bytes,
            (false, true) => self.large[at] = (offset, bytes + self.large[at].1),
            // A full table loses the block: this tool ends soon after.
            (false, false) if self.large_count < LARGE_FREE_MAX => {
                self.large.copy_within(at..self.large_count, at + 1);
                self.large[at] = (offset, bytes);
                self.large_count += 1;
            }
            (false, false) => {}
        }
    }
}

// SAFETY: a block is handed out once until it is freed: it comes from a free list, which it leaves,
// or from the growing region. Blocks of a class have at least the layout's size, and are aligned to
// 16 bytes because every class size is a multiple of 16; larger alignments take whole pages.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.with_heap(|base, heap| {
            if layout.size() > SMALL_BYTES_MAX || layout.align() > 16 {
                return heap.allocate_large(base, layout.size().next_multiple_of(PAGE_BYTES));
            }
            let (class, bytes) = class(layout.size());
            let block = heap.classes[class];
            if block.is_null() {
                return heap.carve(base, bytes, 16);
            }
            // SAFETY: a free block holds the address of the next one of its class.
            heap.classes[class] = unsafe { block.cast::<*mut u8>().read() };
            block
        })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.with_heap(|base, heap| {
            if layout.size() > SMALL_BYTES_MAX || layout.align() > 16 {
                let bytes = layout.size().next_multiple_of(PAGE_BYTES);
                return heap.free_large(block as usize - base, bytes);
            }
            let (class, _) = class(layout.size());
            // SAFETY: the block is at least 16 bytes, aligned to 16, and no longer in use.
            unsafe { block.cast::<*mut u8>().write(heap.classes[class]) };
            heap.classes[class] = block;
        });
    }
}
