//! Which pages of guest memory have come into this process's page tables.

use std::io;

use reapvm_reap::MemoryRegion;

use crate::pagemap::{PAGES_A_READ, Pagemap};

const PAGE_BYTES: u64 = reapvm_snapshot::PAGE_SIZE as u64;

/// Looks at the page tables again and again, and tells what has come since the last time.
#[derive(Debug)]
pub(crate) struct PageTables {
    pagemap: Pagemap,
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
            pagemap: Pagemap::open()?,
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
        for (region, seen) in self.regions.iter().zip(&mut self.seen) {
            let pages = region.size_bytes / PAGE_BYTES;
            let mut page = 0;
            while page < pages {
                let count = (pages - page).min(PAGES_A_READ);
                let are_there = self
                    .pagemap
                    .are_there(region.hva + page * PAGE_BYTES, count)?;
                for (at, is_there) in (page..).zip(are_there) {
                    let word = &mut seen[(at / 64) as usize];
                    let bit = 1 << (at % 64);
                    if is_there && *word & bit == 0 {
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
