//! Reading guest memory from a snapshot, each page checked.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use crate::limits::{PAGE_BYTES, PAGE_SIZE};
use crate::memory_index::{MemoryIndex, PageError};
use crate::reader::{ReadError, Snapshot};

/// Why pages of a snapshot's memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryReadError {
    /// The memory file or the memory index cannot be used at all.
    #[error(transparent)]
    File(#[from] ReadError),
    /// The memory file cannot be read.
    #[error("cannot read {path} at offset {file_offset:#x}")]
    Io {
        /// The memory file.
        path: PathBuf,
        /// Where.
        file_offset: u64,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A page is not what was saved, or is not in this snapshot.
    #[error("cannot use {path}")]
    Page {
        /// The memory file.
        path: PathBuf,
        /// Which page, and what is wrong with it.
        #[source]
        source: PageError,
    },
}

/// Guest memory of a snapshot, open for reading. Nothing that it gives is unchecked.
///
/// The memory file is opened at once and stays open, so that it can still be read after another
/// snapshot has taken its place. The index is read when the first page is asked for: who never
/// asks, as a machine that is restored in another way, does not wait for it.
#[derive(Debug)]
pub struct MemoryReader {
    snapshot: Arc<Snapshot>,
    file: File,
    index: OnceLock<MemoryIndex>,
}

impl MemoryReader {
    /// Opens the memory of `snapshot`.
    ///
    /// # Errors
    /// When it cannot be opened, or has another length than when it was written.
    pub fn open(snapshot: Arc<Snapshot>) -> Result<Self, ReadError> {
        let file = snapshot.open_memory()?;
        Ok(Self {
            snapshot,
            file,
            index: OnceLock::new(),
        })
    }

    /// The snapshot whose memory it is.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// The index of the pages; read from its file by the first call.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or belongs to another snapshot.
    pub fn index(&self) -> Result<&MemoryIndex, ReadError> {
        if let Some(index) = self.index.get() {
            return Ok(index);
        }
        let index = self.snapshot.memory_index()?;
        // Should two threads read it at once, they read the same.
        Ok(self.index.get_or_init(|| index))
    }

    /// Reads pages from `first_page_index` on into `pages`, whole pages, and checks each.
    ///
    /// # Errors
    /// When they cannot be read, or one is not what was saved; `pages` then holds nothing that may
    /// be used.
    pub fn read_pages(
        &self,
        first_page_index: u64,
        pages: &mut [u8],
    ) -> Result<(), MemoryReadError> {
        let index = self.index()?;
        let path = || {
            self.snapshot
                .path_of(&self.snapshot.manifest().files.memory)
        };
        let page_error = |source| MemoryReadError::Page {
            path: path(),
            source,
        };
        let file_offset =
            first_page_index
                .checked_mul(PAGE_BYTES)
                .ok_or_else(|| PageError::OutOfRange {
                    page_index: first_page_index,
                    page_count: index.page_count(),
                });
        let file_offset = file_offset.map_err(page_error)?;
        self.file
            .read_exact_at(pages, file_offset)
            .map_err(|source| MemoryReadError::Io {
                path: path(),
                file_offset,
                source,
            })?;
        for (page_index, page) in (first_page_index..).zip(pages.chunks(PAGE_SIZE)) {
            index.verify_page(page_index, page).map_err(page_error)?;
        }
        Ok(())
    }
}
