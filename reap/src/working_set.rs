//! The working-set file: the pages that an invocation touched, packed in the order in which they
//! are installed.
//!
//! # Format, version 1
//! All numbers are little-endian. A header of 64 bytes:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `REAPVMWS` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | flags, zero |
//! | 16 | 16 | id of the snapshot that the working set belongs to |
//! | 32 | 8 | number of extents |
//! | 40 | 8 | number of pages |
//! | 48 | 8 | offset of the pages: the first multiple of 4096 after the tables |
//! | 56 | 4 | CRC32C of all bytes before the pages but these four |
//! | 60 | 4 | zero |
//!
//! Then the extents, 16 bytes each (guest-physical address, number of pages), in the order of
//! installation; then the CRC32C of each page, 4 bytes each; zeroes up to the next multiple of
//! 4096; then the pages in the order of the extents. The file ends with the last page, so its
//! length is a multiple of 4096 and all of it can be read with O_DIRECT at once.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use reapvm_snapshot::checksum::{Crc32c, crc32c};
use reapvm_snapshot::files::{self, ReplaceFileError};
use reapvm_snapshot::{PAGE_SIZE, SnapshotId};

use crate::PAGE_SIZE_BYTES;
use crate::extents::{Extent, check_extents, merge_first_touch};
use crate::regular_file;
use crate::source::{Page, PageSource, PageSourceError};
use crate::wire::{array_at, u32_at, u64_at};
use crate::working_set_reader::WorkingSetReader;

const MAGIC: [u8; 8] = *b"REAPVMWS";
const VERSION: u32 = 1;
pub(crate) const HEADER_BYTES: usize = 64;
const CRC_OFFSET: usize = 56;
const EXTENT_BYTES: u64 = 16;
const PAGE_CRC_BYTES: u64 = 4;

/// Why a working set was not written, not read or is refused.
#[derive(Debug, thiserror::Error)]
pub enum WorkingSetError {
    /// There is no working set.
    #[error("there is no working set {path}: invoke once with memory mode record to make one")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read the working set {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file cannot be read past the page cache, which a prefetch needs.
    #[error(
        "the file system of {path} ({filesystem}) cannot read it with O_DIRECT, as a prefetch \
         does: use memory mode ondemand, or move the snapshot to another file system"
    )]
    NoDirectIo {
        /// The file.
        path: PathBuf,
        /// Name of the file system, or its magic number.
        filesystem: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no memory for the file's contents.
    #[error("no memory for the {len_bytes} bytes of the working set {path}")]
    NoMemory {
        /// The file.
        path: PathBuf,
        /// Its length.
        len_bytes: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file was not written; an older one is untouched.
    #[error("cannot write the working set {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReplaceFileError,
    },
    /// A page for the file could not be had; an older file is untouched.
    #[error("cannot write the working set {path}: a page of it cannot be had")]
    Source {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: PageSourceError,
    },
    /// The file is of another version.
    #[error(
        "the working set {path} is of version {version}, this program reads version {VERSION}: \
         record again"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The working set was recorded from another snapshot.
    #[error(
        "the working set {path} belongs to snapshot {found}, not to this one ({expected}): record \
         again"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The snapshot it belongs to.
        found: SnapshotId,
        /// The snapshot it was opened for.
        expected: SnapshotId,
    },
    /// The file ends too early.
    #[error("the working set {path} is truncated: record again")]
    Truncated {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged, or is no working set.
    #[error("the working set {path} is damaged ({reason}): record again")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        reason: String,
    },
    /// A page in the file is damaged.
    #[error(
        "the working set {path} is damaged (checksum of the page at guest address {gpa:#x}): \
         record again"
    )]
    CorruptPage {
        /// The file.
        path: PathBuf,
        /// The page's guest-physical address.
        gpa: u64,
    },
}

/// What is wrong with the bytes of a working set; [`WorkingSetError`] adds the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Defect {
    Version(u32),
    Foreign {
        found: SnapshotId,
        expected: SnapshotId,
    },
    Truncated,
    Corrupt(String),
}

impl Defect {
    pub(crate) fn at(self, path: &Path) -> WorkingSetError {
        let path = path.to_owned();
        match self {
            Self::Version(version) => WorkingSetError::Version { path, version },
            Self::Foreign { found, expected } => WorkingSetError::Foreign {
                path,
                found,
                expected,
            },
            Self::Truncated => WorkingSetError::Truncated { path },
            Self::Corrupt(reason) => WorkingSetError::Corrupt { path, reason },
        }
    }
}

/// The header, checked against the file's length, the snapshot and the size of guest memory: what
/// it says bounds every allocation that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: SnapshotId,
    pub(crate) extent_count: u64,
    pub(crate) page_count: u64,
    pub(crate) data_offset: u64,
    crc32c: u32,
}

impl Header {
    /// Checks the first bytes of a file of `len_bytes`, for the snapshot `expected` with
    /// `memory_bytes` of guest memory.
    pub(crate) fn decode(
        bytes: &[u8],
        len_bytes: u64,
        expected: &SnapshotId,
        memory_bytes: u64,
    ) -> Result<Self, Defect> {
        let corrupt = |reason: &str| Defect::Corrupt(reason.to_owned());
        let magic: [u8; 8] = array_at(bytes, 0).ok_or(Defect::Truncated)?;
        if magic != MAGIC {
            return Err(corrupt("it does not begin as a working set does"));
        }
        let version = u32_at(bytes, 8).ok_or(Defect::Truncated)?;
        if version != VERSION {
            return Err(Defect::Version(version));
        }
        let flags = u32_at(bytes, 12).ok_or(Defect::Truncated)?;
        if flags != 0 {
            return Err(corrupt("it has unknown flags"));
        }
        let header = Self {
            id: SnapshotId::from_bytes(array_at(bytes, 16).ok_or(Defect::Truncated)?),
            extent_count: u64_at(bytes, 32).ok_or(Defect::Truncated)?,
            page_count: u64_at(bytes, 40).ok_or(Defect::Truncated)?,
            data_offset: u64_at(bytes, 48).ok_or(Defect::Truncated)?,
            crc32c: u32_at(bytes, CRC_OFFSET).ok_or(Defect::Truncated)?,
        };
        if bytes.len() < HEADER_BYTES {
            return Err(Defect::Truncated);
        }
        if header.id != *expected {
            return Err(Defect::Foreign {
                found: header.id,
                expected: *expected,
            });
        }
        // These bounds also keep the arithmetic below from overflowing.
        if header.page_count > memory_bytes / PAGE_SIZE_BYTES {
            return Err(corrupt("it has more pages than the guest's memory"));
        }
        if header.extent_count > header.page_count {
            return Err(corrupt("it has more extents than pages"));
        }
        if header.data_offset != data_offset(header.extent_count, header.page_count) {
            return Err(corrupt("its pages do not begin where its tables end"));
        }
        let expected_bytes = header.len_bytes();
        if len_bytes < expected_bytes {
            return Err(Defect::Truncated);
        }
        if len_bytes > expected_bytes {
            return Err(corrupt("it is longer than its header says"));
        }
        Ok(header)
    }

    /// Length of the whole file.
    pub(crate) fn len_bytes(&self) -> u64 {
        // Saturates only for a memory size that no machine has; no file is that long.
        self.data_offset
            .saturating_add(self.page_count.saturating_mul(PAGE_SIZE_BYTES))
    }
}

/// Offset of the pages in a file with so many extents and pages, each at most 2^52.
fn data_offset(extent_count: u64, page_count: u64) -> u64 {
    (HEADER_BYTES as u64 + extent_count * EXTENT_BYTES + page_count * PAGE_CRC_BYTES)
        .next_multiple_of(PAGE_SIZE_BYTES)
}

/// The checked description of a working set: which pages, in which order, in which file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkingSet {
    snapshot_id: SnapshotId,
    extents: Vec<Extent>,
    /// In the order of the pages in the file.
    page_crc32cs: Vec<u32>,
    data_offset: u64,
}

impl WorkingSet {
    /// Writes the working set of the snapshot `id` to `path`, replacing an older one at once.
    ///
    /// `first_touch_gpas` are the guest-physical addresses of the recorded pages in the order of
    /// first touch. The contents come from `source`: they are the snapshot's, not those of the
    /// guest that was recorded, which has changed them since.
    ///
    /// # Errors
    /// When a page cannot be had or the file cannot be written; an older file is then untouched.
    pub fn write(
        path: &Path,
        id: &SnapshotId,
        first_touch_gpas: &[u64],
        source: &mut dyn PageSource,
    ) -> Result<Self, WorkingSetError> {
        let extents = merge_first_touch(first_touch_gpas);
        let page_count = extents.iter().map(|extent| extent.pages).sum();
        let mut set = Self {
            snapshot_id: *id,
            data_offset: data_offset(extents.len() as u64, page_count),
            extents,
            page_crc32cs: Vec::with_capacity(page_count as usize),
        };
        // `replace_file` carries only an I/O error out of the closure.
        let mut source_error = None;
        let written = files::replace_file(path, |file| {
            set.write_pages(file, source, &mut source_error)?;
            file.write_all_at(&set.encode_tables(), 0)
        });
        match (written, source_error) {
            (Ok(()), _) => Ok(set),
            (Err(_), Some(source)) => Err(WorkingSetError::Source {
                path: path.to_owned(),
                source,
            }),
            (Err(source), None) => Err(WorkingSetError::Write {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Opens the working set `path` of the snapshot `id`, whose guest memory has `memory_bytes`,
    /// for a prefetch: checks the header and the length of the file, and reads no page.
    ///
    /// # Errors
    /// When there is none, it cannot be read with O_DIRECT, is of another version, another
    /// snapshot, truncated, or its header makes no sense.
    pub fn open(
        path: &Path,
        id: &SnapshotId,
        memory_bytes: u64,
    ) -> Result<WorkingSetReader, WorkingSetError> {
        WorkingSetReader::open(path, id, memory_bytes)
    }

    /// Reads and verifies the whole working set `path` of the snapshot `id`, whose guest memory
    /// has `memory_bytes`, through the page cache. For whoever wants to know what is in it.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when a checksum does not match.
    pub fn verify(
        path: &Path,
        id: &SnapshotId,
        memory_bytes: u64,
    ) -> Result<Self, WorkingSetError> {
        let unreadable = |source| read_error(path, source);
        let (file, len_bytes) = regular_file::open(path).map_err(unreadable)?;
        let mut header = vec![0; len_bytes.min(HEADER_BYTES as u64) as usize];
        file.read_exact_at(&mut header, 0).map_err(unreadable)?;
        let header = Header::decode(&header, len_bytes, id, memory_bytes)
            .map_err(|defect| defect.at(path))?;
        let mut tables = vec![0; header.data_offset as usize];
        file.read_exact_at(&mut tables, 0).map_err(unreadable)?;
        let set = Self::decode_tables(&tables, &header).map_err(|defect| defect.at(path))?;

        let mut page = [0; PAGE_SIZE];
        let mut offset = set.data_offset;
        for (gpa, expected) in set.page_gpas().zip(&set.page_crc32cs) {
            file.read_exact_at(&mut page, offset).map_err(unreadable)?;
            if crc32c(&page) != *expected {
                return Err(WorkingSetError::CorruptPage {
                    path: path.to_owned(),
                    gpa,
                });
            }
            offset += PAGE_SIZE_BYTES;
        }
        Ok(set)
    }

    /// The snapshot that it belongs to.
    #[must_use]
    pub fn snapshot_id(&self) -> SnapshotId {
        self.snapshot_id
    }

    /// Its runs of pages, in the order of installation.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// How many pages it has.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.page_crc32cs.len() as u64
    }

    /// Length of its file.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.data_offset + self.page_count() * PAGE_SIZE_BYTES
    }

    /// Guest-physical addresses of its pages, in the order of installation.
    fn page_gpas(&self) -> impl Iterator<Item = u64> {
        self.extents.iter().flat_map(Extent::page_gpas)
    }

    /// CRC32C of each page, in the order of installation.
    pub(crate) fn page_crc32cs(&self) -> &[u32] {
        &self.page_crc32cs
    }

    /// Writes the pages where they belong and keeps their checksums.
    fn write_pages(
        &mut self,
        file: &mut File,
        source: &mut dyn PageSource,
        source_error: &mut Option<PageSourceError>,
    ) -> io::Result<()> {
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        writer.seek(SeekFrom::Start(self.data_offset))?;
        for gpa in self.extents.iter().flat_map(Extent::page_gpas) {
            let page = source.read_page(gpa).map_err(|error| {
                *source_error = Some(error);
                io::Error::other("a page cannot be had")
            })?;
            let bytes = match page {
                Page::Zero => &[0; PAGE_SIZE],
                Page::Data(bytes) => bytes,
            };
            self.page_crc32cs.push(crc32c(bytes));
            writer.write_all(bytes)?;
        }
        writer.flush()
    }

    /// All bytes before the pages.
    fn encode_tables(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.data_offset as usize);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(self.snapshot_id.as_bytes());
        bytes.extend_from_slice(&(self.extents.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&self.page_count().to_le_bytes());
        bytes.extend_from_slice(&self.data_offset.to_le_bytes());
        bytes.extend_from_slice(&[0; HEADER_BYTES - CRC_OFFSET]);
        for extent in &self.extents {
            bytes.extend_from_slice(&extent.gpa.to_le_bytes());
            bytes.extend_from_slice(&extent.pages.to_le_bytes());
        }
        for page_crc32c in &self.page_crc32cs {
            bytes.extend_from_slice(&page_crc32c.to_le_bytes());
        }
        bytes.resize(self.data_offset as usize, 0);
        let crc32c = tables_crc32c(&bytes);
        bytes[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc32c.to_le_bytes());
        bytes
    }

    /// Checks all bytes before the pages; `header` was decoded from their beginning.
    pub(crate) fn decode_tables(bytes: &[u8], header: &Header) -> Result<Self, Defect> {
        if bytes.len() as u64 != header.data_offset {
            return Err(Defect::Truncated);
        }
        if tables_crc32c(bytes) != header.crc32c {
            return Err(Defect::Corrupt("checksum of its tables".to_owned()));
        }
        let (extents, page_crc32cs) = bytes
            .get(HEADER_BYTES..)
            .unwrap_or_default()
            .split_at_checked((header.extent_count * EXTENT_BYTES) as usize)
            .ok_or(Defect::Truncated)?;
        let page_crc32cs = page_crc32cs
            .get(..(header.page_count * PAGE_CRC_BYTES) as usize)
            .ok_or(Defect::Truncated)?;
        let extents: Vec<Extent> = extents
            .chunks_exact(EXTENT_BYTES as usize)
            .map(|extent| {
                Some(Extent {
                    gpa: u64_at(extent, 0)?,
                    pages: u64_at(extent, 8)?,
                })
            })
            .collect::<Option<_>>()
            .ok_or(Defect::Truncated)?;
        let pages = check_extents(&extents).map_err(|error| Defect::Corrupt(error.to_string()))?;
        if pages != header.page_count {
            return Err(Defect::Corrupt(
                "its extents have another number of pages than its header says".to_owned(),
            ));
        }
        Ok(Self {
            snapshot_id: header.id,
            extents,
            page_crc32cs: page_crc32cs
                .chunks_exact(PAGE_CRC_BYTES as usize)
                .map(|page_crc32c| u32_at(page_crc32c, 0))
                .collect::<Option<_>>()
                .ok_or(Defect::Truncated)?,
            data_offset: header.data_offset,
        })
    }
}

/// CRC32C of all bytes before the pages but the checksum's own. `bytes` has at least a header.
fn tables_crc32c(bytes: &[u8]) -> u32 {
    let mut crc = Crc32c::new();
    crc.update(&bytes[..CRC_OFFSET]);
    crc.update(&bytes[CRC_OFFSET + 4..]);
    crc.finish()
}

/// The error for a failed read of the file `path`.
pub(crate) fn read_error(path: &Path, source: io::Error) -> WorkingSetError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => WorkingSetError::Missing { path },
        io::ErrorKind::UnexpectedEof => WorkingSetError::Truncated { path },
        _ => WorkingSetError::Read { path, source },
    }
}

#[cfg(test)]
#[path = "working_set_test.rs"]
mod tests;
