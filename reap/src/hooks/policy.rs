//! Who decides what a fault installs.

use std::collections::VecDeque;

use crate::PAGE_SIZE_BYTES;
use crate::page_states::PageAccount;
use crate::phase::Phase;
use crate::region::{PageLocation, RegionMap};
use crate::trace::Access;

/// A fault that is about to be served, as a [`FaultPolicy`] sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultInfo {
    /// Guest-physical address of the page.
    pub gpa: u64,
    /// How it was touched; what a kernel worker does for a vCPU looks like a write.
    pub access: Access,
    /// The host thread that waits for the page.
    pub thread_id: u32,
    /// What the virtual machine is doing.
    pub phase: Phase,
    /// When the pager read of the fault, in nanoseconds since the guest's first instruction, or
    /// since the start of the pager before that.
    pub ns_since_resume: i64,
}

/// Decides which pages are put in place when one is touched: a prefetcher.
///
/// It is called once for each fault, on the pager's thread, before the fault is served; so the guest
/// waits for it, and it must neither block nor touch guest memory. The page that was touched is
/// always served, whatever the policy says. A panic ends the virtual machine with an error.
///
/// What it names is a wish. Pages outside guest memory, pages that are in place already, and pages
/// that were dropped (by a balloon, say) are left alone, and naming one twice does no harm. A page
/// that is put in place is what the page source says; if that fails, it is as if the guest had
/// touched the page. [`PagerStats::policy_pages`](crate::PagerStats::policy_pages) counts them:
/// they are no faults, and no trace or recording has them.
///
/// # Examples
/// ```
/// use reapvm_reap::{FaultInfo, FaultPlan, FaultPolicy};
///
/// /// The next page too.
/// struct NextPage;
///
/// impl FaultPolicy for NextPage {
///     fn on_fault(&mut self, fault: &FaultInfo, plan: &mut FaultPlan<'_>) {
///         plan.install(fault.gpa + 4096, 1);
///     }
/// }
/// ```
pub trait FaultPolicy: Send {
    /// Looks at `fault` and says in `plan` what is to be put in place besides its page.
    fn on_fault(&mut self, fault: &FaultInfo, plan: &mut FaultPlan<'_>);
}

impl<F: FnMut(&FaultInfo, &mut FaultPlan<'_>) + Send> FaultPolicy for F {
    fn on_fault(&mut self, fault: &FaultInfo, plan: &mut FaultPlan<'_>) {
        self(fault, plan);
    }
}

/// Pages of one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PageRun {
    first: PageLocation,
    pages: u64,
}

/// What a [`FaultPolicy`] wants to have put in place with a fault.
pub struct FaultPlan<'a> {
    now: &'a mut VecDeque<PageRun>,
    later: &'a mut VecDeque<PageRun>,
    regions: &'a RegionMap,
    account: &'a PageAccount,
}

impl FaultPlan<'_> {
    /// Puts the `pages` pages from the one that holds guest-physical address `gpa` on in place
    /// before the thread that waits for the fault goes on: the guest will find them, and waits for
    /// them.
    pub fn install(&mut self, gpa: u64, pages: u64) {
        self.now.extend(clip(self.regions, gpa, pages));
    }

    /// As [`install`](Self::install), but when no fault waits: in the order in which they were
    /// named, page by page, as long as the guest needs nothing else. A guest that touches one of
    /// them before it is in place has to wait for it as for any page.
    pub fn install_later(&mut self, gpa: u64, pages: u64) {
        self.later.extend(clip(self.regions, gpa, pages));
    }

    /// Whether the page that holds guest-physical address `gpa` could be put in place: it is in
    /// guest memory, was never dropped, and nobody has put it in place yet.
    #[must_use]
    pub fn is_missing(&self, gpa: u64) -> bool {
        self.regions.locate_gpa(gpa).is_some_and(|page_at| {
            !self.account.is_installed(page_at.index) && !self.account.was_dropped(page_at.index)
        })
    }
}

/// A policy and what it has named.
pub(crate) struct PolicyState {
    policy: Box<dyn FaultPolicy>,
    now: VecDeque<PageRun>,
    later: VecDeque<PageRun>,
    /// Attempts in a row that a removal has turned down, for the pages of `later`.
    pub(crate) turned_down: u32,
}

impl PolicyState {
    pub(crate) fn new(policy: Box<dyn FaultPolicy>) -> Self {
        Self {
            policy,
            now: VecDeque::new(),
            later: VecDeque::new(),
            turned_down: 0,
        }
    }

    /// Asks the policy.
    pub(crate) fn consult(
        &mut self,
        fault: &FaultInfo,
        regions: &RegionMap,
        account: &PageAccount,
    ) {
        self.policy.on_fault(
            fault,
            &mut FaultPlan {
                now: &mut self.now,
                later: &mut self.later,
                regions,
                account,
            },
        );
    }

    /// The next page that is to be there before the guest goes on.
    pub(crate) fn next_now(&mut self) -> Option<PageLocation> {
        take_page(&mut self.now)
    }

    /// The next page that can wait.
    pub(crate) fn next_later(&mut self) -> Option<PageLocation> {
        take_page(&mut self.later)
    }

    /// `page_at`, and what is left to be there before the guest goes on, can wait after all.
    pub(crate) fn put_off(&mut self, page_at: PageLocation) {
        while let Some(run) = self.now.pop_back() {
            self.later.push_front(run);
        }
        self.later.push_front(PageRun {
            first: page_at,
            pages: 1,
        });
    }
}

/// What guest memory has of the `pages` pages from the one that holds `gpa` on.
fn clip(regions: &RegionMap, gpa: u64, pages: u64) -> impl Iterator<Item = PageRun> {
    let start = gpa & !(PAGE_SIZE_BYTES - 1);
    let end = start.saturating_add(pages.saturating_mul(PAGE_SIZE_BYTES));
    regions.iter().filter_map(move |region| {
        let start = start.max(region.gpa);
        let end = end.min(region.gpa + region.size_bytes);
        let pages = end.checked_sub(start)? / PAGE_SIZE_BYTES;
        let first = regions.locate_gpa(start)?;
        (pages > 0).then_some(PageRun { first, pages })
    })
}

/// Takes the first page of `runs`.
fn take_page(runs: &mut VecDeque<PageRun>) -> Option<PageLocation> {
    let run = runs.front_mut()?;
    let page_at = run.first;
    run.pages -= 1;
    if run.pages == 0 {
        runs.pop_front();
    } else {
        run.first = PageLocation {
            gpa: page_at.gpa + PAGE_SIZE_BYTES,
            hva: page_at.hva + PAGE_SIZE_BYTES,
            index: page_at.index + 1,
            pages_to_region_end: page_at.pages_to_region_end - 1,
        };
    }
    Some(page_at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::MemoryRegion;

    const HIGH: u64 = 0x1_0000_0000;

    fn regions() -> RegionMap {
        let region = |gpa, hva, pages: u64| MemoryRegion {
            gpa,
            hva,
            size_bytes: pages * PAGE_SIZE_BYTES,
            file_offset: 0,
        };
        RegionMap::new(vec![
            region(0x1000, 0x10_0000, 4),
            region(HIGH, 0x80_0000, 2),
        ])
        .unwrap()
    }

    fn fault(gpa: u64) -> FaultInfo {
        FaultInfo {
            gpa,
            access: Access::Read,
            thread_id: 1,
            phase: Phase::Request,
            ns_since_resume: 0,
        }
    }

    fn named_by(policy: impl FaultPolicy + 'static) -> (Vec<u64>, Vec<u64>) {
        let regions = regions();
        let account = PageAccount::new(regions.page_count());
        let mut state = PolicyState::new(Box::new(policy));
        state.consult(&fault(0x2000), &regions, &account);
        let now = std::iter::from_fn(|| state.next_now().map(|page| page.gpa)).collect();
        let later = std::iter::from_fn(|| state.next_later().map(|page| page.gpa)).collect();
        (now, later)
    }

    #[test]
    fn what_is_named_is_clipped_to_guest_memory() {
        let all = [0x1000, 0x2000, 0x3000, 0x4000, HIGH, HIGH + 0x1000];
        for (gpa, pages, expected) in [
            (0, u64::MAX, &all[..]),
            (0, 3, &all[..2]),
            (0x2fff, 2, &all[1..3]),
            (0x4000, HIGH / PAGE_SIZE_BYTES, &all[3..]),
            (0x4000, HIGH / PAGE_SIZE_BYTES - 3, &all[3..5]),
            (0x5000, 100, &[]),
            (0x2000, 0, &[]),
            (u64::MAX, u64::MAX, &[]),
            (HIGH + 0x2000, 1, &[]),
        ] {
            let install = move |_: &FaultInfo, plan: &mut FaultPlan<'_>| plan.install(gpa, pages);
            assert_eq!(named_by(install), (expected.to_vec(), vec![]), "{gpa:#x}");
            let later = move |_: &FaultInfo, plan: &mut FaultPlan<'_>| {
                plan.install_later(gpa, pages);
            };
            assert_eq!(named_by(later), (vec![], expected.to_vec()), "{gpa:#x}");
        }
    }

    #[test]
    fn a_policy_can_ask_which_pages_are_missing() {
        let regions = regions();
        let account = PageAccount::new(regions.page_count());
        account.set_installed(1, 1);
        account.set_dropped(4, 1);
        let (sender, receiver) = std::sync::mpsc::channel();
        let policy = move |_: &FaultInfo, plan: &mut FaultPlan<'_>| {
            let missing = [
                0,
                0x1000,
                0x2abc,
                0x3000,
                HIGH,
                HIGH + 0x1fff,
                HIGH + 0x2000,
            ]
            .map(|gpa| plan.is_missing(gpa));
            sender.send(missing).unwrap();
        };
        PolicyState::new(Box::new(policy)).consult(&fault(0x3000), &regions, &account);
        assert_eq!(
            receiver.recv().unwrap(),
            [false, true, false, true, false, true, false]
        );
    }

    #[test]
    fn what_is_put_off_comes_first_of_what_can_wait() {
        let regions = regions();
        let account = PageAccount::new(regions.page_count());
        let policy = |_: &FaultInfo, plan: &mut FaultPlan<'_>| {
            plan.install_later(HIGH, 1);
            plan.install(0x1000, 2);
            plan.install(0x4000, 1);
        };
        let mut state = PolicyState::new(Box::new(policy));
        state.consult(&fault(0x3000), &regions, &account);
        let first = state.next_now().unwrap();
        state.put_off(first);
        assert_eq!(state.next_now(), None);
        let later: Vec<u64> =
            std::iter::from_fn(|| state.next_later().map(|page| page.gpa)).collect();
        assert_eq!(later, [0x1000, 0x2000, 0x4000, HIGH]);
    }
}
