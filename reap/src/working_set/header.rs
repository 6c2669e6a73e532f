//! The first bytes of a working set.

use reapvm_snapshot::SnapshotId;

use super::error::Defect;
use crate::PAGE_SIZE_BYTES;
use crate::touch_curve::MAX_POINTS;
use crate::wire::{array_at, u32_at, u64_at};

pub(super) const MAGIC: [u8; 8] = *b"REAPVMWS";
pub(super) const VERSION: u32 = 4;
pub(super) const HEADER_BYTES: usize = 80;
pub(super) const CRC_OFFSET: usize = 56;
/// Where the header says of how many recordings the set was made.
const RECORDINGS_OFFSET: usize = 60;
/// Where it says how many of the pages are zero.
const ZERO_PAGES_OFFSET: usize = 64;
/// Where it says how many points the touch curve has.
const CURVE_POINTS_OFFSET: usize = 72;
/// Where it has zeroes.
const RESERVED_OFFSET: usize = 76;
pub(super) const EXTENT_BYTES: u64 = 16;
pub(super) const PAGE_CRC_BYTES: u64 = 4;
pub(super) const PAGE_RECORDINGS_BYTES: u64 = 2;
pub(super) const CURVE_POINT_BYTES: u64 = 16;
/// Length of the table of the curve, which has room for all points that one can have.
pub(super) const CURVE_BYTES: u64 = MAX_POINTS as u64 * CURVE_POINT_BYTES;

/// The header, checked against the file's length, the snapshot and the size of guest memory: what
/// it says bounds every allocation that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: SnapshotId,
    pub(crate) extent_count: u64,
    pub(crate) page_count: u64,
    /// How many of them are zero, and therefore not in the file.
    pub(crate) zero_page_count: u64,
    pub(crate) data_offset: u64,
    /// At least 1.
    pub(super) recordings: u16,
    /// At most [`MAX_POINTS`]; 0 if there is no curve.
    pub(super) curve_points: u32,
    pub(super) crc32c: u32,
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
            zero_page_count: u64_at(bytes, ZERO_PAGES_OFFSET).ok_or(Defect::Truncated)?,
            data_offset: u64_at(bytes, 48).ok_or(Defect::Truncated)?,
            crc32c: u32_at(bytes, CRC_OFFSET).ok_or(Defect::Truncated)?,
            recordings: u32_at(bytes, RECORDINGS_OFFSET)
                .ok_or(Defect::Truncated)?
                .try_into()
                .map_err(|_| corrupt("it has more recordings than can be counted"))?,
            curve_points: u32_at(bytes, CURVE_POINTS_OFFSET).ok_or(Defect::Truncated)?,
        };
        if header.id != *expected {
            return Err(Defect::Foreign {
                found: header.id,
                expected: *expected,
            });
        }
        if u32_at(bytes, RESERVED_OFFSET).ok_or(Defect::Truncated)? != 0 {
            return Err(corrupt("it has something where zeroes belong"));
        }
        if header.curve_points as usize > MAX_POINTS {
            return Err(corrupt("its touch curve has too many points"));
        }
        if header.recordings == 0 {
            return Err(corrupt("it was made of no recording"));
        }
        // These bounds also keep the arithmetic below from overflowing.
        if header.page_count > memory_bytes / PAGE_SIZE_BYTES {
            return Err(corrupt("it has more pages than the guest's memory"));
        }
        if header.zero_page_count > header.page_count {
            return Err(corrupt("it has more zero pages than pages"));
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
        let data_pages = self.page_count.saturating_sub(self.zero_page_count);
        // Saturates only for a memory size that no machine has; no file is that long.
        self.data_offset
            .saturating_add(data_pages.saturating_mul(PAGE_SIZE_BYTES))
    }
}

/// Offset of the pages in a file with so many extents and pages, each at most 2^52.
pub(super) fn data_offset(extent_count: u64, page_count: u64) -> u64 {
    let page_tables =
        page_count * (PAGE_CRC_BYTES + PAGE_RECORDINGS_BYTES) + zero_bitmap_bytes(page_count);
    (HEADER_BYTES as u64 + extent_count * EXTENT_BYTES + page_tables + CURVE_BYTES)
        .next_multiple_of(PAGE_SIZE_BYTES)
}

/// Length of the table that says which of so many pages are zero.
pub(super) fn zero_bitmap_bytes(page_count: u64) -> u64 {
    page_count.div_ceil(8)
}
