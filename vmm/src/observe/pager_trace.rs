//! The trace of a machine whose memory a pager serves.

use std::path::{Path, PathBuf};

use reapvm_reap::trace::{
    self, Clock, TraceHeader, TraceRegion, TraceSource, TraceSummary, name_threads,
};
use reapvm_reap::{DEFAULT_TRACE_RECORDS, MemoryRestoreMode, Recording, TraceError, TraceRecord};
use reapvm_snapshot::SnapshotId;
use serde::{Deserialize, Serialize};

use super::write_trace::WritesCompared;
use crate::clock;
use crate::machine::Machine;

/// Who is to see the touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SourceChoice {
    /// The pager where there is one; otherwise the kernel's tracepoint, and where that cannot be
    /// used the page tables. The trace says which, and why not another.
    #[default]
    Auto,
    /// The pager.
    Pager,
    /// The kernel's tracepoint `kvm:kvm_page_fault`.
    Tracepoints,
    /// The page tables of this process, looked at after each phase.
    PageTables,
    /// Writes alone, by protecting every page against them: first writes in order.
    WriteProtect,
    /// Writes alone, by KVM's dirty log, read after each phase: a set of pages.
    DirtyLog,
    /// As [`WriteProtect`](Self::WriteProtect), compared with the dirty log.
    Writes,
}

impl SourceChoice {
    /// All of them, in the order in which they are documented.
    pub const ALL: [Self; 7] = [
        Self::Auto,
        Self::Pager,
        Self::Tracepoints,
        Self::PageTables,
        Self::WriteProtect,
        Self::DirtyLog,
        Self::Writes,
    ];

    /// The name that the command line uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Pager => "pager",
            Self::Tracepoints => "tracepoints",
            Self::PageTables => "page-tables",
            Self::WriteProtect => "write-protect",
            Self::DirtyLog => "dirty-log",
            Self::Writes => "writes",
        }
    }

    /// Whether pages are protected against writes.
    pub(crate) fn protects(self) -> bool {
        matches!(self, Self::WriteProtect | Self::Writes)
    }

    /// Whether the machine has to track dirty pages.
    pub(crate) fn needs_dirty_log(self) -> bool {
        matches!(self, Self::DirtyLog | Self::Writes)
    }
}

/// That a trace is wanted, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceOptions {
    /// The file to write.
    pub path: PathBuf,
    /// Records that are kept at most; what comes after them is counted.
    pub max_records: u64,
    /// What the trace says of its function; the snapshot's own if there is none.
    pub function: Option<String>,
    /// Who is to see the touches.
    pub source: SourceChoice,
}

impl TraceOptions {
    /// A trace in the file `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            max_records: DEFAULT_TRACE_RECORDS,
            function: None,
            source: SourceChoice::default(),
        }
    }
}

/// What became of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceReport {
    /// Records in the file.
    pub records: u64,
    /// Faults that found the buffer full.
    pub dropped: u64,
    /// How the sources agree, of a trace of writes that compares them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes: Option<WritesCompared>,
}

/// What a trace says of the invocation that it was made of.
pub(crate) struct Labels<'a> {
    pub(crate) function: Option<&'a str>,
    pub(crate) input: Option<&'a str>,
}

/// Longest label in a trace, in bytes: an input may be long, and a label is to tell it from others.
const MAX_LABEL_BYTES: usize = 1024;

/// Writes every fault that the pager of `machine` has served to `options.path`. The threads that
/// touched memory must still be there. `None` if the machine has no pager, or was not restored with
/// [`trace_records`](crate::machine::RestoreOptions::trace_records).
///
/// # Errors
/// The file cannot be written.
pub fn write_pager_trace(
    machine: &Machine,
    snapshot: &SnapshotId,
    mode: MemoryRestoreMode,
    options: &TraceOptions,
    input: &str,
) -> Result<Option<TraceReport>, TraceError> {
    let Some(faults) = machine.memory().fault_trace() else {
        return Ok(None);
    };
    let labels = Labels {
        function: options.function.as_deref(),
        input: Some(input),
    };
    let header = header(machine, snapshot, TraceSource::UffdPager, mode, &labels);
    let summary = summary(&faults.records, faults.dropped);
    write(&options.path, &header, &faults.records, summary)?;
    Ok(Some(TraceReport {
        records: faults.records.len() as u64,
        dropped: faults.dropped,
        writes: None,
    }))
}

/// Writes the first touches of a recording to `path`.
pub(crate) fn write_first_touches(
    machine: &Machine,
    snapshot: &SnapshotId,
    path: &Path,
    recording: &Recording,
    input: Option<&str>,
) -> Result<(), TraceError> {
    let labels = Labels {
        function: None,
        input,
    };
    let mode = MemoryRestoreMode::Record;
    let header = header(machine, snapshot, TraceSource::UffdPager, mode, &labels);
    let records = &recording.records;
    write(path, &header, records, summary(records, 0))
}

fn summary(records: &[TraceRecord], dropped: u64) -> TraceSummary {
    TraceSummary {
        dropped,
        threads: name_threads(records.iter().map(|record| record.thread_id)),
        ..TraceSummary::default()
    }
}

/// Writes a trace that [`header`] describes.
pub(super) fn write(
    path: &Path,
    header: &TraceHeader,
    records: &[TraceRecord],
    summary: TraceSummary,
) -> Result<(), TraceError> {
    trace::write(path, header, records, summary)
}

/// The header of a trace of `machine`.
pub(crate) fn header(
    machine: &Machine,
    snapshot: &SnapshotId,
    source: TraceSource,
    mode: MemoryRestoreMode,
    labels: &Labels<'_>,
) -> TraceHeader {
    let memory = machine.memory();
    let now_ns = clock::monotonic_ns();
    let zero_monotonic_ns = memory
        .resumed_monotonic_ns()
        .or(machine.first_run_ns())
        .unwrap_or(now_ns);
    let since_zero_ns = now_ns.saturating_sub(zero_monotonic_ns);
    TraceHeader {
        snapshot: *snapshot,
        source,
        limits: source.limits(mode),
        mode,
        clock: Clock {
            zero_monotonic_ns,
            zero_unix_ms: clock::realtime_ns().saturating_sub(since_zero_ns) / 1_000_000,
        },
        function: labels
            .function
            .or(machine.config().function.as_deref())
            .map(shortened),
        input: labels.input.map(shortened),
        regions: memory
            .regions()
            .iter()
            .map(|region| TraceRegion {
                gpa: region.gpa,
                hva: region.hva,
                size_bytes: region.size_bytes,
            })
            .collect(),
        creator: concat!("reapvm ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

fn shortened(label: &str) -> String {
    if label.len() <= MAX_LABEL_BYTES {
        return label.to_owned();
    }
    let room = MAX_LABEL_BYTES - '…'.len_utf8();
    let end = (0..=room).rev().find(|end| label.is_char_boundary(*end));
    format!("{}…", &label[..end.unwrap_or_default()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_label_is_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        for shift in 0..4 {
            let long = "x".repeat(shift) + &"ü€😀".repeat(500);
            let cut = shortened(&long);
            assert!(cut.len() <= MAX_LABEL_BYTES && cut.ends_with('…'));
            assert!(long.starts_with(cut.trim_end_matches('…')));
        }
    }
}
