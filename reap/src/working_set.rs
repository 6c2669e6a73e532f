//! The working-set file: the pages that invocations touched, packed in the order in which they are
//! installed, each with the number of recordings that touched it.
//!
//! # Format, version 4
//! All numbers are little-endian. A header of 80 bytes:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `REAPVMWS` |
//! | 8 | 4 | version, 4 |
//! | 12 | 4 | flags, zero |
//! | 16 | 16 | id of the snapshot that the working set belongs to |
//! | 32 | 8 | number of extents |
//! | 40 | 8 | number of pages |
//! | 48 | 8 | offset of the pages: the first multiple of 4096 after the tables |
//! | 56 | 4 | CRC32C of all bytes before the pages but these four |
//! | 60 | 4 | of how many recordings it was made, 1 to 65535 |
//! | 64 | 8 | how many of the pages are zero |
//! | 72 | 4 | how many points the touch curve has, 0 to 64; 0: it is not known when the pages are needed |
//! | 76 | 4 | zero |
//!
//! Then five tables: the extents, 16 bytes each (guest-physical address, number of pages), in the
//! order of installation; the CRC32C of each page, 4 bytes each; of each page how many of the
//! recordings touched it, 2 bytes each, at least 1 and at most the number in the header; of each
//! page whether it is zero, one bit each, lowest bit first, with zeroes up to the next byte; and the
//! touch curve, always 64 times 16 bytes, with zeroes after its last point. Zeroes up to the next
//! multiple of 4096; then the pages that are not zero, in the order of the extents. A page that is
//! zero is nowhere in the file: it is neither stored nor read. The file ends with the last page, so
//! its length is a multiple of 4096 and all of it can be read with O_DIRECT at once.
//!
//! A point of the touch curve is the number of a page, from 0, among those that are not zero (8
//! bytes), and how many nanoseconds of its own time the guest has run when it needs this page or the
//! first of those after it (8 bytes). Between points the curve is a straight line, after the last it
//! is level. The first point is at page 0; page numbers go up, times go up or stay, and none is more
//! than a day.
//!
//! Version 1 had no third table and zero in place of the number of recordings; version 2 had no
//! fourth, a header of 64 bytes, and the zero pages among the others; version 3 had no fifth and a
//! header of 72 bytes. All are refused by their number: a set is recorded again in the time of one
//! invocation.

mod contents;
mod error;
mod header;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use reapvm_snapshot::checksum::{Crc32c, crc32c};
use reapvm_snapshot::{PAGE_SIZE, SnapshotId, files};

use crate::PAGE_SIZE_BYTES;
use crate::extents::{Extent, check_extents, merge_first_touch};
use crate::regular_file;
use crate::source::{Page, PageSource, PageSourceError};
use crate::touch_counts::{PageTouches, TouchCounts};
use crate::touch_curve::{CurvePoint, TouchCurve};
use crate::wire::{u16_at, u32_at, u64_at};
use crate::working_set_reader::WorkingSetReader;

use contents::{Contents, ZERO_PAGE};
pub use error::WorkingSetError;
pub(crate) use error::{Defect, read_error};
pub(crate) use header::Header;
use header::{
    CRC_OFFSET, CURVE_BYTES, CURVE_POINT_BYTES, EXTENT_BYTES, HEADER_BYTES, MAGIC, PAGE_CRC_BYTES,
    PAGE_RECORDINGS_BYTES, VERSION, data_offset, zero_bitmap_bytes,
};

/// The checked description of a working set: which pages, in which order, in which file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkingSet {
    snapshot_id: SnapshotId,
    extents: Vec<Extent>,
    /// Which of the pages are in the file, and which are zero.
    contents: Contents,
    /// Of how many recordings it was made.
    recordings: u16,
    /// How many of them touched each page, in the order of the extents.
    page_recordings: Vec<u16>,
    /// When the guest needs the pages with data, if that is known.
    curve: Option<TouchCurve>,
    data_offset: u64,
}

impl WorkingSet {
    /// Writes the working set of the snapshot `id` to `path`, replacing an older one at once. It is
    /// that of one recording, and does not say when the pages are needed.
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
        let touches = TouchCounts::of_recording(first_touch_gpas);
        Self::write_counted(path, id, &touches, source)
    }

    /// As [`write`](Self::write), of any number of recordings.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_counted(
        path: &Path,
        id: &SnapshotId,
        touches: &TouchCounts,
        source: &mut dyn PageSource,
    ) -> Result<Self, WorkingSetError> {
        let gpas: Vec<u64> = touches.pages().iter().map(|page| page.gpa).collect();
        let extents = merge_first_touch(&gpas);
        let touches_of: HashMap<u64, PageTouches> = touches
            .pages()
            .iter()
            .map(|page| (page.gpa, *page))
            .collect();
        let page_recordings: Vec<u16> = extents
            .iter()
            .flat_map(Extent::page_gpas)
            .filter_map(|gpa| Some(touches_of.get(&gpa)?.recordings))
            .collect();
        let page_count = page_recordings.len() as u64;
        let mut set = Self {
            snapshot_id: *id,
            data_offset: data_offset(extents.len() as u64, page_count),
            extents,
            contents: Contents::default(),
            recordings: touches.recordings(),
            page_recordings,
            curve: None,
        };
        // `replace_file` carries only an I/O error out of the closure.
        let mut source_error = None;
        let written = files::replace_file(path, |file| {
            set.write_pages(file, source, &mut source_error)?;
            let own_ns: Vec<Option<u64>> = set
                .data_extents()
                .iter()
                .flat_map(Extent::page_gpas)
                .map(|gpa| touches_of.get(&gpa)?.own_ns)
                .collect();
            set.curve = TouchCurve::of_pages(&own_ns);
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
        let (file, set) = Self::read_description(path, id, memory_bytes)?;
        let mut page = [0; PAGE_SIZE];
        let mut offset = set.data_offset;
        let gpas = set.data_extents().iter().flat_map(Extent::page_gpas);
        for (gpa, expected) in gpas.zip(set.page_crc32cs()) {
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

    /// Reads and verifies what the working set `path` consists of, through the page cache and
    /// without its pages.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for O_DIRECT, and when the checksum of the tables does not
    /// match.
    pub fn describe(
        path: &Path,
        id: &SnapshotId,
        memory_bytes: u64,
    ) -> Result<Self, WorkingSetError> {
        Ok(Self::read_description(path, id, memory_bytes)?.1)
    }

    /// The [fingerprint](Self::fingerprint) of the working set `path`, from its header alone.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for O_DIRECT.
    pub(crate) fn read_fingerprint(
        path: &Path,
        id: &SnapshotId,
        memory_bytes: u64,
    ) -> Result<u32, WorkingSetError> {
        Ok(Self::read_header(path, id, memory_bytes)?.1.crc32c)
    }

    fn read_header(
        path: &Path,
        id: &SnapshotId,
        memory_bytes: u64,
    ) -> Result<(File, Header), WorkingSetError> {
        let unreadable = |source| read_error(path, source);
        let (file, len_bytes) = regular_file::open(path).map_err(unreadable)?;
        let mut header = vec![0; len_bytes.min(HEADER_BYTES as u64) as usize];
        file.read_exact_at(&mut header, 0).map_err(unreadable)?;
        let header = Header::decode(&header, len_bytes, id, memory_bytes)
            .map_err(|defect| defect.at(path))?;
        Ok((file, header))
    }

    fn read_description(
        path: &Path,
        id: &SnapshotId,
        memory_bytes: u64,
    ) -> Result<(File, Self), WorkingSetError> {
        let unreadable = |source| read_error(path, source);
        let (file, header) = Self::read_header(path, id, memory_bytes)?;
        let mut tables = vec![0; header.data_offset as usize];
        file.read_exact_at(&mut tables, 0).map_err(unreadable)?;
        let set = Self::decode_tables(&tables, &header).map_err(|defect| defect.at(path))?;
        Ok((file, set))
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
        self.page_recordings.len() as u64
    }

    /// How many of its pages are zero: those are not in its file.
    #[must_use]
    pub fn zero_page_count(&self) -> u64 {
        self.contents.zero_pages
    }

    /// How many of its pages are in its file.
    pub(crate) fn data_page_count(&self) -> u64 {
        self.page_crc32cs().len() as u64
    }

    /// Length of its file.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.data_offset + self.data_page_count() * PAGE_SIZE_BYTES
    }

    /// Of how many recordings it was made, at least 1.
    #[must_use]
    pub fn recordings(&self) -> u16 {
        self.recordings
    }

    /// Its pages, in the order of installation, with how many of the recordings touched each, and
    /// of those at which the touch curve has a point when the guest needs them.
    #[must_use]
    pub fn touch_counts(&self) -> TouchCounts {
        let mut data_pages_before = 0;
        let pages = self
            .page_gpas()
            .zip(&self.page_recordings)
            .zip(self.contents.is_zero())
            .map(|((gpa, &recordings), is_zero)| {
                let curve = self.curve.as_ref().filter(|_| !is_zero);
                let own_ns = curve.and_then(|curve| curve.point_at(data_pages_before));
                data_pages_before += u64::from(!is_zero);
                PageTouches {
                    gpa,
                    recordings,
                    own_ns,
                }
            })
            .collect();
        TouchCounts::from_checked(self.recordings, pages)
    }

    /// When the guest needs the pages with data, in the order of installation: the points of a line,
    /// none if that is not known.
    #[must_use]
    pub fn touch_curve(&self) -> &[CurvePoint] {
        self.curve.as_ref().map_or(&[], TouchCurve::points)
    }

    pub(crate) fn curve(&self) -> Option<&TouchCurve> {
        self.curve.as_ref()
    }

    /// A number that tells this set from others of the same snapshot: it changes with the pages,
    /// their order, their counts and when they are needed.
    #[must_use]
    pub fn fingerprint(&self) -> u32 {
        tables_crc32c(&self.encode_tables())
    }

    /// Guest-physical addresses of its pages, in the order of installation.
    pub(crate) fn page_gpas(&self) -> impl Iterator<Item = u64> {
        self.extents.iter().flat_map(Extent::page_gpas)
    }

    /// The runs of the pages that are in the file, in their order there.
    pub(crate) fn data_extents(&self) -> &[Extent] {
        &self.contents.data
    }

    /// The runs of the pages that are zero, in the order of installation.
    pub(crate) fn zero_extents(&self) -> &[Extent] {
        &self.contents.zero
    }

    /// CRC32C of each page that is in the file, in their order there.
    pub(crate) fn page_crc32cs(&self) -> &[u32] {
        &self.contents.data_crc32cs
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
            match page {
                Page::Data(bytes) if *bytes != ZERO_PAGE => {
                    self.contents.push_data(gpa, crc32c(bytes));
                    writer.write_all(bytes)?;
                }
                Page::Zero | Page::Data(_) => self.contents.push_zero(gpa),
            }
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
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&u32::from(self.recordings).to_le_bytes());
        bytes.extend_from_slice(&self.zero_page_count().to_le_bytes());
        bytes.extend_from_slice(&(self.touch_curve().len() as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for extent in &self.extents {
            bytes.extend_from_slice(&extent.gpa.to_le_bytes());
            bytes.extend_from_slice(&extent.pages.to_le_bytes());
        }
        let zero_crc32c = crc32c(&ZERO_PAGE);
        let mut data_crc32cs = self.page_crc32cs().iter();
        for is_zero in self.contents.is_zero() {
            let page_crc32c = match is_zero {
                true => Some(&zero_crc32c),
                false => data_crc32cs.next(),
            };
            bytes.extend_from_slice(&page_crc32c.unwrap_or(&zero_crc32c).to_le_bytes());
        }
        for recordings in &self.page_recordings {
            bytes.extend_from_slice(&recordings.to_le_bytes());
        }
        bytes.extend_from_slice(self.contents.zero_bitmap());
        for point in self.touch_curve() {
            bytes.extend_from_slice(&point.page.to_le_bytes());
            bytes.extend_from_slice(&point.own_ns.to_le_bytes());
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
        let mut tables = bytes.get(HEADER_BYTES..).unwrap_or_default();
        let mut table = |entries: u64, entry_bytes: u64| {
            let (table, rest) = tables.split_at_checked((entries * entry_bytes) as usize)?;
            tables = rest;
            Some(table)
        };
        let extents = table(header.extent_count, EXTENT_BYTES).ok_or(Defect::Truncated)?;
        let page_crc32cs = table(header.page_count, PAGE_CRC_BYTES).ok_or(Defect::Truncated)?;
        let page_recordings =
            table(header.page_count, PAGE_RECORDINGS_BYTES).ok_or(Defect::Truncated)?;
        let zero_bitmap =
            table(zero_bitmap_bytes(header.page_count), 1).ok_or(Defect::Truncated)?;
        let curve = table(CURVE_BYTES, 1).ok_or(Defect::Truncated)?;
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
        let page_recordings: Vec<u16> = page_recordings
            .chunks_exact(PAGE_RECORDINGS_BYTES as usize)
            .map(|recordings| u16_at(recordings, 0))
            .collect::<Option<_>>()
            .ok_or(Defect::Truncated)?;
        if page_recordings
            .iter()
            .any(|recordings| !(1..=header.recordings).contains(recordings))
        {
            return Err(Defect::Corrupt(
                "a page was touched by none, or by more recordings than there were".to_owned(),
            ));
        }
        let page_crc32cs: Vec<u32> = page_crc32cs
            .chunks_exact(PAGE_CRC_BYTES as usize)
            .map(|page_crc32c| u32_at(page_crc32c, 0))
            .collect::<Option<_>>()
            .ok_or(Defect::Truncated)?;
        let contents = Contents::decode(&extents, &page_crc32cs, zero_bitmap)?;
        if contents.zero_pages != header.zero_page_count {
            return Err(Defect::Corrupt(
                "another number of its pages is zero than its header says".to_owned(),
            ));
        }
        let data_pages = contents.data_crc32cs.len() as u64;
        let curve = decode_curve(curve, u64::from(header.curve_points), data_pages)?;
        Ok(Self {
            snapshot_id: header.id,
            extents,
            contents,
            recordings: header.recordings,
            page_recordings,
            curve,
            data_offset: header.data_offset,
        })
    }
}

/// The touch curve with `count` points, if it has any, of a set with `data_pages` pages with data.
fn decode_curve(table: &[u8], count: u64, data_pages: u64) -> Result<Option<TouchCurve>, Defect> {
    let (points, rest) = table
        .split_at_checked((count * CURVE_POINT_BYTES) as usize)
        .ok_or(Defect::Truncated)?;
    if rest.iter().any(|byte| *byte != 0) {
        return Err(Defect::Corrupt(
            "its touch curve has more points than its header says".to_owned(),
        ));
    }
    if count == 0 {
        return Ok(None);
    }
    let points: Vec<CurvePoint> = points
        .chunks_exact(CURVE_POINT_BYTES as usize)
        .map(|point| {
            Some(CurvePoint {
                page: u64_at(point, 0)?,
                own_ns: u64_at(point, 8)?,
            })
        })
        .collect::<Option<_>>()
        .ok_or(Defect::Truncated)?;
    TouchCurve::from_points(points, data_pages)
        .map(Some)
        .map_err(|error| Defect::Corrupt(error.to_string()))
}

/// CRC32C of all bytes before the pages but the checksum's own. `bytes` has at least a header.
fn tables_crc32c(bytes: &[u8]) -> u32 {
    let mut crc = Crc32c::new();
    crc.update(&bytes[..CRC_OFFSET]);
    crc.update(&bytes[CRC_OFFSET + 4..]);
    crc.finish()
}

#[cfg(test)]
#[path = "working_set/test.rs"]
mod tests;
