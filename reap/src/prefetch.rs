//! The prefetch: a working set, installed before the guest runs.
//!
//! As in the paper (REAP, section 5.2): the file is read at once past the page cache, then its
//! pages are installed with UFFDIO_COPY, a contiguous run at a time. Waking is left out, because
//! nobody waits yet.

use std::path::Path;
use std::time::Instant;

use reapvm_snapshot::PAGE_SIZE;
use reapvm_snapshot::checksum::crc32c;
use serde::Serialize;

use crate::extents::Extent;
use crate::serve::{ServeError, Server};
use crate::working_set::WorkingSetError;
use crate::working_set_reader::{Contents, WorkingSetReader};

/// What an install did and where its time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InstallReport {
    /// Pages put in place.
    pub pages: u64,
    /// Contiguous runs of pages in the working set.
    pub extents: u64,
    /// Bytes read: the whole file.
    pub bytes_read: u64,
    /// Time to read the file and verify its tables, wherever that was done.
    pub read_ns: u64,
    /// Time to verify the pages.
    pub verify_ns: u64,
    /// Time to copy the pages into guest memory.
    pub copy_ns: u64,
    /// Time of the whole call; `read_ns` is a part of it only if the file was read in it.
    pub total_ns: u64,
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
    /// A page could not be put in place.
    #[error("cannot install the working set")]
    Install(#[from] ServeError),
    /// The pager serves already: what it would install, the guest may have written since.
    #[error("a working set must be installed before the pager is started")]
    AlreadyStarted,
}

/// Installs what `reader` has read, reading it first if that was not done.
pub(crate) fn install(
    server: &mut Server,
    reader: &mut WorkingSetReader,
) -> Result<InstallReport, InstallError> {
    let started = Instant::now();
    reader.read()?;
    let bytes_read = reader.len_bytes();
    let Some(contents) = reader.take_contents() else {
        // `read` has just put them there.
        return Ok(InstallReport::default());
    };
    check_inside(server, contents.set.extents(), reader.path())?;
    let mut report = InstallReport {
        extents: contents.set.extents().len() as u64,
        bytes_read,
        read_ns: contents.read_ns,
        ..InstallReport::default()
    };
    install_pages(server, &contents, reader.path(), &mut report)?;
    // Unmapping the buffer takes time too, and is part of what an install costs.
    drop(contents);
    report.total_ns = started.elapsed().as_nanos() as u64;
    Ok(report)
}

/// Refuses the working set before its first page is in place if any is outside guest memory.
fn check_inside(server: &Server, extents: &[Extent], path: &Path) -> Result<(), InstallError> {
    match extents
        .iter()
        .find(|extent| !server.holds(extent.gpa, extent.pages))
    {
        Some(extent) => Err(InstallError::OutsideRegions {
            path: path.to_owned(),
            gpa: extent.gpa,
            pages: extent.pages,
        }),
        None => Ok(()),
    }
}

fn install_pages(
    server: &mut Server,
    contents: &Contents,
    path: &Path,
    report: &mut InstallReport,
) -> Result<(), InstallError> {
    let mut bytes_left = contents.pages();
    let mut crcs_left = contents.set.page_crc32cs();
    for extent in contents.set.extents() {
        // The tables were checked against the length of the file, so neither split can fail.
        let truncated = || WorkingSetError::Truncated {
            path: path.to_owned(),
        };
        let (run, rest) = bytes_left
            .split_at_checked(extent.pages as usize * PAGE_SIZE)
            .ok_or_else(truncated)?;
        let (run_crcs, rest_crcs) = crcs_left
            .split_at_checked(extent.pages as usize)
            .ok_or_else(truncated)?;
        (bytes_left, crcs_left) = (rest, rest_crcs);

        // A run is verified right before it is copied: the copy finds it in the caches.
        let verify_started = Instant::now();
        let pages = extent.page_gpas().zip(run.chunks_exact(PAGE_SIZE));
        for ((gpa, page), expected) in pages.zip(run_crcs) {
            if crc32c(page) != *expected {
                return Err(WorkingSetError::CorruptPage {
                    path: path.to_owned(),
                    gpa,
                }
                .into());
            }
        }
        let copy_started = Instant::now();
        report.pages += server.install_run(extent.gpa, run)?;
        report.verify_ns += (copy_started - verify_started).as_nanos() as u64;
        report.copy_ns += copy_started.elapsed().as_nanos() as u64;
    }
    Ok(())
}
