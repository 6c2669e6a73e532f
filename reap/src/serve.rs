//! Serving faults: one message at a time, whatever happens in between.
//!
//! What a REMOVE means for it: see the module `paged_memory`.

mod guarded;
mod policy;

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::PAGE_SIZE_BYTES;
use crate::hooks::{LiveFeed, PagerHooks, PolicyState};
use crate::paged_memory::{Fault, PagedMemory, attempt};
use crate::pager::Shared;
use crate::region::PageLocation;
use crate::source::{Page, PageSource, PageSourceError};
use crate::stats::add;
use crate::trace::{Outcome, TraceRecord};
use crate::uffd::{Installed, UffdError};

/// Why faults can no longer be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The userfaultfd failed.
    #[error(transparent)]
    Uffd(#[from] UffdError),
    /// The contents of a page cannot be had.
    #[error("cannot serve the page at guest address {gpa:#x}")]
    Source {
        /// The page's guest-physical address.
        gpa: u64,
        /// Why.
        #[source]
        source: PageSourceError,
    },
    /// A fault outside guest memory.
    #[error("a fault at host address {hva:#x}, which is in no region of guest memory")]
    OutsideRegions {
        /// The address of the fault.
        hva: u64,
    },
    /// A page to be installed is outside guest memory.
    #[error("no region of guest memory holds the page at guest address {gpa:#x}")]
    NoSuchPage {
        /// The page's guest-physical address.
        gpa: u64,
    },
    /// The kernel sent a message that was not asked for.
    #[error("the userfaultfd sent a message that was not asked for")]
    UnexpectedEvent,
    /// Waiting for messages failed.
    #[error("cannot wait for faults ({reason})")]
    Wait {
        /// What the system said.
        reason: String,
    },
    /// The page source panicked.
    #[error("the page source panicked for the page at guest address {gpa:#x}: {reason}")]
    SourcePanicked {
        /// The page's guest-physical address.
        gpa: u64,
        /// What it said.
        reason: String,
    },
    /// The fault policy panicked.
    #[error("the fault policy panicked at the fault at guest address {gpa:#x}: {reason}")]
    PolicyPanicked {
        /// Guest-physical address of the page that was touched.
        gpa: u64,
        /// What it said.
        reason: String,
    },
    /// The pager itself panicked.
    #[error("the pager's thread panicked")]
    Panicked,
}

/// How one attempt ended.
enum Attempt {
    Done,
    /// Turned down by a pending REMOVE.
    Again,
}

/// What serves the faults; moves to the pager's thread.
pub(crate) struct Server {
    pub(crate) memory: PagedMemory,
    source: Box<dyn PageSource>,
    shared: Arc<Shared>,
    spin: Duration,
    /// `None`: a fault installs its page alone.
    policy: Option<PolicyState>,
    /// `None`: nobody listens.
    feed: Option<LiveFeed>,
}

impl Server {
    pub(crate) fn new(
        memory: PagedMemory,
        source: Box<dyn PageSource>,
        shared: Arc<Shared>,
        spin: Duration,
        hooks: PagerHooks,
    ) -> Self {
        let page_count = memory.regions.page_count();
        Self {
            memory,
            source,
            shared,
            spin,
            policy: hooks.policy.map(PolicyState::new),
            feed: hooks
                .listener
                .map(|sender| LiveFeed::new(sender, page_count)),
        }
    }

    /// Serves until it is told to stop. A panic counts as a failure, so that the machine is told
    /// about it as about any other.
    pub(crate) fn run(mut self) -> Result<(), ServeError> {
        panic::catch_unwind(AssertUnwindSafe(|| self.serve_until_stopped()))
            .unwrap_or(Err(ServeError::Panicked))
    }

    fn serve_until_stopped(&mut self) -> Result<(), ServeError> {
        let mut last_message = Instant::now();
        while !self.is_stopping() {
            // An install may have read faults before this thread was there to serve them.
            if self.memory.read_messages()? || !self.memory.waiting.is_empty() {
                self.serve_waiting()?;
                last_message = Instant::now();
            } else if self.install_one_later()? {
                last_message = Instant::now();
            } else if last_message.elapsed() < self.spin {
                std::hint::spin_loop();
            } else {
                self.sleep_until_message()?;
                // A wake-up begins a new time of spinning, even if the message went elsewhere.
                last_message = Instant::now();
            }
        }
        Ok(())
    }

    fn is_stopping(&self) -> bool {
        self.shared.is_stopping.load(Ordering::Acquire)
    }

    /// Sleeps until a message waits or the pager is told to stop.
    fn sleep_until_message(&self) -> Result<(), ServeError> {
        let mut fds = [
            PollFd::new(&*self.memory.uffd, PollFlags::IN),
            PollFd::new(&self.shared.stop_event, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(ServeError::Wait {
                    reason: errno.to_string(),
                });
            }
        }
        let broken = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        if fds.iter().any(|fd| fd.revents().intersects(broken)) {
            return Err(ServeError::Wait {
                reason: "poll reports an error on the userfaultfd or the stop event".to_owned(),
            });
        }
        Ok(())
    }

    /// Serves the faults in the queue, oldest first, until none is left or the pager is stopped.
    fn serve_waiting(&mut self) -> Result<(), ServeError> {
        let mut turned_down = 0;
        while let Some(fault) = self.memory.waiting.front().copied() {
            match self.serve(&fault, turned_down)? {
                Attempt::Done => {
                    self.memory.waiting.pop_front();
                    turned_down = 0;
                }
                Attempt::Again if self.is_stopping() => return Ok(()),
                Attempt::Again => {
                    self.memory.let_removals_finish(&mut turned_down)?;
                }
            }
        }
        Ok(())
    }

    /// Tries to put the page of `fault` in place, which was turned down so many times before.
    fn serve(&mut self, fault: &Fault, turned_down: u32) -> Result<Attempt, ServeError> {
        let page_at = self
            .memory
            .regions
            .locate_hva(fault.hva)
            .ok_or(ServeError::OutsideRegions { hva: fault.hva })?;
        if turned_down == 0 {
            self.consult_policy(fault, page_at)?;
        }
        let has_others = self.shared.is_installing() || self.policy.is_some();
        let was_dropped = self.shared.pages.was_dropped(page_at.index);
        if has_others && !was_dropped && self.shared.pages.is_installed(page_at.index) {
            // The working set or the policy has brought it meanwhile: no need to read it once
            // more. Of a page that was dropped the account cannot say that it is there: what was
            // put in place before the removal came to it went with it.
            let _placing = self.shared.begin_placing();
            self.memory.uffd.wake_page(page_at.hva)?;
            add(&self.shared.counters.already_present, 1);
            account(&self.shared, &mut self.feed, fault, page_at, Outcome::Hit);
            return Ok(Attempt::Done);
        }
        let page = if was_dropped {
            Page::Zero
        } else {
            guarded::read_page(&mut *self.source, page_at.gpa)?
        };
        let counters = &self.shared.counters;
        // From here on the thread may run again. Whoever learns from it that it did, and then
        // reads what the pager has done, must find this fault there.
        let _placing = self.shared.begin_placing();
        let (served, installed) = match page {
            Page::Zero => (
                &counters.zero_faults,
                // SAFETY: `page_at` is a page of a region, all of which are registered with
                // `uffd` as long as it is open.
                attempt(turned_down, || unsafe {
                    self.memory
                        .uffd
                        .zero_pages(page_at.hva, PAGE_SIZE_BYTES, true)
                })?,
            ),
            Page::Data(bytes) => (
                &counters.data_faults,
                // SAFETY: as above; `bytes` is one page.
                attempt(turned_down, || unsafe {
                    self.memory.uffd.copy(page_at.hva, bytes, true)
                })?,
            ),
        };
        let is_data = matches!(page, Page::Data(_));
        let outcome = match installed {
            Installed::Again => return Ok(Attempt::Again),
            Installed::Bytes(_) => {
                add(served, 1);
                if is_data {
                    Outcome::Miss
                } else {
                    Outcome::Zero
                }
            }
            Installed::AlreadyPresent => {
                // Whoever installed it need not have woken this thread: it may have begun to
                // wait after that.
                self.memory.uffd.wake_page(page_at.hva)?;
                add(&counters.already_present, 1);
                Outcome::Hit
            }
        };
        self.shared.pages.set_installed(page_at.index, 1);
        if is_data {
            add(&counters.bytes_read, PAGE_SIZE_BYTES);
        }
        account(&self.shared, &mut self.feed, fault, page_at, outcome);
        Ok(Attempt::Done)
    }
}

/// Counts and records a fault that was served.
fn account(
    shared: &Shared,
    feed: &mut Option<LiveFeed>,
    fault: &Fault,
    page_at: PageLocation,
    outcome: Outcome,
) {
    let service_ns = fault.read_at.elapsed().as_nanos() as u64;
    add(&shared.counters.service_ns, service_ns);
    let pages = &shared.pages;
    let is_early = pages.is_planned(page_at.index) && !pages.was_dropped(page_at.index);
    if is_early {
        add(&shared.counters.early_faults, 1);
    }
    let (recorder, tracer) = (&shared.recorder, &shared.tracer);
    if recorder.is_none() && tracer.is_none() && feed.is_none() {
        return;
    }
    let record = TraceRecord {
        sequence: 0,
        ns_since_resume: shared.ns_at(fault.read_at),
        gpa: page_at.gpa,
        hva: page_at.hva,
        service_ns,
        rip: None,
        thread_id: fault.thread_id,
        queue_depth: fault.queue_depth,
        access: fault.access,
        phase: shared.phase.get(),
        outcome,
        is_first_touch: false,
    };
    // What a working set has already need not be recorded for it.
    if let Some(recorder) = recorder
        && !is_early
    {
        recorder
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .first_touch(page_at.index, record);
    }
    if let Some(tracer) = tracer {
        tracer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .touch(page_at.index, record);
    }
    if let Some(feed) = feed {
        feed.touch(page_at.index, record, shared.resumed_ns());
    }
}
