//! What a policy adds to the serving of faults.

use super::{ServeError, Server, guarded};
use crate::PAGE_SIZE_BYTES;
use crate::hooks::FaultInfo;
use crate::paged_memory::{Fault, attempt};
use crate::region::PageLocation;
use crate::source::Page;
use crate::stats::add;
use crate::uffd::Installed;

/// Pages that are in place already and are passed over before messages are looked for again.
const MAX_PASSED_OVER: u32 = 512;

/// What became of a page that a policy named.
enum Named {
    Installed,
    /// Nothing was to be done.
    Present,
    /// Turned down by a pending REMOVE.
    Again,
}

impl Server {
    /// Asks the policy, if there is one, about `fault`, and puts in place what it wants to be there
    /// before the guest goes on.
    pub(super) fn consult_policy(
        &mut self,
        fault: &Fault,
        page_at: PageLocation,
    ) -> Result<(), ServeError> {
        let Some(policy) = &mut self.policy else {
            return Ok(());
        };
        let read_at_ns = self.shared.ns_at(fault.read_at);
        let info = FaultInfo {
            gpa: page_at.gpa,
            access: fault.access,
            thread_id: fault.thread_id,
            phase: self.shared.phase.get(),
            ns_since_resume: read_at_ns.saturating_sub(self.shared.resumed_ns()),
        };
        guarded::consult(policy, &info, &self.memory.regions, &self.shared.pages)?;
        while let Some(named) = self.policy.as_mut().and_then(|policy| policy.next_now()) {
            if named.index == page_at.index {
                // The page of the fault is served as such.
                continue;
            }
            if self.is_stopping() {
                break;
            }
            if let Named::Again = self.install_named(named, 0)? {
                // The thread that waits does not wait for the removal on this page's behalf.
                if let Some(policy) = &mut self.policy {
                    policy.put_off(named);
                }
                break;
            }
        }
        Ok(())
    }

    /// Puts the next page in place that can wait. Returns whether anything was done.
    pub(super) fn install_one_later(&mut self) -> Result<bool, ServeError> {
        for passed_over in 0..MAX_PASSED_OVER {
            let Some(policy) = &mut self.policy else {
                return Ok(false);
            };
            let turned_down = policy.turned_down;
            let Some(named) = policy.next_later() else {
                return Ok(passed_over > 0);
            };
            match self.install_named(named, turned_down)? {
                Named::Present => {}
                Named::Installed => {
                    if let Some(policy) = &mut self.policy {
                        policy.turned_down = 0;
                    }
                    return Ok(true);
                }
                Named::Again => {
                    let mut turned_down = turned_down;
                    self.memory.let_removals_finish(&mut turned_down)?;
                    if let Some(policy) = &mut self.policy {
                        policy.turned_down = turned_down;
                        policy.put_off(named);
                    }
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }

    /// Puts the page in place that a policy has named, if it is missing, and wakes nobody: who has
    /// begun to wait for it goes on when its fault is accounted for.
    fn install_named(
        &mut self,
        page_at: PageLocation,
        turned_down: u32,
    ) -> Result<Named, ServeError> {
        let (counters, pages) = (&self.shared.counters, &self.shared.pages);
        if pages.is_installed(page_at.index) || pages.was_dropped(page_at.index) {
            add(&counters.policy_present, 1);
            return Ok(Named::Present);
        }
        let page = guarded::read_page(&mut *self.source, page_at.gpa)?;
        let _placing = self.shared.begin_placing();
        let uffd = &self.memory.uffd;
        let (installed, data_bytes) = match page {
            Page::Zero => (
                // SAFETY: `page_at` is a page of a region, all of which are registered with
                // `uffd` as long as it is open.
                attempt(turned_down, || unsafe {
                    uffd.zero_pages(page_at.hva, PAGE_SIZE_BYTES, false)
                })?,
                0,
            ),
            Page::Data(bytes) => (
                // SAFETY: as above; `bytes` is one page.
                attempt(turned_down, || unsafe {
                    uffd.copy(page_at.hva, bytes, false)
                })?,
                PAGE_SIZE_BYTES,
            ),
        };
        Ok(match installed {
            Installed::Bytes(_) => {
                pages.set_installed(page_at.index, 1);
                add(&counters.policy_pages, 1);
                add(&counters.policy_bytes, data_bytes);
                Named::Installed
            }
            Installed::AlreadyPresent => {
                add(&counters.policy_present, 1);
                Named::Present
            }
            Installed::Again => Named::Again,
        })
    }
}
