//! The methods of installing a working set.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Install, ReadPath};

/// How a working set gets from its file into guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstallMethod {
    /// [`Overlapped`](Self::Overlapped) where the process has more than one processor, otherwise
    /// [`Streamed`](Self::Streamed). The report names the one that ran.
    #[default]
    Auto,
    /// The pages come from the snapshot's memory file, read run by run through the page cache by
    /// many threads: the paper's "parallel page faults" (REAP, section 6.2).
    MemoryFile,
    /// The working-set file is read at once through the page cache, then the pages are copied:
    /// the paper's "working set file" (REAP, section 6.2).
    Buffered,
    /// The paper's method: as [`Buffered`](Self::Buffered), but past the page cache with O_DIRECT
    /// (REAP, section 5.2).
    OneRead,
    /// Two threads read pieces of the file past the page cache, several at a time, and copy those
    /// that have come: the disk and the copying do not wait for each other.
    Streamed,
    /// As [`Streamed`](Self::Streamed), but the pages that were read into become the guest's
    /// (UFFDIO_MOVE, Linux 6.8).
    #[serde(rename = "move")]
    Moved,
    /// The disk writes straight into guest memory, before it is registered with the userfaultfd.
    Direct,
    /// As [`Streamed`](Self::Streamed), but the guest starts as soon as so many pages are in place
    /// that each of the rest, which comes in the order of first touch, will be there before the guest
    /// needs it ([`LeadRule`](super::LeadRule)). A page that it touches too early is served as any
    /// other fault.
    Overlapped,
}

/// A name that is none of the install methods.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown install method \"{name}\": use one of {}", names())]
pub struct ParseInstallMethodError {
    /// The name as it was given.
    pub name: String,
}

fn names() -> String {
    InstallMethod::ALL.map(InstallMethod::as_str).join(", ")
}

impl InstallMethod {
    /// All methods.
    pub const ALL: [Self; 8] = [
        Self::Auto,
        Self::MemoryFile,
        Self::Buffered,
        Self::OneRead,
        Self::Streamed,
        Self::Moved,
        Self::Direct,
        Self::Overlapped,
    ];

    /// The name that the command line and the results use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::MemoryFile => "memory-file",
            Self::Buffered => "buffered",
            Self::OneRead => "one-read",
            Self::Streamed => "streamed",
            Self::Moved => "move",
            Self::Direct => "direct",
            Self::Overlapped => "overlapped",
        }
    }

    /// Whether it reads into memory that must not be registered or touched before it is done.
    #[must_use]
    pub fn needs_unregistered_memory(self) -> bool {
        self == Self::Direct
    }

    /// The method that [`Auto`](Self::Auto) stands for here; any other stands for itself.
    pub(super) fn resolved(self, _install: &Install) -> Self {
        match self {
            Self::Auto if processors() > 1 => Self::Overlapped,
            Self::Auto => Self::Streamed,
            method => method,
        }
    }
}

/// How many processors this process may use.
pub(super) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl fmt::Display for InstallMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for InstallMethod {
    type Err = ParseInstallMethodError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|method| method.as_str() == name)
            .ok_or_else(|| ParseInstallMethodError {
                name: name.to_owned(),
            })
    }
}

/// How an install is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstallOptions {
    /// The method.
    pub method: InstallMethod,
    /// How the streams read; none: by io_uring where the host has it, through the page cache where
    /// the whole file is in it.
    pub read_path: Option<ReadPath>,
    /// Bytes that one read of a stream asks for, a multiple of the page size.
    pub piece_bytes: u64,
    /// Reads that each stream keeps under way.
    pub depth: usize,
    /// Whether each zero page is to be a page of its own from the beginning, and not the kernel's
    /// one zero page until it is written: who measures which pages a guest touches by their marks
    /// needs that. It costs a copy a page.
    pub own_zero_pages: bool,
    /// Whether who runs the guest is to enter what is installed in its page tables before it runs.
    /// This crate only carries it there.
    pub pre_fault: bool,
    /// Whether the guest may run without the rest of a working set that turns out to be unusable.
    /// Every page that is in place is right, and the pager serves the others; the report says so.
    pub may_fall_back: bool,
}

impl InstallOptions {
    /// Pieces small enough that the first pages do not wait for many others, large enough for a
    /// disk's bandwidth.
    pub const DEFAULT_PIECE_BYTES: u64 = 256 << 10;
    /// Enough reads under way that the disk does not wait for the copying.
    pub const DEFAULT_DEPTH: usize = 4;

    /// The defaults, with `method`.
    #[must_use]
    pub fn new(method: InstallMethod) -> Self {
        Self {
            method,
            read_path: None,
            piece_bytes: Self::DEFAULT_PIECE_BYTES,
            depth: Self::DEFAULT_DEPTH,
            own_zero_pages: false,
            pre_fault: false,
            may_fall_back: false,
        }
    }
}

impl Default for InstallOptions {
    fn default() -> Self {
        Self::new(InstallMethod::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_agree_with_serde() {
        for method in InstallMethod::ALL {
            assert_eq!(method.to_string().parse(), Ok(method));
            let json = serde_json::to_string(&method).unwrap();
            assert_eq!(json, format!("\"{method}\""));
        }
        let error = "mmap".parse::<InstallMethod>().unwrap_err().to_string();
        assert!(error.contains("one-read") && error.contains("overlapped"));
    }
}
