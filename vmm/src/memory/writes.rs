//! Which pages of guest memory are written, told apart by who says so.

use std::ops::Deref;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use reapvm_devices::GuestMemory;
use reapvm_reap::{FaultTrace, MemoryRegion, WriteTracker};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{MemoryError, MemoryManager};

const PAGE_BYTES: u64 = reapvm_snapshot::PAGE_SIZE as u64;

/// Pages that were written since the last look, by their guest-physical addresses, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WrittenPages {
    /// What KVM has logged: writes of vCPUs and of KVM itself.
    pub(crate) logged: Vec<u64>,
    /// What this process has written: devices, the generation id of a restore.
    pub(crate) own: Vec<u64>,
}

/// A [`WriteTracker`] of a machine's memory, which it keeps mapped.
pub struct WriteTracking {
    // Before `_memory`, which must be there as long as it is.
    tracker: WriteTracker,
    _memory: GuestMemory,
}

impl WriteTracking {
    /// Ends it: see [`WriteTracker::stop`]. The machine should be paused.
    ///
    /// # Errors
    /// [`MemoryError::Writes`]: it had failed, and records are missing.
    pub fn stop(self, zero_monotonic_ns: u64) -> Result<FaultTrace, MemoryError> {
        Ok(self.tracker.stop(zero_monotonic_ns)?)
    }
}

impl MemoryManager {
    /// Begins to keep the first write to each page, and at most `max_records` records of them: see
    /// [`WriteTracker`]. For a machine that was booted, or restored in memory mode `copy`, and is
    /// paused.
    ///
    /// # Errors
    /// [`MemoryError::WritesWithPager`] where faults are served, [`MemoryError::Writes`] if the host
    /// cannot protect pages, or not these: those of mode `file` are no anonymous memory.
    pub fn track_writes(&self, max_records: u64) -> Result<WriteTracking, MemoryError> {
        if self.pager.is_some() {
            return Err(MemoryError::WritesWithPager);
        }
        let (regions, phase) = (self.regions.clone(), Arc::clone(&self.phase));
        // SAFETY: without a pager the regions are private anonymous mappings of `self.memory`'s, or
        // of a file, which the kernel refuses. They stay mapped as long as the clone beside the
        // tracker exists.
        let tracker = unsafe { WriteTracker::begin(regions, phase, max_records) }?;
        Ok(WriteTracking {
            tracker,
            _memory: self.memory.clone(),
        })
    }

    /// Adds what was written since the last call to the dirty pages, and says which it is: nothing
    /// if dirty pages are not tracked. vCPUs and devices must be at rest. Pages that were added stay
    /// dirty until [`saved_as`](Self::saved_as), so that none is lost by a save that fails.
    ///
    /// # Errors
    /// [`MemoryError::DirtyLog`].
    pub(crate) fn collect_writes(&self, vm: &VmFd) -> Result<WrittenPages, MemoryError> {
        let mut written = WrittenPages::default();
        let Some(mut dirty) = self.dirty() else {
            return Ok(written);
        };
        for (slot, region) in (0_u32..).zip(&self.regions) {
            let log = vm
                .get_dirty_log(slot, region.size_bytes as usize)
                .map_err(|source| MemoryError::DirtyLog {
                    gpa: region.gpa,
                    source,
                })?;
            dirty.insert_marked(region.file_offset / PAGE_BYTES, &log);
            written.logged.extend(marked(region, &log));
        }
        self.each_own_bitmap(|region, marks| {
            dirty.insert_marked(region.file_offset / PAGE_BYTES, &marks);
            written.own.extend(marked(region, &marks));
        });
        Ok(written)
    }

    /// Forgets what this process has written itself: it has made memory what the snapshot says.
    pub(super) fn forget_own_writes(&self) {
        self.each_own_bitmap(|_, _| ());
    }

    /// Takes the marks of the pages that this process has written, region by region.
    fn each_own_bitmap(&self, mut take: impl FnMut(&MemoryRegion, Vec<u64>)) {
        for region in &self.regions {
            let mapped = self.memory.find_region(GuestAddress(region.gpa));
            if let Some(bitmap) = mapped.and_then(|mapped| mapped.deref().bitmap().as_ref()) {
                take(region, bitmap.get_and_reset());
            }
        }
    }
}

/// The pages of `region` that `bitmap` marks, ascending.
fn marked<'a>(region: &'a MemoryRegion, bitmap: &'a [u64]) -> impl Iterator<Item = u64> + 'a {
    (0..region.size_bytes / PAGE_BYTES)
        .filter(|page| {
            let word = bitmap.get((page / 64) as usize).copied();
            word.unwrap_or_default() >> (page % 64) & 1 == 1
        })
        .map(|page| region.gpa + page * PAGE_BYTES)
}
