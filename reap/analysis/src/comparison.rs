//! Two traces side by side.

use std::collections::HashMap;
use std::io::{Read, Seek};

use reapvm_reap::trace::{TraceError, TraceReader};
use serde::Serialize;

use crate::PAGE_BYTES;
use crate::histogram::Histogram;
use crate::page_set::PageSet;

/// What two traces have in common, and what not.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Whether both are of the same snapshot: only then does a page mean the same in both.
    pub same_snapshot: bool,
    /// Distinct pages of the first.
    pub pages: u64,
    /// Distinct pages of the second.
    pub other_pages: u64,
    /// Pages of both.
    pub common_pages: u64,
    /// Pages of both over pages of either, 0 to 1; 1 if neither has any.
    pub jaccard: f64,
    /// Spearman's rank correlation of the order in which the common pages were first touched: 1 the
    /// same order, -1 the opposite. None with fewer than two common pages.
    pub order_correlation: Option<f64>,
    /// Touches in the first.
    pub touches: u64,
    /// Touches in the second.
    pub other_touches: u64,
    /// Median service time in the first, in ns.
    pub service_p50_ns: u64,
    /// Median service time in the second, in ns.
    pub other_service_p50_ns: u64,
}

/// What is needed of one trace.
#[derive(Default)]
struct Side {
    pages: PageSet,
    /// Pages in the order of first touch.
    order: Vec<u64>,
    service_ns: Histogram,
    touches: u64,
}

impl Side {
    fn read<R: Read + Seek>(reader: &mut TraceReader<R>) -> Result<Self, TraceError> {
        let mut side = Self::default();
        while let Some(record) = reader.next_record()? {
            let page = record.gpa / PAGE_BYTES;
            if side.pages.insert(page) {
                side.order.push(page);
            }
            side.service_ns.add(record.service_ns);
            side.touches += 1;
        }
        Ok(side)
    }
}

impl Comparison {
    /// Compares `first` with `second`.
    ///
    /// # Errors
    /// When one of them cannot be read to its end.
    pub fn of<R: Read + Seek, S: Read + Seek>(
        first: &mut TraceReader<R>,
        second: &mut TraceReader<S>,
    ) -> Result<Self, TraceError> {
        let same_snapshot = first.header().snapshot == second.header().snapshot;
        let a = Side::read(first)?;
        let b = Side::read(second)?;
        let common_pages = a.pages.common_with(&b.pages);
        let either = a.pages.len() + b.pages.len() - common_pages;
        Ok(Self {
            same_snapshot,
            pages: a.pages.len(),
            other_pages: b.pages.len(),
            common_pages,
            jaccard: match either {
                0 => 1.0,
                _ => common_pages as f64 / either as f64,
            },
            order_correlation: order_correlation(&a.order, &b.order),
            touches: a.touches,
            other_touches: b.touches,
            service_p50_ns: a.service_ns.quantile(0.5),
            other_service_p50_ns: b.service_ns.quantile(0.5),
        })
    }
}

/// Spearman's rho of the pages that both have: their ranks among the common ones are compared.
fn order_correlation(a: &[u64], b: &[u64]) -> Option<f64> {
    let place_in_a: HashMap<u64, usize> = a.iter().zip(0..).map(|(page, at)| (*page, at)).collect();
    // Common pages in the order of `b`, by their places in `a`; the ranks of these are those among
    // the common ones.
    let places: Vec<usize> = b
        .iter()
        .filter_map(|page| place_in_a.get(page).copied())
        .collect();
    let count = places.len();
    if count < 2 {
        return None;
    }
    let mut sorted: Vec<(usize, usize)> = places.iter().copied().zip(0..).collect();
    sorted.sort_unstable();
    let squares: f64 = sorted
        .iter()
        .zip(0_usize..)
        .map(|((_, rank_b), rank_a)| (rank_a as f64 - *rank_b as f64).powi(2))
        .sum();
    let count = count as f64;
    Some(1.0 - 6.0 * squares / (count * (count * count - 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_traces::{Trace, record};
    use reapvm_reap::Phase;

    fn compare(a: &[u64], b: &[u64]) -> Comparison {
        let trace = |pages: &[u64]| {
            let records = (0..).zip(pages).map(|(n, p)| record(n, *p, Phase::Request));
            Trace::new(records.collect())
        };
        Comparison::of(&mut trace(a).reader(), &mut trace(b).reader()).unwrap()
    }

    #[test]
    fn pages_and_order_are_compared() {
        let same = compare(&[1, 2, 3, 4], &[1, 2, 3, 4]);
        assert_eq!((same.jaccard, same.order_correlation), (1.0, Some(1.0)));
        assert!(same.same_snapshot);
        let opposite = compare(&[1, 2, 3, 4], &[9, 4, 3, 8, 2, 1]);
        assert_eq!(opposite.order_correlation, Some(-1.0));
        assert_eq!((opposite.common_pages, opposite.other_pages), (4, 6));
        assert!((opposite.jaccard - 4.0 / 6.0).abs() < 1e-9);
        // By hand: differences 0, 1, 1, 0 of four ranks.
        let near = compare(&[1, 2, 3, 4, 7], &[1, 3, 2, 4]);
        assert!((near.order_correlation.unwrap() - 0.8).abs() < 1e-9);
        let nothing = compare(&[], &[]);
        assert_eq!((nothing.jaccard, nothing.order_correlation), (1.0, None));
    }
}
