//! Which pages are written, in which order.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::phase::PhaseCell;
use crate::region::{MemoryRegion, RegionError, RegionMap};
use crate::trace::{Access, Outcome, TraceRecord};
use crate::tracer::{FaultTrace, Tracer};
use crate::uffd::{Uffd, UffdError, UffdEvent, UffdEvents};

/// Why writes cannot be tracked, or not all of them were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteTrackerError {
    /// The regions of guest memory break a rule.
    #[error(transparent)]
    Regions(#[from] RegionError),
    /// The userfaultfd cannot be opened, or not for this memory, or failed.
    #[error(transparent)]
    Uffd(#[from] UffdError),
    /// A write outside of guest memory was reported.
    #[error("a write at host address {hva:#x}, which is in no region of guest memory")]
    OutsideRegions {
        /// The address.
        hva: u64,
    },
    /// The event that ends the tracking cannot be made, or not be waited for.
    #[error("cannot wait for writes")]
    Wait(#[source] io::Error),
    /// The thread cannot be started.
    #[error("cannot start the thread that tracks writes")]
    Spawn(#[source] io::Error),
    /// The thread panicked.
    #[error("the thread that tracks writes panicked")]
    Panicked,
}

/// Keeps the first write to each page of guest memory, whoever does it: a vCPU, KVM, a device of this
/// process, a system call.
///
/// All pages are protected against writes by userfaultfd. The first write to one waits until a thread
/// of this object, named `write-tracker`, has kept a record of it and lifted the protection of that
/// page: tens of microseconds a page. The records are those of a [trace](crate::trace), with access
/// [`Access::WriteProtect`] and outcome [`Outcome::Hit`].
///
/// The memory must not have a pager, and all of it has to be in place: KVM's worker asks for a missing
/// page to write to it, although the guest may only read. A page that is dropped while writes are
/// tracked (by a balloon) is no longer protected.
///
/// However this ends, by [`stop`](Self::stop), a drop or a failure, no thread is left waiting.
pub struct WriteTracker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), WriteTrackerError>>>,
}

struct Shared {
    uffd: Uffd,
    regions: RegionMap,
    phase: Arc<PhaseCell>,
    /// Its times are those of the monotonic clock.
    tracer: Mutex<Tracer>,
    is_stopping: AtomicBool,
    stop_event: OwnedFd,
}

impl WriteTracker {
    /// Protects the memory in `regions` and begins to track. Keeps `max_records` records at most and
    /// counts the others; they carry what `phase` says.
    ///
    /// # Safety
    /// The host addresses of the regions are private anonymous mappings of the caller's own, which
    /// stay mapped as long as the tracker exists.
    ///
    /// # Errors
    /// When the regions break a rule, the kernel does not protect pages (Linux 5.14 does) or not
    /// these, as they have a pager or are no anonymous memory, or the system has no thread for it.
    pub unsafe fn begin(
        regions: Vec<MemoryRegion>,
        phase: Arc<PhaseCell>,
        max_records: u64,
    ) -> Result<Self, WriteTrackerError> {
        let regions = RegionMap::new(regions)?;
        let uffd = Uffd::open_for_writes()?;
        let stop_event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|errno| WriteTrackerError::Wait(errno.into()))?;
        for region in regions.iter() {
            // SAFETY: the caller's promise.
            unsafe { uffd.protect(region) }?;
        }
        let tracer = Tracer::new(max_records, regions.page_count());
        let shared = Arc::new(Shared {
            uffd,
            regions,
            phase,
            tracer: Mutex::new(tracer),
            is_stopping: AtomicBool::new(false),
            stop_event,
        });
        let serving = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("write-tracker".to_owned())
            .spawn(move || {
                let _let_go = LetGo(&serving);
                serving.serve()
            })
            .map_err(WriteTrackerError::Spawn)?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Ends it. The times of the records count from `zero_monotonic_ns`, in nanoseconds on
    /// CLOCK_MONOTONIC: that of the guest's first instruction. Who wrote has to be at rest, for what
    /// is written meanwhile may or may not be in it.
    ///
    /// # Errors
    /// When it had failed, so that records are missing.
    pub fn stop(mut self, zero_monotonic_ns: u64) -> Result<FaultTrace, WriteTrackerError> {
        self.stop_thread()?;
        let tracer = self.shared.tracer.lock();
        let tracer = tracer.unwrap_or_else(PoisonError::into_inner);
        Ok(tracer.trace(zero_monotonic_ns.cast_signed()))
    }

    fn stop_thread(&mut self) -> Result<(), WriteTrackerError> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        self.shared.is_stopping.store(true, Ordering::Release);
        // It can fail only when the counter is full, and then the event is set already.
        let _ = rustix::io::write(&self.shared.stop_event, &1u64.to_ne_bytes());
        thread.join().map_err(|_| WriteTrackerError::Panicked)?
    }
}

impl Drop for WriteTracker {
    fn drop(&mut self) {
        if let Err(error) = self.stop_thread() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "writes were not tracked to the end"
            );
        }
    }
}

/// Lets all writers go on when the thread ends, however it does.
struct LetGo<'a>(&'a Shared);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        for region in self.0.regions.iter() {
            if let Err(error) = self.0.uffd.unregister(region) {
                // Who waits there goes on when the descriptor is closed.
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    gpa = region.gpa,
                    "cannot lift the protection of guest memory"
                );
            }
        }
    }
}

impl Shared {
    fn serve(&self) -> Result<(), WriteTrackerError> {
        let mut events = UffdEvents::new();
        let mut writes = Vec::new();
        loop {
            // What has come before the end is kept.
            let is_last = self.is_stopping.load(Ordering::Acquire);
            while self.uffd.has_message()? {
                self.uffd.read(&mut events, |event| writes.push(event))?;
                let read_at = Instant::now();
                let read_ns = monotonic_ns();
                for (queue_depth, event) in (1..).zip(writes.drain(..)) {
                    let UffdEvent::Fault {
                        hva,
                        access: Access::WriteProtect,
                        thread_id,
                    } = event
                    else {
                        return Err(UffdError::Read {
                            reason: "a message that was not asked for".to_owned(),
                        }
                        .into());
                    };
                    self.allow(hva, thread_id, queue_depth, read_ns, read_at)?;
                }
            }
            if is_last {
                return Ok(());
            }
            self.wait()?;
        }
    }

    /// Keeps a write and lets its thread go on.
    fn allow(
        &self,
        hva: u64,
        thread_id: u32,
        queue_depth: u32,
        read_ns: i64,
        read_at: Instant,
    ) -> Result<(), WriteTrackerError> {
        let page_at = self
            .regions
            .locate_hva(hva)
            .ok_or(WriteTrackerError::OutsideRegions { hva })?;
        self.uffd.allow_writes(page_at.hva)?;
        let record = TraceRecord {
            ns_since_resume: read_ns,
            gpa: page_at.gpa,
            hva: page_at.hva,
            service_ns: read_at.elapsed().as_nanos() as u64,
            thread_id,
            queue_depth,
            access: Access::WriteProtect,
            phase: self.phase.get(),
            outcome: Outcome::Hit,
            ..TraceRecord::default()
        };
        self.tracer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .touch(page_at.index, record);
        Ok(())
    }

    /// Sleeps until a message waits or the end is asked for.
    fn wait(&self) -> Result<(), WriteTrackerError> {
        let mut fds = [
            PollFd::new(&self.uffd, PollFlags::IN),
            PollFd::new(&self.stop_event, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(WriteTrackerError::Wait(errno.into())),
        }
        let broken = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        if fds.iter().any(|fd| fd.revents().intersects(broken)) {
            let reason = "poll reports an error on the userfaultfd or the stop event";
            return Err(WriteTrackerError::Wait(io::Error::other(reason)));
        }
        Ok(())
    }
}

fn monotonic_ns() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.saturating_mul(1_000_000_000) + now.tv_nsec
}
