//! A buffer for O_DIRECT: page-aligned, and given back to the system when it is dropped.

use std::ffi::c_void;
use std::io;
use std::ptr::{self, NonNull};
use std::slice;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Below this size a buffer cannot hold a huge page.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Page-aligned zeroed memory: an anonymous mapping of its own, because a large allocation of the
/// heap would stay with the process, and count as the hypervisor's memory, after it is freed.
#[derive(Debug)]
pub(crate) struct PageBuffer {
    /// The mapping, which may be longer than the buffer.
    mapping: NonNull<c_void>,
    mapping_bytes: usize,
    start: NonNull<c_void>,
    len_bytes: usize,
}

// SAFETY: the buffer owns its mapping and hands out references only through its own borrows, so
// it moves and is shared between threads as a `Vec<u8>` is.
unsafe impl Send for PageBuffer {}
// SAFETY: as above; there is no interior mutability.
unsafe impl Sync for PageBuffer {}

impl PageBuffer {
    /// A buffer of `len_bytes`, at least 1.
    pub(crate) fn new(len_bytes: u64) -> io::Result<Self> {
        let len_bytes = checked_len(len_bytes)?;
        Self::map(len_bytes, len_bytes >= HUGE_PAGE_BYTES)
    }

    /// A buffer of `len_bytes`, at least 1, that is not backed by huge pages unless the system does
    /// so of its own accord.
    pub(crate) fn of_small_pages(len_bytes: u64) -> io::Result<Self> {
        Self::map(checked_len(len_bytes)?, false)
    }

    fn map(len_bytes: usize, is_huge: bool) -> io::Result<Self> {
        // Not every kernel puts a mapping where a huge page can begin.
        let spare_bytes = if is_huge { HUGE_PAGE_BYTES } else { 0 };
        let mapping_bytes = len_bytes
            .checked_add(spare_bytes)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // Not populated: the read brings each page in while the disk works on the ones before,
        // which takes about half the time of doing the one after the other.
        // SAFETY: the address is the kernel's choice, so the new mapping replaces nothing.
        let mapping = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                mapping_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let to_boundary = (mapping as usize).next_multiple_of(HUGE_PAGE_BYTES) - mapping as usize;
        let skipped_bytes = if is_huge { to_boundary } else { 0 };
        // SAFETY: a boundary is less than `spare_bytes` away, so this stays within the mapping,
        // with `len_bytes` after it.
        let start = unsafe { mapping.byte_add(skipped_bytes) };
        let buffer = Self {
            mapping: NonNull::new(mapping).ok_or(io::ErrorKind::OutOfMemory)?,
            mapping_bytes,
            start: NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?,
            len_bytes,
        };
        if is_huge {
            // Huge pages make the read's requests larger and spare a fault for each 4 KiB. A
            // kernel without them refuses the advice, and the buffer works as well without.
            // SAFETY: advice about huge pages changes no contents; the range is in the mapping.
            let _ = unsafe {
                madvise(
                    buffer.start.as_ptr(),
                    buffer.len_bytes,
                    Advice::LinuxHugepage,
                )
            };
        }
        Ok(buffer)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping is readable for its length, zeroed by the kernel, lives as long as
        // `self`, and is written only through `&mut self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr().cast(), self.len_bytes) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `&mut self` makes this the only reference.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.len_bytes) }
    }
}

impl Drop for PageBuffer {
    fn drop(&mut self) {
        // SAFETY: this is the whole mapping that `new` made, and no reference outlives `self`.
        // It can only fail for arguments that are none of a mapping, which these are.
        let _ = unsafe { munmap(self.mapping.as_ptr(), self.mapping_bytes) };
    }
}

fn checked_len(len_bytes: u64) -> io::Result<usize> {
    usize::try_from(len_bytes)
        .ok()
        // A slice cannot be longer.
        .filter(|&len_bytes| len_bytes <= isize::MAX as usize)
        .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}
