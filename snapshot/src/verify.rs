//! Checking a snapshot whole: what a restore checks, and every page of guest memory.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::limits::{PAGE_BYTES, PAGE_SIZE};
use crate::memory_index::PageError;
use crate::reader::{ReadError, Snapshot};

/// The most bad pages that a [`VerifyReport`] lists; it counts all.
pub const MAX_REPORTED_BAD_PAGES: usize = 64;

/// How much of guest memory is read at once, in bytes.
const CHUNK_BYTES: u64 = 1 << 20;

/// Why a snapshot could not be checked to its end, or failed before its pages.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The state, the memory index or the memory file cannot be used at all.
    #[error("the snapshot cannot be used")]
    File(#[from] ReadError),
    /// Guest memory cannot be read to its end.
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
}

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Bytes of guest memory that have been checked.
    pub checked_bytes: u64,
    /// Bytes of guest memory that there are.
    pub total_bytes: u64,
}

/// A page of guest memory that is not as it was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPage {
    /// The guest-physical address of its first byte.
    pub gpa: u64,
    /// What is wrong with it, and its place in the memory file.
    pub error: PageError,
}

/// What a check found. The manifest, the state and the memory index were good, or there would be
/// none; see [`VerifyReport::is_intact`] for guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a report may list damaged pages"]
pub struct VerifyReport {
    /// Pages that were saved as zeros.
    pub zero_pages: u64,
    /// Pages that were saved with their contents.
    pub data_pages: u64,
    /// Pages that a diff leaves to its base, which is not looked at.
    pub unchanged_pages: u64,
    /// How many pages of any kind are damaged.
    pub bad_page_count: u64,
    /// The first [`MAX_REPORTED_BAD_PAGES`] of them.
    pub bad_pages: Vec<BadPage>,
}

impl VerifyReport {
    /// Whether every page is as it was saved.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.bad_page_count == 0
    }
}

impl Snapshot {
    /// Checks the state, the memory index and every page of guest memory.
    ///
    /// The working set and the trace are not checked here: they check themselves when they are
    /// opened.
    ///
    /// # Errors
    /// When the state or the memory index is damaged, or a file cannot be read. Damaged pages are
    /// not an error but in the report.
    pub fn verify(&self) -> Result<VerifyReport, VerifyError> {
        self.verify_with_progress(&mut |_| ())
    }

    /// As [`Snapshot::verify`]; calls `progress` after each mebibyte of guest memory.
    ///
    /// # Errors
    /// As [`Snapshot::verify`].
    pub fn verify_with_progress(
        &self,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<VerifyReport, VerifyError> {
        self.read_state()?;
        let index = self.memory_index()?;
        let memory = self.open_memory()?;
        let info = self.manifest();
        let total_bytes = info.files.memory.len_bytes;
        let mut report = VerifyReport {
            zero_pages: index.zero_page_count(),
            data_pages: index.data_page_count(),
            unchanged_pages: index.unchanged_page_count(),
            bad_page_count: 0,
            bad_pages: Vec::new(),
        };
        let mut chunk = vec![0; CHUNK_BYTES as usize];
        let mut file_offset = 0;
        while file_offset < total_bytes {
            let len_bytes = CHUNK_BYTES.min(total_bytes - file_offset);
            let pages = &mut chunk[..len_bytes as usize];
            // A hole is read like the rest: it must read as zeros, and costs no disk. So must the
            // place of a page that a diff leaves to its base.
            memory
                .read_exact_at(pages, file_offset)
                .map_err(|source| VerifyError::Io {
                    path: self.path_of(&info.files.memory),
                    file_offset,
                    source,
                })?;
            for (number, page) in pages.chunks_exact(PAGE_SIZE).enumerate() {
                let page_index = file_offset / PAGE_BYTES + number as u64;
                let Err(error) = index.verify_place(page_index, page) else {
                    continue;
                };
                report.bad_page_count += 1;
                if report.bad_pages.len() < MAX_REPORTED_BAD_PAGES {
                    // Regions tile the memory file, so every page has an address.
                    let gpa = info
                        .memory
                        .gpa_of_page_index(page_index)
                        .unwrap_or(u64::MAX);
                    report.bad_pages.push(BadPage { gpa, error });
                }
            }
            file_offset += len_bytes;
            progress(VerifyProgress {
                checked_bytes: file_offset,
                total_bytes,
            });
        }
        Ok(report)
    }
}
