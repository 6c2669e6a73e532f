//! Reads that land in guest memory itself, before a userfaultfd has it.
//!
//! A read into memory that is registered for missing pages would fault, in the kernel, for each of
//! them; and nothing else may touch the memory meanwhile, because a page that the disk is filling
//! is half of one thing and half of another. So this method ends before the memory is registered
//! and before KVM, a device or the guest looks at it.

use std::time::Instant;
use std::{iter, ptr, slice};

use reapvm_snapshot::PAGE_SIZE;
use rustix::mm::{Advice, madvise};

use super::pieces::Piece;
use super::place::Placer;
use super::streams::{Destination, Streams};
use super::turns::Turns;
use super::verify::verify_run;
use super::{Install, InstallError, InstallMethod, InstallReport, ReadPath, check_inside};
use crate::PAGE_SIZE_BYTES;
use crate::extents::Extent;
use crate::working_set::WorkingSet;
use crate::working_set_reader::WorkingSetReader;

/// Reads the working set into guest memory. After an error, all of it is missing again.
///
/// # Safety
/// Nothing touches guest memory until this returns, and it is not registered with a userfaultfd.
pub(crate) unsafe fn install_unregistered(
    placer: &Placer,
    install: &Install,
) -> Result<InstallReport, InstallError> {
    let started = Instant::now();
    let reader = &install.working_set;
    let set = reader.read_tables()?;
    check_inside(placer, set.extents(), reader.path())?;
    let read_path = match install.options.read_path {
        None | Some(ReadPath::IoUring) => ReadPath::IoUring,
        // Never through the page cache, which would be one copy more.
        Some(ReadPath::Pread | ReadPath::PageCache) => ReadPath::Pread,
    };
    let mut report = InstallReport {
        method: InstallMethod::Direct,
        read_path,
        extents: set.extents().len() as u64,
        bytes_read: reader.data_offset(),
        read_ns: started.elapsed().as_nanos() as u64,
        ..InstallReport::default()
    };
    let in_place = InPlace {
        placer,
        reader,
        set: &set,
        zeroes: &Turns::default(),
        own_zero_pages: install.options.own_zero_pages,
    };
    in_place.keep_pages_small();
    let streams = Streams::new(install, InstallMethod::Direct, &set, read_path);
    if let Err(error) = streams.run(&mut report, || Ok(in_place)) {
        // What is there may be half read, or not what it should be.
        in_place.drop_all();
        return Err(error);
    }
    report.lead_pages = report.pages;
    report.total_ns = started.elapsed().as_nanos() as u64;
    Ok(report)
}

/// The pages of a set where the guest will find them.
#[derive(Clone, Copy)]
struct InPlace<'a> {
    placer: &'a Placer,
    reader: &'a WorkingSetReader,
    set: &'a WorkingSet,
    /// Whose turn it is to bring which run of zero pages.
    zeroes: &'a Turns,
    own_zero_pages: bool,
}

// SAFETY: guest memory is mapped as long as the pager exists, and nobody else uses it meanwhile
// (`install_unregistered`). Pieces do not overlap, and each is looked at only when it has arrived.
unsafe impl Destination for InPlace<'_> {
    fn ranges(&mut self, _slot: usize, piece: &Piece) -> Result<Vec<libc::iovec>, InstallError> {
        let runs = self.host_runs(piece)?.into_iter();
        Ok(runs
            .map(|run| libc::iovec {
                iov_base: run.hva as *mut libc::c_void,
                iov_len: run.pages as usize * PAGE_SIZE,
            })
            .collect())
    }

    fn meanwhile(&mut self, report: &mut InstallReport) -> Result<(), InstallError> {
        let started = Instant::now();
        while let Some(extent) = self.zeroes.take(self.set.zero_extents()) {
            self.touch_zeroes(extent)?;
            report.pages += extent.pages;
            report.zero_pages += extent.pages;
        }
        report.copy_ns += started.elapsed().as_nanos() as u64;
        Ok(())
    }

    fn arrived(
        &mut self,
        _slot: usize,
        piece: &Piece,
        report: &mut InstallReport,
    ) -> Result<(), InstallError> {
        let started = Instant::now();
        self.verify(piece)?;
        report.verify_ns += started.elapsed().as_nanos() as u64;
        report.pages += piece.pages;
        Ok(())
    }
}

impl InPlace<'_> {
    /// Where the pages of `piece` are in this process, in the order of the file.
    fn host_runs(&self, piece: &Piece) -> Result<Vec<HostRun>, InstallError> {
        self.locate(piece.runs(self.set.data_extents()))
    }

    /// Where `guest_runs`, guest-physical addresses and numbers of pages, are in this process.
    fn locate(
        &self,
        guest_runs: impl Iterator<Item = (u64, u64)>,
    ) -> Result<Vec<HostRun>, InstallError> {
        let mut runs = Vec::new();
        for (gpa, pages) in guest_runs {
            let mut done = 0;
            while done < pages {
                let at = gpa + done * PAGE_SIZE_BYTES;
                let page_at = self
                    .placer
                    .regions
                    .locate_gpa(at)
                    .ok_or(crate::ServeError::NoSuchPage { gpa: at })?;
                let here = (pages - done).min(page_at.pages_to_region_end);
                runs.push(HostRun {
                    gpa: at,
                    hva: page_at.hva,
                    index: page_at.index,
                    pages: here,
                });
                done += here;
            }
        }
        Ok(runs)
    }

    /// Checks the pages of `piece` where they are, and accounts for them.
    fn verify(&self, piece: &Piece) -> Result<(), InstallError> {
        let mut page = piece.first_page as usize;
        for run in self.host_runs(piece)? {
            let next = page + run.pages as usize;
            let expected = self.set.page_crc32cs().get(page..next).unwrap_or_default();
            // SAFETY: guest memory that is mapped and filled by now; nobody else uses it
            // (`install_unregistered`).
            let bytes = unsafe {
                slice::from_raw_parts(run.hva as *const u8, run.pages as usize * PAGE_SIZE)
            };
            verify_run(self.reader, run.gpa, bytes, expected)?;
            self.placer.shared.pages.set_installed(run.index, run.pages);
            page = next;
        }
        Ok(())
    }

    /// Has the kernel map its zero page, or new ones, for those of `extent`, which would be missing,
    /// and fault, from the registration on.
    fn touch_zeroes(&self, extent: &Extent) -> Result<(), InstallError> {
        for run in self.locate(iter::once((extent.gpa, extent.pages)))? {
            for page in 0..run.pages {
                let hva = run.hva + page * PAGE_SIZE_BYTES;
                // SAFETY: guest memory, mapped, that nobody else uses (`install_unregistered`). It
                // is zero, and stays so.
                unsafe {
                    match self.own_zero_pages {
                        true => ptr::write_volatile(hva as *mut u8, 0),
                        false => {
                            ptr::read_volatile(hva as *const u8);
                        }
                    }
                }
            }
            self.placer.shared.pages.set_installed(run.index, run.pages);
        }
        Ok(())
    }

    /// Keeps huge pages out of guest memory, if the system or an advice would have them: what the
    /// first touch of a page fills must be no more than that page. What is around it is missing,
    /// and would be zero.
    fn keep_pages_small(&self) {
        for region in self.placer.regions.iter() {
            // SAFETY: advice about huge pages changes no contents. A kernel that has none refuses
            // it, and then there is nothing to keep out.
            let _ = unsafe {
                madvise(
                    region.hva as *mut libc::c_void,
                    region.size_bytes as usize,
                    Advice::LinuxNoHugepage,
                )
            };
        }
    }

    /// Makes all pages of the set missing again.
    fn drop_all(&self) {
        let extents = self.set.extents().iter();
        let runs = self.locate(extents.map(|&Extent { gpa, pages }| (gpa, pages)));
        // Each was located before.
        for run in runs.unwrap_or_default() {
            // SAFETY: guest memory, anonymous and mapped, that nobody else uses yet. It can only
            // fail for a range that is none.
            let _ = unsafe {
                madvise(
                    run.hva as *mut libc::c_void,
                    run.pages as usize * PAGE_SIZE,
                    Advice::LinuxDontNeed,
                )
            };
            self.placer.shared.pages.set_missing(run.index, run.pages);
        }
    }
}

/// A run of guest pages that is contiguous in this process too.
struct HostRun {
    gpa: u64,
    hva: u64,
    /// Number of its first page in the account.
    index: u64,
    pages: u64,
}
