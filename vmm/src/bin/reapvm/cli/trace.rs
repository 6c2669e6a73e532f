//! `reapvm trace …`, and the options of other commands that make a trace.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use reapvm::observe::{SourceChoice, TraceOptions};
use reapvm_reap::{DEFAULT_TRACE_RECORDS, MemoryRestoreMode};

use super::{InstallArguments, OverrideOptions, json, mode, seconds};

/// What `invoke` takes to make a trace.
#[derive(Args)]
pub(crate) struct TraceFlags {
    /// Also write every page fault, in order, to this file: see `reapvm trace`
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Faults that a trace keeps at most; those that come later are counted
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TRACE_RECORDS, value_parser = trace_records())]
    trace_records: u64,
    /// Who sees the faults: see `reapvm trace record --help`
    #[arg(long, value_name = "SOURCE", default_value = "auto", value_parser = source)]
    trace_source: SourceChoice,
    /// What the trace says of its function: given by a launcher
    #[arg(long, value_name = "LABEL", hide = true)]
    trace_function: Option<String>,
}

impl TraceFlags {
    pub(crate) fn options(&self) -> Option<TraceOptions> {
        Some(TraceOptions {
            path: self.trace.clone()?,
            max_records: self.trace_records,
            function: self.trace_function.clone(),
            source: self.trace_source,
        })
    }
}

fn source(text: &str) -> Result<SourceChoice, String> {
    SourceChoice::ALL
        .into_iter()
        .find(|source| source.as_str() == text)
        .ok_or_else(|| {
            let names = SourceChoice::ALL.map(SourceChoice::as_str);
            format!("use one of {}", names.join(", "))
        })
}

/// As many records as a trace may have that is read at once.
fn trace_records() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=reapvm_reap::trace::MAX_RECORDS)
}

#[derive(Subcommand)]
pub(crate) enum TraceCommand {
    /// Start a snapshot cold, call its function, and write every page fault to a file
    Record(Box<TraceRecordArguments>),
    /// Say what a trace holds
    Info(TraceInfo),
    /// Write a trace in a format that other programs read
    Export(TraceAnalysis),
    /// Compare the pages and the order of two traces
    Diff(TraceAnalysis),
    /// Write one HTML file with figures of a trace, and their numbers
    Report(TraceAnalysis),
    /// Count touches by the guest's functions, where the trace has its instructions
    Symbols(TraceAnalysis),
}

#[derive(Args)]
pub(crate) struct TraceRecordArguments {
    /// The snapshot directory
    pub(crate) dir: PathBuf,
    /// The file to write; an older one there is replaced at once
    #[arg(short, long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// What the trace says of its function [default: the snapshot's function]
    #[arg(long, value_name = "LABEL")]
    pub(crate) function: Option<String>,
    /// The function's input
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = json)]
    pub(crate) input: serde_json::Value,
    /// How guest memory comes back: see `reapvm invoke --help`
    ///
    /// record leaves the snapshot's working set as it is.
    #[arg(long, value_name = "MODE", default_value = "ondemand", value_parser = mode)]
    pub(crate) mode: MemoryRestoreMode,
    /// Who sees the faults
    ///
    /// auto: the pager in the modes ondemand, record and prefetch. In the others the kernel's
    /// tracepoint, and where that cannot be used the page tables; the trace says why.
    /// pager: each fault that the pager serves.
    /// tracepoints: each page fault of a vCPU, with the guest's instruction.
    /// page-tables: pages that have come into this process's page tables, by phase.
    /// write-protect: the first write to each page, in order; with --mode copy.
    /// dirty-log: pages that KVM has logged as written, by phase, in any mode.
    /// writes: as write-protect, compared with the dirty log.
    #[arg(long, value_name = "SOURCE", default_value = "auto", value_parser = source, verbatim_doc_comment)]
    pub(crate) source: SourceChoice,
    #[command(flatten)]
    pub(crate) install: InstallArguments,
    #[command(flatten)]
    pub(crate) overrides: OverrideOptions,
    /// Records to keep at most; faults that come later are counted
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TRACE_RECORDS, value_parser = trace_records())]
    pub(crate) records: u64,
    /// Leave the snapshot's files in the page cache
    #[arg(long)]
    pub(crate) warm_page_cache: bool,
    /// How long the response may take
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Print JSON: the response, the marks and the faults
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct TraceInfo {
    /// The trace
    pub(crate) file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What the program `reapvm-trace` is given: it reads it itself.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct TraceAnalysis {
    /// See `--help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<OsString>,
}
