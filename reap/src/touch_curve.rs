//! When a guest needs the pages of a working set, by its own clock.
//!
//! A recording knows when each page was touched first, but most of that time is the service of the
//! faults before it, which a prefetch does away with. What is left is the guest's own: from the end
//! of one service to the next fault, without what a fault costs besides its service. Added up, it
//! says how long a guest that waits for nothing runs before it comes to a page.

use serde::{Deserialize, Serialize};

/// Points that a curve has at most: few enough for the tables of a file, enough that what is
/// between them hardly differs from a line.
pub(crate) const MAX_POINTS: usize = 64;

/// The latest time that a curve may have: a day, in nanoseconds. No recording takes as long, and
/// nothing that is computed with it overflows.
pub(crate) const MAX_OWN_NS: u64 = 24 * 3600 * 1_000_000_000;

/// A point of the line that says when a guest needs the pages of its working set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Number of a page, from 0, among those of the set that have data, in the order of
    /// installation.
    pub page: u64,
    /// How long the guest has run, in nanoseconds of its own time since its first instruction, when
    /// it needs this page or the first of those after it.
    pub own_ns: u64,
}

/// Why points are no curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CurveError {
    #[error("its touch curve has {count} points, more than {MAX_POINTS}")]
    TooMany { count: u64 },
    #[error("its touch curve does not begin at the first page")]
    Beginning,
    #[error("its touch curve goes back or stands still at page {page}")]
    Order { page: u64 },
    #[error("its touch curve has page {page}, and the set has {pages} pages with data")]
    NoSuchPage { page: u64, pages: u64 },
    #[error("its touch curve has a time of {own_ns} ns, more than a day")]
    TooLate { own_ns: u64 },
}

/// How long a guest runs before it needs the pages of a working set: a line from point to point,
/// level after the last. The points go up in pages, and in time go up or stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TouchCurve {
    /// At least one, the first at page 0.
    points: Vec<CurvePoint>,
}

impl TouchCurve {
    /// The curve of pages in the order of installation: of each the guest's own time at its first
    /// touch, where that is known. `None` if it is known of none.
    ///
    /// A page that is touched late may stand before one that is touched early, because runs of
    /// pages are installed together. What counts for a page is then the earliest time of those from
    /// it on: an install in this order has to have brought it by then.
    pub(crate) fn of_pages(own_ns: &[Option<u64>]) -> Option<Self> {
        let mut earliest = MAX_OWN_NS;
        let mut known: Vec<CurvePoint> = own_ns
            .iter()
            .enumerate()
            .rev()
            .filter_map(|(page, own_ns)| Some((page as u64, (*own_ns)?)))
            .map(|(page, own_ns)| {
                earliest = earliest.min(own_ns);
                CurvePoint {
                    page,
                    own_ns: earliest,
                }
            })
            .collect();
        let first = known.last()?;
        if first.page > 0 {
            known.push(CurvePoint { page: 0, ..*first });
        }
        known.reverse();
        Some(Self {
            points: simplify(&known),
        })
    }

    /// Checks points that come from a file, of a set with `pages` pages with data.
    pub(crate) fn from_points(points: Vec<CurvePoint>, pages: u64) -> Result<Self, CurveError> {
        if points.len() > MAX_POINTS {
            return Err(CurveError::TooMany {
                count: points.len() as u64,
            });
        }
        if points.first().is_none_or(|first| first.page != 0) {
            return Err(CurveError::Beginning);
        }
        for point in &points {
            if point.page >= pages {
                return Err(CurveError::NoSuchPage {
                    page: point.page,
                    pages,
                });
            }
            if point.own_ns > MAX_OWN_NS {
                return Err(CurveError::TooLate {
                    own_ns: point.own_ns,
                });
            }
        }
        for pair in points.windows(2) {
            if pair[1].page <= pair[0].page || pair[1].own_ns < pair[0].own_ns {
                return Err(CurveError::Order { page: pair[1].page });
            }
        }
        Ok(Self { points })
    }

    pub(crate) fn points(&self) -> &[CurvePoint] {
        &self.points
    }

    /// The time of the page with number `page`, if it is one of the points.
    pub(crate) fn point_at(&self, page: u64) -> Option<u64> {
        let at = self.points.binary_search_by_key(&page, |point| point.page);
        Some(self.points.get(at.ok()?)?.own_ns)
    }

    /// When the guest needs the page with number `page`, in nanoseconds of its own time.
    pub(crate) fn own_ns_at(&self, page: u64) -> u64 {
        let after = self.points.partition_point(|point| point.page <= page);
        match (
            self.points.get(after.wrapping_sub(1)),
            self.points.get(after),
        ) {
            (Some(from), Some(to)) => between(from, to, page),
            (Some(last), None) => last.own_ns,
            // The first is at page 0.
            (None, _) => 0,
        }
    }

    /// How many of `pages` pages have to be in place so that a guest which is let go then finds
    /// each in place when it comes to it, if the install goes on at the rate at which it placed
    /// `placed` pages in `elapsed_ns`.
    ///
    /// The page with number `n` is there `(n + 1 - lead) * elapsed / placed` after that. Between two
    /// points both this and the curve are straight lines, and after the last the curve is level: it
    /// is enough to look at the points and at the last page.
    pub(crate) fn lead_pages(&self, pages: u64, placed: u64, elapsed_ns: u64) -> u64 {
        let end = pages.checked_sub(1).map(|page| CurvePoint {
            page,
            own_ns: self.own_ns_at(page),
        });
        let points = self.points.iter().filter(|point| point.page < pages);
        points
            .chain(&end)
            .map(|point| {
                let brought =
                    u128::from(point.own_ns) * u128::from(placed) / u128::from(elapsed_ns.max(1));
                u128::from(point.page + 1).saturating_sub(brought) as u64
            })
            .max()
            .unwrap_or(0)
    }
}

/// Where the line between two points is at `page`, which is between theirs.
fn between(from: &CurvePoint, to: &CurvePoint, page: u64) -> u64 {
    let rise = u128::from(to.own_ns.saturating_sub(from.own_ns));
    let part = u128::from(page - from.page);
    let whole = u128::from((to.page - from.page).max(1));
    from.own_ns + (rise * part / whole) as u64
}

/// Those of the points of a line that only goes up, at least one, between which lines are near it:
/// the point that is farthest from its line is kept next, until none is off or enough are kept.
/// What was simplified stays as it is.
fn simplify(points: &[CurvePoint]) -> Vec<CurvePoint> {
    // The point between two others that is farthest from their line, and how far.
    let farthest = |from: usize, to: usize| {
        (from + 1..to)
            .map(|at| {
                let line = between(&points[from], &points[to], points[at].page);
                (line.abs_diff(points[at].own_ns), at)
            })
            .max()
            .filter(|(error, _)| *error > 0)
    };
    let last = points.len() - 1;
    let mut kept = vec![0];
    let mut worst = Vec::new();
    if last > 0 {
        kept.push(last);
        worst.push(farthest(0, last));
    }
    while kept.len() < MAX_POINTS {
        let next = worst
            .iter()
            .copied()
            .enumerate()
            .max_by_key(|(_, worst)| *worst);
        let Some((at, Some((_, farthest_at)))) = next else {
            break;
        };
        worst[at] = farthest(kept[at], farthest_at);
        worst.insert(at + 1, farthest(farthest_at, kept[at + 1]));
        kept.insert(at + 1, farthest_at);
    }
    kept.into_iter().map(|at| points[at]).collect()
}

#[cfg(test)]
#[path = "touch_curve/test.rs"]
mod tests;
