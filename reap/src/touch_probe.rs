//! Which pages of guest memory a guest has touched, of those that were put in place before it ran.
//!
//! A page that is in place does not fault in userfaultfd any more, and a guest's accesses leave no
//! mark in the page tables of this process: it has its own, or KVM's shadow of them. What can be
//! read is when KVM entered a page there. It does so at the guest's first access, and then marks
//! the page as accessed for the kernel's page reclaim: it becomes `referenced`, the second time
//! `active` (`kvm_release_page_clean`, `folio_mark_accessed`). A page that UFFDIO_COPY has made is
//! neither. The marks are in `/proc/kpageflags`, by the frame numbers of `/proc/self/pagemap`.
//!
//! # The lists of pages
//! A new page waits in a batch of the processor that made it, up to 31 of them, before it gets on
//! the list of pages. Marked a second time there, by another processor, it loses its mark and does
//! not become active. Becoming active waits in such batches too. So [`TouchProbe::settle`] has all
//! of them emptied: before the guest runs, and again before the marks are read.
//!
//! # What the marks cannot say
//! With two-dimensional paging KVM enters what is accessed and nothing else. With shadow paging it
//! also enters, at a fault, up to seven neighbours that the guest's page tables say it has accessed
//! before; such a page counts as touched. Of pages that the guest may write KVM does so only where
//! it does not log what is written, so a machine that is measured has the log. A page that only this process accesses (a device's ring)
//! is not marked; the guest accesses those too. Pages inside a huge page share one mark, and so do
//! all that are the kernel's zero page: they are counted as unknown. An install that is measured
//! therefore makes zero pages of their own ([`InstallOptions::own_zero_pages`]).
//!
//! [`InstallOptions::own_zero_pages`]: crate::InstallOptions::own_zero_pages
//!
//! Source: Linux, `Documentation/admin-guide/mm/pagemap.rst`, `mm/swap.c`, `virt/kvm/kvm_main.c`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::PAGE_SIZE_BYTES;
use crate::region::{MemoryRegion, RegionError, RegionMap};
use crate::working_set::WorkingSet;

const PAGEMAP: &str = "/proc/self/pagemap";
const KPAGEFLAGS: &str = "/proc/kpageflags";

/// Move only pages that no other process maps: `linux/mempolicy.h`.
const MPOL_MF_MOVE: i32 = 1 << 1;

/// Bits of an entry of pagemap.
const PRESENT: u64 = 1 << 63;
const FRAME_MASK: u64 = (1 << 55) - 1;
/// Bits of an entry of kpageflags.
const REFERENCED: u64 = 1 << 2;
const ACTIVE: u64 = 1 << 6;
const COMPOUND: u64 = 1 << 15 | 1 << 16 | 1 << 22;
const ZERO_PAGE: u64 = 1 << 24;

/// **Unstable.** Why it cannot be said which pages were touched.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TouchProbeError {
    /// A file of the kernel's cannot be read.
    #[error(
        "cannot read {path}: this takes root rights and a kernel with CONFIG_PROC_PAGE_MONITOR"
    )]
    Read {
        /// The file.
        path: &'static str,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The kernel does not say which page frames hold guest memory.
    #[error("{PAGEMAP} hides the page frames: this takes the capability CAP_SYS_ADMIN")]
    HiddenFrames,
    /// The kernel's batches of pages cannot be emptied.
    #[error("cannot bring pages onto the kernel's lists (move_pages)")]
    Settle(#[source] Arc<io::Error>),
    /// The regions of guest memory break a rule.
    #[error(transparent)]
    Regions(#[from] RegionError),
}

/// **Unstable.** What became of the pages of a set that were put in place before the guest ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TouchedPages {
    /// Guest-physical addresses of pages that the guest touched.
    pub touched: Vec<u64>,
    /// Of pages that it did not touch.
    pub untouched: Vec<u64>,
    /// Pages of which that is not known: dropped in the meantime, part of a huge page, or
    /// the kernel's zero page.
    pub unknown_pages: u64,
}

/// **Unstable.** Reads the kernel's marks of this process's pages.
#[derive(Debug)]
pub struct TouchProbe {
    pagemap: File,
    kpageflags: File,
}

impl TouchProbe {
    /// Opens the kernel's files.
    ///
    /// # Errors
    /// When this process may not, or the kernel has none.
    pub fn open() -> Result<Self, TouchProbeError> {
        let open = |path: &'static str| {
            File::open(Path::new(path)).map_err(|source| unreadable(path, source))
        };
        let probe = Self {
            pagemap: open(PAGEMAP)?,
            kpageflags: open(KPAGEFLAGS)?,
        };
        // Frame numbers are not refused to those who may not know them, they read as zero.
        let own = Box::new(1_u8);
        let entry = probe.pagemap_entries(&raw const *own as u64, 1)?[0];
        if entry & PRESENT == 0 || entry & FRAME_MASK == 0 {
            return Err(TouchProbeError::HiddenFrames);
        }
        Ok(probe)
    }

    /// Has the pages of all processors' batches put on the kernel's lists: to be called when the
    /// pages are in place and the guest does not run yet. [`touched`](Self::touched) does it again.
    ///
    /// # Errors
    /// When the kernel has no move_pages.
    pub fn settle(&self) -> Result<(), TouchProbeError> {
        // Moving pages begins with that, for all pages of the system. The one that is named here
        // is where it is to be, so that none is moved.
        let own = Box::new(1_u8);
        let node = move_page(&own, None)?;
        move_page(&own, Some(node)).map(drop)
    }

    /// Which of the pages of `set` the guest that has `regions` touched. They were in place, and
    /// [`settle`](Self::settle) was called, before it ran.
    ///
    /// # Errors
    /// When the kernel's marks cannot be read.
    pub fn touched(
        &self,
        regions: &[MemoryRegion],
        set: &WorkingSet,
    ) -> Result<TouchedPages, TouchProbeError> {
        self.settle()?;
        let regions = RegionMap::new(regions.to_vec())?;
        let mut result = TouchedPages::default();
        for extent in set.extents() {
            let mut gpa = extent.gpa;
            let mut left = extent.pages;
            while left > 0 {
                let Some(page_at) = regions.locate_gpa(gpa) else {
                    // No page that was installed.
                    result.unknown_pages += left;
                    break;
                };
                let pages = left.min(page_at.pages_to_region_end);
                for (page, entry) in (0..).zip(self.pagemap_entries(page_at.hva, pages)?) {
                    let flags = match entry & PRESENT {
                        0 => None,
                        _ => Some(self.flags(entry & FRAME_MASK)?),
                    };
                    let gpa = gpa + page * PAGE_SIZE_BYTES;
                    match flags {
                        Some(flags) if flags & (COMPOUND | ZERO_PAGE) == 0 => {
                            if flags & (REFERENCED | ACTIVE) == 0 {
                                result.untouched.push(gpa);
                            } else {
                                result.touched.push(gpa);
                            }
                        }
                        _ => result.unknown_pages += 1,
                    }
                }
                left -= pages;
                gpa += pages * PAGE_SIZE_BYTES;
            }
        }
        Ok(result)
    }

    fn pagemap_entries(&self, hva: u64, pages: u64) -> Result<Vec<u64>, TouchProbeError> {
        let mut bytes = vec![0; pages as usize * 8];
        self.pagemap
            .read_exact_at(&mut bytes, hva / PAGE_SIZE_BYTES * 8)
            .map_err(|source| unreadable(PAGEMAP, source))?;
        Ok(bytes
            .chunks_exact(8)
            .filter_map(|entry| Some(u64::from_ne_bytes(entry.try_into().ok()?)))
            .collect())
    }

    fn flags(&self, frame: u64) -> Result<u64, TouchProbeError> {
        let mut bytes = [0; 8];
        self.kpageflags
            .read_exact_at(&mut bytes, frame * 8)
            .map_err(|source| unreadable(KPAGEFLAGS, source))?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

fn unreadable(path: &'static str, source: io::Error) -> TouchProbeError {
    let source = Arc::new(source);
    TouchProbeError::Read { path, source }
}

fn unsettled(source: io::Error) -> TouchProbeError {
    TouchProbeError::Settle(Arc::new(source))
}

/// Moves the page of `own` to a memory node, or, without one, returns the node that it is on.
fn move_page(own: &u8, node: Option<i32>) -> Result<i32, TouchProbeError> {
    let page = std::ptr::from_ref(own).cast::<libc::c_void>();
    let node = node.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let mut status = -1_i32;
    // SAFETY: one page, one node or none, one status: each pointer is to one of them, or null where
    // the call allows it. The page's contents stay as they are, wherever it is.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            1_usize,
            &raw const page,
            node,
            &raw mut status,
            MPOL_MF_MOVE,
        )
    };
    if result < 0 {
        return Err(unsettled(io::Error::last_os_error()));
    }
    if status < 0 {
        return Err(unsettled(io::Error::from_raw_os_error(-status)));
    }
    Ok(status)
}
