//! Which pages of a working set are in its file, and which are zero.

use reapvm_snapshot::PAGE_SIZE;
use reapvm_snapshot::checksum::crc32c;

use super::error::Defect;
use crate::PAGE_SIZE_BYTES;
use crate::extents::Extent;

pub(super) const ZERO_PAGE: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// The pages of a set, divided into those with data and those that are zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// Runs of pages with data, in the order of the file.
    pub(super) data: Vec<Extent>,
    /// Runs of zero pages, in the order of installation.
    pub(super) zero: Vec<Extent>,
    /// CRC32C of each page with data, in the order of the file.
    pub(super) data_crc32cs: Vec<u32>,
    pub(super) zero_pages: u64,
    /// One bit a page, in the order of installation: whether it is zero.
    zero_bitmap: Vec<u8>,
}

impl Contents {
    /// The next page has data.
    pub(super) fn push_data(&mut self, gpa: u64, crc32c: u32) {
        self.push_bit(false);
        extend(&mut self.data, gpa);
        self.data_crc32cs.push(crc32c);
    }

    /// The next page is zero.
    pub(super) fn push_zero(&mut self, gpa: u64) {
        self.push_bit(true);
        extend(&mut self.zero, gpa);
        self.zero_pages += 1;
    }

    fn push_bit(&mut self, is_zero: bool) {
        let page = self.page_count();
        if page.is_multiple_of(8) {
            self.zero_bitmap.push(0);
        }
        if let Some(byte) = self.zero_bitmap.last_mut() {
            *byte |= u8::from(is_zero) << (page % 8);
        }
    }

    fn page_count(&self) -> u64 {
        self.data_crc32cs.len() as u64 + self.zero_pages
    }

    /// Of each page, in the order of installation, whether it is zero.
    pub(super) fn is_zero(&self) -> impl Iterator<Item = bool> {
        (0..self.page_count()).map(|page| bit(&self.zero_bitmap, page))
    }

    /// [`is_zero`](Self::is_zero) as the file has it.
    pub(super) fn zero_bitmap(&self) -> &[u8] {
        &self.zero_bitmap
    }

    /// The pages of `extents`, with the tables of a file.
    pub(super) fn decode(
        extents: &[Extent],
        page_crc32cs: &[u32],
        zero_bitmap: &[u8],
    ) -> Result<Self, Defect> {
        let zero_crc32c = crc32c(&ZERO_PAGE);
        let mut contents = Self::default();
        let gpas = extents.iter().flat_map(Extent::page_gpas);
        for ((page, gpa), crc32c) in (0..).zip(gpas).zip(page_crc32cs) {
            if !bit(zero_bitmap, page) {
                contents.push_data(gpa, *crc32c);
            } else if *crc32c == zero_crc32c {
                contents.push_zero(gpa);
            } else {
                return Err(Defect::Corrupt(
                    "a page that is zero has another checksum".to_owned(),
                ));
            }
        }
        if contents.zero_bitmap != zero_bitmap {
            return Err(Defect::Corrupt(
                "it says of pages that it has not that they are zero".to_owned(),
            ));
        }
        Ok(contents)
    }
}

fn bit(bitmap: &[u8], page: u64) -> bool {
    bitmap
        .get((page / 8) as usize)
        .is_some_and(|byte| byte >> (page % 8) & 1 == 1)
}

/// Adds the page at `gpa` to the last run, if it comes right after it, or as a run of its own.
fn extend(runs: &mut Vec<Extent>, gpa: u64) {
    match runs.last_mut() {
        Some(run) if run.gpa + run.pages * PAGE_SIZE_BYTES == gpa => run.pages += 1,
        _ => runs.push(Extent { gpa, pages: 1 }),
    }
}
