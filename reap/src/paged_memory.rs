//! Guest memory as the pager sees it: where its pages are, which of them were dropped, and who
//! waits for one.
//!
//! # REMOVE
//! A thread that drops guest pages (MADV_DONTNEED: a balloon, say) announces it with a REMOVE
//! message and waits until that is read; only then the pages go. Three things follow:
//!
//! - From the announcement until the message has been read and its sender has run again, every
//!   COPY and ZEROPAGE returns EAGAIN. So on EAGAIN the messages are read first, and the fault is
//!   tried again afterwards. Linux promises no turn between two REMOVEs: a thread that drops page
//!   after page without a pause can keep a fault waiting until it pauses.
//! - A message read later may be the cause of a fault read earlier. So all messages that wait are
//!   read before the first fault is served, and the removals among them take effect first.
//! - The pages read as zero from then on, whatever the snapshot says. So they are remembered, and
//!   the account is asked before the source is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::PAGE_SIZE_BYTES;
use crate::page_states::PageAccount;
use crate::pager::Shared;
use crate::region::RegionMap;
use crate::serve::ServeError;
use crate::stats::add;
use crate::trace::Access;
use crate::uffd::{Installed, Uffd, UffdError, UffdEvent, UffdEvents};

/// Full reads of messages in a row before faults are served: as many threads would have to fault
/// at once to fill them, and a storm of removals must not keep the faults waiting.
const MAX_READS_IN_A_ROW: usize = 16;

/// Attempts in a row, a fraction of a microsecond each, to get past a REMOVE that was read but
/// whose sender has not run again. A sender that drops page after page leaves only the time
/// between two of its system calls in which a page can be installed. Few enough that its next
/// message is not left waiting, for nothing can be installed until that is read.
const ATTEMPTS_IN_A_ROW: u32 = 64;

/// Rounds of such attempts without a new message before the pager gives up its processor for
/// longer than a yield: the sender may be waiting for one.
pub(crate) const ROUNDS_BEFORE_SLEEP: u32 = 64;
pub(crate) const RETRY_SLEEP: Duration = Duration::from_micros(50);

/// A thread that waits for a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) hva: u64,
    pub(crate) access: Access,
    pub(crate) thread_id: u32,
    pub(crate) read_at: Instant,
    /// Faults in the queue when this one joined it, itself included.
    pub(crate) queue_depth: u32,
}

/// The registered memory and what the kernel has said about it.
pub(crate) struct PagedMemory {
    pub(crate) uffd: Arc<Uffd>,
    pub(crate) regions: RegionMap,
    shared: Arc<Shared>,
    events: UffdEvents,
    /// Faults that were read and are not served, oldest first. A thread waits for each, so there
    /// are about as many as threads that touch guest memory.
    pub(crate) waiting: VecDeque<Fault>,
}

impl PagedMemory {
    pub(crate) fn new(uffd: Arc<Uffd>, regions: RegionMap, shared: Arc<Shared>) -> Self {
        Self {
            uffd,
            regions,
            shared,
            events: UffdEvents::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Reads all messages that wait: removals take effect, faults join the queue. Returns whether
    /// there was any.
    pub(crate) fn read_messages(&mut self) -> Result<bool, ServeError> {
        let mut has_message = false;
        let mut failure = None;
        for _ in 0..MAX_READS_IN_A_ROW {
            let waiting = &mut self.waiting;
            let regions = &self.regions;
            let shared = &self.shared;
            // Asked first, so that a pager that spins does not keep out those who install.
            if !self.uffd.has_message()? {
                break;
            }
            // The sender of a REMOVE may go on as soon as it is read. Whoever looks at the account
            // after that must find the removal in it.
            let _accounting = shared.begin_accounting();
            let mut read_at = None;
            let may_have_more = self.uffd.read(&mut self.events, |event| {
                has_message = true;
                match event {
                    UffdEvent::Fault {
                        hva,
                        access,
                        thread_id,
                    } => waiting.push_back(Fault {
                        hva,
                        access,
                        thread_id,
                        queue_depth: waiting.len() as u32 + 1,
                        read_at: *read_at.get_or_insert_with(Instant::now),
                    }),
                    UffdEvent::Removed { start_hva, end_hva } => {
                        let pages = remove_pages(&shared.pages, regions, start_hva, end_hva);
                        add(&shared.counters.removed_pages, pages);
                    }
                    UffdEvent::Unexpected => failure = Some(ServeError::UnexpectedEvent),
                }
            })?;
            if let Some(failure) = failure {
                return Err(failure);
            }
            if !may_have_more {
                break;
            }
        }
        Ok(has_message)
    }

    /// Reads the messages, so that the senders of REMOVEs go on, and gives them a processor if
    /// they seem to have none.
    pub(crate) fn let_removals_finish(&mut self, turned_down: &mut u32) -> Result<(), ServeError> {
        if self.read_messages()? {
            // The senders run. Whoever yields or sleeps now misses the time between this message
            // of theirs and the next, again and again.
            *turned_down = 1;
            return Ok(());
        }
        *turned_down = turned_down.saturating_add(1);
        match *turned_down {
            1 => {}
            2..ROUNDS_BEFORE_SLEEP => thread::yield_now(),
            _ => thread::sleep(RETRY_SLEEP),
        }
        Ok(())
    }
}

/// Does `operation` once, or, if it has been turned down before, until a REMOVE no longer turns it
/// down or patience ends. No REMOVE that is still unread can be overlooked by this: it would turn
/// the operation down.
pub(crate) fn attempt(
    turned_down: u32,
    mut operation: impl FnMut() -> Result<Installed, UffdError>,
) -> Result<Installed, UffdError> {
    let attempts = if turned_down == 0 {
        1
    } else {
        ATTEMPTS_IN_A_ROW
    };
    for _ in 1..attempts {
        match operation()? {
            Installed::Again => std::hint::spin_loop(),
            installed => return Ok(installed),
        }
    }
    operation()
}

/// Remembers the pages from `start_hva` to `end_hva` as dropped; returns how many are in a region.
fn remove_pages(account: &PageAccount, regions: &RegionMap, start_hva: u64, end_hva: u64) -> u64 {
    let mut pages = 0;
    for region in regions.iter() {
        let start = start_hva.max(region.hva);
        let end = end_hva.min(region.hva + region.size_bytes);
        if start >= end {
            continue;
        }
        if let Some(first) = regions.locate_hva(start) {
            let count = (end - start).div_ceil(PAGE_SIZE_BYTES);
            account.set_dropped(first.index, count);
            pages += count;
        }
    }
    pages
}
