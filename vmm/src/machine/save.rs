//! Saving a paused machine.

use std::path::{Path, PathBuf};

use reapvm_snapshot::{
    CreateError, HostInfo, Manifest, ManifestParts, Snapshot, SnapshotId, SnapshotWriter,
    StateError, StateFile,
};
use thiserror::Error;

use super::device_set::DeviceError;
use super::{Lifecycle, Machine, MachineError};
use crate::config::VmConfig;
use crate::interrupts::{self, InterruptError};
use crate::memory::{MemoryError, WrittenPages};
use crate::residency;
use crate::vcpu::VcpuError;

pub(super) const VCPU_KIND: &str = "vcpu";
pub(super) const VCPU_VERSION: u32 = 1;
pub(super) const INTERRUPTS_KIND: &str = "interrupts";
pub(super) const INTERRUPTS_VERSION: u32 = 2;

/// Why a machine cannot be saved. The machine itself is unharmed and still paused.
#[derive(Debug, Error)]
pub enum SaveError {
    /// It is not paused.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The directory or a file cannot be written.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A part's state cannot be encoded.
    #[error(transparent)]
    State(#[from] StateError),
    /// A vCPU cannot be saved.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The interrupt controllers cannot be saved.
    #[error(transparent)]
    Interrupts(#[from] InterruptError),
    /// A device cannot be saved.
    #[error(transparent)]
    Devices(#[from] DeviceError),
    /// Guest memory cannot be saved.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The host does not say what it is.
    #[error("cannot read what host this is")]
    Host(#[source] std::io::Error),
    /// The configuration cannot be written as JSON.
    #[error("cannot encode the machine's configuration")]
    Config(#[source] serde_json::Error),
    /// A diff of a machine whose writes are not known.
    #[error(
        "cannot save a diff: the machine does not keep which pages are written; boot it with \
         --track-dirty-pages (`track_dirty_pages` of its machine-config)"
    )]
    NotTracked,
    /// A diff of a machine that was booted and never saved.
    #[error("cannot save a diff: the machine was never saved in full; do that first")]
    NoBase,
    /// A diff against another snapshot than the last one.
    #[error(
        "cannot save a diff against snapshot {wanted}: what was written is known since snapshot \
         {since}; save a diff against that, or in full"
    )]
    OtherBase {
        /// The snapshot asked for.
        wanted: SnapshotId,
        /// The one that the machine was last restored from or saved as.
        since: SnapshotId,
    },
    /// A diff in the place of its own base.
    #[error("will not replace {dir} by a diff against it: choose another directory")]
    OverBase {
        /// The directory.
        dir: PathBuf,
    },
}

/// How much of guest memory is saved.
#[derive(Clone, Copy)]
enum Extent {
    /// All of it.
    Full,
    /// What was written since a snapshot.
    Since(SnapshotId),
}

impl Machine {
    /// Saves the paused machine as the snapshot directory `dir`, replacing an older snapshot
    /// there at once or not at all.
    ///
    /// # Errors
    /// See [`SaveError`].
    pub fn save(&self, dir: &Path) -> Result<Manifest, SaveError> {
        self.save_extent(dir, Extent::Full)
    }

    /// Saves the paused machine as a diff in the directory `dir`: with the pages only that were
    /// written since snapshot `base`, which has to be the one that this machine was restored from
    /// or last saved as, in full or as a diff. The next diff is then one against this.
    ///
    /// A diff is restored when it has been merged: [`reapvm_snapshot::merge`].
    ///
    /// # Errors
    /// See [`SaveError`]. The pages that were to be saved are then part of the next diff, which is
    /// still one against `base`.
    pub fn save_diff(&self, dir: &Path, base: &SnapshotId) -> Result<Manifest, SaveError> {
        if !self.memory.tracks_dirty_pages() {
            return Err(SaveError::NotTracked);
        }
        let since = self.memory.diff_base().ok_or(SaveError::NoBase)?;
        if since != *base {
            return Err(SaveError::OtherBase {
                wanted: *base,
                since,
            });
        }
        if Snapshot::open(dir).is_ok_and(|snapshot| snapshot.id() == since) {
            return Err(SaveError::OverBase {
                dir: dir.to_owned(),
            });
        }
        self.save_extent(dir, Extent::Since(since))
    }

    /// Which pages were written since the last call or save: see [`MemoryManager::collect_writes`].
    /// The machine has to be paused.
    ///
    /// [`MemoryManager::collect_writes`]: crate::memory::MemoryManager::collect_writes
    pub(crate) fn collect_writes(&self) -> Result<WrittenPages, MemoryError> {
        self.memory.collect_writes(&self.vm)
    }

    /// The configuration with the balloon's target of now, which its handle may have set.
    fn config_now(&self) -> VmConfig {
        let mut config = self.config.clone();
        if let (Some(settings), Some(handle)) = (&mut config.balloon, &self.devices.balloon) {
            settings.amount_mib = handle.stats().target_mib;
        }
        config
    }

    fn save_extent(&self, dir: &Path, extent: Extent) -> Result<Manifest, SaveError> {
        self.require("save", Lifecycle::Paused)?;
        // Before memory is read: reading may make pages resident that the guest never touched.
        let booted_resident_bytes = residency::resident_bytes(&self.memory.host_ranges());
        let mut writer = SnapshotWriter::create(dir)?;
        let mut state = StateFile::new();
        // Devices first and kept still: from here on nothing changes guest memory or raises an
        // interrupt that the interrupt controllers below would miss.
        let quiesced = self.devices.save(&mut state)?;
        for vcpu in &self.vcpus {
            state.push(VCPU_KIND, VCPU_VERSION, &vcpu.save()?)?;
        }
        state.push(
            INTERRUPTS_KIND,
            INTERRUPTS_VERSION,
            &interrupts::save(&self.vm)?,
        )?;
        writer.write_state(&state)?;
        // What devices write from when they go on is part of the next diff.
        self.memory.collect_writes(&self.vm)?;
        let size_bytes = self.memory.size_bytes();
        let memory_writer = match extent {
            Extent::Full => {
                let mut memory_writer = writer.memory_writer(size_bytes)?;
                self.memory.write_to(&mut memory_writer)?;
                memory_writer
            }
            Extent::Since(base) => {
                let mut memory_writer = writer.diff_memory_writer(size_bytes, base)?;
                self.memory.write_dirty_to(&mut memory_writer)?;
                memory_writer
            }
        };
        memory_writer.finish()?;
        drop(quiesced);
        let manifest = writer.finish(ManifestParts {
            creator: concat!("reapvm ", env!("CARGO_PKG_VERSION")).to_owned(),
            vm: serde_json::to_value(self.config_now()).map_err(SaveError::Config)?,
            host: HostInfo::detect().map_err(SaveError::Host)?,
            regions: self.memory.region_infos(),
            booted_resident_bytes,
        })?;
        self.memory.saved_as(manifest.id);
        Ok(manifest)
    }
}
