//! The pager: the owner of the userfaultfd and of the thread that serves it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::page_states::{PageAccount, PageStates};
use crate::paged_memory::PagedMemory;
use crate::phase::PhaseCell;
use crate::prefetch::{self, InstallError, InstallMethod, InstallReport};
use crate::recorder::{Recorder, Recording};
use crate::region::{MemoryRegion, RegionError, RegionMap};
use crate::serve::{ServeError, Server};
use crate::source::PageSource;
use crate::stats::{Counters, PagerStats, add};
use crate::tracer::{FaultTrace, Tracer};
use crate::uffd::{Uffd, UffdError};
use crate::working_set_reader::WorkingSetReader;

/// How long a pager looks for the next fault before it sleeps, unless it is told otherwise.
///
/// The vCPU and the pager mostly run on two processors, and waking a sleeping one costs more than
/// serving a page from the page cache does. A guest that has just faulted will most often fault
/// again soon: most of its next faults come within this time, so that longer gains little more. It
/// is bounded, because a pager that spins keeps a processor from other threads.
pub const DEFAULT_SPIN: Duration = Duration::from_micros(50);

/// No value that a clock can have: "not yet".
const NOT_RESUMED: i64 = i64::MIN;

/// Why a pager cannot be made or started, or has failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PagerError {
    /// The regions of guest memory break a rule.
    #[error(transparent)]
    Regions(#[from] RegionError),
    /// The userfaultfd cannot be opened, or not for this memory.
    #[error(transparent)]
    Uffd(#[from] UffdError),
    /// The event that stops the pager cannot be made.
    #[error("cannot make the event that stops the pager")]
    StopEvent(#[source] Arc<io::Error>),
    /// The thread cannot be started.
    #[error("cannot start the pager's thread")]
    Spawn(#[source] Arc<io::Error>),
    /// It was started before.
    #[error("the pager was started already")]
    AlreadyStarted,
    /// It cannot serve the guest any more, which therefore cannot go on.
    #[error("the pager failed, so the guest cannot go on")]
    Serve(#[source] Arc<ServeError>),
}

/// What a [`Pager`] needs.
pub struct PagerConfig {
    /// All of guest memory.
    pub regions: Vec<MemoryRegion>,
    /// Where the pages come from.
    pub source: Box<dyn PageSource>,
    /// Whether to keep the first touch of each page.
    pub record: bool,
    /// How many faults to keep for a trace at most; `None`: there is to be none.
    pub trace_records: Option<u64>,
    /// What the machine is doing, for the records.
    pub phase: Arc<PhaseCell>,
    /// How long to look for the next fault before sleeping: [`DEFAULT_SPIN`], or zero to sleep at
    /// once.
    pub spin: Duration,
    /// Called once, on the pager's thread, when faults can no longer be served. If the guest has
    /// been marked as resumed, a thread that touches a missing page then waits until the [`Pager`]
    /// is gone, so this must see to it that the machine ends with the error: mark it failed and
    /// kick its vCPUs. It must neither touch guest memory nor wait for a thread that may.
    pub on_failure: Box<dyn FnOnce(PagerError) + Send>,
}

/// What the pager's thread and its owner share.
pub(crate) struct Shared {
    pub(crate) counters: Counters,
    /// What has become of each page.
    pub(crate) pages: PageAccount,
    /// Held while a page is put in place and the fault is accounted for, while messages are
    /// read, and by whoever reads the account: a fault or a removal whose thread goes on is always
    /// in it.
    accounting: Mutex<()>,
    /// `None`: does not record.
    pub(crate) recorder: Option<Mutex<Recorder>>,
    /// `None`: does not trace.
    pub(crate) tracer: Option<Mutex<Tracer>>,
    pub(crate) phase: Arc<PhaseCell>,
    pub(crate) is_stopping: AtomicBool,
    /// Wakes the thread to look at `is_stopping`.
    pub(crate) stop_event: OwnedFd,
    /// Zero of the times in the recorder.
    created_at: Instant,
    resumed_ns: AtomicI64,
    /// Written and read, together with `failure`, while the account is held.
    is_resumed: AtomicBool,
    failure: OnceLock<PagerError>,
}

impl Shared {
    /// Nanoseconds from the zero of the recorder's times to `instant`.
    pub(crate) fn ns_at(&self, instant: Instant) -> i64 {
        let since = instant.saturating_duration_since(self.created_at);
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }

    /// Keeps the account of the faults as it is until the guard is dropped.
    pub(crate) fn begin_accounting(&self) -> MutexGuard<'_, ()> {
        self.accounting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `error` as the reason why nothing is served any more. Returns whether the guest may
    /// run, or have run.
    fn fail(&self, error: PagerError) -> bool {
        let _accounting = self.begin_accounting();
        // Only the pager's thread sets it, once.
        let _ = self.failure.set(error);
        self.is_resumed.load(Ordering::Relaxed)
    }

    fn recording(&self) -> Recording {
        let _accounting = self.begin_accounting();
        let Some(recorder) = &self.recorder else {
            return Recording::default();
        };
        recorder
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recording(self.resumed_ns())
    }

    fn fault_trace(&self) -> Option<FaultTrace> {
        let _accounting = self.begin_accounting();
        let tracer = self.tracer.as_ref()?;
        let tracer = tracer.lock().unwrap_or_else(PoisonError::into_inner);
        Some(tracer.trace(self.resumed_ns()))
    }

    /// Where the times of records begin, after the zero of their keepers.
    fn resumed_ns(&self) -> i64 {
        match self.resumed_ns.load(Ordering::Relaxed) {
            NOT_RESUMED => 0,
            resumed_ns => resumed_ns,
        }
    }
}

/// Serves the missing pages of guest memory, on a thread named `pager`.
///
/// The pages come from a [`PageSource`] and are put in place by the kernel. The pager never
/// touches guest memory through its host address: such a touch of a missing page would be a fault
/// that waits for the pager itself.
///
/// While a pager exists, untouched memory is missing; once it is gone, untouched memory is zero,
/// which is not what the snapshot says. So it must outlive everything that touches the memory.
pub struct Pager {
    shared: Arc<Shared>,
    regions: RegionMap,
    /// Until the thread takes it.
    server: Option<Server>,
    thread: Option<JoinHandle<()>>,
    on_failure: Option<Box<dyn FnOnce(PagerError) + Send>>,
    /// Kept open after the thread has failed: closing it would let the guest go on with pages of
    /// zeroes. Last, so that it is closed when the thread is gone.
    uffd: Arc<Uffd>,
}

impl Pager {
    /// Opens a userfaultfd and registers guest memory with it. From here on a thread that touches
    /// a missing page waits, until [`start`](Self::start).
    ///
    /// # Safety
    /// The host addresses of the regions are private anonymous mappings of the caller's own, with
    /// nothing in them that the snapshot does not say: their missing pages are filled with what
    /// the source gives. They stay mapped as long as the pager exists.
    ///
    /// # Errors
    /// When the regions break a rule, or there is no userfaultfd for them.
    pub unsafe fn new(config: PagerConfig) -> Result<Self, PagerError> {
        let regions = RegionMap::new(config.regions)?;
        let uffd = Arc::new(Uffd::open()?);
        for region in regions.iter() {
            // SAFETY: the caller's promise, which is the same.
            unsafe { uffd.register(region) }?;
        }
        let stop_event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|errno| PagerError::StopEvent(Arc::new(errno.into())))?;
        let shared = Arc::new(Shared {
            counters: Counters::default(),
            pages: PageAccount::new(regions.page_count()),
            accounting: Mutex::new(()),
            recorder: config
                .record
                .then(|| Mutex::new(Recorder::new(regions.page_count()))),
            tracer: config
                .trace_records
                .map(|max_records| Mutex::new(Tracer::new(max_records, regions.page_count()))),
            phase: config.phase,
            is_stopping: AtomicBool::new(false),
            stop_event,
            created_at: Instant::now(),
            resumed_ns: AtomicI64::new(NOT_RESUMED),
            is_resumed: AtomicBool::new(false),
            failure: OnceLock::new(),
        });
        let server = Server::new(
            PagedMemory::new(Arc::clone(&uffd), regions.clone(), Arc::clone(&shared)),
            config.source,
            Arc::clone(&shared),
            config.spin,
        );
        Ok(Self {
            shared,
            regions,
            server: Some(server),
            thread: None,
            on_failure: Some(config.on_failure),
            uffd,
        })
    }

    /// Installs a working set: reads it, verifies its pages and copies them, a run at a time. To
    /// be called before [`start`](Self::start) and before anything touches guest memory.
    ///
    /// # Errors
    /// When the working set is refused, goes beyond guest memory, a page of it is damaged, or the
    /// pager was started already. No page that is damaged is installed.
    pub fn install(
        &mut self,
        working_set: &WorkingSetReader,
        method: InstallMethod,
    ) -> Result<InstallReport, InstallError> {
        let server = self.server.as_mut().ok_or(InstallError::AlreadyStarted)?;
        let report = prefetch::install(&mut server.memory, working_set, method)?;
        add(&self.shared.counters.prefetched_pages, report.pages);
        Ok(report)
    }

    /// Starts the thread that serves faults.
    ///
    /// If it fails before the guest is marked as resumed, untouched memory is zero from then on, as
    /// if there were no pager, and no thread waits for a page: the caller may be inside a system
    /// call that touches guest memory and could not be told otherwise. The guest must not run then:
    /// [`mark_resumed`](Self::mark_resumed) refuses.
    ///
    /// # Errors
    /// When it was started before, or the system has no thread for it.
    pub fn start(&mut self) -> Result<(), PagerError> {
        let (Some(server), Some(on_failure)) = (self.server.take(), self.on_failure.take()) else {
            return Err(PagerError::AlreadyStarted);
        };
        // Unless the guest has been marked as resumed, which it hardly can before this.
        let _ = self.shared.resumed_ns.compare_exchange(
            NOT_RESUMED,
            self.shared.ns_at(Instant::now()),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        let shared = Arc::clone(&self.shared);
        let uffd = Arc::clone(&self.uffd);
        let regions = self.regions.clone();
        let thread = thread::Builder::new()
            .name("pager".to_owned())
            .spawn(move || {
                if let Err(error) = server.run() {
                    let error = PagerError::Serve(Arc::new(error));
                    tracing::error!(error = &error as &dyn std::error::Error, "pager failed");
                    let may_run = shared.fail(error.clone());
                    on_failure(error);
                    if !may_run {
                        let_go(&uffd, &regions);
                    }
                }
            })
            .map_err(|error| PagerError::Spawn(Arc::new(error)))?;
        self.thread = Some(thread);
        Ok(())
    }

    /// Marks this moment as the zero of [`TraceRecord::ns_since_resume`]: the guest's first
    /// instruction. Without it the zero is the start of the pager.
    ///
    /// [`TraceRecord::ns_since_resume`]: crate::TraceRecord::ns_since_resume
    ///
    /// # Errors
    /// Why the pager has failed. The guest must not run: its memory is not what the snapshot says.
    pub fn mark_resumed(&self) -> Result<(), PagerError> {
        let _accounting = self.shared.begin_accounting();
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        self.shared.is_resumed.store(true, Ordering::Relaxed);
        self.shared
            .resumed_ns
            .store(self.shared.ns_at(Instant::now()), Ordering::Relaxed);
        Ok(())
    }

    /// How long ago the guest was [marked as resumed](Self::mark_resumed), if it was.
    #[must_use]
    pub fn time_since_resumed(&self) -> Option<Duration> {
        let _accounting = self.shared.begin_accounting();
        if !self.shared.is_resumed.load(Ordering::Relaxed) {
            return None;
        }
        let resumed_ns = self.shared.resumed_ns().unsigned_abs();
        let since_creation = self.shared.created_at.elapsed();
        Some(since_creation.saturating_sub(Duration::from_nanos(resumed_ns)))
    }

    /// What the pager has done up to now: every fault whose thread goes on is in it.
    #[must_use]
    pub fn stats(&self) -> PagerStats {
        let _accounting = self.shared.begin_accounting();
        self.shared.counters.read()
    }

    /// What has become of each page up to now. While threads touch guest memory this is soon out
    /// of date: stop them first, those too that drop pages.
    ///
    /// A page that is [missing](crate::PageState::Missing) then can be had from its source without
    /// making it resident by a touch.
    #[must_use]
    pub fn page_states(&self) -> PageStates {
        let _accounting = self.shared.begin_accounting();
        self.shared.pages.states(&self.regions)
    }

    /// Why the pager cannot serve any more, if so.
    #[must_use]
    pub fn failure(&self) -> Option<PagerError> {
        self.shared.failure.get().cloned()
    }

    /// What has been recorded up to now, every touch that has returned included; recording goes
    /// on. Empty if the pager does not record.
    #[must_use]
    pub fn take_recording(&self) -> Recording {
        self.shared.recording()
    }

    /// Every fault up to now that found room, whatever the mode; tracing goes on. `None` if the
    /// pager does not trace.
    #[must_use]
    pub fn fault_trace(&self) -> Option<FaultTrace> {
        self.shared.fault_trace()
    }

    /// Stops serving and returns what was recorded. Guest memory that was never touched reads as
    /// zero afterwards, and threads that wait for a page go on with zeroes: to be called when
    /// nothing will look at guest memory any more.
    ///
    /// # Errors
    /// When the pager had failed.
    pub fn stop(mut self) -> Result<Recording, PagerError> {
        self.stop_thread();
        match self.failure() {
            Some(failure) => Err(failure),
            None => Ok(self.shared.recording()),
        }
    }

    fn stop_thread(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.shared.is_stopping.store(true, Ordering::Release);
        // It can fail only when the counter is full, and then the event is set already.
        let _ = rustix::io::write(&self.shared.stop_event, &1u64.to_ne_bytes());
        if thread.thread().id() != thread::current().id() {
            // `Err` is a panic of `on_failure`: there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        self.stop_thread();
    }
}

/// Lets the threads go on that wait for a page, with zeroes.
fn let_go(uffd: &Uffd, regions: &RegionMap) {
    for region in regions.iter() {
        if let Err(error) = uffd.unregister(region) {
            // Who waits there goes on when the pager is gone.
            tracing::error!(
                error = &error as &dyn std::error::Error,
                gpa = region.gpa,
                "cannot let go of guest memory"
            );
        }
    }
}
