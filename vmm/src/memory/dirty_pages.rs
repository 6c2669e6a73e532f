//! The pages of guest memory that were written since the machine was last restored or saved.

use reapvm_snapshot::SnapshotId;

/// A set of pages, and the snapshot from which memory differs in no other page.
///
/// A page is named by its place in the memory file: its file offset divided by the page size.
#[derive(Clone, Debug)]
pub(super) struct DirtyPages {
    /// None until a booted machine is saved for the first time.
    base: Option<SnapshotId>,
    page_count: u64,
    words: Vec<u64>,
}

impl DirtyPages {
    /// No page of `page_count` was written since `base`.
    pub(super) fn new(page_count: u64, base: Option<SnapshotId>) -> Self {
        Self {
            base,
            page_count,
            words: vec![0; page_count.div_ceil(64) as usize],
        }
    }

    pub(super) fn base(&self) -> Option<SnapshotId> {
        self.base
    }

    /// Puts in the pages that `bitmap` marks, its first bit being that of page `first`.
    pub(super) fn insert_marked(&mut self, first: u64, bitmap: &[u64]) {
        for (at, &word) in (first..).step_by(64).zip(bitmap) {
            let mut rest = word;
            while rest != 0 {
                self.insert(at + u64::from(rest.trailing_zeros()));
                rest &= rest - 1;
            }
        }
    }

    fn insert(&mut self, page: u64) {
        if page < self.page_count
            && let Some(word) = self.words.get_mut((page / 64) as usize)
        {
            *word |= 1 << (page % 64);
        }
    }

    fn contains(&self, page: u64) -> bool {
        self.words
            .get((page / 64) as usize)
            .is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Whether the page was written, and how many pages from it on, up to `max_pages`, are alike
    /// in this.
    pub(super) fn run_at(&self, first: u64, max_pages: u64) -> (bool, u64) {
        let is_dirty = self.contains(first);
        let others = (first + 1..first + max_pages).take_while(|&p| self.contains(p) == is_dirty);
        (is_dirty, others.count() as u64 + 1)
    }

    /// Memory is as in `base` from now on.
    pub(super) fn reset(&mut self, base: SnapshotId) {
        self.base = Some(base);
        self.words.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_add_up_until_they_are_reset() {
        let mut dirty = DirtyPages::new(200, None);
        assert_eq!(dirty.base(), None);
        assert_eq!(dirty.run_at(0, 200), (false, 200));
        // A region need not begin at a multiple of 64 pages, and KVM's last word may have more
        // bits than the region has pages.
        dirty.insert_marked(10, &[1 << 63 | 1]);
        dirty.insert_marked(0, &[0, 0b11]);
        dirty.insert_marked(130, &[0, u64::MAX]);
        let held: Vec<u64> = (0..300).filter(|&page| dirty.contains(page)).collect();
        let expected: Vec<u64> = [10, 64, 65, 73].into_iter().chain(194..200).collect();
        assert_eq!(held, expected);
        assert_eq!(dirty.run_at(64, 100), (true, 2));
        assert_eq!(dirty.run_at(66, 100), (false, 7));
        assert_eq!(dirty.run_at(66, 3), (false, 3));
        let base = SnapshotId::from_bytes([1; 16]);
        dirty.reset(base);
        assert_eq!(dirty.base(), Some(base));
        assert_eq!(dirty.run_at(0, 200), (false, 200));
    }
}
