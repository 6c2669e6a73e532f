//! How the pages of a working set lie in guest memory: what decides what an install of them costs,
//! and whether whole huge pages would.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::PAGE_SIZE_BYTES;
use crate::extents::Extent;
use crate::touch_curve::CurvePoint;
use crate::working_set::WorkingSet;

/// Pages of a 2 MiB block.
const BLOCK_PAGES: u64 = (2 << 20) / PAGE_SIZE_BYTES;

/// Width of a bar of the density histogram, in percent of a block.
const DENSITY_BAR_PCT: u64 = 10;

/// **Unstable.** A bar of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bar {
    /// Least value that it counts.
    pub from: u64,
    /// Greatest value that it counts.
    pub to: u64,
    /// How many there are.
    pub count: u64,
    /// How many pages they have together.
    pub pages: u64,
}

/// **Unstable.** How many pages so many recordings touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TouchedBy {
    /// In how many of the recordings.
    pub recordings: u16,
    /// How many pages.
    pub pages: u64,
}

/// **Unstable.** The pages of a working set by 2 MiB block of guest memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockDensity {
    /// How many blocks have a page of the set.
    pub blocks: u64,
    /// Share of those blocks that the set covers, in percent.
    pub covered_pct: f64,
    /// How many of them it covers by half or more.
    pub half_covered: u64,
    /// How many of them it covers by nine tenths or more: those would be worth a huge page.
    pub nearly_covered: u64,
    /// Blocks by how much of them the set covers, in percent: empty bars left out.
    pub density_pct: Vec<Bar>,
}

/// **Unstable.** What `reapvm working-set show` says of a working set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetLayout {
    /// Of how many recordings it was made.
    pub recordings: u16,
    /// How many pages it has.
    pub pages: u64,
    /// How many of them are zero, and so neither in the file nor read.
    pub zero_pages: u64,
    /// How many bytes they have.
    pub bytes: u64,
    /// Length of its file.
    pub file_bytes: u64,
    /// How many contiguous runs they make.
    pub extents: u64,
    /// Pages of a run on average; 0 if there is none.
    pub mean_run_pages: f64,
    /// Runs by their length in pages, each bar twice as long as the one before: empty ones left out.
    pub run_pages: Vec<Bar>,
    /// The pages by 2 MiB block.
    pub blocks_2mib: BlockDensity,
    /// Pages by how many recordings touched them, most first.
    pub touched_by: Vec<TouchedBy>,
    /// When the guest needs the pages that are in the file: the points of a line, none if that is
    /// not known.
    #[serde(default)]
    pub touch_curve: Vec<CurvePoint>,
}

impl SetLayout {
    /// Looks at `set`.
    #[must_use]
    pub fn of(set: &WorkingSet) -> Self {
        let mut touched_by: BTreeMap<u16, u64> = BTreeMap::new();
        for page in set.touch_counts().pages() {
            *touched_by.entry(page.recordings).or_default() += 1;
        }
        let pages = set.page_count();
        let extents = set.extents();
        Self {
            recordings: set.recordings(),
            pages,
            zero_pages: set.zero_page_count(),
            bytes: pages * PAGE_SIZE_BYTES,
            file_bytes: set.len_bytes(),
            extents: extents.len() as u64,
            mean_run_pages: match extents.len() {
                0 => 0.0,
                runs => pages as f64 / runs as f64,
            },
            run_pages: run_lengths(extents),
            blocks_2mib: density(extents),
            touched_by: touched_by
                .into_iter()
                .rev()
                .map(|(recordings, pages)| TouchedBy { recordings, pages })
                .collect(),
            touch_curve: set.touch_curve().to_vec(),
        }
    }
}

/// Adds up values, each with its number of pages, in the bars that `bar_of` says.
fn histogram(
    values: impl Iterator<Item = (u64, u64)>,
    bar_of: impl Fn(u64) -> (u64, u64),
) -> Vec<Bar> {
    let mut bars: BTreeMap<u64, Bar> = BTreeMap::new();
    for (value, pages) in values {
        let (from, to) = bar_of(value);
        let bar = bars.entry(from).or_insert(Bar {
            from,
            to,
            count: 0,
            pages: 0,
        });
        bar.count += 1;
        bar.pages += pages;
    }
    bars.into_values().collect()
}

fn run_lengths(extents: &[Extent]) -> Vec<Bar> {
    histogram(
        extents.iter().map(|extent| (extent.pages, extent.pages)),
        |pages| {
            // No run is empty.
            let from = 1 << pages.max(1).ilog2();
            (from, from * 2 - 1)
        },
    )
}

fn density(extents: &[Extent]) -> BlockDensity {
    let mut blocks: BTreeMap<u64, u64> = BTreeMap::new();
    for extent in extents {
        let mut page = extent.gpa / PAGE_SIZE_BYTES;
        let end = page + extent.pages;
        while page < end {
            let block = page / BLOCK_PAGES;
            let next = end.min((block + 1) * BLOCK_PAGES);
            *blocks.entry(block).or_default() += next - page;
            page = next;
        }
    }
    let pages: u64 = blocks.values().sum();
    let covered = |percent: u64| {
        let least = |pages: &&u64| **pages * 100 >= BLOCK_PAGES * percent;
        blocks.values().filter(least).count() as u64
    };
    let (half_covered, nearly_covered) = (covered(50), covered(90));
    let count = blocks.len() as u64;
    BlockDensity {
        blocks: count,
        covered_pct: match count {
            0 => 0.0,
            count => 100.0 * pages as f64 / (count * BLOCK_PAGES) as f64,
        },
        half_covered,
        nearly_covered,
        density_pct: histogram(
            blocks
                .into_values()
                .map(|pages| ((100 * pages).div_ceil(BLOCK_PAGES), pages)),
            |percent| {
                let bar = percent.saturating_sub(1) / DENSITY_BAR_PCT;
                (bar * DENSITY_BAR_PCT + 1, (bar + 1) * DENSITY_BAR_PCT)
            },
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent(page: u64, pages: u64) -> Extent {
        Extent {
            gpa: page * PAGE_SIZE_BYTES,
            pages,
        }
    }

    fn bar(from: u64, to: u64, count: u64, pages: u64) -> Bar {
        Bar {
            from,
            to,
            count,
            pages,
        }
    }

    #[test]
    fn runs_are_counted_by_powers_of_two() {
        let extents = [1, 1, 2, 3, 4, 600].map(|pages| extent(0, pages));
        assert_eq!(
            run_lengths(&extents),
            [
                bar(1, 1, 2, 2),
                bar(2, 3, 2, 5),
                bar(4, 7, 1, 4),
                bar(512, 1023, 1, 600)
            ]
        );
    }

    #[test]
    fn a_run_over_a_boundary_is_in_both_blocks() {
        let density = density(&[extent(510, 4), extent(1024, 512), extent(3000, 1)]);
        assert_eq!(density.blocks, 4);
        assert_eq!((density.half_covered, density.nearly_covered), (1, 1));
        assert_eq!(density.covered_pct, 100.0 * 517.0 / 2048.0);
        assert_eq!(
            density.density_pct,
            [bar(1, 10, 3, 5), bar(91, 100, 1, 512)]
        );
    }

    #[test]
    fn blocks_are_counted_from_the_page_on_that_makes_the_share() {
        let covered = |pages| {
            let density = density(&[extent(512, pages)]);
            (density.half_covered, density.nearly_covered)
        };
        assert_eq!(covered(255), (0, 0));
        assert_eq!(covered(256), (1, 0));
        assert_eq!(covered(460), (1, 0));
        assert_eq!(covered(461), (1, 1));
    }

    #[test]
    fn no_pages_are_no_blocks() {
        let density = density(&[]);
        assert_eq!((density.blocks, density.covered_pct), (0, 0.0));
        assert!(density.density_pct.is_empty());
    }

    proptest! {
        #[test]
        fn every_run_and_page_is_in_one_bar(
            lengths in prop::collection::vec((1u64..2000, 1u64..50), 0..60),
        ) {
            let mut page = 0;
            let extents: Vec<Extent> = lengths
                .iter()
                .map(|&(pages, gap)| {
                    let run = extent(page, pages);
                    page += pages + gap;
                    run
                })
                .collect();
            let pages: u64 = lengths.iter().map(|(pages, _)| pages).sum();
            let runs = run_lengths(&extents);
            prop_assert_eq!(runs.iter().map(|bar| bar.count).sum::<u64>(), extents.len() as u64);
            prop_assert_eq!(runs.iter().map(|bar| bar.pages).sum::<u64>(), pages);
            let density = density(&extents);
            let bars = &density.density_pct;
            prop_assert_eq!(bars.iter().map(|bar| bar.count).sum::<u64>(), density.blocks);
            prop_assert_eq!(bars.iter().map(|bar| bar.pages).sum::<u64>(), pages);
            prop_assert!(bars.iter().all(|bar| bar.from >= 1 && bar.to <= 100));
        }
    }
}
