//! Writing guest memory: a sparse file, and the index of its pages.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::checksum::crc32c;
use crate::id::SnapshotId;
use crate::limits::{MAX_MEMORY_BYTES, MEMORY_FILE, MEMORY_INDEX_FILE, PAGE_BYTES, PAGE_SIZE};
use crate::manifest::FileInfo;
use crate::memory_index::{Layout, MemoryIndexBuilder, is_zero_page};
use crate::writer::{CreateError, SnapshotWriter};

/// Guest memory as it was written.
#[derive(Debug)]
pub(crate) struct WrittenMemory {
    pub(crate) memory: FileInfo,
    pub(crate) memory_index: FileInfo,
    pub(crate) zero_pages: u64,
    pub(crate) data_pages: u64,
    pub(crate) unchanged_pages: u64,
    /// The snapshot that a diff is against.
    pub(crate) base: Option<SnapshotId>,
}

/// Writes guest memory, every page once, in any order.
///
/// Zero pages are not written: the file has holes there, as for the pages that a diff leaves to its
/// base.
pub struct MemoryWriter<'a> {
    writer: &'a mut SnapshotWriter,
    file: File,
    path: PathBuf,
    size_bytes: u64,
    base: Option<SnapshotId>,
    index: MemoryIndexBuilder,
    written: WrittenPages,
}

impl std::fmt::Debug for MemoryWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryWriter")
            .field("path", &self.path)
            .field("size_bytes", &self.size_bytes)
            .field("written_pages", &self.written.count)
            .finish_non_exhaustive()
    }
}

impl<'a> MemoryWriter<'a> {
    pub(crate) fn new(
        writer: &'a mut SnapshotWriter,
        size_bytes: u64,
        base: Option<SnapshotId>,
    ) -> Result<Self, CreateError> {
        if size_bytes == 0
            || !size_bytes.is_multiple_of(PAGE_BYTES)
            || size_bytes > MAX_MEMORY_BYTES
        {
            return Err(CreateError::MemorySize { size_bytes });
        }
        let layout = if base.is_some() {
            Layout::Diff
        } else {
            Layout::Full
        };
        let index = MemoryIndexBuilder::new(&writer.id(), size_bytes / PAGE_BYTES, layout)?;
        let (file, path) = writer.create_file(MEMORY_FILE)?;
        file.set_len(size_bytes)
            .map_err(|source| CreateError::io("size", &path, source))?;
        let written = WrittenPages::new();
        Ok(Self {
            writer,
            file,
            path,
            size_bytes,
            base,
            index,
            written,
        })
    }

    /// Writes pages. Give many at once: each run of data pages in `bytes` is one write.
    ///
    /// `bytes` must not change meanwhile (the vCPUs are paused): the checksums are taken of what
    /// is there just before it is written.
    ///
    /// # Errors
    /// When the offset or the length is not page-aligned or passes the end, a page was written
    /// before, or writing fails.
    pub fn write_pages(&mut self, file_offset: u64, bytes: &[u8]) -> Result<(), CreateError> {
        self.claim(file_offset, bytes.len() as u64)?;
        let mut run_start = None;
        for (number, page) in bytes.chunks_exact(PAGE_SIZE).enumerate() {
            let offset = number * PAGE_SIZE;
            if is_zero_page(page) {
                if let Some(start) = run_start.take() {
                    self.write_run(file_offset, &bytes[start..offset], start)?;
                }
                continue;
            }
            self.index
                .set_data(file_offset / PAGE_BYTES + number as u64, crc32c(page));
            run_start.get_or_insert(offset);
        }
        if let Some(start) = run_start {
            self.write_run(file_offset, &bytes[start..], start)?;
        }
        Ok(())
    }

    /// Says that `len_bytes` from `file_offset` on are zero, without having them at hand: memory
    /// that the guest never touched.
    ///
    /// # Errors
    /// As [`MemoryWriter::write_pages`].
    pub fn write_zero_pages(
        &mut self,
        file_offset: u64,
        len_bytes: u64,
    ) -> Result<(), CreateError> {
        self.claim(file_offset, len_bytes)
    }

    /// Says that `len_bytes` from `file_offset` on are as in the base of this diff.
    ///
    /// # Errors
    /// As [`MemoryWriter::write_pages`], and when this is no diff.
    pub fn write_unchanged_pages(
        &mut self,
        file_offset: u64,
        len_bytes: u64,
    ) -> Result<(), CreateError> {
        if self.base.is_none() {
            return Err(CreateError::NoBase);
        }
        self.claim(file_offset, len_bytes)?;
        let first = file_offset / PAGE_BYTES;
        for page_index in first..first + len_bytes / PAGE_BYTES {
            self.index.set_unchanged(page_index);
        }
        Ok(())
    }

    /// Makes the memory file durable and writes its index.
    ///
    /// # Errors
    /// When pages were never written, or writing fails.
    pub fn finish(self) -> Result<(), CreateError> {
        let page_count = self.size_bytes / PAGE_BYTES;
        if let Some(first_page_index) = self.written.first_missing(page_count) {
            let count = page_count - self.written.count;
            return Err(CreateError::PagesMissing {
                count,
                first_page_index,
            });
        }
        self.file
            .sync_all()
            .map_err(|source| CreateError::io("sync", &self.path, source))?;
        let data_pages = self.index.data_pages();
        let unchanged_pages = self.index.unchanged_pages();
        let memory_index = self
            .writer
            .write_small_file(MEMORY_INDEX_FILE, &self.index.finish())?;
        self.writer.set_memory(WrittenMemory {
            memory: FileInfo {
                name: MEMORY_FILE.to_owned(),
                len_bytes: self.size_bytes,
                crc32c: None,
            },
            memory_index,
            zero_pages: page_count - data_pages - unchanged_pages,
            data_pages,
            unchanged_pages,
            base: self.base,
        });
        Ok(())
    }

    /// Takes a range of pages, which nobody may have taken before.
    fn claim(&mut self, file_offset: u64, len_bytes: u64) -> Result<(), CreateError> {
        let inside = file_offset
            .checked_add(len_bytes)
            .is_some_and(|end| end <= self.size_bytes);
        if !inside
            || !file_offset.is_multiple_of(PAGE_BYTES)
            || !len_bytes.is_multiple_of(PAGE_BYTES)
        {
            return Err(CreateError::PageRange {
                file_offset,
                len_bytes,
                size_bytes: self.size_bytes,
            });
        }
        let first = file_offset / PAGE_BYTES;
        self.written
            .claim(first, first + len_bytes / PAGE_BYTES)
            .map_err(|page_index| CreateError::PageTwice { page_index })
    }

    fn write_run(&self, file_offset: u64, run: &[u8], start: usize) -> Result<(), CreateError> {
        self.file
            .write_all_at(run, file_offset + start as u64)
            .map_err(|source| CreateError::io("write", &self.path, source))
    }
}

/// Which pages were written: the ranges of them, apart and not touching.
struct WrittenPages {
    ranges: std::collections::BTreeMap<u64, u64>,
    count: u64,
}

impl WrittenPages {
    fn new() -> Self {
        Self {
            ranges: std::collections::BTreeMap::new(),
            count: 0,
        }
    }

    /// Adds the pages from `first` up to `end`, or returns one that was there before.
    fn claim(&mut self, first: u64, end: u64) -> Result<(), u64> {
        if first == end {
            return Ok(());
        }
        let before = self
            .ranges
            .range(..end)
            .next_back()
            .map(|(start, end)| (*start, *end));
        let mut merged = (first, end);
        if let Some((before_first, before_end)) = before {
            if before_end > first {
                return Err(before_first.max(first));
            }
            if before_end == first {
                merged.0 = before_first;
            }
        }
        if let Some(after_end) = self.ranges.remove(&end) {
            merged.1 = after_end;
        }
        self.ranges.insert(merged.0, merged.1);
        self.count += end - first;
        Ok(())
    }

    /// The first page of `page_count` that is not there.
    fn first_missing(&self, page_count: u64) -> Option<u64> {
        let covered = self.ranges.get(&0).copied().unwrap_or(0);
        (covered < page_count).then_some(covered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a plain array of flags.
        #[test]
        fn written_pages_equal_a_list_of_flags(
            claims in proptest::collection::vec((0..40_u64, 0..8_u64), 0..40),
        ) {
            let mut written = WrittenPages::new();
            let mut flags = [false; 48];
            for (first, count) in claims {
                let range = first as usize..(first + count) as usize;
                let taken = flags[range.clone()].iter().any(|flag| *flag);
                match written.claim(first, first + count) {
                    Ok(()) => {
                        prop_assert!(!taken);
                        flags[range].fill(true);
                    }
                    Err(page) => {
                        prop_assert!(range.contains(&(page as usize)));
                        prop_assert!(flags[page as usize]);
                    }
                }
                let count = flags.iter().filter(|flag| **flag).count() as u64;
                prop_assert_eq!(written.count, count);
                let missing = flags.iter().position(|flag| !flag).map(|page| page as u64);
                prop_assert_eq!(written.first_missing(48), missing);
            }
        }
    }
}
