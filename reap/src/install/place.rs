//! Putting runs of pages in place while the pager serves.

use std::sync::Arc;
use std::thread;

use reapvm_snapshot::PAGE_SIZE;
use rustix::io::Errno;

use crate::PAGE_SIZE_BYTES;
use crate::extents::Extent;
use crate::paged_memory::{RETRY_SLEEP, ROUNDS_BEFORE_SLEEP, attempt};
use crate::pager::Shared;
use crate::region::{PageLocation, RegionMap};
use crate::serve::ServeError;
use crate::stats::add;
use crate::uffd::{Installed, Uffd, UffdError};

use super::InstallError;

/// Pages that one COPY installs at most: the pager's reading of messages waits that long.
const MAX_RUN_PAGES: u64 = 64;

/// So often a page that is held is tried to be moved; then it is copied.
const MOVES_BEFORE_COPY: u32 = 100;

/// How the pages of a buffer get into guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// UFFDIO_COPY.
    Copy,
    /// UFFDIO_MOVE: the pages of the buffer become the guest's.
    Move,
}

/// What is to be put in place: whole pages.
enum Contents<'a> {
    Bytes(&'a mut [u8], Placement),
    /// So many bytes of zeroes, by the kernel's zero page.
    Zeroes(u64),
    /// So many bytes of zeroes, in pages of their own.
    OwnZeroes(u64),
}

/// The source of [`Contents::OwnZeroes`].
static ZERO_PAGE: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

impl Contents<'_> {
    fn len_bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes, _) => bytes.len() as u64,
            Self::Zeroes(len_bytes) | Self::OwnZeroes(len_bytes) => *len_bytes,
        }
    }
}

/// Installs pages from any number of threads. The messages of the userfaultfd are the pager's
/// to read: where a removal is in the way, it is waited for.
#[derive(Clone)]
pub(crate) struct Placer {
    pub(super) uffd: Arc<Uffd>,
    pub(super) regions: RegionMap,
    pub(super) shared: Arc<Shared>,
}

impl Placer {
    pub(crate) fn new(uffd: Arc<Uffd>, regions: RegionMap, shared: Arc<Shared>) -> Self {
        Self {
            uffd,
            regions,
            shared,
        }
    }

    /// The first of `extents` that guest memory does not hold.
    pub(super) fn first_outside<'a>(&self, extents: &'a [Extent]) -> Option<&'a Extent> {
        extents
            .iter()
            .find(|extent| !self.holds(extent.gpa, extent.pages))
    }

    /// Says which pages are to come.
    pub(super) fn plan(&self, extents: &[Extent]) {
        let runs = extents.iter().flat_map(|extent| {
            let mut done = 0;
            std::iter::from_fn(move || {
                let gpa = extent.gpa + done * PAGE_SIZE_BYTES;
                let left = extent.pages - done;
                let page_at = (left > 0).then(|| self.regions.locate_gpa(gpa)).flatten()?;
                let pages = left.min(page_at.pages_to_region_end);
                done += pages;
                Some((page_at.index, pages))
            })
        });
        self.shared.pages.plan(runs);
    }

    /// Whether a region holds each of the `pages` from guest-physical address `gpa` on.
    fn holds(&self, gpa: u64, pages: u64) -> bool {
        let mut gpa = gpa;
        let mut left = pages;
        while left > 0 {
            let Some(page_at) = self.regions.locate_gpa(gpa) else {
                return false;
            };
            let held = left.min(page_at.pages_to_region_end);
            left -= held;
            gpa = gpa.saturating_add(held * PAGE_SIZE_BYTES);
        }
        true
    }

    /// Installs `bytes`, whole pages, at guest-physical address `gpa` and wakes nobody: the pager
    /// wakes who waits, when it has accounted for the fault. Pages that are there already or were
    /// dropped stay as they are. Returns how many pages it installed.
    pub(super) fn place_run(
        &self,
        gpa: u64,
        bytes: &mut [u8],
        placement: Placement,
    ) -> Result<u64, InstallError> {
        self.place(gpa, Contents::Bytes(bytes, placement))
    }

    /// As [`place_run`](Self::place_run), of `extent`, whose pages are zero; each a page of its own
    /// if `own_pages`.
    pub(super) fn place_zeroes(
        &self,
        extent: Extent,
        own_pages: bool,
    ) -> Result<u64, InstallError> {
        let len_bytes = extent.pages * PAGE_SIZE_BYTES;
        let contents = match own_pages {
            true => Contents::OwnZeroes(len_bytes),
            false => Contents::Zeroes(len_bytes),
        };
        self.place(extent.gpa, contents)
    }

    fn place(&self, gpa: u64, mut contents: Contents<'_>) -> Result<u64, InstallError> {
        let mut installed_pages = 0;
        let mut done = 0;
        let mut turned_down = 0_u32;
        while done < contents.len_bytes() {
            let at = gpa.saturating_add(done);
            match self.try_place(at, &mut contents, done, turned_down)? {
                Installed::Bytes(placed_bytes) => {
                    done += placed_bytes;
                    installed_pages += placed_bytes / PAGE_SIZE_BYTES;
                    turned_down = 0;
                }
                Installed::AlreadyPresent => {
                    done += PAGE_SIZE_BYTES;
                    turned_down = 0;
                }
                Installed::Again => {
                    // Only the pager can end this, by reading the removal.
                    if self.shared.has_ended() {
                        return Err(InstallError::PagerEnded);
                    }
                    turned_down = turned_down.saturating_add(1);
                    if turned_down < ROUNDS_BEFORE_SLEEP {
                        thread::yield_now();
                    } else {
                        thread::sleep(RETRY_SLEEP);
                    }
                }
            }
        }
        Ok(installed_pages)
    }

    /// Tries once to install at `gpa` what `contents` has from `done` bytes on, or as much of it
    /// as can be done at once.
    fn try_place(
        &self,
        gpa: u64,
        contents: &mut Contents<'_>,
        done: u64,
        turned_down: u32,
    ) -> Result<Installed, InstallError> {
        let page_at = self
            .regions
            .locate_gpa(gpa)
            .ok_or(ServeError::NoSuchPage { gpa })?;
        let left = (contents.len_bytes() - done) / PAGE_SIZE_BYTES;
        let most = match contents {
            Contents::OwnZeroes(_) => 1,
            Contents::Bytes(..) | Contents::Zeroes(_) => MAX_RUN_PAGES,
        };
        let longest = left.min(page_at.pages_to_region_end).min(most);
        let _placing = self.shared.begin_placing();
        let pages = self.pages_not_removed(page_at, longest);
        if pages == 0 {
            // A page that was dropped is as good as present: it is to stay as it is.
            return Ok(Installed::AlreadyPresent);
        }
        let size_bytes = pages * PAGE_SIZE_BYTES;
        let run = done as usize..(done + size_bytes) as usize;
        let installed = attempt(turned_down, || match contents {
            // SAFETY: the run begins at a page of a region, all of which are registered with
            // `uffd`, and does not go past the region's end.
            Contents::Bytes(bytes, Placement::Copy) => unsafe {
                self.uffd.copy(page_at.hva, &bytes[run.clone()], false)
            },
            Contents::Bytes(bytes, Placement::Move) if turned_down >= MOVES_BEFORE_COPY => {
                // SAFETY: as above.
                unsafe { self.uffd.copy(page_at.hva, &bytes[run.clone()], false) }
            }
            // SAFETY: as above; the buffers of an install are anonymous mappings of their own,
            // and runs begin at their pages.
            Contents::Bytes(bytes, Placement::Move) => unsafe {
                self.uffd.move_pages(page_at.hva, &mut bytes[run.clone()])
            },
            // SAFETY: as for a copy.
            Contents::OwnZeroes(_) => unsafe { self.uffd.copy(page_at.hva, &ZERO_PAGE, false) },
            // SAFETY: as for a copy.
            Contents::Zeroes(_) => unsafe { self.uffd.zero_pages(page_at.hva, size_bytes, false) },
        });
        let installed = match installed {
            Err(UffdError::Page { errno, .. })
                if matches!(contents, Contents::Bytes(_, Placement::Move))
                    && matches!(errno, Errno::NOTTY | Errno::INVAL) =>
            {
                return Err(InstallError::NoMove { errno });
            }
            // Whoever completes a read past the page cache may say so before letting go of its
            // pages, and those that are held are not moved.
            Err(UffdError::Page {
                errno: Errno::BUSY, ..
            }) if matches!(contents, Contents::Bytes(_, Placement::Move)) => Installed::Again,
            installed => installed?,
        };
        if let Installed::Bytes(bytes) = installed {
            let pages = bytes / PAGE_SIZE_BYTES;
            self.shared.pages.set_installed(page_at.index, pages);
            add(&self.shared.counters.prefetched_pages, pages);
        }
        Ok(installed)
    }

    /// How many of the `pages` from `page_at` on come before the first that was dropped.
    fn pages_not_removed(&self, page_at: PageLocation, pages: u64) -> u64 {
        if !self.shared.pages.has_dropped() {
            return pages;
        }
        (0..pages)
            .find(|page| self.shared.pages.was_dropped(page_at.index + page))
            .unwrap_or(pages)
    }
}
