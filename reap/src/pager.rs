//! The pager: the owner of the userfaultfd and of the thread that serves it.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use crate::error_chain::error_chain;
use crate::hooks::PagerHooks;
use crate::install::{
    self, Install, InstallError, InstallReport, Placer, Progress, STACK_BYTES, THREAD_NAME,
};
use crate::page_states::{PageAccount, PageStates};
use crate::paged_memory::PagedMemory;
use crate::phase::PhaseCell;
use crate::recorder::{Recorder, Recording};
use crate::region::{MemoryRegion, RegionError, RegionMap};
use crate::serve::{ServeError, Server};
use crate::source::PageSource;
use crate::stats::{Counters, PagerStats, add};
use crate::tracer::{FaultTrace, Tracer};
use crate::uffd::{Uffd, UffdError};

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
#[non_exhaustive]
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
    /// The rest of the working set could not be installed while the guest ran already.
    #[error("the working set could not be installed, so the guest cannot go on")]
    Install(#[source] Arc<InstallError>),
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
    /// Who else decides what a fault installs, and who hears of it; by default nobody.
    pub hooks: PagerHooks,
    /// Called once, on a thread of the pager's, when faults can no longer be served, or when a
    /// working set cannot be installed that the guest did not wait for. If the guest has
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
    /// Shared by those who put pages in place, from their look at what was dropped until the
    /// account says what they did; held alone while messages are read, and by whoever reads the
    /// account. So a fault or a removal whose thread goes on is always in it, and no removal
    /// comes between such a look and the page.
    accounting: RwLock<()>,
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
    on_failure: Mutex<Option<OnFailure>>,
    /// A working set is being installed beside the pager.
    is_installing: AtomicBool,
}

type OnFailure = Box<dyn FnOnce(PagerError) + Send>;

impl Shared {
    /// Nanoseconds from the zero of the recorder's times to `instant`.
    pub(crate) fn ns_at(&self, instant: Instant) -> i64 {
        let since = instant.saturating_duration_since(self.created_at);
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }

    /// Keeps the account of the faults as it is until the guard is dropped.
    pub(crate) fn begin_accounting(&self) -> RwLockWriteGuard<'_, ()> {
        self.accounting
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// To be held from the look at what was dropped until the account says that the pages are in
    /// place. Others may put other pages in place meanwhile.
    pub(crate) fn begin_placing(&self) -> RwLockReadGuard<'_, ()> {
        self.accounting
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody serves any more, or soon nobody will.
    pub(crate) fn has_ended(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire) || self.failure.get().is_some()
    }

    /// Whether a working set is being installed beside the pager.
    pub(crate) fn is_installing(&self) -> bool {
        self.is_installing.load(Ordering::Acquire)
    }

    /// Keeps `error` as the reason why the guest cannot go on, if it is the first, and tells the
    /// machine. Returns whether the guest may run, or have run.
    fn fail(&self, error: PagerError) -> bool {
        let is_resumed = {
            let _accounting = self.begin_accounting();
            // A later one is a consequence of the first.
            let _ = self.failure.set(error.clone());
            self.is_resumed.load(Ordering::Relaxed)
        };
        let on_failure = self
            .on_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(on_failure) = on_failure {
            on_failure(error);
        }
        is_resumed
    }

    /// The installation of `install` has ended so.
    fn end_install(
        &self,
        install: &Install,
        result: Result<InstallReport, InstallError>,
        progress: &Progress,
    ) {
        self.is_installing.store(false, Ordering::Release);
        let result = match result {
            Ok(report) => Ok(report),
            Err(error) if install.options.may_fall_back && !self.has_ended() => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "serving on demand"
                );
                Ok(InstallReport {
                    method: install.options.method,
                    pages: self.counters.read().prefetched_pages,
                    fell_back: Some(error_chain(&error)),
                    ..InstallReport::default()
                })
            }
            Err(error) => Err(Arc::new(error)),
        };
        let failure = match &result {
            Err(error) if !self.has_ended() && install.may_overlap() => Some(Arc::clone(error)),
            _ => None,
        };
        // First, whatever happens in the hook of the machine.
        progress.finish(result);
        if let Some(error) = failure {
            self.fail(PagerError::Install(error));
        }
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
    pub(crate) fn resumed_ns(&self) -> i64 {
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
    installation: Option<Installation>,
    is_registered: bool,
    /// Kept open after the thread has failed: closing it would let the guest go on with pages of
    /// zeroes. Last, so that it is closed when the thread is gone.
    uffd: Arc<Uffd>,
}

/// The installation of a working set beside the pager.
struct Installation {
    progress: Arc<Progress>,
    /// Whether the guest may run before it is over.
    may_overlap: bool,
    thread: Option<JoinHandle<()>>,
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
        // SAFETY: the caller's promise, which is the same.
        let mut pager = unsafe { Self::new_unregistered(config) }?;
        pager.register()?;
        Ok(pager)
    }

    /// As [`new`](Self::new), but the memory is registered by [`start`](Self::start) only. Until
    /// then a thread that touches a missing page finds zeroes, so that nothing may touch the
    /// memory but [`install_unregistered`](Self::install_unregistered).
    ///
    /// # Safety
    /// As for [`new`](Self::new).
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub unsafe fn new_unregistered(config: PagerConfig) -> Result<Self, PagerError> {
        let regions = RegionMap::new(config.regions)?;
        let uffd = Arc::new(Uffd::open()?);
        let stop_event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|errno| PagerError::StopEvent(Arc::new(errno.into())))?;
        let shared = Arc::new(Shared {
            counters: Counters::default(),
            pages: PageAccount::new(regions.page_count()),
            accounting: RwLock::new(()),
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
            on_failure: Mutex::new(Some(config.on_failure)),
            is_installing: AtomicBool::new(false),
        });
        let server = Server::new(
            PagedMemory::new(Arc::clone(&uffd), regions.clone(), Arc::clone(&shared)),
            config.source,
            Arc::clone(&shared),
            config.spin,
            config.hooks,
        );
        Ok(Self {
            shared,
            regions,
            server: Some(server),
            thread: None,
            installation: None,
            is_registered: false,
            uffd,
        })
    }

    fn register(&mut self) -> Result<(), PagerError> {
        for region in self.regions.iter() {
            // SAFETY: the promise of who made this pager.
            unsafe { self.uffd.register(region) }?;
        }
        self.is_registered = true;
        Ok(())
    }

    fn placer(&self) -> Placer {
        Placer::new(
            Arc::clone(&self.uffd),
            self.regions.clone(),
            Arc::clone(&self.shared),
        )
    }

    /// Installs a working set by reads that land in guest memory itself
    /// ([`InstallMethod::Direct`](crate::InstallMethod::Direct)), whatever the options say.
    ///
    /// # Safety
    /// Nothing touches guest memory until this returns.
    ///
    /// # Errors
    /// When the memory is registered already, or the working set is refused, goes beyond guest
    /// memory or has a page that is damaged. All its pages are missing then.
    pub unsafe fn install_unregistered(
        &mut self,
        install: &Install,
    ) -> Result<InstallReport, InstallError> {
        if self.is_registered {
            return Err(InstallError::Registered);
        }
        // SAFETY: the caller's promise; the memory is not registered.
        let report = unsafe { install::install_unregistered(&self.placer(), install) }?;
        add(&self.shared.counters.prefetched_pages, report.pages);
        Ok(report)
    }

    /// Begins to install a working set on threads of its own, beside the thread that serves.
    /// Pages that are in place already, because somebody touched them, stay as they are.
    ///
    /// # Errors
    /// When the pager was not started, a working set was installed before, or the system has no
    /// thread for it. All other errors are those of
    /// [`wait_until_installed`](Self::wait_until_installed).
    pub fn begin_install(&mut self, install: Install) -> Result<(), InstallError> {
        if self.thread.is_none() {
            return Err(InstallError::NotStarted {
                method: install.options.method,
            });
        }
        if self.installation.is_some() {
            return Err(InstallError::Twice);
        }
        let placer = self.placer();
        let shared = Arc::clone(&self.shared);
        let progress = Arc::new(Progress::new());
        let told = Arc::clone(&progress);
        let may_overlap = install.may_overlap();
        self.shared.is_installing.store(true, Ordering::Release);
        let thread = thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let result = panic::catch_unwind(AssertUnwindSafe(|| {
                    install::install(&placer, &install, &told)
                }))
                .unwrap_or(Err(InstallError::Panicked));
                shared.end_install(&install, result, &told);
            })
            .map_err(InstallError::Spawn)?;
        self.installation = Some(Installation {
            progress,
            may_overlap,
            thread: Some(thread),
        });
        Ok(())
    }

    /// Waits until the guest may run: until the working set is in place, or as much of it as the
    /// method wants to be there first. Nothing to wait for if none is being installed.
    ///
    /// # Errors
    /// Why it cannot be installed. No page that is damaged is in place.
    pub fn wait_until_installed(&self) -> Result<(), Arc<InstallError>> {
        match &self.installation {
            Some(installation) => installation
                .progress
                .wait_until_ready(installation.may_overlap),
            None => Ok(()),
        }
    }

    /// Waits until the whole working set is in place and returns what was done; none if none was
    /// to be installed.
    ///
    /// # Errors
    /// As [`wait_until_installed`](Self::wait_until_installed).
    pub fn finish_install(&self) -> Result<Option<InstallReport>, Arc<InstallError>> {
        self.installation
            .as_ref()
            .map(|installation| installation.progress.wait_until_finished())
            .transpose()
    }

    /// Installs a working set and waits for its end.
    ///
    /// # Errors
    /// As [`begin_install`](Self::begin_install) and
    /// [`wait_until_installed`](Self::wait_until_installed).
    pub fn install(&mut self, install: Install) -> Result<InstallReport, Arc<InstallError>> {
        self.begin_install(install).map_err(Arc::new)?;
        Ok(self.finish_install()?.unwrap_or_default())
    }

    /// Starts the thread that serves faults.
    ///
    /// If it fails before the guest is marked as resumed, untouched memory is zero from then on, as
    /// if there were no pager, and no thread waits for a page: the caller may be inside a system
    /// call that touches guest memory and could not be told otherwise. The guest must not run then:
    /// [`mark_resumed`](Self::mark_resumed) refuses.
    ///
    /// # Errors
    /// When it was started before, the memory cannot be registered, or the system has no thread
    /// for it.
    pub fn start(&mut self) -> Result<(), PagerError> {
        if !self.is_registered {
            self.register()?;
        }
        let Some(server) = self.server.take() else {
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
                    let may_run = shared.fail(error);
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
        // First, because it needs the pager to get past a removal.
        let installation = self.installation.as_mut();
        if let Some(installing) = installation.and_then(|installation| installation.thread.take())
            && installing.thread().id() != thread::current().id()
        {
            // It catches its panics.
            let _ = installing.join();
        }
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
