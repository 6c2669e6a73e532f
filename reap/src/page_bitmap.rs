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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_put_in() {
        let mut set = PageBitmap::new(130);
        assert!(set.insert(0) && set.insert(64) && set.insert(129));
        assert!(!set.insert(64));
        assert!(!set.insert(130));
        assert!(set.insert(1) && !set.insert(129) && !set.insert(0));
    }
}
