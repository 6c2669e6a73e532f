//! Installing a working set before, or while, the guest begins to run.
//!
//! What differs between the methods is where the pages are read from, by how many reads at once,
//! and how they get into guest memory. All of them verify a page before the guest can see it, and
//! all but [`InstallMethod::Direct`] share guest memory with the pager, which serves faults
//! meanwhile.

mod direct;
mod memory_file;
mod method;
mod pieces;
mod place;
mod progress;
mod reads;
mod report;
mod staged;
mod streams;
mod trial;
mod turns;
mod verify;
mod whole;
mod zeroes;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use reapvm_snapshot::{MemoryReadError, MemoryReader};

use crate::extents::Extent;
use crate::serve::ServeError;
use crate::uffd::UffdError;
use crate::working_set::WorkingSetError;
use crate::working_set_reader::WorkingSetReader;

pub use method::{InstallMethod, InstallOptions, ParseInstallMethodError};
pub use report::{InstallReport, LeadRule, ReadPath};
pub use trial::{InstallTrial, TrialError};

pub(crate) use direct::install_unregistered;
use place::Placement;
pub(crate) use place::Placer;
pub(crate) use progress::Progress;

/// Stack of a thread that installs: it calls nothing deep and keeps its buffers elsewhere.
pub(crate) const STACK_BYTES: usize = 128 << 10;

/// Name of the threads that install.
pub(crate) const THREAD_NAME: &str = "working-set";

/// A working set that is to be installed.
#[derive(Debug)]
pub struct Install {
    /// The opened file.
    pub working_set: Arc<WorkingSetReader>,
    /// The memory of the snapshot, for [`InstallMethod::MemoryFile`].
    pub memory: Option<Arc<MemoryReader>>,
    /// How it is to be done.
    pub options: InstallOptions,
}

impl Install {
    /// Whether the guest may run before it is over.
    pub(crate) fn may_overlap(&self) -> bool {
        self.options.method.resolved(self) == InstallMethod::Overlapped
    }
}

/// Why a working set was not installed. Pages before the cause are in place, and they are right;
/// the machine may be dropped, or go on as if on demand.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The working set is missing, damaged, or belongs to another snapshot.
    #[error(transparent)]
    WorkingSet(#[from] WorkingSetError),
    /// The working set has a page that guest memory has not.
    #[error(
        "the working set {} has {pages} pages at guest address {gpa:#x}, not all of them in guest \
         memory: record again",
        path.display()
    )]
    OutsideRegions {
        /// The file.
        path: std::path::PathBuf,
        /// Guest-physical address of the run.
        gpa: u64,
        /// Length of the run.
        pages: u64,
    },
    /// A page of the snapshot's memory cannot be read, or is not what was saved.
    #[error("cannot read the working set's pages from the snapshot's memory")]
    Memory(#[from] MemoryReadError),
    /// A page could not be put in place.
    #[error("cannot install the working set")]
    Install(#[from] ServeError),
    /// The kernel does not move pages.
    #[error(
        "this kernel cannot move pages into guest memory ({errno}): UFFDIO_MOVE needs Linux 6.8 \
         or later; use another install method than move"
    )]
    NoMove {
        /// What the system said.
        errno: rustix::io::Errno,
    },
    /// The kernel does not give this process an io_uring.
    #[error(
        "the host does not allow this process to use io_uring ({reason}), which the install \
         method {method} reads with: use streamed or one-read, or see `sysctl \
         kernel.io_uring_disabled`"
    )]
    NoIoUring {
        /// The method that was asked for.
        method: InstallMethod,
        /// What the system said.
        reason: std::io::Error,
    },
    /// The method needs the memory of the snapshot, which was not given.
    #[error("the install method {method} reads the snapshot's memory, which was not given")]
    NoMemoryReader {
        /// The method that was asked for.
        method: InstallMethod,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread to install the working set")]
    Spawn(#[source] std::io::Error),
    /// A thread panicked.
    #[error("a thread that installs the working set panicked")]
    Panicked,
    /// The pager is gone, and with it the reader of the kernel's messages.
    #[error("the pager ended before the working set was installed")]
    PagerEnded,
    /// The pager has to serve before pages are put beside it.
    #[error("the pager must be started before the install method {method} is used")]
    NotStarted {
        /// The method that was asked for.
        method: InstallMethod,
    },
    /// The method reads into memory that no userfaultfd has.
    #[error("the install method direct needs memory that is not registered yet")]
    Registered,
    /// A working set is being installed, or was.
    #[error("a working set was installed already")]
    Twice,
}

impl From<UffdError> for InstallError {
    fn from(error: UffdError) -> Self {
        Self::Install(error.into())
    }
}

/// Installs `install` beside a pager that serves.
pub(crate) fn install(
    placer: &Placer,
    install: &Install,
    progress: &Progress,
) -> Result<InstallReport, InstallError> {
    let started = Instant::now();
    let method = install.options.method.resolved(install);
    let mut report = match method {
        InstallMethod::OneRead => whole::install(placer, install, ReadPath::Pread, progress),
        InstallMethod::Buffered => whole::install(placer, install, ReadPath::PageCache, progress),
        InstallMethod::MemoryFile => memory_file::install(placer, install, progress),
        InstallMethod::Direct => Err(InstallError::Registered),
        InstallMethod::Auto | InstallMethod::Streamed | InstallMethod::Overlapped => {
            staged::install(placer, install, method, Placement::Copy, progress)
        }
        InstallMethod::Moved => staged::install(placer, install, method, Placement::Move, progress),
    }?;
    report.method = method;
    // Buffers are unmapped by now, which takes time too and is part of what an install costs.
    report.total_ns = started.elapsed().as_nanos() as u64;
    Ok(report)
}

/// Refuses the working set before its first page is in place if any is outside guest memory.
fn check_inside(placer: &Placer, extents: &[Extent], path: &Path) -> Result<(), InstallError> {
    match placer.first_outside(extents) {
        Some(extent) => Err(InstallError::OutsideRegions {
            path: path.to_owned(),
            gpa: extent.gpa,
            pages: extent.pages,
        }),
        None => Ok(()),
    }
}
