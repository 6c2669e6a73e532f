//! Serving faults: one message at a time, whatever happens in between.
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
//!   the memory is asked before the source is.

use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use reapvm_snapshot::PAGE_SIZE;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::PAGE_SIZE_BYTES;
use crate::page_bitmap::PageBitmap;
use crate::pager::Shared;
use crate::region::{PageLocation, RegionMap};
use crate::source::{Page, PageSource, PageSourceError};
use crate::stats::add;
use crate::trace::{Access, TraceRecord};
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
const ROUNDS_BEFORE_SLEEP: u32 = 64;
const RETRY_SLEEP: Duration = Duration::from_micros(50);

/// Why faults can no longer be served.
#[derive(Debug, thiserror::Error)]
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
    #[error("the pager's thread panicked")]
    Panicked,
}

/// A thread that waits for a page.
#[derive(Clone, Copy, Debug)]
struct Fault {
    hva: u64,
    access: Access,
    thread_id: u32,
    read_at: Instant,
}

/// How one attempt ended.
enum Attempt {
    Done,
    /// Turned down by a pending REMOVE.
    Again,
}

/// What serves the faults; moves to the pager's thread.
pub(crate) struct Server {
    uffd: Arc<Uffd>,
    regions: Arc<RegionMap>,
    source: Box<dyn PageSource>,
    shared: Arc<Shared>,
    spin: Duration,
    events: UffdEvents,
    /// Faults that were read and are not served, oldest first. A thread waits for each, so there
    /// are about as many as threads that touch guest memory.
    waiting: VecDeque<Fault>,
    /// Pages that were dropped since the memory was registered: they read as zero.
    removed: PageBitmap,
}

impl Server {
    pub(crate) fn new(
        uffd: Arc<Uffd>,
        regions: Arc<RegionMap>,
        source: Box<dyn PageSource>,
        shared: Arc<Shared>,
        spin: Duration,
    ) -> Self {
        let removed = PageBitmap::new(regions.page_count());
        Self {
            uffd,
            regions,
            source,
            shared,
            spin,
            events: UffdEvents::new(),
            waiting: VecDeque::new(),
            removed,
        }
    }

    /// Serves until it is told to stop. A panic of the source counts as a failure, so that the
    /// machine is told about it as about any other.
    pub(crate) fn run(mut self) -> Result<(), ServeError> {
        panic::catch_unwind(AssertUnwindSafe(|| self.serve_until_stopped()))
            .unwrap_or(Err(ServeError::Panicked))
    }

    fn serve_until_stopped(&mut self) -> Result<(), ServeError> {
        let mut last_message = Instant::now();
        while !self.is_stopping() {
            // An install may have read faults before this thread was there to serve them.
            if self.read_messages()? || !self.waiting.is_empty() {
                self.serve_waiting()?;
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
            PollFd::new(&*self.uffd, PollFlags::IN),
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

    /// Reads all messages that wait: removals take effect, faults join the queue. Returns whether
    /// there was any.
    fn read_messages(&mut self) -> Result<bool, ServeError> {
        let mut has_message = false;
        let mut failure = None;
        for _ in 0..MAX_READS_IN_A_ROW {
            let waiting = &mut self.waiting;
            let removed = &mut self.removed;
            let regions = &self.regions;
            let counters = &self.shared.counters;
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
                        read_at: *read_at.get_or_insert_with(Instant::now),
                    }),
                    UffdEvent::Removed { start_hva, end_hva } => {
                        let pages = remove_pages(removed, regions, start_hva, end_hva);
                        add(&counters.removed_pages, pages);
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

    /// Serves the faults in the queue, oldest first, until none is left or the pager is stopped.
    fn serve_waiting(&mut self) -> Result<(), ServeError> {
        let mut turned_down = 0;
        while let Some(fault) = self.waiting.front().copied() {
            match self.serve(&fault, turned_down)? {
                Attempt::Done => {
                    self.waiting.pop_front();
                    turned_down = 0;
                }
                Attempt::Again if self.is_stopping() => return Ok(()),
                Attempt::Again => {
                    self.let_removals_finish(&mut turned_down)?;
                }
            }
        }
        Ok(())
    }

    /// Reads the messages, so that the senders of REMOVEs go on, and gives them a processor if
    /// they seem to have none.
    fn let_removals_finish(&mut self, turned_down: &mut u32) -> Result<(), ServeError> {
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

    /// Tries to put the page of `fault` in place, which was turned down so many times before.
    fn serve(&mut self, fault: &Fault, turned_down: u32) -> Result<Attempt, ServeError> {
        let page_at = self
            .regions
            .locate_hva(fault.hva)
            .ok_or(ServeError::OutsideRegions { hva: fault.hva })?;
        let page = if self.removed.contains(page_at.index) {
            Page::Zero
        } else {
            self.source
                .read_page(page_at.gpa)
                .map_err(|source| ServeError::Source {
                    gpa: page_at.gpa,
                    source,
                })?
        };
        let counters = &self.shared.counters;
        // From here on the thread may run again. Whoever learns from it that it did, and then
        // reads what the pager has done, must find this fault there.
        let _accounting = self.shared.begin_accounting();
        let (served, installed) = match page {
            Page::Zero => (
                &counters.zero_faults,
                // SAFETY: `page_at` is a page of a region, all of which are registered with
                // `uffd` as long as it is open.
                attempt(turned_down, || unsafe { self.uffd.zero_page(page_at.hva) })?,
            ),
            Page::Data(bytes) => (
                &counters.data_faults,
                // SAFETY: as above; `bytes` is one page.
                attempt(turned_down, || unsafe {
                    self.uffd.copy(page_at.hva, bytes, true)
                })?,
            ),
        };
        let is_data = matches!(page, Page::Data(_));
        match installed {
            Installed::Again => return Ok(Attempt::Again),
            Installed::Bytes(_) => add(served, 1),
            Installed::AlreadyPresent => {
                // Whoever installed it need not have woken this thread: it may have begun to
                // wait after that.
                self.uffd.wake_page(page_at.hva)?;
                add(&counters.already_present, 1);
            }
        }
        if is_data {
            add(&counters.bytes_read, PAGE_SIZE_BYTES);
        }
        self.account(fault, page_at);
        Ok(Attempt::Done)
    }

    /// Counts and records a fault that was served.
    fn account(&self, fault: &Fault, page_at: PageLocation) {
        let service_ns = fault.read_at.elapsed().as_nanos() as u64;
        add(&self.shared.counters.service_ns, service_ns);
        if let Some(recorder) = &self.shared.recorder {
            recorder
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .first_touch(
                    page_at.index,
                    TraceRecord {
                        sequence: 0,
                        ns_since_resume: self.shared.ns_at(fault.read_at),
                        gpa: page_at.gpa,
                        access: fault.access,
                        thread_id: fault.thread_id,
                        phase: self.shared.phase.get(),
                        service_ns,
                    },
                );
        }
    }

    /// Installs `bytes`, whole pages, at guest-physical address `gpa` and wakes nobody. Pages that
    /// are there already or were dropped stay as they are. Returns how many pages it installed.
    pub(crate) fn install_run(&mut self, gpa: u64, bytes: &[u8]) -> Result<u64, ServeError> {
        let mut installed_pages = 0;
        let mut done = 0;
        let mut turned_down = 0;
        while done < bytes.len() {
            let at = gpa.saturating_add(done as u64);
            let page_at = self
                .regions
                .locate_gpa(at)
                .ok_or(ServeError::NoSuchPage { gpa: at })?;
            let left = (bytes.len() - done) as u64 / PAGE_SIZE_BYTES;
            let pages = self.pages_not_removed(page_at, left.min(page_at.pages_to_region_end));
            if pages == 0 {
                done += PAGE_SIZE;
                continue;
            }
            let run = &bytes[done..done + pages as usize * PAGE_SIZE];
            // SAFETY: the run begins at a page of a region and does not go past the region's end.
            match attempt(turned_down, || unsafe {
                self.uffd.copy(page_at.hva, run, false)
            })? {
                Installed::Bytes(copied_bytes) => {
                    done += copied_bytes as usize;
                    installed_pages += copied_bytes / PAGE_SIZE_BYTES;
                    turned_down = 0;
                }
                Installed::AlreadyPresent => {
                    done += PAGE_SIZE;
                    turned_down = 0;
                }
                Installed::Again => self.let_removals_finish(&mut turned_down)?,
            }
        }
        Ok(installed_pages)
    }

    /// How many of the `pages` from `page_at` on come before the first that was dropped.
    fn pages_not_removed(&self, page_at: PageLocation, pages: u64) -> u64 {
        if self.removed.is_empty() {
            return pages;
        }
        (0..pages)
            .find(|page| self.removed.contains(page_at.index + page))
            .unwrap_or(pages)
    }

    /// Whether a region holds each of the `pages` from guest-physical address `gpa` on.
    pub(crate) fn holds(&self, gpa: u64, pages: u64) -> bool {
        let mut gpa = gpa;
        let mut left = pages;
        while left > 0 {
            let Some(page_at) = self.regions.locate_gpa(gpa) else {
                return false;
            };
            let held = left.min(page_at.pages_to_region_end);
            left -= held;
            gpa = gpa.saturating_add(held * PAGE_SIZE_BYTES);
        }
        true
    }
}

/// Does `operation` once, or, if it has been turned down before, until a REMOVE no longer turns it
/// down or patience ends. No REMOVE that is still unread can be overlooked by this: it would turn
/// the operation down.
fn attempt(
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
fn remove_pages(
    removed: &mut PageBitmap,
    regions: &RegionMap,
    start_hva: u64,
    end_hva: u64,
) -> u64 {
    let mut pages = 0;
    for region in regions.iter() {
        let start = start_hva.max(region.hva);
        let end = end_hva.min(region.hva + region.size_bytes);
        if start >= end {
            continue;
        }
        if let Some(first) = regions.locate_hva(start) {
            let count = (end - start).div_ceil(PAGE_SIZE_BYTES);
            for index in first.index..first.index + count {
                removed.insert(index);
            }
            pages += count;
        }
    }
    pages
}
