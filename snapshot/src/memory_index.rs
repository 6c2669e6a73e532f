//! The `memory-index` file: which pages of guest memory are zero, which a diff leaves to its base,
//! and the CRC32C of each page.
//!
//! Layout, all integers little-endian:
//!
//! ```text
//! header    magic 8 | layout version u32 | page size u32 | snapshot id 16 | page count u64 |
//!           crc32c u32, of everything before it and everything after it
//! data      a bit a page, least significant first, padded with zeros to a byte: 1 is a data page
//! unchanged only in layout 2, that of a diff: as above, 1 is a page that is as in the base
//! checksums a u32 a page
//! ```
//!
//! Zero pages have a checksum too, always the same, and so have unchanged ones, 0: a page's place
//! in the list is then its number, and looking one up while a vCPU waits costs no counting.

use crate::checksum::{Crc32c, crc32c};
use crate::id::SnapshotId;
use crate::limits::{MAX_MEMORY_BYTES, PAGE_BYTES, PAGE_SIZE};

const MAGIC: [u8; 8] = *b"RVMINDEX";
/// The layout of a snapshot that holds all pages.
const LAYOUT_VERSION: u32 = 1;
/// The layout of a diff.
const DIFF_LAYOUT_VERSION: u32 = 2;
const ID_AT: usize = 16;
const PAGE_COUNT_AT: usize = 32;
const CRC_AT: usize = 40;
const HEADER_BYTES: usize = 44;
const MAX_PAGES: u64 = MAX_MEMORY_BYTES / PAGE_BYTES;

/// The CRC32C of a page of zeros.
pub(crate) const ZERO_PAGE_CRC32C: u32 = 0x98f9_4189;
static ZERO_PAGE: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// Why a memory index is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryIndexError {
    /// The bytes are not a memory index.
    #[error("not a memory index: it does not begin with its magic number")]
    Magic,
    /// The layout of the file is of another version.
    #[error(
        "the memory index has layout version {found}, this program reads {LAYOUT_VERSION} and {DIFF_LAYOUT_VERSION}: create the snapshot again"
    )]
    Layout {
        /// The version found.
        found: u32,
    },
    /// It was made for pages of another size.
    #[error("the memory index is for pages of {found_bytes} bytes, this program uses {PAGE_SIZE}")]
    PageSize {
        /// The size found.
        found_bytes: u32,
    },
    /// The file is shorter or longer than it says.
    #[error("the memory index has {actual_bytes} bytes where {expected_bytes} were expected")]
    Length {
        /// The length that its header asks for.
        expected_bytes: u64,
        /// The length that is there.
        actual_bytes: u64,
    },
    /// It has more pages than a snapshot can have.
    #[error("the memory index has {page_count} pages: the most is {MAX_PAGES}")]
    TooManyPages {
        /// The number of pages.
        page_count: u64,
    },
    /// Its checksum does not match.
    #[error("the memory index is damaged: crc32c {actual:08x} instead of {expected:08x}")]
    Checksum {
        /// The checksum in the file.
        expected: u32,
        /// The checksum of what is there.
        actual: u32,
    },
    /// It belongs to another snapshot.
    #[error("the memory index belongs to snapshot {found}, not to {expected}")]
    OtherSnapshot {
        /// The id in the file.
        found: SnapshotId,
        /// The id of the snapshot.
        expected: SnapshotId,
    },
    /// It marks a page after the last one.
    #[error("the memory index marks page {page_index}, which does not exist")]
    NoSuchPage {
        /// The page.
        page_index: u64,
    },
    /// It says of a page that it holds data and that it is as in the base.
    #[error("the memory index contradicts itself about page {page_index}")]
    Contradiction {
        /// The page.
        page_index: u64,
    },
    /// It does not fit in memory.
    #[error("no memory for the {len_bytes} bytes of a memory index")]
    NoMemory {
        /// Its length.
        len_bytes: u64,
    },
}

/// Why a page is not the page that was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// There is no such page.
    #[error("page {page_index} is not one of the {page_count} pages of the memory file")]
    OutOfRange {
        /// The page asked for.
        page_index: u64,
        /// How many there are.
        page_count: u64,
    },
    /// What was given is not a page.
    #[error("a page has {PAGE_SIZE} bytes, not {actual_bytes}")]
    Length {
        /// The length given.
        actual_bytes: usize,
    },
    /// A zero page is not zero.
    #[error("page {page_index} of the memory file is damaged: it was saved as zeros and is not")]
    NotZero {
        /// The page.
        page_index: u64,
    },
    /// The page is not in this snapshot, which is a diff.
    #[error("page {page_index} is not in this diff but in its base: merge the two")]
    Unchanged {
        /// The page.
        page_index: u64,
    },
    /// There is something in a diff where it has nothing.
    #[error(
        "page {page_index} of the memory file is damaged: the diff leaves it to its base, but there is something in it"
    )]
    NotEmpty {
        /// The page.
        page_index: u64,
    },
    /// A data page has another checksum.
    #[error(
        "page {page_index} of the memory file is damaged: crc32c {actual:08x} instead of {expected:08x}"
    )]
    Checksum {
        /// The page.
        page_index: u64,
        /// The checksum when it was saved.
        expected: u32,
        /// The checksum of what is there.
        actual: u32,
    },
}

/// What a snapshot has of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Nothing but zeros: a hole in the memory file.
    Zero,
    /// It is in the memory file.
    Data,
    /// It is as in the base of this diff, whose memory file has a hole in its place.
    Unchanged,
}

/// Which pages of guest memory are zero, which a diff leaves to its base, and the CRC32C of each
/// page.
///
/// A page is named by its place in the memory file: its file offset divided by the page size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryIndex {
    snapshot_id: SnapshotId,
    page_count: u64,
    layout: Layout,
    zero_page_count: u64,
    unchanged_page_count: u64,
    /// The file, whole: one allocation, and nothing to convert on the way to the first fault.
    bytes: Vec<u8>,
}

impl MemoryIndex {
    /// The index in the bytes of a file, which must be that of snapshot `expected`.
    ///
    /// # Errors
    /// When the bytes are damaged, of another version, or of another snapshot.
    pub fn decode(bytes: Vec<u8>, expected: &SnapshotId) -> Result<Self, MemoryIndexError> {
        let actual_bytes = bytes.len() as u64;
        let Some((header, body)) = bytes.split_at_checked(HEADER_BYTES) else {
            return Err(MemoryIndexError::Length {
                expected_bytes: HEADER_BYTES as u64,
                actual_bytes,
            });
        };
        if header[..8] != MAGIC {
            return Err(MemoryIndexError::Magic);
        }
        let layout = Layout::of_version(read_u32(header, 8))?;
        let page_bytes = read_u32(header, 12);
        if page_bytes != PAGE_SIZE as u32 {
            return Err(MemoryIndexError::PageSize {
                found_bytes: page_bytes,
            });
        }
        let page_count = u64::from(read_u32(header, PAGE_COUNT_AT))
            | u64::from(read_u32(header, PAGE_COUNT_AT + 4)) << 32;
        if page_count > MAX_PAGES {
            return Err(MemoryIndexError::TooManyPages { page_count });
        }
        let expected_bytes = layout.encoded_bytes(page_count);
        if expected_bytes != actual_bytes {
            return Err(MemoryIndexError::Length {
                expected_bytes,
                actual_bytes,
            });
        }
        let expected_crc = read_u32(header, CRC_AT);
        let actual_crc = checksum(&header[..CRC_AT], body);
        if actual_crc != expected_crc {
            return Err(MemoryIndexError::Checksum {
                expected: expected_crc,
                actual: actual_crc,
            });
        }
        let mut id = [0; 16];
        id.copy_from_slice(&header[ID_AT..ID_AT + 16]);
        let snapshot_id = SnapshotId::from_bytes(id);
        if snapshot_id != *expected {
            return Err(MemoryIndexError::OtherSnapshot {
                found: snapshot_id,
                expected: *expected,
            });
        }
        let (bitmaps, _) = body.split_at(layout.bitmaps_bytes(page_count) as usize);
        let (data, unchanged) = bitmaps.split_at(bitmap_bytes(page_count) as usize);
        let data_pages = count_pages(data, page_count)?;
        let unchanged_page_count = count_pages(unchanged, page_count)?;
        let both = data.iter().zip(unchanged).position(|(a, b)| a & b != 0);
        if let Some(byte) = both {
            let bit = (data[byte] & unchanged[byte]).trailing_zeros();
            return Err(MemoryIndexError::Contradiction {
                page_index: byte as u64 * 8 + u64::from(bit),
            });
        }
        Ok(Self {
            snapshot_id,
            page_count,
            layout,
            // No page is counted in both.
            zero_page_count: page_count - data_pages - unchanged_page_count,
            unchanged_page_count,
            bytes,
        })
    }

    /// Whether it is that of a diff: only then can there be unchanged pages.
    #[must_use]
    pub fn is_diff(&self) -> bool {
        self.layout == Layout::Diff
    }

    /// The snapshot that it belongs to.
    #[must_use]
    pub fn snapshot_id(&self) -> SnapshotId {
        self.snapshot_id
    }

    /// How many pages there are.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.page_count
    }

    /// How many of them are zero.
    #[must_use]
    pub fn zero_page_count(&self) -> u64 {
        self.zero_page_count
    }

    /// How many of them are in the memory file.
    #[must_use]
    pub fn data_page_count(&self) -> u64 {
        self.page_count - self.zero_page_count - self.unchanged_page_count
    }

    /// How many of them are left to the base.
    #[must_use]
    pub fn unchanged_page_count(&self) -> u64 {
        self.unchanged_page_count
    }

    /// Whether a page is zero. `false` for a page that does not exist, or that is left to a base.
    #[must_use]
    pub fn is_zero(&self, page_index: u64) -> bool {
        self.page_kind(page_index) == Some(PageKind::Zero)
    }

    /// What there is of a page; none if there is no such page.
    #[must_use]
    pub fn page_kind(&self, page_index: u64) -> Option<PageKind> {
        if page_index >= self.page_count {
            return None;
        }
        let is_marked = |bitmap_at: u64| {
            let at = HEADER_BYTES + (bitmap_at + page_index / 8) as usize;
            let byte = self.bytes.get(at).copied().unwrap_or(0);
            byte >> (page_index % 8) & 1 == 1
        };
        Some(if is_marked(0) {
            PageKind::Data
        } else if self.layout == Layout::Diff && is_marked(bitmap_bytes(self.page_count)) {
            PageKind::Unchanged
        } else {
            PageKind::Zero
        })
    }

    /// The CRC32C of a page. 0 for a page that does not exist, or that is left to a base.
    #[must_use]
    pub fn page_crc32c(&self, page_index: u64) -> u32 {
        if page_index >= self.page_count {
            return 0;
        }
        read_u32(
            &self.bytes,
            self.layout.checksum_at(self.page_count, page_index),
        )
    }

    /// Checks that `page` is the page that was saved.
    ///
    /// # Errors
    /// When it is not, was left to a base, is not [`PAGE_SIZE`] bytes, or there is no such page.
    pub fn verify_page(&self, page_index: u64, page: &[u8]) -> Result<(), PageError> {
        let Some(kind) = self.page_kind(page_index) else {
            return Err(PageError::OutOfRange {
                page_index,
                page_count: self.page_count,
            });
        };
        if page.len() != PAGE_SIZE {
            return Err(PageError::Length {
                actual_bytes: page.len(),
            });
        }
        match kind {
            PageKind::Zero if is_zero_page(page) => return Ok(()),
            PageKind::Zero => return Err(PageError::NotZero { page_index }),
            PageKind::Unchanged => return Err(PageError::Unchanged { page_index }),
            PageKind::Data => {}
        }
        let (expected, actual) = (self.page_crc32c(page_index), crc32c(page));
        if actual != expected {
            return Err(PageError::Checksum {
                page_index,
                expected,
                actual,
            });
        }
        Ok(())
    }

    /// As [`verify_page`](Self::verify_page), but for what the memory file has in the page's place:
    /// nothing, if the page is left to a base.
    pub(crate) fn verify_place(&self, page_index: u64, bytes: &[u8]) -> Result<(), PageError> {
        match self.verify_page(page_index, bytes) {
            Err(PageError::Unchanged { .. }) if is_zero_page(bytes) => Ok(()),
            Err(PageError::Unchanged { .. }) => Err(PageError::NotEmpty { page_index }),
            other => other,
        }
    }
}

/// How the file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One bitmap: data or zero.
    Full,
    /// Two: a page may also be unchanged.
    Diff,
}

impl Layout {
    fn of_version(version: u32) -> Result<Self, MemoryIndexError> {
        match version {
            LAYOUT_VERSION => Ok(Self::Full),
            DIFF_LAYOUT_VERSION => Ok(Self::Diff),
            found => Err(MemoryIndexError::Layout { found }),
        }
    }

    fn version(self) -> u32 {
        match self {
            Self::Full => LAYOUT_VERSION,
            Self::Diff => DIFF_LAYOUT_VERSION,
        }
    }

    fn bitmaps_bytes(self, page_count: u64) -> u64 {
        match self {
            Self::Full => bitmap_bytes(page_count),
            Self::Diff => bitmap_bytes(page_count).saturating_mul(2),
        }
    }

    /// The length of the file for so many pages, in bytes. Saturates: no such file then exists.
    pub(crate) fn encoded_bytes(self, page_count: u64) -> u64 {
        (HEADER_BYTES as u64)
            .saturating_add(self.bitmaps_bytes(page_count))
            .saturating_add(page_count.saturating_mul(4))
    }

    fn checksum_at(self, page_count: u64, page_index: u64) -> usize {
        HEADER_BYTES + (self.bitmaps_bytes(page_count) + page_index * 4) as usize
    }
}

/// An index in the making: every page is zero until something else is said of it.
pub(crate) struct MemoryIndexBuilder {
    page_count: u64,
    layout: Layout,
    data_pages: u64,
    unchanged_pages: u64,
    bytes: Vec<u8>,
}

impl MemoryIndexBuilder {
    pub(crate) fn new(
        id: &SnapshotId,
        page_count: u64,
        layout: Layout,
    ) -> Result<Self, MemoryIndexError> {
        if page_count > MAX_PAGES {
            return Err(MemoryIndexError::TooManyPages { page_count });
        }
        let len_bytes = layout.encoded_bytes(page_count);
        let no_memory = |_| MemoryIndexError::NoMemory { len_bytes };
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(len_bytes as usize)
            .map_err(no_memory)?;
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&layout.version().to_le_bytes());
        bytes.extend_from_slice(&(PAGE_SIZE as u32).to_le_bytes());
        bytes.extend_from_slice(id.as_bytes());
        bytes.extend_from_slice(&page_count.to_le_bytes());
        bytes.resize(layout.checksum_at(page_count, 0), 0);
        for _ in 0..page_count {
            bytes.extend_from_slice(&ZERO_PAGE_CRC32C.to_le_bytes());
        }
        Ok(Self {
            page_count,
            layout,
            data_pages: 0,
            unchanged_pages: 0,
            bytes,
        })
    }

    /// Says, once, that a page holds data. The page exists: the caller has checked.
    pub(crate) fn set_data(&mut self, page_index: u64, crc32c: u32) {
        self.mark(0, page_index, crc32c);
        self.data_pages += 1;
    }

    /// Says, once, that a page is as in the base. The page exists, and this is a diff's index: the
    /// caller has checked.
    pub(crate) fn set_unchanged(&mut self, page_index: u64) {
        self.mark(bitmap_bytes(self.page_count), page_index, 0);
        self.unchanged_pages += 1;
    }

    fn mark(&mut self, bitmap_at: u64, page_index: u64, crc32c: u32) {
        let at = HEADER_BYTES + (bitmap_at + page_index / 8) as usize;
        self.bytes[at] |= 1 << (page_index % 8);
        let at = self.layout.checksum_at(self.page_count, page_index);
        self.bytes[at..at + 4].copy_from_slice(&crc32c.to_le_bytes());
    }

    pub(crate) fn data_pages(&self) -> u64 {
        self.data_pages
    }

    pub(crate) fn unchanged_pages(&self) -> u64 {
        self.unchanged_pages
    }

    /// The bytes of the file.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let crc = checksum(&self.bytes[..CRC_AT], &self.bytes[HEADER_BYTES..]);
        self.bytes[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        self.bytes
    }
}

/// Whether a page holds nothing but zeros.
pub(crate) fn is_zero_page(page: &[u8]) -> bool {
    page == ZERO_PAGE
}

fn bitmap_bytes(page_count: u64) -> u64 {
    page_count.div_ceil(8)
}

/// How many pages a bitmap marks; none of them may be after the last.
fn count_pages(bitmap: &[u8], page_count: u64) -> Result<u64, MemoryIndexError> {
    let used_bits = page_count % 8;
    if used_bits != 0 && bitmap.last().is_some_and(|last| last >> used_bits != 0) {
        return Err(MemoryIndexError::NoSuchPage {
            page_index: page_count,
        });
    }
    Ok(bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum())
}

fn checksum(before: &[u8], after: &[u8]) -> u32 {
    let mut crc = Crc32c::new();
    crc.update(before);
    crc.update(after);
    crc.finish()
}

/// The caller has checked that four bytes are there.
fn read_u32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..]
        .first_chunk()
        .copied()
        .map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests;
