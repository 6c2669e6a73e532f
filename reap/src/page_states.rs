//! What has become of each page since the memory was registered, for who saves it without touching
//! it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::PAGE_SIZE_BYTES;
use crate::region::RegionMap;

/// What has become of a page of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// It is still missing: it is what the page source says.
    Missing,
    /// It was put in place. The memory says what it is now.
    Installed,
    /// It was dropped (by a balloon, say) and not touched again: it is zero.
    Dropped,
}

/// The state of each page at one moment: see [`Pager::page_states`](crate::Pager::page_states).
#[derive(Clone, Debug)]
pub struct PageStates {
    regions: RegionMap,
    installed: Vec<u64>,
    dropped: Vec<u64>,
}

impl PageStates {
    /// The state of the page that holds guest-physical address `gpa`, and how many pages from it
    /// on, up to `max_pages` and the end of its region, have the same. None if no region holds it.
    #[must_use]
    pub fn run_at(&self, gpa: u64, max_pages: u64) -> Option<(PageState, u64)> {
        let page_at = self.regions.locate_gpa(gpa)?;
        let first = page_at.index;
        let state = self.state_of(first);
        let end = first + max_pages.min(page_at.pages_to_region_end);
        let others = (first + 1..end).take_while(|&page| self.state_of(page) == state);
        Some((state, others.count() as u64 + 1))
    }

    /// How many bytes of guest memory are in `state`.
    #[must_use]
    pub fn bytes_in(&self, state: PageState) -> u64 {
        let pages = (0..self.regions.page_count()).filter(|&page| self.state_of(page) == state);
        pages.count() as u64 * PAGE_SIZE_BYTES
    }

    fn state_of(&self, index: u64) -> PageState {
        if bit(&self.installed, index) {
            PageState::Installed
        } else if bit(&self.dropped, index) {
            PageState::Dropped
        } else {
            PageState::Missing
        }
    }
}

fn bit(words: &[u64], index: u64) -> bool {
    words
        .get((index / 64) as usize)
        .is_some_and(|word| word >> (index % 64) & 1 == 1)
}

/// The account of the pages, kept by those who install them and who read what the kernel says.
///
/// A page can be in both sets: dropped first, and put in place as zeros when it was touched again.
#[derive(Debug)]
pub(crate) struct PageAccount {
    installed: Vec<AtomicU64>,
    dropped: Vec<AtomicU64>,
    /// The pages of the working set that is installed, if one is.
    planned: OnceLock<Vec<u64>>,
    /// Whether any page ever was dropped: mostly none is, and then nobody has to look.
    has_dropped: AtomicBool,
}

impl PageAccount {
    pub(crate) fn new(page_count: u64) -> Self {
        let words = page_count.div_ceil(64);
        let empty = || (0..words).map(|_| AtomicU64::new(0)).collect();
        Self {
            installed: empty(),
            dropped: empty(),
            planned: OnceLock::new(),
            has_dropped: AtomicBool::new(false),
        }
    }

    /// The pages in `runs`, number of the first and count, will be put in place by an install.
    pub(crate) fn plan(&self, runs: impl Iterator<Item = (u64, u64)>) {
        let mut planned = vec![0; self.installed.len()];
        for (first, pages) in runs {
            for page in first..first + pages {
                if let Some(word) = planned.get_mut((page / 64) as usize) {
                    *word |= 1 << (page % 64);
                }
            }
        }
        // There is one install at most.
        let _ = self.planned.set(planned);
    }

    /// Whether an install is to bring the page, or has brought it.
    pub(crate) fn is_planned(&self, page: u64) -> bool {
        self.planned.get().is_some_and(|words| bit(words, page))
    }

    /// The `pages` from number `first` on were put in place.
    pub(crate) fn set_installed(&self, first: u64, pages: u64) {
        for page in first..first + pages {
            if let Some(word) = self.installed.get((page / 64) as usize) {
                word.fetch_or(1 << (page % 64), Ordering::Relaxed);
            }
        }
    }

    /// The `pages` from number `first` on are not in place after all.
    pub(crate) fn set_missing(&self, first: u64, pages: u64) {
        for page in first..first + pages {
            if let Some(word) = self.installed.get((page / 64) as usize) {
                word.fetch_and(!(1 << (page % 64)), Ordering::Relaxed);
            }
        }
    }

    /// The `pages` from number `first` on are dropped, whatever they were.
    pub(crate) fn set_dropped(&self, first: u64, pages: u64) {
        for page in first..first + pages {
            let at = (page / 64) as usize;
            if let (Some(installed), Some(dropped)) = (self.installed.get(at), self.dropped.get(at))
            {
                installed.fetch_and(!(1 << (page % 64)), Ordering::Relaxed);
                dropped.fetch_or(1 << (page % 64), Ordering::Relaxed);
            }
        }
        self.has_dropped.store(true, Ordering::Relaxed);
    }

    /// Whether the page is in place.
    pub(crate) fn is_installed(&self, page: u64) -> bool {
        self.installed
            .get((page / 64) as usize)
            .is_some_and(|word| word.load(Ordering::Relaxed) >> (page % 64) & 1 == 1)
    }

    /// Whether any page ever was dropped.
    pub(crate) fn has_dropped(&self) -> bool {
        self.has_dropped.load(Ordering::Relaxed)
    }

    /// Whether the page was ever dropped: the source does not know what is in it.
    pub(crate) fn was_dropped(&self, page: u64) -> bool {
        self.dropped
            .get((page / 64) as usize)
            .is_some_and(|word| word.load(Ordering::Relaxed) >> (page % 64) & 1 == 1)
    }

    pub(crate) fn states(&self, regions: &RegionMap) -> PageStates {
        let copy = |words: &[AtomicU64]| {
            words
                .iter()
                .map(|word| word.load(Ordering::Relaxed))
                .collect()
        };
        PageStates {
            regions: regions.clone(),
            installed: copy(&self.installed),
            dropped: copy(&self.dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::MemoryRegion;

    #[test]
    fn runs_end_where_the_state_changes_and_where_regions_do() {
        let region = |gpa, hva, pages: u64| MemoryRegion {
            gpa,
            hva,
            size_bytes: pages * 4096,
            file_offset: 0,
        };
        let regions = RegionMap::new(vec![
            region(0, 0x10_0000, 70),
            region(0x1000_0000, 0x80_0000, 3),
        ])
        .unwrap();
        let account = PageAccount::new(regions.page_count());
        assert!(!account.has_dropped());
        account.set_installed(60, 10);
        account.set_dropped(62, 2);
        account.set_installed(63, 1);
        account.set_installed(70, 1);
        assert!(account.has_dropped());
        assert!(account.was_dropped(63) && !account.was_dropped(64));
        let states = account.states(&regions);
        let at = |page: u64, max| states.run_at(page * 4096, max);
        assert_eq!(at(0, 1000), Some((PageState::Missing, 60)));
        assert_eq!(at(0, 7), Some((PageState::Missing, 7)));
        assert_eq!(at(60, 1000), Some((PageState::Installed, 2)));
        assert_eq!(at(62, 1000), Some((PageState::Dropped, 1)));
        assert_eq!(at(63, 1000), Some((PageState::Installed, 7)));
        assert_eq!(at(70, 1000), None);
        let second = states.run_at(0x1000_0fff, 1000);
        assert_eq!(second, Some((PageState::Installed, 1)));
        assert_eq!(
            states.run_at(0x1000_1000, 1000),
            Some((PageState::Missing, 2))
        );
        assert_eq!(states.bytes_in(PageState::Installed), 10 * 4096);
        assert_eq!(states.bytes_in(PageState::Dropped), 4096);
        assert_eq!(states.bytes_in(PageState::Missing), 62 * 4096);
    }
}
