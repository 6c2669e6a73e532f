//! Reads that land in guest memory itself, before a userfaultfd has it.
//!
//! A read into memory that is registered for missing pages would fault, in the kernel, for each of
//! them; and nothing else may touch the memory meanwhile, because a page that the disk is filling
//! is half of one thing and half of another. So this method ends before the memory is registered
//! and before KVM, a device or the guest looks at it.

use std::slice;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use reapvm_snapshot::PAGE_SIZE;
use rustix::mm::{Advice, madvise};

use super::pieces::{Piece, pieces};
use super::place::Placer;
use super::reads::Reads;
use super::streams::{read_failure, verify_run};
use super::{
    Install, InstallError, InstallMethod, InstallReport, ReadPath, STACK_BYTES, THREAD_NAME,
    check_inside,
};
use crate::PAGE_SIZE_BYTES;
use crate::extents::Extent;
use crate::working_set::WorkingSet;
use crate::working_set_reader::WorkingSetReader;

/// How many threads read and verify.
const THREADS: usize = 2;

struct Scatter<'a> {
    placer: &'a Placer,
    reader: &'a WorkingSetReader,
    set: &'a WorkingSet,
    pieces: Vec<Piece>,
    by_io_uring: bool,
    depth: usize,
    next: AtomicUsize,
    has_failed: AtomicBool,
}

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
    let options = &install.options;
    let set = reader.read_tables()?;
    check_inside(placer, set.extents(), reader.path())?;
    let by_io_uring = options.read_path.unwrap_or(ReadPath::IoUring) == ReadPath::IoUring;
    let piece_pages = (options.piece_bytes / PAGE_SIZE_BYTES).max(1);
    let scatter = Scatter {
        placer,
        reader,
        set: &set,
        pieces: pieces(set.extents(), piece_pages),
        by_io_uring,
        depth: if by_io_uring { options.depth.max(1) } else { 1 },
        next: AtomicUsize::new(0),
        has_failed: AtomicBool::new(false),
    };
    let mut report = InstallReport {
        method: InstallMethod::Direct,
        read_path: if by_io_uring {
            ReadPath::IoUring
        } else {
            ReadPath::Pread
        },
        extents: set.extents().len() as u64,
        bytes_read: reader.data_offset(),
        read_ns: started.elapsed().as_nanos() as u64,
        ..InstallReport::default()
    };
    if let Err(error) = scatter.run_all(&mut report) {
        // What is there may be half read, or not what it should be.
        scatter.drop_all();
        return Err(error);
    }
    report.lead_pages = report.pages;
    report.total_ns = started.elapsed().as_nanos() as u64;
    Ok(report)
}

impl Scatter<'_> {
    fn run_all(&self, report: &mut InstallReport) -> Result<(), InstallError> {
        thread::scope(|scope| {
            let others = (1..THREADS.min(self.pieces.len()))
                .map(|_| {
                    thread::Builder::new()
                        .name(THREAD_NAME.to_owned())
                        .stack_size(STACK_BYTES)
                        .spawn_scoped(scope, || self.run())
                        .map_err(|error| {
                            self.has_failed.store(true, Ordering::Relaxed);
                            InstallError::Spawn(error)
                        })
                })
                .collect::<Result<Vec<_>, _>>()?;
            let own = self.run();
            let results: Vec<_> = others
                .into_iter()
                .map(|other| other.join().unwrap_or(Err(InstallError::Panicked)))
                .collect();
            report.add(&own?);
            for result in results {
                report.add(&result?);
            }
            Ok(())
        })
    }

    fn run(&self) -> Result<InstallReport, InstallError> {
        let result = self.read_pieces();
        if result.is_err() {
            self.has_failed.store(true, Ordering::Relaxed);
        }
        result
    }

    fn read_pieces(&self) -> Result<InstallReport, InstallError> {
        let mut report = InstallReport {
            threads: 1,
            ..InstallReport::default()
        };
        let depth = self.depth.min(self.pieces.len()).max(1);
        let file = self.reader.file();
        let mut reads = if self.by_io_uring {
            Reads::by_io_uring(file, depth).map_err(|reason| InstallError::NoIoUring {
                method: InstallMethod::Direct,
                reason,
            })?
        } else {
            Reads::one_by_one(file, depth)
        };
        let mut free: Vec<usize> = (0..depth).rev().collect();
        let mut in_slot: Vec<Option<Piece>> = vec![None; depth];
        loop {
            let started = Instant::now();
            while let Some(&slot) = free.last() {
                if self.has_failed.load(Ordering::Relaxed) {
                    break;
                }
                let Some(piece) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
                    break;
                };
                free.pop();
                in_slot[slot] = Some(*piece);
                let iovecs: Vec<_> = self
                    .host_runs(piece)?
                    .into_iter()
                    .map(|run| libc::iovec {
                        iov_base: run.hva as *mut libc::c_void,
                        iov_len: run.pages as usize * PAGE_SIZE,
                    })
                    .collect();
                let offset = self.reader.offset_of_page(piece.first_page);
                // SAFETY: the slot is free. The ranges are guest memory, mapped as long as the
                // pager exists, and nobody else uses it (`install_unregistered`); pieces do not
                // overlap, and this one is looked at only when its slot has come back.
                unsafe { reads.push(slot, offset, iovecs.into_iter()) };
            }
            let done = reads
                .submit_ready()
                .and_then(|()| reads.next_done())
                .map_err(|source| self.reader.read_error(source))?;
            report.read_ns += started.elapsed().as_nanos() as u64;
            let Some((slot, outcome)) = done else {
                return Ok(report);
            };
            outcome.map_err(|failure| read_failure(self.reader, failure))?;
            free.push(slot);
            if let Some(piece) = in_slot[slot].take() {
                let started = Instant::now();
                self.verify(&piece)?;
                report.verify_ns += started.elapsed().as_nanos() as u64;
                report.pages += piece.pages;
                report.bytes_read += piece.pages * PAGE_SIZE_BYTES;
            }
        }
    }

    /// Where the pages of `piece` are in this process, in the order of the file.
    fn host_runs(&self, piece: &Piece) -> Result<Vec<HostRun>, InstallError> {
        self.locate(piece.runs(self.set.extents()))
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
