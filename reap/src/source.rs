//! Where the contents of guest pages come from.

mod shared;
mod verified;

use std::error::Error;
use std::io;
use std::sync::Arc;

use reapvm_snapshot::{MemoryReadError, MemoryReader, PAGE_SIZE, PageError, ReadError, Snapshot};

use crate::PAGE_SIZE_BYTES;

pub use shared::SharedSource;
pub use verified::VerifiedSource;

/// The contents of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page<'a> {
    /// All bytes are zero.
    Zero,
    /// These bytes.
    Data(&'a [u8; PAGE_SIZE]),
}

impl<'a> Page<'a> {
    /// `bytes` as the page at guest-physical address `gpa`: for a source whose pages come from
    /// where they could have any length.
    ///
    /// # Errors
    /// [`PageSourceError::WrongLength`] when they are not one page.
    pub fn from_bytes(gpa: u64, bytes: &'a [u8]) -> Result<Self, PageSourceError> {
        match bytes.try_into() {
            Ok(bytes) => Ok(Self::Data(bytes)),
            Err(_) => Err(PageSourceError::WrongLength {
                gpa,
                actual_bytes: bytes.len(),
            }),
        }
    }
}

/// Why a page could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PageSourceError {
    /// The address is in no region of the snapshot's memory.
    #[error("the snapshot has no memory at guest address {gpa:#x}")]
    OutOfRange {
        /// The guest-physical address asked for.
        gpa: u64,
    },
    /// The page cannot be read.
    #[error(
        "cannot read the page at guest address {gpa:#x} (offset {file_offset} of the snapshot's \
         `memory`)"
    )]
    Read {
        /// The page's guest-physical address.
        gpa: u64,
        /// Where the page is in the file.
        file_offset: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The page is not what the snapshot was made with.
    #[error(
        "the page at guest address {gpa:#x} is damaged (offset {file_offset} of the snapshot's \
         `memory`): create the snapshot again"
    )]
    Corrupt {
        /// The page's guest-physical address.
        gpa: u64,
        /// Where the page is in the file.
        file_offset: u64,
        /// What does not hold.
        #[source]
        source: PageError,
    },
    /// The memory file or its index cannot be opened or read.
    #[error("cannot use the memory of the snapshot")]
    Snapshot(#[source] ReadError),
    /// A source of another kind gave something that is not a page.
    #[error(
        "the page source gave {actual_bytes} bytes for guest address {gpa:#x}: a page has \
         {PAGE_SIZE}"
    )]
    WrongLength {
        /// The page's guest-physical address.
        gpa: u64,
        /// The length of what it gave.
        actual_bytes: usize,
    },
    /// A source of another kind gave a page that the snapshot was not made with.
    #[error("the page source gave another page for guest address {gpa:#x} than was saved")]
    NotAsSaved {
        /// The page's guest-physical address.
        gpa: u64,
        /// What does not hold.
        #[source]
        source: PageError,
    },
    /// A failure of another kind of source.
    #[error("the page source failed for guest address {gpa:#x}")]
    Other {
        /// The page's guest-physical address.
        gpa: u64,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Gives the contents of guest pages, one at a time: of a snapshot on disk ([`SnapshotPageSource`]),
/// of a compressed file, of another process or host.
///
/// It is called on the pager's thread, while a thread of the guest waits for the page. So an
/// implementation must not touch guest memory, where it would wait for itself, and it has to come
/// back: a source that waits for a network needs a limit of its own. An error or a panic ends the
/// virtual machine with an error that names the page; nothing takes the page's place. Whether the
/// pages are the ones that were saved is not looked at: wrap the source in a [`VerifiedSource`] for
/// that.
///
/// # Examples
/// ```
/// use reapvm_reap::{Page, PageSource, PageSourceError};
///
/// /// Pages that are in memory already, in the order of their guest addresses.
/// struct InMemory(Vec<u8>);
///
/// impl PageSource for InMemory {
///     fn read_page(&mut self, gpa: u64) -> Result<Page<'_>, PageSourceError> {
///         let rest = self.0.get(gpa as usize..).unwrap_or_default();
///         let length = rest.len().min(4096);
///         // What is not a whole page is an error.
///         Page::from_bytes(gpa, &rest[..length])
///     }
/// }
/// ```
pub trait PageSource: Send {
    /// The page at guest-physical address `gpa`, a multiple of the page size, as it was when the
    /// snapshot was made.
    ///
    /// # Errors
    /// When there is no such page, it cannot be had, or it is not what it was.
    fn read_page(&mut self, gpa: u64) -> Result<Page<'_>, PageSourceError>;
}

impl<S: PageSource + ?Sized> PageSource for Box<S> {
    fn read_page(&mut self, gpa: u64) -> Result<Page<'_>, PageSourceError> {
        (**self).read_page(gpa)
    }
}

/// The pages of a snapshot on disk, each verified against its CRC32C.
///
/// The index of the checksums is read at the first page, so that making one costs only the
/// opening of a file. Pages that the index knows to be zero are not read.
pub struct SnapshotPageSource {
    memory: Arc<MemoryReader>,
    page: Box<[u8; PAGE_SIZE]>,
}

impl SnapshotPageSource {
    /// The pages of `snapshot`.
    ///
    /// # Errors
    /// When the memory file cannot be opened.
    pub fn new(snapshot: Arc<Snapshot>) -> Result<Self, PageSourceError> {
        let memory = MemoryReader::open(snapshot).map_err(PageSourceError::Snapshot)?;
        Ok(Self::from(Arc::new(memory)))
    }
}

impl From<Arc<MemoryReader>> for SnapshotPageSource {
    /// The pages that `memory` gives, which others may read too.
    fn from(memory: Arc<MemoryReader>) -> Self {
        Self {
            memory,
            page: Box::new([0; PAGE_SIZE]),
        }
    }
}

impl PageSource for SnapshotPageSource {
    fn read_page(&mut self, gpa: u64) -> Result<Page<'_>, PageSourceError> {
        let index = self.memory.index().map_err(PageSourceError::Snapshot)?;
        let page_index = self
            .memory
            .snapshot()
            .manifest()
            .memory
            .page_index_of_gpa(gpa)
            .ok_or(PageSourceError::OutOfRange { gpa })?;
        if index.is_zero(page_index) {
            return Ok(Page::Zero);
        }
        let file_offset = page_index * PAGE_SIZE_BYTES;
        self.memory
            .read_pages(page_index, &mut self.page[..])
            .map_err(|error| match error {
                MemoryReadError::File(source) => PageSourceError::Snapshot(source),
                MemoryReadError::Io { source, .. } => PageSourceError::Read {
                    gpa,
                    file_offset,
                    source,
                },
                MemoryReadError::Page { source, .. } => PageSourceError::Corrupt {
                    gpa,
                    file_offset,
                    source,
                },
            })?;
        Ok(Page::Data(&self.page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reapvm_snapshot::{
        HostInfo, MEMORY_FILE, ManifestParts, RegionInfo, SnapshotWriter, StateFile,
    };
    use std::fs::OpenOptions;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    /// Two regions in the reverse order of their addresses: the page at 0x1000 is zero.
    fn write_snapshot(dir: &Path) -> Arc<Snapshot> {
        let mut writer = SnapshotWriter::create(dir).unwrap();
        writer.write_state(&StateFile::new()).unwrap();
        let mut memory = writer.memory_writer(3 * PAGE_SIZE_BYTES).unwrap();
        memory.write_pages(0, &[0xaa; PAGE_SIZE]).unwrap();
        memory.write_pages(4096, &[0xbb; PAGE_SIZE]).unwrap();
        memory.write_zero_pages(8192, PAGE_SIZE_BYTES).unwrap();
        memory.finish().unwrap();
        let region = |gpa, size_bytes, file_offset| RegionInfo {
            gpa,
            size_bytes,
            file_offset,
        };
        writer
            .finish(ManifestParts {
                creator: "test".to_owned(),
                vm: serde_json::json!({}),
                host: HostInfo {
                    cpu_vendor: String::new(),
                    cpu_model: String::new(),
                    kernel_release: String::new(),
                },
                regions: vec![region(0x10_0000, 4096, 0), region(0, 8192, 4096)],
                booted_resident_bytes: 0,
            })
            .unwrap();
        Arc::new(Snapshot::open(dir).unwrap())
    }

    #[test]
    fn pages_are_found_by_guest_address_and_zero_pages_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut source = SnapshotPageSource::new(write_snapshot(&dir.path().join("s"))).unwrap();
        assert_eq!(
            source.read_page(0x10_0000).unwrap(),
            Page::Data(&[0xaa; 4096])
        );
        assert_eq!(source.read_page(0).unwrap(), Page::Data(&[0xbb; 4096]));
        assert_eq!(source.read_page(0x1000).unwrap(), Page::Zero);
        for gpa in [0x2000, 0x10_1000, u64::MAX - 0xfff] {
            assert!(matches!(
                source.read_page(gpa),
                Err(PageSourceError::OutOfRange { .. })
            ));
        }
    }

    #[test]
    fn a_memory_file_that_shrinks_is_an_error_not_a_page_of_zeroes() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("s");
        let snapshot = write_snapshot(&dir);
        let mut source = SnapshotPageSource::new(snapshot).unwrap();
        let memory = OpenOptions::new()
            .write(true)
            .open(dir.join(MEMORY_FILE))
            .unwrap();
        // In the middle of the page at file offset 4096.
        memory.set_len(PAGE_SIZE_BYTES + 100).unwrap();
        let error = source.read_page(0).unwrap_err();
        assert!(
            matches!(
                &error,
                PageSourceError::Read { gpa: 0, file_offset: PAGE_SIZE_BYTES, source }
                    if source.kind() == io::ErrorKind::UnexpectedEof
            ),
            "{error:?}"
        );
        assert!(matches!(source.read_page(0x10_0000), Ok(Page::Data(_))));
    }

    #[test]
    fn a_damaged_page_is_refused_with_its_guest_address() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("s");
        let snapshot = write_snapshot(&dir);
        let memory = OpenOptions::new()
            .write(true)
            .open(dir.join(MEMORY_FILE))
            .unwrap();
        memory.write_all_at(&[0xab], 17).unwrap();
        let mut source = SnapshotPageSource::new(snapshot).unwrap();
        let error = source.read_page(0x10_0000).unwrap_err();
        assert!(matches!(
            error,
            PageSourceError::Corrupt { gpa: 0x10_0000, .. }
        ));
        assert!(error.to_string().contains("0x100000"), "{error}");
        assert_eq!(source.read_page(0).unwrap(), Page::Data(&[0xbb; 4096]));
    }
}
