//! A source with several users.

use std::sync::{Arc, Mutex};

use reapvm_snapshot::PAGE_SIZE;

use super::{Page, PageSource, PageSourceError};

/// A handle of a source that others read too, one page at a time: the pager serves from it while
/// somebody else saves the machine.
///
/// Each handle copies the page that it gives. A source that has panicked is asked no more.
pub struct SharedSource {
    source: Arc<Mutex<dyn PageSource>>,
    page: Box<[u8; PAGE_SIZE]>,
}

impl SharedSource {
    /// The first handle of `source`; clone it for others.
    #[must_use]
    pub fn new(source: impl PageSource + 'static) -> Self {
        Self {
            source: Arc::new(Mutex::new(source)),
            page: Box::new([0; PAGE_SIZE]),
        }
    }
}

impl Clone for SharedSource {
    fn clone(&self) -> Self {
        Self {
            source: Arc::clone(&self.source),
            page: Box::new([0; PAGE_SIZE]),
        }
    }
}

impl PageSource for SharedSource {
    fn read_page(&mut self, gpa: u64) -> Result<Page<'_>, PageSourceError> {
        let mut source = self.source.lock().map_err(|_| PageSourceError::Other {
            gpa,
            source: "it panicked before".into(),
        })?;
        match source.read_page(gpa)? {
            Page::Zero => Ok(Page::Zero),
            Page::Data(bytes) => {
                self.page.copy_from_slice(bytes);
                Ok(Page::Data(&self.page))
            }
        }
    }
}
