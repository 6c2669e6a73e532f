//! **Unstable.** Observing which pages a guest touches, and writing it down as a trace.
//!
//! | source | of which modes | module |
//! |---|---|---|
//! | the pager | `ondemand`, `record`, `prefetch` | `pager_trace` |
//! | KVM's tracepoint | all, where the kernel permits it | `tracepoints` |
//! | this process's page tables | all | `page_tables` |
//! | protection against writes | `copy` | `write_trace` |
//! | KVM's dirty log | all | `write_trace` |

mod kernel_trace;
mod page_tables;
mod pager_trace;
mod tracepoint_format;
mod tracepoints;
mod write_trace;

use reapvm_reap::{MemoryRestoreMode, TraceError};
use reapvm_snapshot::SnapshotId;
use thiserror::Error;

pub(crate) use kernel_trace::KernelTrace;
pub(crate) use pager_trace::write_first_touches;
pub use pager_trace::{SourceChoice, TraceOptions, TraceReport, write_pager_trace};
pub use tracepoints::{TracepointError, uses_nested_paging};
pub(crate) use write_trace::WriteTrace;
pub use write_trace::WritesCompared;

use crate::machine::Machine;
use crate::memory::MemoryError;

/// A guest cannot be observed.
#[derive(Debug, Error)]
pub enum ObserveError {
    /// There is no pager that could see faults.
    #[error(
        "memory mode {mode} has no pager that sees the faults: trace with ondemand, record or \
         prefetch, or from another source: auto, tracepoints or page-tables"
    )]
    NoPager {
        /// The mode.
        mode: MemoryRestoreMode,
    },
    /// The kernel's tracepoint cannot be used.
    #[error(transparent)]
    Tracepoint(#[from] TracepointError),
    /// The page tables cannot be read.
    #[error("cannot read this process's page tables (/proc/self/pagemap)")]
    PageTables(#[source] std::io::Error),
    /// The vCPUs' threads cannot be found.
    #[error("cannot find the threads of the vCPUs (/proc/self/task)")]
    Threads(#[source] std::io::Error),
    /// Pages are missing when the guest runs.
    #[error(
        "writes are seen by protecting pages that are all in place, which memory mode {mode} does \
         not have: trace with --mode copy, or from the source dirty-log"
    )]
    WritesNeedCopy {
        /// The mode.
        mode: MemoryRestoreMode,
    },
    /// The machine was made without a log.
    #[error(
        "the machine was prepared without tracking dirty pages, so that KVM has no log of them"
    )]
    NotTracked,
    /// The writes cannot be tracked or read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The trace cannot be written.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// An observation under way.
#[derive(Debug)]
pub(crate) enum Observation {
    /// The pager keeps its faults by itself.
    Pager,
    /// The kernel is asked.
    Kernel(Box<KernelTrace>),
    /// Writes alone.
    Writes(Box<WriteTrace>),
}

impl Observation {
    /// Whether the pager of a machine that is restored by `mode` is to keep its faults.
    pub(crate) fn is_of_pager(source: SourceChoice, mode: MemoryRestoreMode) -> bool {
        match source {
            SourceChoice::Auto => mode.uses_pager(),
            SourceChoice::Pager => true,
            SourceChoice::Tracepoints
            | SourceChoice::PageTables
            | SourceChoice::WriteProtect
            | SourceChoice::DirtyLog
            | SourceChoice::Writes => false,
        }
    }

    /// Checks before a machine is restored whether it can be observed.
    pub(crate) fn check(source: SourceChoice, mode: MemoryRestoreMode) -> Result<(), ObserveError> {
        if source == SourceChoice::Pager && !mode.uses_pager() {
            return Err(ObserveError::NoPager { mode });
        }
        if source.protects() && mode != MemoryRestoreMode::Copy {
            return Err(ObserveError::WritesNeedCopy { mode });
        }
        Ok(())
    }

    /// Begins to observe `machine`, which is restored and has not run.
    pub(crate) fn begin(
        machine: &Machine,
        mode: MemoryRestoreMode,
        options: &TraceOptions,
    ) -> Result<Self, ObserveError> {
        let source = options.source;
        if source.protects() || source.needs_dirty_log() {
            let trace = WriteTrace::begin(machine, options)?;
            return Ok(Self::Writes(Box::new(trace)));
        }
        if Self::is_of_pager(source, mode) {
            return Ok(Self::Pager);
        }
        let trace = KernelTrace::begin(machine, mode, source)?;
        Ok(Self::Kernel(Box::new(trace)))
    }

    /// Looks at what has come until now: to be called at the end of each phase.
    pub(crate) fn end_phase(
        &mut self,
        machine: &Machine,
        phase: reapvm_reap::Phase,
    ) -> Result<(), ObserveError> {
        match self {
            Self::Writes(trace) => trace.end_phase(machine, phase),
            Self::Pager => Ok(()),
            Self::Kernel(trace) => trace.end_phase(phase),
        }
    }

    /// Writes what was seen.
    pub(crate) fn finish(
        self,
        machine: &Machine,
        snapshot: &SnapshotId,
        mode: MemoryRestoreMode,
        options: &TraceOptions,
        input: &str,
    ) -> Result<Option<TraceReport>, ObserveError> {
        Ok(match self {
            Self::Pager => write_pager_trace(machine, snapshot, mode, options, input)?,
            Self::Writes(trace) => Some(trace.write(machine, snapshot, mode, options, input)?),
            Self::Kernel(trace) => Some(trace.write(machine, snapshot, mode, options, input)?),
        })
    }
}
