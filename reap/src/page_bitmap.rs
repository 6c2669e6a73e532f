//! A set of pages.

/// A set of page numbers below a limit. Takes no memory until the first page is put in.
#[derive(Debug, Default)]
pub(crate) struct PageBitmap {
    page_count: u64,
    words: Vec<u64>,
}

impl PageBitmap {
    /// An empty set of pages with numbers below `page_count`.
    pub(crate) fn new(page_count: u64) -> Self {
        Self {
            page_count,
            words: Vec::new(),
        }
    }

    /// Puts `page` in. `true` if it was not in before; a number beyond the limit never is.
    pub(crate) fn insert(&mut self, page: u64) -> bool {
        if page >= self.page_count {
            return false;
        }
        if self.words.is_empty() {
            self.words = vec![0; self.page_count.div_ceil(64) as usize];
        }
        let word = &mut self.words[(page / 64) as usize];
        let bit = 1u64 << (page % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Whether `page` is in.
    pub(crate) fn contains(&self, page: u64) -> bool {
        self.words
            .get((page / 64) as usize)
            .is_some_and(|word| word & (1 << (page % 64)) != 0)
    }

    /// Whether no page was ever put in.
    pub(crate) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_put_in() {
        let mut set = PageBitmap::new(130);
        assert!(set.is_empty());
        assert!(!set.contains(0));
        assert!(set.insert(0) && set.insert(64) && set.insert(129));
        assert!(!set.insert(64));
        assert!(!set.insert(130));
        let held: Vec<u64> = (0..200).filter(|&page| set.contains(page)).collect();
        assert_eq!(held, [0, 64, 129]);
    }
}
