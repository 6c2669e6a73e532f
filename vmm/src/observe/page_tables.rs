//! Which pages of guest memory this process has in its page tables.
//!
//! Source: `Documentation/admin-guide/mm/pagemap.rst` of the Linux kernel. Whether a page is present
//! is told to everyone; only the frame numbers need a capability.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use reapvm_reap::MemoryRegion;

const PAGEMAP: &str = "/proc/self/pagemap";
const PAGE_BYTES: u64 = reapvm_snapshot::PAGE_SIZE as u64;
const ENTRY_BYTES: usize = 8;
/// Entries of one read.
const ENTRIES_A_READ: usize = 8 << 10;
/// The page is in memory, or on a swap device: it was brought here either way.
const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;

/// Looks at the page tables again and again, and tells what has come since the last time.
#[derive(Debug)]
pub(crate) struct PageTables {
    pagemap: File,
    regions: Vec<MemoryRegion>,
    /// For each region, a bit a page that was there.
    seen: Vec<Vec<u64>>,
}

/// A page that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PresentPage {
    pub(crate) gpa: u64,
    pub(crate) hva: u64,
}

impl PageTables {
    /// For `regions`, of which nothing was seen yet.
    pub(crate) fn open(regions: &[MemoryRegion]) -> io::Result<Self> {
        let words = |region: &MemoryRegion| (region.size_bytes / PAGE_BYTES).div_ceil(64);
        Ok(Self {
            pagemap: File::open(PAGEMAP)?,
            regions: regions.to_vec(),
            seen: regions
                .iter()
                .map(|region| vec![0; words(region) as usize])
                .collect(),
        })
    }

    /// Pages that are there now and were not at the last look, in the order of the regions and
    /// their addresses.
    pub(crate) fn new_pages(&mut self) -> io::Result<Vec<PresentPage>> {
        let mut new = Vec::new();
        let mut bytes = vec![0; ENTRIES_A_READ * ENTRY_BYTES];
        for (region, seen) in self.regions.iter().zip(&mut self.seen) {
            let pages = region.size_bytes / PAGE_BYTES;
            let mut page = 0;
            while page < pages {
                let count = (pages - page).min(ENTRIES_A_READ as u64);
                let bytes = &mut bytes[..count as usize * ENTRY_BYTES];
                let first = region.hva / PAGE_BYTES + page;
                self.pagemap
                    .read_exact_at(bytes, first * ENTRY_BYTES as u64)?;
                for (at, entry) in (page..).zip(bytes.chunks_exact(ENTRY_BYTES)) {
                    // The highest bits are in the last byte.
                    let high = u64::from(entry[ENTRY_BYTES - 1]) << 56;
                    let word = &mut seen[(at / 64) as usize];
                    let bit = 1 << (at % 64);
                    if high & PRESENT_OR_SWAPPED != 0 && *word & bit == 0 {
                        *word |= bit;
                        new.push(PresentPage {
                            gpa: region.gpa + at * PAGE_BYTES,
                            hva: region.hva + at * PAGE_BYTES,
                        });
                    }
                }
                page += count;
            }
        }
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reapvm_devices::GuestMemory;
    use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

    fn regions(memory: &GuestMemory) -> Vec<MemoryRegion> {
        memory
            .iter()
            .map(|region| MemoryRegion {
                gpa: region.start_addr().raw_value(),
                hva: memory.get_host_address(region.start_addr()).unwrap() as u64,
                size_bytes: region.len(),
                file_offset: 0,
            })
            .collect()
    }

    #[test]
    fn pages_are_told_once_when_they_have_come() {
        let memory = crate::memory::of_bytes(96 << 20);
        let regions = regions(&memory);
        let mut tables = PageTables::open(&regions).unwrap();
        tables.new_pages().unwrap();
        // Beyond the first read, too, and far enough from each other for no page between.
        let touched = [0x20_0000_u64, 0x300_0000, 0x5ff_f000];
        for gpa in touched {
            memory.write_obj(1_u8, GuestAddress(gpa)).unwrap();
        }
        let new = tables.new_pages().unwrap();
        for gpa in touched {
            let hva = regions[0].hva + gpa;
            assert!(new.contains(&PresentPage { gpa, hva }), "{gpa:#x}");
        }
        assert!(tables.new_pages().unwrap().is_empty());
    }

    #[test]
    fn memory_that_is_not_mapped_has_no_pages() {
        let region = MemoryRegion {
            gpa: 0,
            hva: 0x1000,
            size_bytes: 0x2000,
            file_offset: 0,
        };
        assert!(
            PageTables::open(&[region])
                .unwrap()
                .new_pages()
                .unwrap()
                .is_empty()
        );
    }
}
