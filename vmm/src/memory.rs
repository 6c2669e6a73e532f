//! The memory manager: the one owner of guest memory and of its pager.

mod dirty_pages;
mod error;
mod hooks;
mod restore;
mod save;
mod touches;
mod writes;

use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use reapvm_devices::GuestMemory;
use reapvm_reap::{
    FaultTrace, InstallReport, MemoryRegion, MemoryRestoreMode, PageState, Pager, PagerError,
    PagerStats, PhaseCell, Recording, WorkingSetReader,
};
use reapvm_snapshot::{PAGE_SIZE, RegionInfo, Snapshot, SnapshotId};
use vm_memory::bitmap::{AtomicBitmap, NewBitmap};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use crate::arch::layout::{RamRange, ram_ranges};
use crate::clock;
use dirty_pages::DirtyPages;
use hooks::PageOrigin;
use restore::DirectInstall;
use touches::Measurement;

pub use error::MemoryError;
pub use hooks::MemoryHooks;
pub use touches::Observation;
pub use writes::WriteTracking;

pub(crate) use writes::WrittenPages;

/// Guest memory is read and written in pieces of this size.
const CHUNK_BYTES: usize = 1 << 20;

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

    /// Has the pager, if there will be one, keep so many faults for a trace at most. Before
    /// [`MemoryManager::restore`].
    pub(crate) fn trace_faults(&mut self, max_records: u64) {
        self.trace_records = Some(max_records);
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
