//! Which pages this process has.
//!
//! Source: `Documentation/admin-guide/mm/pagemap.rst` of the Linux kernel. Whether a page is present
//! is told to everyone; only the frame numbers need a capability.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const PAGEMAP: &str = "/proc/self/pagemap";
const PAGE_BYTES: u64 = reapvm_snapshot::PAGE_SIZE as u64;
const ENTRY_BYTES: usize = 8;
/// Pages that one read tells of at most.
pub(crate) const PAGES_A_READ: u64 = 8 << 10;
/// The page is in memory, or on a swap device: it was brought here either way.
const PRESENT_OR_SWAPPED: u64 = 0b11 << 62;

/// The page tables of this process, as the kernel shows them.
#[derive(Debug)]
pub(crate) struct Pagemap {
    file: File,
    entries: Vec<u8>,
}

impl Pagemap {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            file: File::open(PAGEMAP)?,
            entries: vec![0; PAGES_A_READ as usize * ENTRY_BYTES],
        })
    }

    /// Of each of the `pages` pages from host address `hva` on, of the first [`PAGES_A_READ`] at
    /// most, whether it is there.
    pub(crate) fn are_there(
        &mut self,
        hva: u64,
        pages: u64,
    ) -> io::Result<impl Iterator<Item = bool>> {
        let entries = &mut self.entries[..pages.min(PAGES_A_READ) as usize * ENTRY_BYTES];
        self.file
            .read_exact_at(entries, hva / PAGE_BYTES * ENTRY_BYTES as u64)?;
        Ok(entries.chunks_exact(ENTRY_BYTES).map(|entry| {
            // The highest bits are in the last byte.
            let high = u64::from(entry[ENTRY_BYTES - 1]) << 56;
            high & PRESENT_OR_SWAPPED != 0
        }))
    }
}
