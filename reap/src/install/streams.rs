//! Threads that each read pieces of the working set and install those that have come.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use reapvm_snapshot::PAGE_SIZE;
use reapvm_snapshot::checksum::crc32c;

use super::pieces::{Piece, pieces};
use super::place::{Placement, Placer};
use super::progress::Progress;
use super::reads::{ReadFailure, Reads};
use super::{
    Install, InstallError, InstallMethod, InstallReport, ReadPath, STACK_BYTES, THREAD_NAME,
    check_inside,
};
use crate::extents::Extent;
use crate::working_set::{WorkingSet, WorkingSetError};
use crate::working_set_reader::WorkingSetReader;

/// How many threads install pieces: more would need more processors than a small machine has.
const STREAMS: usize = 2;

/// What the threads share.
struct Streams<'a> {
    placer: &'a Placer,
    reader: &'a WorkingSetReader,
    set: &'a WorkingSet,
    pieces: Vec<Piece>,
    placement: Placement,
    read_path: ReadPath,
    depth: usize,
    progress: &'a Progress,
    /// Index of the next piece that no thread has taken.
    next: AtomicUsize,
    /// A thread has failed; the others need not go on.
    has_failed: AtomicBool,
}

pub(super) fn install(
    placer: &Placer,
    install: &Install,
    method: InstallMethod,
    progress: &Progress,
) -> Result<InstallReport, InstallError> {
    let reader = &install.working_set;
    let options = &install.options;
    let read_path = match options.read_path {
        Some(read_path) => read_path,
        None if reader.is_cached() => ReadPath::PageCache,
        None => ReadPath::IoUring,
    };
    let started = Instant::now();
    let set = reader.read_tables()?;
    check_inside(placer, set.extents(), reader.path())?;
    placer.plan(set.extents());
    progress.expect(set.page_count());
    if read_path == ReadPath::PageCache {
        reader.use_page_cache()?;
    }
    let piece_pages = (options.piece_bytes / PAGE_SIZE as u64).max(1);
    let streams = Streams {
        placer,
        reader,
        set: &set,
        pieces: pieces(set.extents(), piece_pages),
        placement: match method {
            InstallMethod::Moved => Placement::Move,
            _ => Placement::Copy,
        },
        read_path,
        depth: match read_path {
            ReadPath::IoUring => options.depth.max(1),
            // Each read is waited for anyway.
            ReadPath::Pread | ReadPath::PageCache => 1,
        },
        progress,
        next: AtomicUsize::new(0),
        has_failed: AtomicBool::new(false),
    };
    let mut report = InstallReport {
        read_path,
        extents: set.extents().len() as u64,
        bytes_read: reader.data_offset(),
        read_ns: started.elapsed().as_nanos() as u64,
        ..InstallReport::default()
    };
    streams.run_all(method, &mut report)?;
    Ok(report)
}

impl Streams<'_> {
    fn run_all(
        &self,
        method: InstallMethod,
        report: &mut InstallReport,
    ) -> Result<(), InstallError> {
        thread::scope(|scope| {
            // A set of one piece needs one thread, an empty one none.
            let others = (1..STREAMS.min(self.pieces.len()))
                .map(|_| {
                    thread::Builder::new()
                        .name(THREAD_NAME.to_owned())
                        .stack_size(STACK_BYTES)
                        .spawn_scoped(scope, || self.run(method))
                        .map_err(|error| {
                            self.has_failed.store(true, Ordering::Relaxed);
                            InstallError::Spawn(error)
                        })
                })
                .collect::<Result<Vec<_>, _>>()?;
            let own = self.run(method);
            // All are waited for before any error is looked at: the scope would panic for a
            // thread that did and was not joined.
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

    /// Installs pieces until none is left or a thread has failed.
    fn run(&self, method: InstallMethod) -> Result<InstallReport, InstallError> {
        let result = self.install_pieces(method);
        if result.is_err() {
            self.has_failed.store(true, Ordering::Relaxed);
        }
        result
    }

    fn take(&self) -> Result<Option<Piece>, InstallError> {
        if self.has_failed.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let piece = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed));
        if piece.is_some() && self.placer.shared.has_ended() {
            return Err(InstallError::PagerEnded);
        }
        Ok(piece.copied())
    }

    fn install_pieces(&self, method: InstallMethod) -> Result<InstallReport, InstallError> {
        let mut report = InstallReport {
            threads: 1,
            ..InstallReport::default()
        };
        let longest = self.pieces.iter().map(|piece| piece.pages).max();
        let longest_bytes = longest.unwrap_or(1) * PAGE_SIZE as u64;
        let depth = self.depth.min(self.pieces.len()).max(1);
        // Before the reads: these are over when the buffers go.
        let mut buffers = (0..depth)
            .map(|_| self.reader.buffer(longest_bytes))
            .collect::<Result<Vec<_>, _>>()?;
        let file = self.reader.file();
        let mut reads = match self.read_path {
            ReadPath::IoUring => Reads::by_io_uring(file, depth)
                .map_err(|reason| InstallError::NoIoUring { method, reason })?,
            ReadPath::Pread | ReadPath::PageCache => Reads::one_by_one(file, depth),
        };
        let mut free: Vec<usize> = (0..depth).rev().collect();
        let mut in_slot: Vec<Option<Piece>> = vec![None; depth];
        loop {
            while let Some(&slot) = free.last() {
                let Some(piece) = self.take()? else {
                    break;
                };
                let started = Instant::now();
                free.pop();
                in_slot[slot] = Some(piece);
                let bytes = &mut buffers[slot].as_mut_slice()[..piece.pages as usize * PAGE_SIZE];
                let iovec = libc::iovec {
                    iov_base: bytes.as_mut_ptr().cast(),
                    iov_len: bytes.len(),
                };
                let offset = self.reader.offset_of_page(piece.first_page);
                // SAFETY: the slot is free, and its buffer is not used until the slot comes back.
                // `reads` is dropped before `buffers`.
                unsafe { reads.push(slot, offset, std::iter::once(iovec)) };
                report.read_ns += started.elapsed().as_nanos() as u64;
            }
            let started = Instant::now();
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
                let bytes = &mut buffers[slot].as_mut_slice()[..piece.pages as usize * PAGE_SIZE];
                report.bytes_read += bytes.len() as u64;
                self.place(&piece, bytes, &mut report)?;
                self.progress.add(piece.pages);
            }
        }
    }

    /// Verifies and installs `piece`, whose pages are `bytes`.
    fn place(
        &self,
        piece: &Piece,
        bytes: &mut [u8],
        report: &mut InstallReport,
    ) -> Result<(), InstallError> {
        place_piece(
            self.placer,
            self.reader,
            self.set,
            piece,
            bytes,
            self.placement,
            report,
        )
    }
}

pub(super) fn read_failure(reader: &WorkingSetReader, failure: ReadFailure) -> WorkingSetError {
    match failure {
        ReadFailure::Truncated => WorkingSetError::Truncated {
            path: reader.path().to_owned(),
        },
        ReadFailure::Io(source) => reader.read_error(source),
    }
}

/// Verifies and installs `piece` of `set`, whose pages are `bytes`.
pub(super) fn place_piece(
    placer: &Placer,
    reader: &WorkingSetReader,
    set: &WorkingSet,
    piece: &Piece,
    bytes: &mut [u8],
    placement: Placement,
    report: &mut InstallReport,
) -> Result<(), InstallError> {
    let mut bytes_left = bytes;
    let mut crcs_left = set
        .page_crc32cs()
        .get(piece.first_page as usize..)
        .unwrap_or_default();
    for (gpa, pages) in piece.runs(set.extents()) {
        // The tables were checked against the length of the file, so neither split can fail.
        let truncated = || WorkingSetError::Truncated {
            path: reader.path().to_owned(),
        };
        let (run, rest) = bytes_left
            .split_at_mut_checked(pages as usize * PAGE_SIZE)
            .ok_or_else(truncated)?;
        let (run_crcs, rest_crcs) = crcs_left
            .split_at_checked(pages as usize)
            .ok_or_else(truncated)?;
        (bytes_left, crcs_left) = (rest, rest_crcs);

        // A run is verified right before it is copied: the copy finds it in the caches.
        let verify_started = Instant::now();
        verify_run(reader, gpa, run, run_crcs)?;
        let copy_started = Instant::now();
        report.pages += placer.place_run(gpa, run, placement)?;
        report.verify_ns += (copy_started - verify_started).as_nanos() as u64;
        report.copy_ns += copy_started.elapsed().as_nanos() as u64;
    }
    Ok(())
}

/// Checks the pages `run` at guest-physical address `gpa` against their checksums.
pub(super) fn verify_run(
    reader: &WorkingSetReader,
    gpa: u64,
    run: &[u8],
    expected: &[u32],
) -> Result<(), WorkingSetError> {
    let pages = expected.len() as u64;
    let gpas = Extent { gpa, pages }.page_gpas();
    for ((gpa, page), expected) in gpas.zip(run.chunks_exact(PAGE_SIZE)).zip(expected) {
        if crc32c(page) != *expected {
            return Err(WorkingSetError::CorruptPage {
                path: reader.path().to_owned(),
                gpa,
            });
        }
    }
    Ok(())
}
