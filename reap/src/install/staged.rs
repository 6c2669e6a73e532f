//! Pieces that are read into buffers and put in place beside the pager.

use std::time::Instant;

use reapvm_snapshot::PAGE_SIZE;

use super::pieces::Piece;
use super::place::{Placement, Placer};
use super::progress::Progress;
use super::streams::{Destination, Streams};
use super::verify::verify_run;
use super::zeroes::Zeroes;
use super::{Install, InstallError, InstallMethod, InstallReport, ReadPath, check_inside};
use crate::page_buffer::PageBuffer;
use crate::working_set::{WorkingSet, WorkingSetError};
use crate::working_set_reader::WorkingSetReader;

/// Installs by streams whose pieces get into guest memory by `placement`.
pub(super) fn install(
    placer: &Placer,
    install: &Install,
    method: InstallMethod,
    placement: Placement,
    progress: &Progress,
) -> Result<InstallReport, InstallError> {
    let reader = &install.working_set;
    let read_path = match install.options.read_path {
        Some(read_path) => read_path,
        None if reader.is_cached() => ReadPath::PageCache,
        None => ReadPath::IoUring,
    };
    let started = Instant::now();
    let set = reader.read_tables()?;
    check_inside(placer, set.extents(), reader.path())?;
    placer.plan(set.extents());
    progress.expect(&set);
    let zeroes = Zeroes::new(placer, install, &set, progress);
    if read_path == ReadPath::PageCache {
        reader.use_page_cache()?;
    }
    let mut report = InstallReport {
        read_path,
        extents: set.extents().len() as u64,
        bytes_read: reader.data_offset(),
        read_ns: started.elapsed().as_nanos() as u64,
        ..InstallReport::default()
    };
    let streams = Streams::new(install, method, &set, read_path);
    streams.run(&mut report, || {
        let buffers = (0..streams.depth()).map(|_| reader.buffer(streams.piece_bytes()));
        Ok(Staged {
            buffers: buffers.collect::<Result<_, _>>()?,
            pages: StagedPages {
                placer,
                reader,
                set: &set,
                placement,
            },
            zeroes: &zeroes,
            progress,
        })
    })?;
    Ok(report)
}

/// A buffer for each read that is under way.
struct Staged<'a> {
    buffers: Vec<PageBuffer>,
    pages: StagedPages<'a>,
    zeroes: &'a Zeroes<'a>,
    progress: &'a Progress,
}

impl Staged<'_> {
    fn bytes(&mut self, slot: usize, piece: &Piece) -> &mut [u8] {
        &mut self.buffers[slot].as_mut_slice()[..piece.pages as usize * PAGE_SIZE]
    }
}

// SAFETY: each slot has a buffer of its own, which is looked at only when its piece has arrived.
unsafe impl Destination for Staged<'_> {
    fn ranges(&mut self, slot: usize, piece: &Piece) -> Result<Vec<libc::iovec>, InstallError> {
        let bytes = self.bytes(slot, piece);
        Ok(vec![libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        }])
    }

    fn meanwhile(&mut self, report: &mut InstallReport) -> Result<(), InstallError> {
        self.zeroes.place(report)
    }

    fn arrived(
        &mut self,
        slot: usize,
        piece: &Piece,
        report: &mut InstallReport,
    ) -> Result<(), InstallError> {
        if self.pages.placer.shared.has_ended() {
            return Err(InstallError::PagerEnded);
        }
        let bytes = &mut self.buffers[slot].as_mut_slice()[..piece.pages as usize * PAGE_SIZE];
        self.pages.place(piece, bytes, report)?;
        self.progress.add(piece.first_page, piece.pages);
        Ok(())
    }
}

/// Pages of a set that have been read into buffers.
pub(super) struct StagedPages<'a> {
    pub(super) placer: &'a Placer,
    pub(super) reader: &'a WorkingSetReader,
    pub(super) set: &'a WorkingSet,
    pub(super) placement: Placement,
}

impl StagedPages<'_> {
    /// Verifies and installs `piece`, whose pages are `bytes`.
    pub(super) fn place(
        &self,
        piece: &Piece,
        bytes: &mut [u8],
        report: &mut InstallReport,
    ) -> Result<(), InstallError> {
        let mut bytes_left = bytes;
        let mut crcs_left = self
            .set
            .page_crc32cs()
            .get(piece.first_page as usize..)
            .unwrap_or_default();
        for (gpa, pages) in piece.runs(self.set.data_extents()) {
            // The tables were checked against the length of the file, so neither split can fail.
            let truncated = || WorkingSetError::Truncated {
                path: self.reader.path().to_owned(),
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
            verify_run(self.reader, gpa, run, run_crcs)?;
            let copy_started = Instant::now();
            report.pages += self.placer.place_run(gpa, run, self.placement)?;
            report.verify_ns += (copy_started - verify_started).as_nanos() as u64;
            report.copy_ns += copy_started.elapsed().as_nanos() as u64;
        }
        Ok(())
    }
}
