//! Threads that each read pieces of the working set, several at a time, and deal with those that
//! have come. Where a piece is read to, and what happens to it then, is a [`Destination`]'s.

use std::mem;
use std::time::Instant;

use super::pieces::{Piece, pieces};
use super::reads::{ReadFailure, Reads};
use super::turns::{Turns, run_on};
use super::{Install, InstallError, InstallMethod, InstallReport, ReadPath};
use crate::PAGE_SIZE_BYTES;
use crate::working_set::{WorkingSet, WorkingSetError};
use crate::working_set_reader::WorkingSetReader;

/// How many threads read: more would need more processors than a small machine has.
const STREAMS: usize = 2;

/// Where one thread's pieces go.
///
/// # Safety
/// The memory that [`ranges`](Self::ranges) returns may be written to until
/// [`arrived`](Self::arrived) is called for its slot or the destination is dropped, and neither the
/// destination nor anybody else looks at it before.
pub(super) unsafe trait Destination {
    /// The memory that the read of `piece`, as the request of `slot`, fills: as many bytes as the
    /// piece has, in the order of the file.
    fn ranges(&mut self, slot: usize, piece: &Piece) -> Result<Vec<libc::iovec>, InstallError>;

    /// The first reads are under way: time for what needs no disk.
    fn meanwhile(&mut self, report: &mut InstallReport) -> Result<(), InstallError>;

    /// The pages of `piece` have been read as the request of `slot`: to be verified and made the
    /// guest's.
    fn arrived(
        &mut self,
        slot: usize,
        piece: &Piece,
        report: &mut InstallReport,
    ) -> Result<(), InstallError>;
}

/// What the threads read, and how.
pub(super) struct Streams<'a> {
    method: InstallMethod,
    reader: &'a WorkingSetReader,
    pieces: Vec<Piece>,
    read_path: ReadPath,
    depth: usize,
}

impl<'a> Streams<'a> {
    /// Streams that read `set`, which is `install`'s.
    pub(super) fn new(
        install: &'a Install,
        method: InstallMethod,
        set: &WorkingSet,
        read_path: ReadPath,
    ) -> Self {
        let options = &install.options;
        let piece_pages = (options.piece_bytes / PAGE_SIZE_BYTES).max(1);
        let pieces = pieces(set.data_extents(), piece_pages);
        let depth = match read_path {
            // A read for each piece at most.
            ReadPath::IoUring => options.depth.min(pieces.len()).max(1),
            // Each read is waited for anyway.
            ReadPath::Pread | ReadPath::PageCache => 1,
        };
        Self {
            method,
            reader: &install.working_set,
            pieces,
            read_path,
            depth,
        }
    }

    /// Reads that each thread keeps under way.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Length of the longest piece.
    pub(super) fn piece_bytes(&self) -> u64 {
        let longest = self.pieces.iter().map(|piece| piece.pages).max();
        longest.unwrap_or(1) * PAGE_SIZE_BYTES
    }

    /// Reads all pieces, each into the destination of the thread that reads it, which `destination`
    /// makes.
    pub(super) fn run<D: Destination>(
        &self,
        report: &mut InstallReport,
        destination: impl Fn() -> Result<D, InstallError> + Sync,
    ) -> Result<(), InstallError> {
        // A set of one piece needs one thread, an empty one none.
        let threads = STREAMS.min(self.pieces.len());
        run_on(threads, report, |turns| {
            self.read_pieces(turns, destination()?)
        })
    }

    fn read_pieces(
        &self,
        turns: &Turns,
        mut destination: impl Destination,
    ) -> Result<InstallReport, InstallError> {
        let mut report = InstallReport {
            threads: 1,
            ..InstallReport::default()
        };
        // After the destination, so that the reads are over when its memory goes.
        let mut reads = self.reads()?;
        let mut free: Vec<usize> = (0..self.depth).rev().collect();
        let mut in_slot: Vec<Option<Piece>> = vec![None; self.depth];
        let mut is_first = true;
        loop {
            let mut started = Instant::now();
            while let Some(&slot) = free.last() {
                let Some(piece) = turns.take(&self.pieces) else {
                    break;
                };
                let ranges = destination.ranges(slot, piece)?;
                free.pop();
                in_slot[slot] = Some(*piece);
                let offset = self.reader.offset_of_page(piece.first_page);
                // SAFETY: the slot is free. The memory stays as it is until the destination is
                // told or dropped (`Destination`), which is after the slot has come back or the
                // reads are dropped.
                unsafe { reads.push(slot, offset, ranges.into_iter()) };
            }
            let failed = |source| self.reader.read_error(source);
            reads.submit_ready().map_err(failed)?;
            if mem::take(&mut is_first) {
                report.read_ns += started.elapsed().as_nanos() as u64;
                destination.meanwhile(&mut report)?;
                started = Instant::now();
            }
            let done = reads.next_done().map_err(failed)?;
            report.read_ns += started.elapsed().as_nanos() as u64;
            let Some((slot, outcome)) = done else {
                return Ok(report);
            };
            outcome.map_err(|failure| read_failure(self.reader, failure))?;
            free.push(slot);
            if let Some(piece) = in_slot[slot].take() {
                report.bytes_read += piece.pages * PAGE_SIZE_BYTES;
                destination.arrived(slot, &piece, &mut report)?;
            }
        }
    }

    fn reads(&self) -> Result<Reads<'_>, InstallError> {
        let file = self.reader.file();
        match self.read_path {
            ReadPath::IoUring => {
                Reads::by_io_uring(file, self.depth).map_err(|reason| InstallError::NoIoUring {
                    method: self.method,
                    reason,
                })
            }
            ReadPath::Pread | ReadPath::PageCache => Ok(Reads::one_by_one(file, self.depth)),
        }
    }
}

fn read_failure(reader: &WorkingSetReader, failure: ReadFailure) -> WorkingSetError {
    match failure {
        ReadFailure::Truncated => WorkingSetError::Truncated {
            path: reader.path().to_owned(),
        },
        ReadFailure::Io(source) => reader.read_error(source),
    }
}
