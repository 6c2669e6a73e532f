//! A source whose pages are compared with what was saved.

use std::sync::{Arc, OnceLock};

use reapvm_snapshot::{MemoryIndex, PAGE_SIZE, Snapshot};

use super::{Page, PageSource, PageSourceError};

static ZERO_PAGE: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// The pages of another source, each compared with the CRC32C that the snapshot's index has of it.
///
/// The snapshot's memory file is not looked at. Its index is read at the first page. Pages that the
/// index knows to be zero are not asked of the source.
pub struct VerifiedSource<S> {
    source: S,
    snapshot: Arc<Snapshot>,
    index: OnceLock<MemoryIndex>,
}

impl<S: PageSource> VerifiedSource<S> {
    /// The pages of `source`, which has to give those of `snapshot`.
    #[must_use]
    pub fn new(source: S, snapshot: Arc<Snapshot>) -> Self {
        Self {
            source,
            snapshot,
            index: OnceLock::new(),
        }
    }
}

impl<S: PageSource> PageSource for VerifiedSource<S> {
    fn read_page(&mut self, gpa: u64) -> Result<Page<'_>, PageSourceError> {
        let index = match self.index.get() {
            Some(index) => index,
            None => {
                let index = self
                    .snapshot
                    .memory_index()
                    .map_err(PageSourceError::Snapshot)?;
                self.index.get_or_init(|| index)
            }
        };
        let page_index = self
            .snapshot
            .manifest()
            .memory
            .page_index_of_gpa(gpa)
            .ok_or(PageSourceError::OutOfRange { gpa })?;
        if index.is_zero(page_index) {
            return Ok(Page::Zero);
        }
        let page = self.source.read_page(gpa)?;
        let bytes = match page {
            Page::Zero => &ZERO_PAGE,
            Page::Data(bytes) => bytes,
        };
        index
            .verify_page(page_index, bytes)
            .map_err(|source| PageSourceError::NotAsSaved { gpa, source })?;
        Ok(page)
    }
}
