//! Protection of pages against writes.

use std::ffi::c_void;

use rustix::mm::{Advice, madvise};
use userfaultfd::{FeatureFlags, RegisterMode, UffdBuilder};

use super::{Uffd, UffdError, errno_of, open_error};
use crate::PAGE_SIZE_BYTES;
use crate::region::MemoryRegion;

impl Uffd {
    /// Opens a userfaultfd that protects pages against writes, and does not serve missing ones.
    pub(crate) fn open_for_writes() -> Result<Self, UffdError> {
        UffdBuilder::new()
            .close_on_exec(true)
            .non_blocking(true)
            // KVM and devices' system calls write from the kernel.
            .user_mode_only(false)
            .require_features(FeatureFlags::THREAD_ID | FeatureFlags::PAGEFAULT_FLAG_WP)
            .create()
            .map(Self)
            .map_err(|error| match open_error(error) {
                UffdError::Unsupported { errno } => UffdError::NoWriteProtect { errno },
                other => other,
            })
    }

    /// Protects all pages of `region`: a thread that writes to one waits until
    /// [`allow_writes`](Self::allow_writes). A page that is not there yet is mapped as one of zeroes
    /// first, without memory of its own: protection is kept in page tables.
    ///
    /// # Safety
    /// The region is a private anonymous mapping of the caller's own, that is not unmapped and
    /// replaced by another while this object is open.
    pub(crate) unsafe fn protect(&self, region: &MemoryRegion) -> Result<(), UffdError> {
        let (start, length) = (region.hva as *mut c_void, region.size_bytes as usize);
        // First: memory that something else has is refused before anything is done to it.
        self.0
            .register_with_mode(start, length, RegisterMode::WRITE_PROTECT)
            .map_err(|error| UffdError::Register {
                gpa: region.gpa,
                hva: region.hva,
                size_bytes: region.size_bytes,
                errno: errno_of(&error),
            })?;
        // SAFETY: the range is a mapping of the caller's; populating it for reads changes nothing
        // of what is in it.
        unsafe { madvise(start, length, Advice::LinuxPopulateRead) }.map_err(|errno| {
            UffdError::Page {
                operation: "map pages to read (MADV_POPULATE_READ, Linux 5.14)",
                hva: region.hva,
                errno,
            }
        })?;
        self.0
            .write_protect(start, length)
            .map_err(|error| UffdError::Page {
                operation: "protect pages against writes",
                hva: region.hva,
                errno: errno_of(&error),
            })
    }

    /// Allows writes to the page at `hva` and wakes who waits for that.
    pub(crate) fn allow_writes(&self, hva: u64) -> Result<(), UffdError> {
        self.0
            .remove_write_protection(hva as *mut c_void, PAGE_SIZE_BYTES as usize, true)
            .map_err(|error| UffdError::Page {
                operation: "allow writes to a page",
                hva,
                errno: errno_of(&error),
            })
    }
}
