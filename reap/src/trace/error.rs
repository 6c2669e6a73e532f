//! Why a trace is not written or read.

use std::io;
use std::path::PathBuf;

use reapvm_snapshot::SnapshotId;
use reapvm_snapshot::files::ReplaceFileError;

use super::{MAX_RECORDS, VERSION};

/// Why a trace was not written or not read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// There is no trace.
    #[error("there is no trace {path}: invoke once with memory mode record to make one")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read the trace {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file was not written.
    #[error("cannot write the trace {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReplaceFileError,
    },
    /// There are more records than fit in memory.
    #[error(
        "the trace {path} has {records} records, which is too many to hold at once: at most \
         {MAX_RECORDS}"
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// How many there are.
        records: u64,
    },
    /// The file is of another version.
    #[error(
        "the trace {path} is of version {version}, this program reads version {VERSION}: record again"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The trace was recorded from another snapshot.
    #[error(
        "the trace {path} belongs to snapshot {found}, not to this one ({expected}): record again"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The snapshot it belongs to.
        found: SnapshotId,
        /// The snapshot it was read for.
        expected: SnapshotId,
    },
    /// The file ends too early.
    #[error("the trace {path} is truncated: record again")]
    Truncated {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged, or is no trace.
    #[error("the trace {path} is damaged ({reason}): record again")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        reason: &'static str,
    },
}
