//! A trace in formats that other programs read, written record by record.

mod chrome;
mod parquet;
mod row;
mod text;

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Seek, Write};
use std::str::FromStr;

use reapvm_reap::trace::{ThreadKind, TraceError, TraceReader, TraceSummary};

/// What a trace is exported to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Comma-separated values with a line of names first (RFC 4180).
    Csv,
    /// A JSON object a line.
    JsonLines,
    /// Apache Parquet.
    Parquet,
    /// Trace-event JSON, for Perfetto's and Chrome's viewers.
    Chrome,
}

impl Format {
    /// All formats, in the order in which they are documented.
    pub const ALL: [Self; 4] = [Self::Csv, Self::JsonLines, Self::Parquet, Self::Chrome];

    /// The name that the command line uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::JsonLines => "jsonl",
            Self::Parquet => "parquet",
            Self::Chrome => "chrome",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        Self::ALL
            .into_iter()
            .find(|format| format.as_str() == name)
            .ok_or_else(|| UnknownFormat {
                name: name.to_owned(),
            })
    }
}

/// A name that is none of the formats.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown export format \"{name}\": use one of csv, jsonl, parquet or chrome")]
pub struct UnknownFormat {
    /// The name as it was given.
    pub name: String,
}

/// A trace was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The trace cannot be read to its end.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The output cannot be written.
    #[error("cannot write the export")]
    Write(#[from] io::Error),
    /// The output cannot be written as comma-separated values.
    #[error("cannot write the export as comma-separated values")]
    Csv(#[from] csv::Error),
    /// The output cannot be written as JSON.
    #[error("cannot write the export as JSON")]
    Json(#[from] serde_json::Error),
    /// The output cannot be written as Parquet.
    #[error("cannot write the export as Parquet")]
    Parquet(#[from] ::parquet::errors::ParquetError),
}

impl ExportError {
    /// Whether who read the output has closed it: no failure where that was a pipe.
    #[must_use]
    pub fn is_closed_output(&self) -> bool {
        // Errors of csv do not name their cause as such.
        if let Self::Csv(error) = self
            && let csv::ErrorKind::Io(error) = error.kind()
        {
            return error.kind() == io::ErrorKind::BrokenPipe;
        }
        let mut error: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(present) = error {
            let kind = present
                .downcast_ref::<io::Error>()
                .map(io::Error::kind)
                .or_else(|| present.downcast_ref::<serde_json::Error>()?.io_error_kind());
            if kind == Some(io::ErrorKind::BrokenPipe) {
                return true;
            }
            error = present.source();
        }
        false
    }
}

/// Writes the trace of `reader` to `output` as `format` says; returns the number of records.
///
/// # Errors
/// When the trace cannot be read to its end or the output fails.
pub fn export<R: Read + Seek, W: Write + Send>(
    reader: &mut TraceReader<R>,
    format: Format,
    output: W,
) -> Result<u64, ExportError> {
    match format {
        Format::Csv => text::csv(reader, output),
        Format::JsonLines => text::json_lines(reader, output),
        Format::Parquet => parquet::write(reader, output),
        Format::Chrome => chrome::write(reader, output),
    }
}

/// What is known of a thread, for all of its records.
struct ThreadNames(HashMap<u32, (String, &'static str, Option<u32>)>);

impl ThreadNames {
    fn new(summary: &TraceSummary) -> Self {
        let kind = |kind| match kind {
            ThreadKind::Vcpu => "vcpu",
            ThreadKind::Device => "device",
            ThreadKind::Vmm => "vmm",
            ThreadKind::Kernel => "kernel",
            ThreadKind::Unknown => "unknown",
        };
        Self(
            summary
                .threads
                .iter()
                .map(|t| (t.thread_id, (t.label(), kind(t.kind), t.vcpu)))
                .collect(),
        )
    }

    /// Name, kind, and number of the vCPU.
    fn of(&self, thread_id: u32) -> (&str, &'static str, Option<u32>) {
        match self.0.get(&thread_id) {
            Some((label, kind, vcpu)) => (label, kind, *vcpu),
            None => ("(not known)", "unknown", None),
        }
    }
}

#[cfg(test)]
mod tests;
