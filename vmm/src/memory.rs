//! The memory manager: the one owner of guest memory and of its pager.

mod dirty_pages;
mod hooks;
mod save;
mod touches;
mod writes;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use reapvm_devices::GuestMemory;
use reapvm_reap::{
    DEFAULT_SPIN, FaultTrace, Install, InstallError, InstallOptions, InstallReport, MemoryRegion,
    MemoryRestoreMode, PageSourceError, PageState, Pager, PagerConfig, PagerError, PagerStats,
    PhaseCell, Recording, TouchProbeError, WorkingSet, WorkingSetError, WorkingSetReader,
    WriteTrackerError, error_chain,
};
use reapvm_snapshot::{
    CreateError, MemoryReadError, MemoryReader, PAGE_SIZE, ReadError, RegionInfo, Snapshot,
    SnapshotId,
};
use thiserror::Error;
use vm_memory::bitmap::{AtomicBitmap, NewBitmap};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestRegionMmap};

use crate::arch::layout::{RamRange, ram_ranges};
use crate::clock;
use dirty_pages::DirtyPages;
use hooks::PageOrigin;
use touches::Measurement;

pub use hooks::MemoryHooks;
pub use touches::Observation;
pub use writes::WriteTracking;

pub(crate) use writes::WrittenPages;

/// Guest memory is read and written in pieces of this size.
const CHUNK_BYTES: usize = 1 << 20;

/// Guest memory cannot be made, restored or saved.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The host does not give the address space or memory.
    #[error("cannot map {size_bytes} bytes of guest memory: {reason}")]
    Map {
        /// Size of the region.
        size_bytes: u64,
        /// What the system said.
        reason: String,
    },
    /// The snapshot's memory regions are not those of its machine.
    #[error(
        "the snapshot's memory regions do not fit its machine of {memory_bytes} bytes: \
         the manifest was made by another program or changed by hand"
    )]
    Regions {
        /// What the machine's configuration says.
        memory_bytes: u64,
    },
    /// The snapshot does not hold all of guest memory.
    #[error(
        "{dir} is a diff, which cannot be restored by itself: merge it with its base, snapshot \
         {base}: reapvm snapshot merge --base DIR --diff {dir} -o DIR"
    )]
    Diff {
        /// Its directory.
        dir: PathBuf,
        /// The id of its base.
        base: SnapshotId,
    },
    /// KVM refused a memslot.
    #[error("KVM refused the memory region at {gpa:#x}")]
    Memslot {
        /// Its guest-physical address.
        gpa: u64,
        /// The errno of KVM_SET_USER_MEMORY_REGION.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM does not say which pages were written.
    #[error("KVM does not say which pages of the memory region at {gpa:#x} were written")]
    DirtyLog {
        /// Its guest-physical address.
        gpa: u64,
        /// The errno of KVM_GET_DIRTY_LOG.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A file of the snapshot cannot be read.
    #[error(transparent)]
    Snapshot(#[from] ReadError),
    /// The memory of the snapshot cannot be read, or a page of it is not what was saved.
    #[error(transparent)]
    Page(#[from] MemoryReadError),
    /// The page source cannot be opened.
    #[error(transparent)]
    Source(#[from] PageSourceError),
    /// The pager cannot be started or has failed.
    #[error(transparent)]
    Pager(#[from] PagerError),
    /// The working set cannot be used.
    #[error(transparent)]
    WorkingSet(#[from] WorkingSetError),
    /// It cannot be said which pages the guest touched.
    #[error(transparent)]
    TouchProbe(#[from] TouchProbeError),
    /// The thread that installs the working set cannot be started or has died.
    #[error("the thread that installs the working set failed")]
    Thread(#[source] io::Error),
    /// The working set cannot be installed.
    #[error(transparent)]
    Install(#[from] Arc<InstallError>),
    /// The mode has no pager that hooks could be hung into.
    #[error(
        "a page source, fault policy or fault listener needs a pager, which memory mode {mode} has \
         not: use ondemand, record or prefetch"
    )]
    HooksNeedPager {
        /// The mode that was asked for.
        mode: MemoryRestoreMode,
    },
    /// Faults are served, so that not all of memory is in place.
    #[error(
        "writes cannot be tracked where a pager serves faults: KVM asks for a missing page to write \
         to it, also if the guest only reads; use memory mode copy"
    )]
    WritesWithPager,
    /// Writes cannot be tracked, or not all of them were.
    #[error("cannot track writes to guest memory")]
    Writes(#[from] WriteTrackerError),
    /// A policy would keep touches from a recording.
    #[error(
        "a recording with a fault policy would lack the pages that the policy brings: record \
         without one"
    )]
    PolicyRecords,
    /// Guest memory cannot be accessed.
    #[error("cannot access guest memory")]
    Access(#[from] vm_memory::GuestMemoryError),
    /// The snapshot cannot be written.
    #[error(transparent)]
    Write(#[from] CreateError),
}

/// Called on the pager's thread when it cannot go on; must see to it that the VM ends.
pub type OnPagerFailure = Box<dyn FnOnce(PagerError) + Send>;

/// What guest memory that is to be restored lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Nothing: pages are put there, all at once or one by one.
    Anonymous,
    /// The snapshot's memory file, mapped privately.
    File,
}

impl From<MemoryRestoreMode> for Backing {
    fn from(mode: MemoryRestoreMode) -> Self {
        match mode {
            MemoryRestoreMode::File => Self::File,
            MemoryRestoreMode::Copy
            | MemoryRestoreMode::OnDemand
            | MemoryRestoreMode::Record
            | MemoryRestoreMode::Prefetch => Self::Anonymous,
        }
    }
}

/// Owner of guest memory and, for a machine that is restored by faults, of the pager.
pub struct MemoryManager {
    // Before `memory`: the pager must be gone before the memory that it serves is unmapped.
    pager: Option<Pager>,
    memory: GuestMemory,
    regions: Vec<MemoryRegion>,
    phase: Arc<PhaseCell>,
    /// Where the pager's pages come from.
    source: Option<PageOrigin>,
    /// What is to be hung into the pager.
    hooks: MemoryHooks,
    /// What was written since the last save, if that is tracked.
    dirty: Option<Mutex<DirtyPages>>,
    /// While the disk fills guest memory: nothing may touch it.
    direct_install: Option<DirectInstall>,
    /// What was done before the pager started, or why nothing could be done.
    install: Option<InstallReport>,
    /// Faults that a pager is to keep for a trace at most, if there is to be one.
    trace_records: Option<u64>,
    /// The working set that was installed, in prefetch mode.
    prefetched: Option<Arc<WorkingSetReader>>,
    /// What is to be known of how well it fits.
    observation: Observation,
    /// If it is to be measured which pages the guest touches.
    measurement: Option<Measurement>,
}

impl MemoryManager {
    /// Fresh memory, all zero.
    ///
    /// # Errors
    /// [`MemoryError::Map`].
    pub fn new(memory_bytes: u64, track_dirty_pages: bool) -> Result<Self, MemoryError> {
        let dirty = track_dirty_pages.then(|| no_dirty_pages(memory_bytes, None));
        Self::map(&regions_of(memory_bytes), None, dirty)
    }

    /// Address space for the memory of `snapshot`, to be restored by `mode` or another mode of the
    /// same [`Backing`]. Nothing is read yet; [`MemoryManager::restore`] must follow before
    /// anything looks at the memory.
    ///
    /// # Errors
    /// See [`MemoryError`]: the snapshot is a diff or its regions are not those of the machine.
    pub(crate) fn reserve(
        snapshot: &Arc<Snapshot>,
        memory_bytes: u64,
        track_dirty_pages: bool,
        backing: Backing,
    ) -> Result<Self, MemoryError> {
        let info = &snapshot.manifest().memory;
        if let Some(base) = info.base {
            return Err(MemoryError::Diff {
                dir: snapshot.dir().to_owned(),
                base,
            });
        }
        let regions = regions_of(memory_bytes);
        if info.regions != regions {
            return Err(MemoryError::Regions { memory_bytes });
        }
        let dirty = track_dirty_pages.then(|| no_dirty_pages(memory_bytes, Some(snapshot.id())));
        let file = match backing {
            Backing::Anonymous => None,
            Backing::File => Some(Arc::new(snapshot.open_memory()?)),
        };
        Self::map(&regions, file, dirty)
    }

    /// Opens what a pager will read and reads its index, which otherwise the first fault waits for.
    /// Before [`MemoryManager::restore`] with the same snapshot.
    ///
    /// # Errors
    /// The snapshot's memory or its index cannot be read, or is damaged.
    pub(crate) fn open_source(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), MemoryError> {
        let source = MemoryReader::open(Arc::clone(snapshot))?;
        source.index()?;
        self.source = Some(PageOrigin::Snapshot(Arc::new(source)));
        Ok(())
    }

    /// Has the pager, if there will be one, keep so many faults for a trace at most. Before
    /// [`MemoryManager::restore`].
    pub(crate) fn trace_faults(&mut self, max_records: u64) {
        self.trace_records = Some(max_records);
    }

    /// Brings back the memory of `snapshot` into what [`MemoryManager::reserve`] has mapped for it,
    /// in the way that `mode` says. With a mode that serves faults they are served from here on,
    /// and in prefetch mode threads install the working set as `options` say while the caller sets
    /// up KVM. [`MemoryManager::allow_touches`] must follow before anything touches the memory, and
    /// [`MemoryManager::wait_until_served`] before the guest runs.
    ///
    /// # Errors
    /// See [`MemoryError`]. A mode that cannot run is an error; no other takes its place.
    pub(crate) fn restore(
        &mut self,
        snapshot: &Arc<Snapshot>,
        mode: MemoryRestoreMode,
        options: InstallOptions,
        on_failure: OnPagerFailure,
    ) -> Result<(), MemoryError> {
        let hooks = std::mem::take(&mut self.hooks);
        hooks.check(mode)?;
        match mode {
            MemoryRestoreMode::Copy => {
                self.copy_from(&MemoryReader::open(Arc::clone(snapshot))?)?;
                self.forget_own_writes();
                Ok(())
            }
            // The kernel serves it.
            MemoryRestoreMode::File => Ok(()),
            MemoryRestoreMode::OnDemand
            | MemoryRestoreMode::Record
            | MemoryRestoreMode::Prefetch => {
                let options = InstallOptions {
                    // By whose marks it is measured.
                    own_zero_pages: options.own_zero_pages || self.is_measuring_touches(),
                    ..options
                };
                // Opened first: a working set that is missing or foreign fails before any work.
                let working_set = (mode == MemoryRestoreMode::Prefetch)
                    .then(|| open_working_set(snapshot, self.size_bytes(), options));
                let (other_source, hooks) = hooks.split(snapshot);
                let source = match (other_source, self.source.take()) {
                    (Some(other), _) => PageOrigin::Other(other),
                    (None, Some(opened)) => opened,
                    (None, None) => {
                        let memory = MemoryReader::open(Arc::clone(snapshot))?;
                        PageOrigin::Snapshot(Arc::new(memory))
                    }
                };
                let config = PagerConfig {
                    regions: self.regions.clone(),
                    source: source.source(),
                    record: mode.records() || self.observation.misses,
                    trace_records: self.trace_records,
                    phase: Arc::clone(&self.phase),
                    spin: DEFAULT_SPIN,
                    hooks,
                    on_failure,
                };
                // SAFETY: the regions are private anonymous mappings that `self.memory` owns;
                // the field order of `MemoryManager` drops the pager before them. The thread of a
                // direct install has the pager and a clone of `memory`, dropped in that order.
                // Devices and vCPUs, which hold clones too, only keep them mapped longer.
                let mut pager = unsafe { Pager::new_unregistered(config) }?;
                let install = match working_set.transpose()? {
                    Some(Opened::Install(mut install)) => {
                        install.memory = source.memory().cloned();
                        Some(install)
                    }
                    Some(Opened::FallenBack(report)) => {
                        self.install = Some(report);
                        None
                    }
                    None => None,
                };
                self.source = Some(source);
                self.prefetched = install
                    .as_ref()
                    .map(|install| Arc::clone(&install.working_set));
                match install {
                    Some(install) if install.options.method.needs_unregistered_memory() => {
                        let memory = self.memory.clone();
                        let direct = DirectInstall::start(pager, memory, install)?;
                        self.direct_install = Some(direct);
                    }
                    install => {
                        // Before the caller sets up KVM, which touches guest memory itself: its
                        // clock, its steal time, its end of interrupt.
                        pager.start()?;
                        if let Some(install) = install {
                            pager.begin_install(install).map_err(Arc::new)?;
                        }
                        self.pager = Some(pager);
                    }
                }
                Ok(())
            }
        }
    }

    /// Waits until KVM and devices may touch guest memory.
    ///
    /// # Errors
    /// What was read straight into guest memory cannot be read, or is not what was recorded; or
    /// the pager cannot be started.
    pub(crate) fn allow_touches(&mut self) -> Result<(), MemoryError> {
        if let Some(direct) = self.direct_install.take() {
            let (pager, report) = direct.finish()?;
            self.pager = Some(pager);
            self.install = Some(report);
        }
        Ok(())
    }

    /// Waits until the working set is installed, or as much of it as the guest needs to begin, in
    /// prefetch mode, and makes sure that faults are served, in the modes that do. Nothing to do in
    /// the others.
    ///
    /// # Errors
    /// The working set cannot be read, is not what was recorded, or cannot be installed; or the
    /// pager has failed already.
    pub(crate) fn wait_until_served(&mut self) -> Result<(), MemoryError> {
        self.allow_touches()?;
        let Some(pager) = &self.pager else {
            return Ok(());
        };
        if self.observation.touches {
            // What is to be observed begins when all of it is there.
            pager.finish_install()?;
        } else {
            pager.wait_until_installed()?;
        }
        match pager.failure() {
            Some(failure) => Err(failure.into()),
            None => Ok(()),
        }
    }

    fn map(
        regions: &[RegionInfo],
        file: Option<Arc<std::fs::File>>,
        dirty: Option<Mutex<DirtyPages>>,
    ) -> Result<Self, MemoryError> {
        let mut mapped = Vec::with_capacity(regions.len());
        let mut described = Vec::with_capacity(regions.len());
        for region in regions {
            let error = |reason: String| MemoryError::Map {
                size_bytes: region.size_bytes,
                reason,
            };
            let size =
                usize::try_from(region.size_bytes).map_err(|error_| error(error_.to_string()))?;
            let (backing, flags) = match &file {
                None => (None, libc::MAP_ANONYMOUS),
                Some(file) => (
                    Some(FileOffset::from_arc(Arc::clone(file), region.file_offset)),
                    0,
                ),
            };
            let bitmap = dirty.is_some().then(|| AtomicBitmap::with_len(size));
            let mut mapping = MmapRegionBuilder::new_with_bitmap(size, bitmap)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE | flags);
            if let Some(backing) = backing {
                mapping = mapping.with_file_offset(backing);
            }
            let mapping = mapping.build().map_err(|e| error(e.to_string()))?;
            described.push(MemoryRegion {
                gpa: region.gpa,
                hva: mapping.as_ptr() as u64,
                size_bytes: region.size_bytes,
                file_offset: region.file_offset,
            });
            let guest_region = GuestRegionMmap::new(mapping, GuestAddress(region.gpa))
                .ok_or_else(|| error("its end is beyond the address space".into()))?;
            mapped.push(guest_region);
        }
        let memory = GuestMemory::from_regions(mapped).map_err(|e| MemoryError::Map {
            size_bytes: regions.iter().map(|region| region.size_bytes).sum(),
            reason: e.to_string(),
        })?;
        Ok(Self {
            pager: None,
            memory,
            regions: described,
            phase: Arc::new(PhaseCell::default()),
            source: None,
            hooks: MemoryHooks::default(),
            dirty,
            direct_install: None,
            install: None,
            trace_records: None,
            prefetched: None,
            observation: Observation::default(),
            measurement: None,
        })
    }

    /// Reads all data pages and checks each.
    fn copy_from(&self, source: &MemoryReader) -> Result<(), MemoryError> {
        let index = source.index()?;
        let mut buffer = vec![0_u8; CHUNK_BYTES];
        for region in &self.regions {
            let mut done = 0;
            while done < region.size_bytes {
                let offset = region.file_offset + done;
                let length = (region.size_bytes - done).min(CHUNK_BYTES as u64) as usize;
                let first_page = offset / PAGE_SIZE as u64;
                let pages = (length / PAGE_SIZE) as u64;
                // A chunk of zero pages only is what the fresh mapping already holds.
                if (first_page..first_page + pages).any(|page| !index.is_zero(page)) {
                    let chunk = &mut buffer[..length];
                    source.read_pages(first_page, chunk)?;
                    for (page, bytes) in (first_page..).zip(chunk.chunks_exact(PAGE_SIZE)) {
                        if !index.is_zero(page) {
                            let gpa = region.gpa + (page * PAGE_SIZE as u64 - region.file_offset);
                            self.memory.write_slice(bytes, GuestAddress(gpa))?;
                        }
                    }
                }
                done += length as u64;
            }
        }
        Ok(())
    }

    /// Guest memory, for devices and boot code. Cheap to clone.
    pub fn guest_memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Tells KVM of the memory.
    ///
    /// # Errors
    /// [`MemoryError::Memslot`].
    pub fn register(&self, vm: &VmFd) -> Result<(), MemoryError> {
        let flags = if self.dirty.is_some() || self.is_measuring_touches() {
            KVM_MEM_LOG_DIRTY_PAGES
        } else {
            0
        };
        for (slot, region) in (0_u32..).zip(&self.regions) {
            let memslot = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: region.gpa,
                memory_size: region.size_bytes,
                userspace_addr: region.hva,
                flags,
            };
            // SAFETY: the region is mapped for `size_bytes` and stays so while the machine
            // lives; regions do not overlap (`ram_ranges`).
            unsafe { vm.set_user_memory_region(memslot) }.map_err(|source| {
                MemoryError::Memslot {
                    gpa: region.gpa,
                    source,
                }
            })?;
        }
        Ok(())
    }

    /// What the guest is doing, as the trace records it.
    pub fn phase(&self) -> &Arc<PhaseCell> {
        &self.phase
    }

    /// Sets the zero of the trace's clock: the first KVM_RUN.
    ///
    /// # Errors
    /// The pager has failed: the guest must not run.
    pub fn mark_resumed(&self) -> Result<(), MemoryError> {
        match &self.pager {
            Some(pager) => Ok(pager.mark_resumed()?),
            None => Ok(()),
        }
    }

    /// The pager's counts; all zero where there is none.
    pub fn pager_stats(&self) -> PagerStats {
        self.pager.as_ref().map(Pager::stats).unwrap_or_default()
    }

    /// Waits until the whole working set is installed and says what was done, in prefetch mode;
    /// none in the others.
    ///
    /// # Errors
    /// It could not be installed.
    pub fn finish_install(&self) -> Result<Option<InstallReport>, MemoryError> {
        match (&self.install, &self.pager) {
            (Some(report), _) => Ok(Some(report.clone())),
            (None, Some(pager)) => Ok(pager.finish_install()?),
            (None, None) => Ok(None),
        }
    }

    /// What has been recorded so far; none if the machine is not recording.
    pub fn recording(&self) -> Option<Recording> {
        self.pager.as_ref().map(Pager::take_recording)
    }

    /// Every fault so far that was kept for a trace; none if none are.
    pub fn fault_trace(&self) -> Option<FaultTrace> {
        self.pager.as_ref().and_then(Pager::fault_trace)
    }

    /// The zero of the trace's clock on the monotonic one, in nanoseconds; none before the guest
    /// has been resumed, or without a pager.
    pub fn resumed_monotonic_ns(&self) -> Option<u64> {
        let since = self.pager.as_ref()?.time_since_resumed()?;
        Some(clock::monotonic_ns().saturating_sub(since.as_nanos() as u64))
    }

    /// Where guest memory is.
    pub fn regions(&self) -> &[MemoryRegion] {
        &self.regions
    }

    /// Ends the pager. The vCPUs must have stopped for good: pages that were never touched read
    /// as zero from here on.
    pub(crate) fn close_pager(&mut self) {
        self.pager = None;
    }

    /// Host address ranges of guest memory, as (start, end).
    pub fn host_ranges(&self) -> Vec<(u64, u64)> {
        self.regions
            .iter()
            .map(|region| (region.hva, region.hva + region.size_bytes))
            .collect()
    }

    /// Regions as a manifest describes them.
    pub fn region_infos(&self) -> Vec<RegionInfo> {
        self.regions
            .iter()
            .map(|region| RegionInfo {
                gpa: region.gpa,
                size_bytes: region.size_bytes,
                file_offset: region.file_offset,
            })
            .collect()
    }

    /// The guest-physical address and length of each run of pages that the pager or an install has
    /// put in place by now; none without a pager.
    pub(crate) fn installed_ranges(&self) -> Vec<(u64, u64)> {
        let Some(states) = self.pager.as_ref().map(Pager::page_states) else {
            return Vec::new();
        };
        let mut ranges = Vec::new();
        for region in &self.regions {
            let mut done = 0;
            while let left @ 1.. = region.size_bytes - done {
                let gpa = region.gpa + done;
                let max_pages = left / PAGE_SIZE as u64;
                let Some((state, pages)) = states.run_at(gpa, max_pages) else {
                    break;
                };
                let run_bytes = pages * PAGE_SIZE as u64;
                if state == PageState::Installed {
                    ranges.push((gpa, run_bytes));
                }
                done += run_bytes;
            }
        }
        ranges
    }

    /// Total guest memory in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.size_bytes).sum()
    }
}

/// What became of the opening of a working set.
enum Opened {
    Install(Install),
    /// It cannot be used, and need not be.
    FallenBack(InstallReport),
}

fn open_working_set(
    snapshot: &Snapshot,
    memory_bytes: u64,
    options: InstallOptions,
) -> Result<Opened, MemoryError> {
    let path = snapshot.working_set_path();
    match WorkingSet::open(&path, &snapshot.id(), memory_bytes) {
        Ok(working_set) => Ok(Opened::Install(Install {
            working_set: Arc::new(working_set),
            memory: None,
            options,
        })),
        Err(error) if options.may_fall_back => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "serving on demand"
            );
            Ok(Opened::FallenBack(InstallReport {
                method: options.method,
                fell_back: Some(error_chain(&error)),
                ..InstallReport::default()
            }))
        }
        Err(error) => Err(error.into()),
    }
}

/// Reads that land in guest memory, under way on the thread `working-set`, which gives the pager
/// back.
struct DirectInstall(JoinHandle<Result<(Pager, InstallReport), MemoryError>>);

impl DirectInstall {
    fn start(pager: Pager, memory: GuestMemory, install: Install) -> Result<Self, MemoryError> {
        thread::Builder::new()
            .name("working-set".into())
            .stack_size(128 << 10)
            .spawn(move || {
                // Whoever drops this does not wait for it, so it keeps the memory that it writes
                // to. Locals are dropped in the reverse of this order.
                let _memory = memory;
                let mut pager = pager;
                // SAFETY: who restores a machine touches nothing of the memory before
                // `allow_touches` has waited for this thread.
                let report = match unsafe { pager.install_unregistered(&install) } {
                    Ok(report) => report,
                    Err(error) if install.options.may_fall_back => InstallReport {
                        method: install.options.method,
                        fell_back: Some(error_chain(&error)),
                        ..InstallReport::default()
                    },
                    Err(error) => return Err(Arc::new(error).into()),
                };
                pager.start()?;
                Ok((pager, report))
            })
            .map(Self)
            .map_err(MemoryError::Thread)
    }

    /// Waits for its end.
    fn finish(self) -> Result<(Pager, InstallReport), MemoryError> {
        let panicked = || MemoryError::Thread(io::Error::other("it panicked"));
        self.0.join().map_err(|_| panicked())?
    }
}

fn no_dirty_pages(memory_bytes: u64, base: Option<SnapshotId>) -> Mutex<DirtyPages> {
    Mutex::new(DirtyPages::new(memory_bytes / PAGE_SIZE as u64, base))
}

fn regions_of(memory_bytes: u64) -> Vec<RegionInfo> {
    let mut file_offset = 0;
    ram_ranges(memory_bytes)
        .into_iter()
        .map(|RamRange { gpa, size_bytes }| {
            let region = RegionInfo {
                gpa,
                size_bytes,
                file_offset,
            };
            file_offset += size_bytes;
            region
        })
        .collect()
}

/// Guest memory of a test.
#[cfg(test)]
pub(crate) fn of_bytes(memory_bytes: u64) -> GuestMemory {
    MemoryManager::new(memory_bytes, false)
        .unwrap()
        .memory
        .clone()
}
