//! What readahead would have brought: windows of pages around or ahead of each fault, played over the
//! recorded order of first touches.

use std::collections::HashSet;

/// What Linux reads around a fault of a file mapping unless told otherwise: 128 KiB.
pub(super) const LINUX_WINDOW: u64 = 32;

/// Windows that are tried, in pages.
pub(super) const WINDOWS: [u64; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Where the window lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Half of it before the page, as Linux does for a mapping.
    Around,
    /// From the page on, as Linux does for reads.
    Ahead,
}

impl Shape {
    pub(super) const ALL: [Self; 2] = [Self::Around, Self::Ahead];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Around => "around",
            Self::Ahead => "ahead",
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Touches that found their page missing.
    pub(super) faults: u64,
    /// Touches whose page an earlier window had brought.
    pub(super) covered: u64,
    /// Pages that were read.
    pub(super) read: u64,
    /// Of these, pages that nobody touched.
    pub(super) wasted: u64,
}

/// Plays `order`, places in a file of `file_pages` pages in the order of first touch.
pub(super) fn play(order: &[u64], file_pages: u64, window: u64, shape: Shape) -> Outcome {
    let mut there = HashSet::new();
    let mut outcome = Outcome::default();
    for &page in order {
        if there.contains(&page) {
            outcome.covered += 1;
            continue;
        }
        outcome.faults += 1;
        let first = match shape {
            Shape::Around => page.saturating_sub(window / 2),
            Shape::Ahead => page,
        };
        let end = first.saturating_add(window).min(file_pages);
        there.extend(first..end);
        // Whatever the file's length: the page itself comes.
        there.insert(page);
    }
    outcome.read = there.len() as u64;
    outcome.wasted = outcome.read - (outcome.faults + outcome.covered);
    outcome
}

/// The share of touches, in percent, whose page follows the one that was touched before.
pub(super) fn next_page_percent(order: &[u64]) -> f64 {
    let next = order
        .windows(2)
        .filter(|pair| pair[0].checked_add(1) == Some(pair[1]));
    super::numbers::percent(next.count() as u64, order.len().saturating_sub(1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_window_covers_what_is_touched_after_it() {
        let order = [10, 11, 13, 9, 40];
        let ahead = play(&order, 100, 4, Shape::Ahead);
        // 10 brings up to 13; 9 brings 9 alone anew; 40 brings 40 to 43.
        let expected = Outcome {
            faults: 3,
            covered: 2,
            read: 9,
            wasted: 4,
        };
        assert_eq!(ahead, expected);
        // 10 brings 8 to 11, 13 brings 11 to 14, 40 brings 38 to 41.
        let around = play(&order, 100, 4, Shape::Around);
        assert_eq!((around.faults, around.covered, around.wasted), (3, 2, 6));
        assert_eq!(play(&order, 100, 1, Shape::Around).wasted, 0);
        assert_eq!(play(&[99], 100, 64, Shape::Ahead).read, 1);
        assert_eq!(play(&[], 0, 8, Shape::Around), Outcome::default());
        assert_eq!(next_page_percent(&order), 25.0);
        assert_eq!(next_page_percent(&[]), 0.0);
    }

    proptest! {
        #[test]
        fn every_touch_is_a_fault_or_covered(
            pages in prop::collection::hash_set(0..200_u64, 0..100),
            window in 1..70_u64,
        ) {
            let order: Vec<u64> = pages.into_iter().collect();
            for shape in Shape::ALL {
                let outcome = play(&order, 200, window, shape);
                prop_assert_eq!(outcome.faults + outcome.covered, order.len() as u64);
                prop_assert!(outcome.read <= outcome.faults * window);
                prop_assert_eq!(outcome.read, outcome.wasted + order.len() as u64);
            }
        }
    }
}
