//! How far an install has come, for who waits for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{InstallError, InstallReport, LeadRule};
use crate::touch_curve::TouchCurve;
use crate::working_set::WorkingSet;

/// What a guest of which no more is known is let go with at least, in pages: what restoring it and
/// taking the first request touch.
const MIN_LEAD_PAGES: u64 = 128;

/// How long such a guest takes from one page to the next, in nanoseconds: the fault by
/// which KVM maps a page that is there already (0.5 us with nested paging, 1 to 3 us with shadow
/// paging), and some instructions.
const GUEST_NS_PER_PAGE: u64 = 3000;

/// What is to be installed, and how much of it is.
#[derive(Default)]
struct State {
    result: Option<Result<InstallReport, Arc<InstallError>>>,
    /// What the guest was let go with, and what decided that.
    lead: Option<(u64, LeadRule)>,
    /// How many pages with data there are; none until that is known.
    total_pages: Option<u64>,
    /// When the guest needs them, if that is known.
    curve: Option<TouchCurve>,
    placed_pages: u64,
    /// So many of the first pages are in place.
    first_pages: u64,
    /// Pieces beyond those: the number of the first page of each, and of the first after it.
    beyond: BTreeMap<u64, u64>,
}

impl State {
    fn rule(&self) -> LeadRule {
        match self.curve {
            Some(_) => LeadRule::Trace,
            None => LeadRule::Pace,
        }
    }

    /// Whether a guest that is let go now will hardly overtake the rest.
    fn is_far_enough(&self, elapsed_ns: u64) -> bool {
        let Some(total) = self.total_pages else {
            return false;
        };
        let placed = self.placed_pages;
        match &self.curve {
            Some(curve) => self.first_pages >= curve.lead_pages(total, placed, elapsed_ns),
            None => placed >= lead_pages(total, placed, elapsed_ns),
        }
    }
}

/// How far an install has come.
pub(crate) struct Progress {
    started: Instant,
    zero_pages: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            zero_pages: AtomicU64::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pages of `set` with data are to be installed, in their order.
    pub(super) fn expect(&self, set: &WorkingSet) {
        let mut state = self.lock();
        state.total_pages = Some(set.data_page_count());
        state.curve = set.curve().cloned();
        self.changed.notify_all();
    }

    /// `pages` more pages with data, from number `first_page` on, are in place, or were there
    /// already.
    pub(super) fn add(&self, first_page: u64, pages: u64) {
        let mut state = self.lock();
        state.placed_pages += pages;
        state.beyond.insert(first_page, first_page + pages);
        let mut first_pages = state.first_pages;
        while let Some(end) = state.beyond.remove(&first_pages) {
            first_pages = end;
        }
        state.first_pages = first_pages;
        self.changed.notify_all();
    }

    /// So many more zero pages are in place. They come first, at once and without the disk, and say
    /// nothing of how soon the others will be there.
    pub(super) fn add_zeroes(&self, pages: u64) {
        self.zero_pages.fetch_add(pages, Ordering::Relaxed);
    }

    /// The install has ended.
    pub(crate) fn finish(&self, result: Result<InstallReport, Arc<InstallError>>) {
        self.lock().result = Some(result);
        self.changed.notify_all();
    }

    /// Waits until the guest may be let go: at the end of the install, or, if `may_overlap`, when
    /// the guest will hardly overtake it.
    pub(crate) fn wait_until_ready(&self, may_overlap: bool) -> Result<(), Arc<InstallError>> {
        let mut state = self.lock();
        loop {
            if let Some(result) = &state.result {
                let pages = result.as_ref().map_err(Arc::clone)?.pages;
                if may_overlap {
                    state.lead = Some((pages, state.rule()));
                }
                return Ok(());
            }
            if may_overlap && state.is_far_enough(self.started.elapsed().as_nanos() as u64) {
                let pages = state.placed_pages + self.zero_pages.load(Ordering::Relaxed);
                state.lead = Some((pages, state.rule()));
                return Ok(());
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the end of the install.
    pub(crate) fn wait_until_finished(&self) -> Result<InstallReport, Arc<InstallError>> {
        let mut state = self.lock();
        loop {
            if let Some(result) = &state.result {
                let mut result = result.clone()?;
                (result.lead_pages, result.lead_rule) =
                    state.lead.unwrap_or((result.pages, LeadRule::All));
                return Ok(result);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// How many of `total` pages have to be in place so that a guest which then takes them in order,
/// at the pace of one of which no more is known, finds each there, if the install goes on as fast as
/// it brought `placed` in `elapsed_ns`: the install of the rest takes no longer than the guest takes
/// for all.
fn lead_pages(total: u64, placed: u64, elapsed_ns: u64) -> u64 {
    let least = MIN_LEAD_PAGES.min(total);
    if placed < least {
        return least;
    }
    let install_ns_per_page = elapsed_ns / placed.max(1);
    if install_ns_per_page <= GUEST_NS_PER_PAGE {
        return least;
    }
    // total * (1 - guest / install), without overflow for any number of pages that exists.
    let overtaken = install_ns_per_page - GUEST_NS_PER_PAGE;
    let lead = u128::from(total) * u128::from(overtaken) / u128::from(install_ns_per_page);
    u64::try_from(lead).unwrap_or(total).max(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_install_needs_the_least_lead_and_a_slow_one_nearly_all() {
        assert_eq!(
            lead_pages(4000, 200, 200 * GUEST_NS_PER_PAGE),
            MIN_LEAD_PAGES
        );
        assert_eq!(lead_pages(4000, 200, 200 * 4 * GUEST_NS_PER_PAGE), 3000);
        assert_eq!(lead_pages(4000, 200, 200 * 100 * GUEST_NS_PER_PAGE), 3960);
        // Nothing is known yet, or there is less than the least.
        assert_eq!(lead_pages(4000, 0, 1_000_000), MIN_LEAD_PAGES);
        assert_eq!(lead_pages(5, 5, 1), 5);
        assert_eq!(lead_pages(0, 0, 1), 0);
        assert_eq!(lead_pages(u64::MAX, 0, 1), MIN_LEAD_PAGES);
    }

    fn expect(progress: &Progress, pages: u64, curve: Option<TouchCurve>) {
        let mut state = progress.lock();
        (state.total_pages, state.curve) = (Some(pages), curve);
    }

    #[test]
    fn only_the_first_pages_without_a_gap_let_a_guest_go_that_needs_them_in_order() {
        let progress = Progress::new();
        // A guest that needs 640 pages at once, and the others in a day.
        let day = 24 * 3600 * 1_000_000_000;
        let times: Vec<Option<u64>> = (0..1000).map(|n| Some((n / 640) * day)).collect();
        expect(&progress, 1000, TouchCurve::of_pages(&times));
        let is_ready = || progress.lock().is_far_enough(1_000_000_000);
        assert!(!is_ready());
        for piece in [0, 2, 3, 4, 5, 6, 7, 8, 9] {
            progress.add(piece * 64, 64);
            assert!(!is_ready(), "{piece}");
        }
        progress.add(64, 64);
        assert!(is_ready());
        progress.wait_until_ready(true).unwrap();
        progress.add_zeroes(3);
        progress.finish(Ok(InstallReport::default()));
        let report = progress.wait_until_finished().unwrap();
        assert_eq!(
            (report.lead_pages, report.lead_rule),
            (640, LeadRule::Trace)
        );
    }

    #[test]
    fn what_decided_is_told_also_where_all_was_there() {
        for (curve, rule) in [
            (TouchCurve::of_pages(&[Some(0)]), LeadRule::Trace),
            (None, LeadRule::Pace),
        ] {
            let progress = Progress::new();
            expect(&progress, 1, curve);
            progress.finish(Ok(InstallReport {
                pages: 1,
                ..InstallReport::default()
            }));
            progress.wait_until_ready(true).unwrap();
            let report = progress.wait_until_finished().unwrap();
            assert_eq!((report.lead_pages, report.lead_rule), (1, rule));
        }
    }

    #[test]
    fn who_waits_for_all_is_not_let_go_by_a_part() {
        let progress = Progress::new();
        expect(&progress, 1000, None);
        progress.add(0, 1000);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| progress.wait_until_ready(false));
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!waiter.is_finished());
            progress.finish(Ok(InstallReport {
                pages: 7,
                ..InstallReport::default()
            }));
            waiter.join().unwrap().unwrap();
        });
        let report = progress.wait_until_finished().unwrap();
        assert_eq!((report.lead_pages, report.lead_rule), (7, LeadRule::All));
    }
}
