//! Saving a paused machine.

use std::path::Path;

use reapvm_snapshot::{
    CreateError, HostInfo, Manifest, ManifestParts, SnapshotWriter, StateError, StateFile,
};
use thiserror::Error;

use super::device_set::DeviceError;
use super::{Lifecycle, Machine, MachineError};
use crate::interrupts::{self, InterruptError};
use crate::memory::MemoryError;
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
}

impl Machine {
    /// Saves the paused machine as the snapshot directory `dir`, replacing an older snapshot
    /// there at once or not at all.
    ///
    /// # Errors
    /// See [`SaveError`].
    pub fn save(&self, dir: &Path) -> Result<Manifest, SaveError> {
        self.require("save", Lifecycle::Paused)?;
        // Before memory is read: reading makes pages resident that the guest never touched.
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
        let mut memory_writer = writer.memory_writer(self.memory.size_bytes())?;
        self.memory.write_to(&mut memory_writer)?;
        memory_writer.finish()?;
        drop(quiesced);
        Ok(writer.finish(ManifestParts {
            creator: concat!("reapvm ", env!("CARGO_PKG_VERSION")).to_owned(),
            vm: serde_json::to_value(&self.config).map_err(SaveError::Config)?,
            host: HostInfo::detect().map_err(SaveError::Host)?,
            regions: self.memory.region_infos(),
            booted_resident_bytes,
        })?)
    }
}
