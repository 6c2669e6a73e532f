//! An install that is measured: of a working set made for it, into memory of its own.
//!
//! What is measured is all of an install that a disk and this host decide: the reads, the checksums
//! and the copies into memory that a userfaultfd has. Reads alone say too little: how many of them
//! have to be under way depends on how long the threads copy meanwhile.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reapvm_snapshot::{PAGE_SIZE, SnapshotId};

use super::{Install, InstallError, InstallOptions, InstallReport};
use crate::PAGE_SIZE_BYTES;
use crate::hooks::PagerHooks;
use crate::page_buffer::PageBuffer;
use crate::page_cache;
use crate::pager::{DEFAULT_SPIN, Pager, PagerConfig, PagerError};
use crate::region::MemoryRegion;
use crate::source::{Page, PageSource, PageSourceError};
use crate::working_set::{WorkingSet, WorkingSetError};

/// Lengths of runs of pages, again and again, each followed by a page that is not in the set: about
/// what recordings of functions have (1.4 pages on average).
const RUN_PAGES: [u64; 8] = [1, 2, 1, 1, 3, 1, 1, 1];

/// Far enough from one run to the next that the order is no order.
const STRIDE: usize = 7919;

/// Why an install could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The working set cannot be written or opened.
    #[error(transparent)]
    WorkingSet(#[from] WorkingSetError),
    /// It cannot be kept out of the page cache, or there is no memory for it.
    #[error("cannot prepare an install to be measured")]
    Prepare(#[source] io::Error),
    /// There is no pager.
    #[error(transparent)]
    Pager(#[from] PagerError),
    /// The install failed.
    #[error(transparent)]
    Install(#[from] Arc<InstallError>),
}

/// A working set on the disk that is to be measured, and the size of the memory it belongs to.
#[derive(Debug)]
pub struct InstallTrial {
    path: PathBuf,
    memory_bytes: u64,
    set_bytes: u64,
}

impl InstallTrial {
    fn id() -> SnapshotId {
        SnapshotId::from_bytes([0x7a; 16])
    }

    /// Writes a working set of about `set_bytes` to `path`, in runs as recordings have them.
    ///
    /// # Errors
    /// [`TrialError::WorkingSet`].
    pub fn create(path: &Path, set_bytes: u64) -> Result<Self, TrialError> {
        let wanted_pages = set_bytes / PAGE_SIZE_BYTES;
        let mut runs = Vec::new();
        let (mut page, mut pages) = (0, 0);
        for run_pages in RUN_PAGES.iter().cycle() {
            if pages >= wanted_pages {
                break;
            }
            runs.push(page..page + run_pages);
            page += run_pages + 1;
            pages += run_pages;
        }
        let stride = if runs.len().is_multiple_of(STRIDE) {
            1
        } else {
            STRIDE
        };
        let gpas: Vec<u64> = (0..runs.len())
            .flat_map(|n| runs[n * stride % runs.len()].clone())
            .map(|page| page * PAGE_SIZE_BYTES)
            .collect();
        WorkingSet::write(path, &Self::id(), &gpas, &mut Noise::default())?;
        Ok(Self {
            path: path.to_owned(),
            memory_bytes: (page * PAGE_SIZE_BYTES).max(PAGE_SIZE_BYTES),
            set_bytes: pages * PAGE_SIZE_BYTES,
        })
    }

    /// Bytes of its pages.
    #[must_use]
    pub fn set_bytes(&self) -> u64 {
        self.set_bytes
    }

    /// Installs it beside a pager, out of a cold page cache, and returns what that took.
    ///
    /// # Errors
    /// See [`TrialError`].
    pub fn run(&self, options: InstallOptions) -> Result<InstallReport, TrialError> {
        page_cache::evict(&self.path)
            .map_err(|error| TrialError::Prepare(io::Error::other(error)))?;
        let working_set = WorkingSet::open(&self.path, &Self::id(), self.memory_bytes)?;
        let mut memory =
            PageBuffer::of_small_pages(self.memory_bytes).map_err(TrialError::Prepare)?;
        let config = PagerConfig {
            regions: vec![MemoryRegion {
                gpa: 0,
                hva: memory.as_mut_slice().as_mut_ptr() as u64,
                size_bytes: self.memory_bytes,
                file_offset: 0,
            }],
            source: Box::new(Noise::default()),
            record: false,
            trace_records: None,
            phase: Arc::default(),
            hooks: PagerHooks::default(),
            spin: DEFAULT_SPIN,
            // The install says what is wrong.
            on_failure: Box::new(drop),
        };
        // SAFETY: the buffer is a private anonymous mapping that nobody else uses, and it is
        // dropped after the pager.
        let mut pager = unsafe { Pager::new_unregistered(config) }?;
        let install = Install {
            working_set: Arc::new(working_set),
            memory: None,
            options,
        };
        if options.method.needs_unregistered_memory() {
            // SAFETY: nobody touches the buffer.
            return Ok(unsafe { pager.install_unregistered(&install) }.map_err(Arc::new)?);
        }
        pager.start()?;
        Ok(pager.install(install)?)
    }
}

/// Pages that are neither zeros nor one page again and again: some disks keep those elsewhere.
struct Noise {
    state: u64,
    page: Box<[u8; PAGE_SIZE]>,
}

impl Default for Noise {
    fn default() -> Self {
        Self {
            state: 0x9e37_79b9_7f4a_7c15,
            page: Box::new([0; PAGE_SIZE]),
        }
    }
}

impl PageSource for Noise {
    fn read_page(&mut self, _gpa: u64) -> Result<Page<'_>, PageSourceError> {
        for word in self.page.chunks_exact_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            word.copy_from_slice(&self.state.to_le_bytes());
        }
        Ok(Page::Data(&self.page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::{InstallMethod, ReadPath};

    #[test]
    fn every_page_is_read_from_the_disk_and_installed_by_what_was_asked_for() {
        // On a disk, because a memory file system evicts nothing.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("set");
        let trial = InstallTrial::create(&path, 3 << 20).unwrap();
        let pages = trial.set_bytes() / PAGE_SIZE_BYTES;
        assert!((768..776).contains(&pages), "{pages}");
        let file_bytes = std::fs::metadata(&path).unwrap().len();
        for method in [
            InstallMethod::Streamed,
            InstallMethod::OneRead,
            InstallMethod::Moved,
            InstallMethod::Direct,
        ] {
            let report = trial.run(InstallOptions::new(method)).unwrap();
            assert_eq!((report.method, report.pages), (method, pages));
            assert_eq!(report.bytes_read, file_bytes);
            assert_ne!(report.read_path, ReadPath::PageCache, "{method}");
            // Runs as recordings have them, and not in the order of memory.
            assert!(report.extents * 4 > pages * 2, "{}", report.extents);
        }
    }

    #[test]
    fn a_set_that_is_gone_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("set");
        let trial = InstallTrial::create(&path, 4096).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(trial.run(InstallOptions::default()).is_err());
        assert!(InstallTrial::create(&dir.path().join("no/where"), 4096).is_err());
    }
}
