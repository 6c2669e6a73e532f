//! From pages in the order of their first touch to runs of pages to install.

use crate::PAGE_SIZE_BYTES;

/// A run of pages that are contiguous in guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Guest-physical address of the first page, a multiple of the page size.
    pub gpa: u64,
    /// Length of the run in pages, at least 1.
    pub pages: u64,
}

impl Extent {
    /// The guest-physical addresses of its pages, ascending.
    pub fn page_gpas(&self) -> impl Iterator<Item = u64> + use<> {
        let gpa = self.gpa;
        (0..self.pages).map(move |page| gpa + page * PAGE_SIZE_BYTES)
    }
}

/// Merges pages into maximal contiguous runs, in the order in which the first page of each run was
/// touched.
///
/// `first_touch_gpas` are guest-physical addresses of pages in the order of their first touch; an
/// address inside a page stands for that page, and a page that is named twice counts where it was
/// named first. Runs are as long as they can be, because an install costs less a page the longer
/// the run; they keep the order of first touch, because what the guest needs first should be
/// there first.
#[must_use]
pub fn merge_first_touch(first_touch_gpas: &[u64]) -> Vec<Extent> {
    // (page number, position of its first touch)
    let mut pages: Vec<(u64, usize)> = first_touch_gpas
        .iter()
        .enumerate()
        .map(|(position, gpa)| (gpa / PAGE_SIZE_BYTES, position))
        .collect();
    // By page, and the earliest touch of each first: that is the one `dedup_by_key` keeps.
    pages.sort_unstable();
    pages.dedup_by_key(|(page, _)| *page);

    let mut runs: Vec<(usize, Extent)> = Vec::new();
    for (page, position) in pages {
        let gpa = page * PAGE_SIZE_BYTES;
        match runs.last_mut() {
            // Page numbers are below 2^52, so this cannot overflow.
            Some((earliest, run)) if run.gpa / PAGE_SIZE_BYTES + run.pages == page => {
                run.pages += 1;
                *earliest = (*earliest).min(position);
            }
            _ => runs.push((position, Extent { gpa, pages: 1 })),
        }
    }
    runs.sort_unstable_by_key(|(earliest, _)| *earliest);
    runs.into_iter().map(|(_, run)| run).collect()
}

/// Why a list of extents is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExtentError {
    #[error("the extent at guest address {gpa:#x} is not aligned to pages, empty or too long")]
    Malformed { gpa: u64 },
    #[error("the extents at guest addresses {first_gpa:#x} and {second_gpa:#x} overlap")]
    Overlap { first_gpa: u64, second_gpa: u64 },
}

/// Checks extents that come from a file: aligned, not empty, inside the address space, no page
/// twice. Returns how many pages they have together.
pub(crate) fn check_extents(extents: &[Extent]) -> Result<u64, ExtentError> {
    let mut pages = 0u64;
    for extent in extents {
        let end = extent
            .pages
            .checked_mul(PAGE_SIZE_BYTES)
            .and_then(|size_bytes| extent.gpa.checked_add(size_bytes));
        if extent.gpa % PAGE_SIZE_BYTES != 0 || extent.pages == 0 || end.is_none() {
            return Err(ExtentError::Malformed { gpa: extent.gpa });
        }
        pages = pages
            .checked_add(extent.pages)
            .ok_or(ExtentError::Malformed { gpa: extent.gpa })?;
    }
    let mut sorted: Vec<Extent> = extents.to_vec();
    sorted.sort_unstable_by_key(|extent| extent.gpa);
    for pair in sorted.windows(2) {
        if pair[0].gpa + pair[0].pages * PAGE_SIZE_BYTES > pair[1].gpa {
            return Err(ExtentError::Overlap {
                first_gpa: pair[0].gpa,
                second_gpa: pair[1].gpa,
            });
        }
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn extent(page: u64, pages: u64) -> Extent {
        Extent {
            gpa: page * PAGE_SIZE_BYTES,
            pages,
        }
    }

    fn merge_pages(pages: &[u64]) -> Vec<Extent> {
        let gpas: Vec<u64> = pages.iter().map(|page| page * PAGE_SIZE_BYTES).collect();
        merge_first_touch(&gpas)
    }

    #[test]
    fn runs_are_ordered_by_their_earliest_touched_page() {
        assert_eq!(merge_pages(&[]), []);
        assert_eq!(
            merge_pages(&[9, 3, 1, 2, 8, 20]),
            [extent(8, 2), extent(1, 3), extent(20, 1)]
        );
    }

    #[test]
    fn a_page_named_twice_counts_where_it_was_named_first() {
        assert_eq!(
            merge_first_touch(&[0x5000, 0x1000, 0x5fff, 0x1000]),
            [extent(5, 1), extent(1, 1)]
        );
    }

    #[test]
    fn the_last_page_of_the_address_space_is_a_run() {
        let gpa = u64::MAX - 0xfff;
        assert_eq!(merge_first_touch(&[u64::MAX]), [Extent { gpa, pages: 1 }]);
    }

    #[test]
    fn extents_that_break_a_rule_are_refused() {
        assert_eq!(check_extents(&[extent(4, 2), extent(1, 3)]), Ok(5));
        for bad in [
            Extent { gpa: 1, pages: 1 },
            Extent { gpa: 0, pages: 0 },
            Extent {
                gpa: 0x1000,
                pages: u64::MAX,
            },
            Extent {
                gpa: u64::MAX - 0xfff,
                pages: 2,
            },
        ] {
            assert_eq!(
                check_extents(&[bad]),
                Err(ExtentError::Malformed { gpa: bad.gpa })
            );
        }
        assert_eq!(
            check_extents(&[extent(4, 2), extent(2, 3)]),
            Err(ExtentError::Overlap {
                first_gpa: 0x2000,
                second_gpa: 0x4000
            })
        );
    }

    proptest! {
        #[test]
        fn merging_keeps_the_set_and_the_runs_are_maximal_and_ordered(
            pages in prop::collection::vec(0u64..200, 0..300),
        ) {
            let runs = merge_pages(&pages);

            let touched: BTreeSet<u64> = pages.iter().map(|page| page * PAGE_SIZE_BYTES).collect();
            let in_runs: Vec<u64> = runs.iter().flat_map(Extent::page_gpas).collect();
            prop_assert_eq!(in_runs.len(), touched.len());
            prop_assert_eq!(&in_runs.iter().copied().collect::<BTreeSet<_>>(), &touched);
            prop_assert_eq!(check_extents(&runs), Ok(touched.len() as u64));

            for run in &runs {
                let end = run.gpa + run.pages * PAGE_SIZE_BYTES;
                prop_assert!(!touched.contains(&end));
                prop_assert!(run.gpa == 0 || !touched.contains(&(run.gpa - PAGE_SIZE_BYTES)));
            }

            let earliest: Vec<usize> = runs
                .iter()
                .map(|run| {
                    let run: BTreeSet<u64> = run.page_gpas().collect();
                    pages.iter().position(|page| run.contains(&(page * PAGE_SIZE_BYTES))).unwrap()
                })
                .collect();
            prop_assert!(earliest.is_sorted());
        }
    }
}
