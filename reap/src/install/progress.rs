//! How far an install has come, for who waits for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{InstallError, InstallReport};

/// What a guest is let go with at least, in pages: what restoring it and taking the first request
/// touch.
const MIN_LEAD_PAGES: u64 = 128;

/// How long a guest takes from one page to the next at the least, in nanoseconds: the fault by
/// which KVM maps a page that is there already (0.5 us with nested paging, 1 to 3 us with shadow
/// paging), and some instructions.
const GUEST_NS_PER_PAGE: u64 = 3000;

#[derive(Default)]
struct State {
    result: Option<Result<InstallReport, Arc<InstallError>>>,
    lead_pages: Option<u64>,
}

/// How far an install has come.
pub(crate) struct Progress {
    started: Instant,
    total_pages: AtomicU64,
    placed_pages: AtomicU64,
    zero_pages: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            total_pages: AtomicU64::new(u64::MAX),
            placed_pages: AtomicU64::new(0),
            zero_pages: AtomicU64::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many pages with data are to be installed.
    pub(super) fn expect(&self, pages: u64) {
        self.total_pages.store(pages, Ordering::Relaxed);
    }

    /// So many more pages with data are in place, or were there already.
    pub(super) fn add(&self, pages: u64) {
        self.placed_pages.fetch_add(pages, Ordering::Relaxed);
        // With the lock, so that no waiter misses it between its look and its wait.
        let _state = self.lock();
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
            let placed = self.placed_pages.load(Ordering::Relaxed);
            if let Some(result) = &state.result {
                return result.as_ref().map(drop).map_err(Arc::clone);
            }
            let total = self.total_pages.load(Ordering::Relaxed);
            let elapsed_ns = self.started.elapsed().as_nanos() as u64;
            if may_overlap && placed >= lead_pages(total, placed, elapsed_ns) {
                state.lead_pages = Some(placed + self.zero_pages.load(Ordering::Relaxed));
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
                result.lead_pages = state.lead_pages.unwrap_or(result.pages);
                return Ok(result);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// How many of `total` pages have to be in place so that a guest which then takes them in order
/// finds each there, if the install goes on as fast as it brought `placed` in `elapsed_ns`: the
/// install of the rest takes no longer than the guest takes for all.
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

    #[test]
    fn who_waits_for_all_is_not_let_go_by_a_part() {
        let progress = Progress::new();
        progress.expect(1000);
        progress.add(1000);
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
        assert_eq!(progress.wait_until_finished().unwrap().lead_pages, 7);
    }
}
