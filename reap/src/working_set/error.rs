//! Why a working set is refused.

use std::io;
use std::path::{Path, PathBuf};

use reapvm_snapshot::SnapshotId;
use reapvm_snapshot::files::ReplaceFileError;

use super::header::VERSION;
use crate::source::PageSourceError;

/// Why a working set was not written, not read or is refused.
#[derive(Debug, thiserror::Error)]
pub enum WorkingSetError {
    /// There is no working set.
    #[error("there is no working set {path}: invoke once with memory mode record to make one")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read the working set {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file cannot be read past the page cache, which a prefetch needs.
    #[error(
        "the file system of {path} ({filesystem}) cannot read it with O_DIRECT, as a prefetch \
         does: use memory mode ondemand, or move the snapshot to another file system"
    )]
    NoDirectIo {
        /// The file.
        path: PathBuf,
        /// Name of the file system, or its magic number.
        filesystem: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no memory for the file's contents.
    #[error("no memory for the {len_bytes} bytes of the working set {path}")]
    NoMemory {
        /// The file.
        path: PathBuf,
        /// Its length.
        len_bytes: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file was not written; an older one is untouched.
    #[error("cannot write the working set {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReplaceFileError,
    },
    /// A page for the file could not be had; an older file is untouched.
    #[error("cannot write the working set {path}: a page of it cannot be had")]
    Source {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: PageSourceError,
    },
    /// The file is of another version.
    #[error(
        "the working set {path} is of version {version}, this program reads version {VERSION}: \
         record again"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The working set was recorded from another snapshot.
    #[error(
        "the working set {path} belongs to snapshot {found}, not to this one ({expected}): record \
         again"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The snapshot it belongs to.
        found: SnapshotId,
        /// The snapshot it was opened for.
        expected: SnapshotId,
    },
    /// The file ends too early.
    #[error("the working set {path} is truncated: record again")]
    Truncated {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged, or is no working set.
    #[error("the working set {path} is damaged ({reason}): record again")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        reason: String,
    },
    /// A page in the file is damaged.
    #[error(
        "the working set {path} is damaged (checksum of the page at guest address {gpa:#x}): \
         record again"
    )]
    CorruptPage {
        /// The file.
        path: PathBuf,
        /// The page's guest-physical address.
        gpa: u64,
    },
}

/// What is wrong with the bytes of a working set; [`WorkingSetError`] adds the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Defect {
    Version(u32),
    Foreign {
        found: SnapshotId,
        expected: SnapshotId,
    },
    Truncated,
    Corrupt(String),
}

impl Defect {
    pub(crate) fn at(self, path: &Path) -> WorkingSetError {
        let path = path.to_owned();
        match self {
            Self::Version(version) => WorkingSetError::Version { path, version },
            Self::Foreign { found, expected } => WorkingSetError::Foreign {
                path,
                found,
                expected,
            },
            Self::Truncated => WorkingSetError::Truncated { path },
            Self::Corrupt(reason) => WorkingSetError::Corrupt { path, reason },
        }
    }
}

/// The error for a failed read of the file `path`.
pub(crate) fn read_error(path: &Path, source: io::Error) -> WorkingSetError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => WorkingSetError::Missing { path },
        io::ErrorKind::UnexpectedEof => WorkingSetError::Truncated { path },
        _ => WorkingSetError::Read { path, source },
    }
}
