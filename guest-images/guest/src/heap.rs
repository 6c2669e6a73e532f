//! The guest's heap: deterministic, and made to use again what was used before.
//!
//! A snapshot keeps every page that was ever touched, and a cold start pays for every page that an
//! invocation touches. So: small blocks come from size classes with last-in first-out lists, the
//! block that was freed last being the next one handed out; large blocks come from the lowest
//! place where they fit; and a page that nothing has needed is never touched, so it stays a hole.
//! The same requests after the same history give the same addresses.

use core::alloc::Layout;
use core::ptr;

const PAGE_BYTES: usize = 4096;
/// The largest block that a size class serves, in bytes.
const MAX_SMALL_BYTES: usize = 32 * 1024;
/// The least that a large block or a span takes, in bytes; it bounds the table of free extents.
const MIN_LARGE_BYTES: usize = 16 * 1024;
/// Four steps of 16 bytes up to 64, then four steps for each of the nine doublings to 32 KiB.
const CLASSES: usize = 4 + 9 * 4;

/// A heap over one range of memory. It is empty until [`Heap::init`].
pub struct Heap {
    classes: [SizeClass; CLASSES],
    large: LargeArea,
}

#[derive(Clone, Copy)]
struct SizeClass {
    /// The block freed last, 0 if there is none; each free block's first word is the next one.
    free: usize,
    /// The part of the current span that was never handed out.
    fresh: usize,
    fresh_end: usize,
}

/// Blocks above the largest class, and the spans that classes carve: whole pages, address-ordered
/// first fit. Its list is beside the memory, not inside: a search touches no page of a free block.
struct LargeArea {
    /// Free extents below `top` by address, never two that touch.
    extents: *mut Extent,
    extent_count: usize,
    /// Everything from here to `end` is free.
    top: usize,
    end: usize,
    /// Nothing at or above this address was ever handed out, so it is still zero.
    high_water: usize,
}

#[derive(Clone, Copy)]
struct Extent {
    start: usize,
    end: usize,
}

// SAFETY: the pointer inside leads to memory that the heap alone owns.
unsafe impl Send for Heap {}

enum Place {
    Class(usize),
    Large { bytes: usize },
}

fn place(layout: Layout) -> Option<Place> {
    let size = if layout.align() <= 16 {
        layout.size().max(1)
    } else {
        // A power of two lies at a multiple of itself, up to a page, in its page-aligned span.
        layout
            .size()
            .max(layout.align())
            .checked_next_power_of_two()?
    };
    if size <= MAX_SMALL_BYTES && layout.align() <= PAGE_BYTES {
        Some(Place::Class(class_of(size)))
    } else {
        let bytes = layout.size().checked_next_multiple_of(PAGE_BYTES)?;
        Some(Place::Large {
            bytes: bytes.max(MIN_LARGE_BYTES),
        })
    }
}

fn class_of(size: usize) -> usize {
    let last = size - 1;
    if size <= 64 {
        last / 16
    } else {
        let doubling = last.ilog2() as usize;
        let step_shift = doubling - 2;
        4 + (doubling - 6) * 4 + ((last - (1 << doubling)) >> step_shift)
    }
}

fn class_bytes(class: usize) -> usize {
    if class < 4 {
        (class + 1) * 16
    } else {
        let doubling = 6 + (class - 4) / 4;
        (1 << doubling) + (((class - 4) % 4 + 1) << (doubling - 2))
    }
}

fn span_bytes(class: usize) -> usize {
    (class_bytes(class) * 8)
        .clamp(MIN_LARGE_BYTES, 128 * 1024)
        .next_multiple_of(PAGE_BYTES)
}

impl Heap {
    /// A heap without memory: every allocation fails.
    pub const fn new() -> Self {
        Self {
            classes: [SizeClass {
                free: 0,
                fresh: 0,
                fresh_end: 0,
            }; CLASSES],
            large: LargeArea {
                extents: ptr::null_mut(),
                extent_count: 0,
                top: 0,
                end: 0,
                high_water: 0,
            },
        }
    }

    /// Gives the heap the memory from `start` to `end` (addresses; rounded inwards to pages).
    ///
    /// # Safety
    /// The range is mapped, writable, used by nothing else for as long as the heap lives, and
    /// zero. The heap has no memory yet.
    pub unsafe fn init(&mut self, start: usize, end: usize) {
        let start = start.next_multiple_of(PAGE_BYTES);
        let end = end & !(PAGE_BYTES - 1);
        let total = end.saturating_sub(start);
        // Two free extents have a block or a span between them.
        let table_bytes =
            ((total / MIN_LARGE_BYTES + 1) * size_of::<Extent>()).next_multiple_of(PAGE_BYTES);
        if table_bytes >= total {
            return;
        }
        self.large = LargeArea {
            extents: start as *mut Extent,
            extent_count: 0,
            top: start + table_bytes,
            end,
            high_water: start + table_bytes,
        };
    }

    /// Allocates a block, or returns null when there is no room.
    pub fn allocate(&mut self, layout: Layout) -> *mut u8 {
        match place(layout) {
            Some(Place::Class(class)) => self.allocate_small(class),
            Some(Place::Large { bytes }) => self.large.allocate(bytes, layout.align()),
            None => ptr::null_mut(),
        }
    }

    /// Allocates a block of zeros, or returns null when there is no room. Memory that was never
    /// handed out is zero already and is not touched.
    pub fn allocate_zeroed(&mut self, layout: Layout) -> *mut u8 {
        let clean_from = self.large.high_water;
        let block = self.allocate(layout);
        if !block.is_null() {
            let dirty = match place(layout) {
                Some(Place::Large { .. }) => {
                    layout.size().min(clean_from.saturating_sub(block as usize))
                }
                _ => layout.size(),
            };
            // SAFETY: `dirty` is at most the size of the block just allocated.
            unsafe { ptr::write_bytes(block, 0, dirty) };
        }
        block
    }

    /// Takes a block back.
    ///
    /// # Safety
    /// `block` was allocated by this heap with this `layout` and is not used any more.
    pub unsafe fn deallocate(&mut self, block: *mut u8, layout: Layout) {
        match place(layout) {
            Some(Place::Class(class)) => {
                let list = &mut self.classes[class].free;
                // SAFETY: the caller gives the block back; every class has room for a word, and
                // its blocks are at least 16-aligned.
                unsafe { block.cast::<usize>().write(*list) };
                *list = block as usize;
            }
            Some(Place::Large { bytes }) => self.large.deallocate(block as usize, bytes),
            // No block was ever allocated with such a layout.
            None => {}
        }
    }

    /// Changes a block's size, in place where the room is there; null when there is none at all,
    /// and then the old block stays as it is.
    ///
    /// # Safety
    /// As for [`Heap::deallocate`], and `new_size` is not 0 and does not overflow the layout.
    pub unsafe fn reallocate(
        &mut self,
        block: *mut u8,
        layout: Layout,
        new_size: usize,
    ) -> *mut u8 {
        let Ok(new_layout) = Layout::from_size_align(new_size, layout.align()) else {
            return ptr::null_mut();
        };
        match (place(layout), place(new_layout)) {
            (Some(Place::Class(old)), Some(Place::Class(new))) if old == new => return block,
            (Some(Place::Large { bytes: old }), Some(Place::Large { bytes: new }))
                if self.large.resize(block as usize, old, new) =>
            {
                return block;
            }
            _ => {}
        }
        let moved = self.allocate(new_layout);
        if !moved.is_null() {
            // SAFETY: both blocks are at least the smaller of the two sizes and are distinct; the
            // caller gives the old one up.
            unsafe {
                ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size));
                self.deallocate(block, layout);
            }
        }
        moved
    }

    fn allocate_small(&mut self, class: usize) -> *mut u8 {
        let bytes = class_bytes(class);
        let list = &mut self.classes[class];
        if list.free != 0 {
            let block = list.free as *mut usize;
            // SAFETY: the list holds only free blocks, and `deallocate` wrote the next one there.
            list.free = unsafe { block.read() };
            return block.cast();
        }
        if list.fresh_end - list.fresh < bytes {
            let span = span_bytes(class);
            let start = self.large.allocate(span, PAGE_BYTES) as usize;
            if start == 0 {
                return ptr::null_mut();
            }
            (list.fresh, list.fresh_end) = (start, start + span);
        }
        let block = list.fresh;
        list.fresh += bytes;
        block as *mut u8
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

impl LargeArea {
    fn extents(&self) -> &[Extent] {
        if self.extents.is_null() {
            return &[];
        }
        // SAFETY: `init` reserved the table, and the first `extent_count` entries are written.
        unsafe { core::slice::from_raw_parts(self.extents, self.extent_count) }
    }

    fn set(&mut self, index: usize, extent: Extent) {
        // SAFETY: callers pass an index below `extent_count`, which `init`'s table has room for.
        unsafe { self.extents.add(index).write(extent) };
    }

    fn insert(&mut self, index: usize, extent: Extent) {
        // SAFETY: the table has room for one extent more than there are blocks (see `init`), and
        // `index` is at most `extent_count`.
        unsafe {
            let at = self.extents.add(index);
            ptr::copy(at, at.add(1), self.extent_count - index);
            at.write(extent);
        }
        self.extent_count += 1;
    }

    fn remove(&mut self, index: usize) {
        // SAFETY: `index` is below `extent_count`.
        unsafe {
            let at = self.extents.add(index);
            ptr::copy(at.add(1), at, self.extent_count - index - 1);
        }
        self.extent_count -= 1;
    }

    fn allocate(&mut self, bytes: usize, align: usize) -> *mut u8 {
        let align = align.max(PAGE_BYTES);
        for index in 0..self.extent_count {
            let extent = self.extents()[index];
            let Some(start) = extent.start.checked_next_multiple_of(align) else {
                continue;
            };
            if start < extent.end && extent.end - start >= bytes {
                self.cut(index, extent, start, start + bytes);
                return start as *mut u8;
            }
        }
        let Some(start) = self.top.checked_next_multiple_of(align) else {
            return ptr::null_mut();
        };
        if start > self.end || self.end - start < bytes || start == 0 {
            return ptr::null_mut();
        }
        if start > self.top {
            let gap = Extent {
                start: self.top,
                end: start,
            };
            self.insert(self.extent_count, gap);
        }
        self.top = start + bytes;
        self.high_water = self.high_water.max(self.top);
        start as *mut u8
    }

    /// Takes `start..end` out of the extent at `index`.
    fn cut(&mut self, index: usize, extent: Extent, start: usize, end: usize) {
        let before = Extent {
            start: extent.start,
            end: start,
        };
        let after = Extent {
            start: end,
            end: extent.end,
        };
        match (before.start < before.end, after.start < after.end) {
            (false, false) => self.remove(index),
            (true, false) => self.set(index, before),
            (false, true) => self.set(index, after),
            (true, true) => {
                self.set(index, before);
                self.insert(index + 1, after);
            }
        }
    }

    fn deallocate(&mut self, start: usize, bytes: usize) {
        let end = start + bytes;
        let index = self.extents().partition_point(|free| free.start < start);
        let joins_before = index > 0 && self.extents()[index - 1].end == start;
        if end == self.top {
            self.top = start;
            if joins_before {
                self.top = self.extents()[index - 1].start;
                self.remove(index - 1);
            }
            return;
        }
        let joins_after = index < self.extent_count && self.extents()[index].start == end;
        match (joins_before, joins_after) {
            (true, true) => {
                let joined = Extent {
                    start: self.extents()[index - 1].start,
                    end: self.extents()[index].end,
                };
                self.set(index - 1, joined);
                self.remove(index);
            }
            (true, false) => {
                let start = self.extents()[index - 1].start;
                self.set(index - 1, Extent { start, end });
            }
            (false, true) => {
                let end = self.extents()[index].end;
                self.set(index, Extent { start, end });
            }
            (false, false) => self.insert(index, Extent { start, end }),
        }
    }

    /// Makes the block at `start` longer or shorter where it is; false if the room is not there.
    fn resize(&mut self, start: usize, old_bytes: usize, new_bytes: usize) -> bool {
        let old_end = start + old_bytes;
        if new_bytes <= old_bytes {
            if new_bytes < old_bytes {
                self.deallocate(start + new_bytes, old_bytes - new_bytes);
            }
            return true;
        }
        let more = new_bytes - old_bytes;
        if old_end == self.top {
            if self.end - self.top < more {
                return false;
            }
            self.top += more;
            self.high_water = self.high_water.max(self.top);
            return true;
        }
        let index = self.extents().partition_point(|free| free.start < start);
        match self.extents().get(index).copied() {
            Some(next) if next.start == old_end && next.end - next.start >= more => {
                self.cut(index, next, old_end, old_end + more);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A heap over memory of the host's; zero, as the guest's is.
    struct Arena {
        heap: Heap,
        memory: *mut u8,
        layout: Layout,
    }

    impl Arena {
        fn new(bytes: usize) -> Self {
            let layout = Layout::from_size_align(bytes, 1 << 16).unwrap();
            // SAFETY: the layout is not empty.
            let memory = unsafe { std::alloc::alloc_zeroed(layout) };
            let mut heap = Heap::new();
            // SAFETY: the memory is zero and belongs to this heap until `drop`.
            unsafe { heap.init(memory as usize, memory as usize + bytes) };
            Self {
                heap,
                memory,
                layout,
            }
        }

        fn offset(&self, block: *mut u8) -> usize {
            block as usize - self.memory as usize
        }
    }

    impl Drop for Arena {
        fn drop(&mut self) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { std::alloc::dealloc(self.memory, self.layout) };
        }
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).unwrap()
    }

    #[test]
    fn classes_grow_and_hold_their_sizes() {
        for size in 1..=MAX_SMALL_BYTES {
            let class = class_of(size);
            assert!(class < CLASSES);
            assert!(class_bytes(class) >= size);
            assert!(class == 0 || class_bytes(class - 1) < size);
        }
        assert_eq!(class_bytes(CLASSES - 1), MAX_SMALL_BYTES);
    }

    #[test]
    fn the_block_freed_last_is_handed_out_next() {
        let mut arena = Arena::new(1 << 20);
        let first = arena.heap.allocate(layout(100));
        let second = arena.heap.allocate(layout(100));
        // SAFETY: both were allocated above.
        unsafe {
            arena.heap.deallocate(first, layout(100));
            arena.heap.deallocate(second, layout(100));
        }
        assert_eq!(arena.heap.allocate(layout(98)), second);
        assert_eq!(arena.heap.allocate(layout(99)), first);
    }

    #[test]
    fn large_blocks_join_again_and_return_to_the_lowest_place() {
        let mut arena = Arena::new(1 << 20);
        let sizes = layout(100_000);
        let blocks = [(); 3].map(|()| arena.heap.allocate(sizes));
        // SAFETY: allocated above, each freed once.
        unsafe {
            arena.heap.deallocate(blocks[0], sizes);
            arena.heap.deallocate(blocks[1], sizes);
        }
        assert_eq!(arena.heap.allocate(layout(200_000)), blocks[0]);
    }

    #[test]
    fn fresh_zeroed_memory_is_not_written_and_used_memory_is_cleared() {
        let mut arena = Arena::new(1 << 20);
        let sizes = layout(100_000);
        let block = arena.heap.allocate(sizes);
        // SAFETY: the block has 100 000 bytes, and is freed after its last use.
        unsafe {
            block.write_bytes(7, 100_000);
            arena.heap.deallocate(block, sizes);
        }
        // Longer than the dirty block: its first part is cleared, the rest was never used.
        let zeroed = arena.heap.allocate_zeroed(layout(300_000));
        assert_eq!(zeroed, block);
        // SAFETY: just allocated, 300 000 bytes.
        let bytes = unsafe { core::slice::from_raw_parts(zeroed, 300_000) };
        assert!(bytes.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_full_heap_says_no_and_recovers() {
        let mut arena = Arena::new(1 << 20);
        assert!(arena.heap.allocate(layout(2 << 20)).is_null());
        assert!(
            arena
                .heap
                .allocate(layout(isize::MAX as usize - 7))
                .is_null()
        );
        let mut blocks = Vec::new();
        loop {
            let block = arena.heap.allocate(layout(5000));
            if block.is_null() {
                break;
            }
            blocks.push(block);
        }
        assert!(blocks.len() > 100);
        let last = *blocks.last().unwrap();
        // SAFETY: allocated above.
        unsafe { arena.heap.deallocate(last, layout(5000)) };
        assert_eq!(arena.heap.allocate(layout(5000)), last);
        assert!(Heap::new().allocate(layout(1)).is_null());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Allocate {
            size: usize,
            align_shift: u32,
            zeroed: bool,
        },
        Free(usize),
        Resize(usize, usize),
    }

    fn size() -> impl Strategy<Value = usize> {
        prop_oneof![1usize..300, 300usize..40_000, 40_000usize..300_000]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (size(), 0u32..15, any::<bool>()).prop_map(|(size, align_shift, zeroed)| {
                Step::Allocate {
                    size,
                    align_shift,
                    zeroed,
                }
            }),
            any::<usize>().prop_map(Step::Free),
            (any::<usize>(), size()).prop_map(|(which, size)| Step::Resize(which, size)),
        ]
    }

    /// Runs the steps; checks contents, alignment and that no two blocks overlap. Returns the
    /// offsets of all blocks handed out.
    fn run(steps: &[Step]) -> Vec<usize> {
        let mut arena = Arena::new(8 << 20);
        let mut live: Vec<(*mut u8, Layout, u8)> = Vec::new();
        let mut offsets = Vec::new();
        let fill = |block: *mut u8, bytes: usize, mark: u8| {
            // SAFETY: called with a live block and its size.
            unsafe { block.write_bytes(mark, bytes) };
        };
        let check = |block: *mut u8, bytes: usize, mark: u8| {
            // SAFETY: called with a live block and at most its size.
            let bytes = unsafe { core::slice::from_raw_parts(block, bytes) };
            assert!(bytes.iter().all(|byte| *byte == mark));
        };
        for (number, step) in steps.iter().enumerate() {
            let mark = number as u8 | 1;
            match *step {
                Step::Allocate {
                    size,
                    align_shift,
                    zeroed,
                } => {
                    let layout = Layout::from_size_align(size, 1 << align_shift).unwrap();
                    let block = if zeroed {
                        arena.heap.allocate_zeroed(layout)
                    } else {
                        arena.heap.allocate(layout)
                    };
                    if block.is_null() {
                        continue;
                    }
                    assert_eq!(block as usize % layout.align(), 0);
                    if zeroed {
                        check(block, size, 0);
                    }
                    fill(block, size, mark);
                    offsets.push(arena.offset(block));
                    live.push((block, layout, mark));
                }
                Step::Free(which) if !live.is_empty() => {
                    let (block, layout, mark) = live.swap_remove(which % live.len());
                    check(block, layout.size(), mark);
                    // SAFETY: live until now.
                    unsafe { arena.heap.deallocate(block, layout) };
                }
                Step::Resize(which, size) if !live.is_empty() => {
                    let index = which % live.len();
                    let (block, layout, old_mark) = live[index];
                    // SAFETY: live, and not used under its old address afterwards.
                    let moved = unsafe { arena.heap.reallocate(block, layout, size) };
                    if moved.is_null() {
                        continue;
                    }
                    check(moved, layout.size().min(size), old_mark);
                    fill(moved, size, mark);
                    offsets.push(arena.offset(moved));
                    let layout = Layout::from_size_align(size, layout.align()).unwrap();
                    live[index] = (moved, layout, mark);
                }
                _ => {}
            }
            let extents = arena.heap.large.extents();
            assert!(extents.windows(2).all(|pair| pair[0].end < pair[1].start));
            assert!(extents.iter().all(|extent| extent.start < extent.end));
            assert!(
                extents
                    .last()
                    .is_none_or(|last| last.end < arena.heap.large.top)
            );
        }
        for (block, layout, mark) in live {
            check(block, layout.size(), mark);
        }
        offsets
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn blocks_keep_their_contents_and_addresses_repeat(
            steps in proptest::collection::vec(step(), 0..120)
        ) {
            prop_assert_eq!(run(&steps), run(&steps));
        }
    }
}
