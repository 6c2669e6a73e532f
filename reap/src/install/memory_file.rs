//! The pages of the working set from the snapshot's memory file, by many threads at once.

use std::time::Instant;

use reapvm_snapshot::{MemoryReader, PAGE_SIZE};

use super::place::{Placement, Placer};
use super::progress::Progress;
use super::turns::{Turns, run_on};
use super::zeroes::Zeroes;
use super::{Install, InstallError, InstallReport, ReadPath, check_inside};
use crate::extents::Extent;
use crate::page_buffer::PageBuffer;
use crate::working_set::WorkingSetError;

/// As many as a disk that serves reads in parallel has a use for; the paper had one goroutine for
/// each of 16 processors.
const THREADS: usize = 16;

/// Longest run that is read at once.
const MAX_RUN_PAGES: u64 = 64;

struct Runs<'a> {
    placer: &'a Placer,
    memory: &'a MemoryReader,
    install: &'a Install,
    runs: Vec<Extent>,
    zeroes: &'a Zeroes<'a>,
}

pub(super) fn install(
    placer: &Placer,
    install: &Install,
    progress: &Progress,
) -> Result<InstallReport, InstallError> {
    let reader = &install.working_set;
    let memory = install
        .memory
        .as_deref()
        .ok_or(InstallError::NoMemoryReader {
            method: install.options.method,
        })?;
    let set = reader.read_tables()?;
    check_inside(placer, set.extents(), reader.path())?;
    placer.plan(set.extents());
    let zeroes = Zeroes::new(placer, install, &set, progress);
    let runs = Runs {
        placer,
        memory,
        install,
        runs: set.data_extents().iter().flat_map(cut).collect(),
        zeroes: &zeroes,
    };
    let mut report = InstallReport {
        read_path: ReadPath::PageCache,
        extents: set.extents().len() as u64,
        bytes_read: reader.data_offset(),
        ..InstallReport::default()
    };
    run_on(THREADS.min(runs.runs.len()), &mut report, |turns| {
        runs.install(turns)
    })?;
    Ok(report)
}

/// Cuts `extent` into runs of at most [`MAX_RUN_PAGES`].
fn cut(extent: &Extent) -> impl Iterator<Item = Extent> + use<> {
    let Extent { gpa, pages } = *extent;
    (0..pages)
        .step_by(MAX_RUN_PAGES as usize)
        .map(move |first| Extent {
            gpa: gpa + first * PAGE_SIZE as u64,
            pages: MAX_RUN_PAGES.min(pages - first),
        })
}

impl Runs<'_> {
    fn install(&self, turns: &Turns) -> Result<InstallReport, InstallError> {
        let mut report = InstallReport {
            threads: 1,
            ..InstallReport::default()
        };
        self.zeroes.place(&mut report)?;
        let buffer_bytes = MAX_RUN_PAGES * PAGE_SIZE as u64;
        let no_memory = |source| WorkingSetError::NoMemory {
            path: self.install.working_set.path().to_owned(),
            len_bytes: buffer_bytes,
            source,
        };
        let mut buffer = PageBuffer::new(buffer_bytes).map_err(no_memory)?;
        let info = &self.memory.snapshot().manifest().memory;
        while let Some(run) = turns.take(&self.runs) {
            if self.placer.shared.has_ended() {
                return Err(InstallError::PagerEnded);
            }
            let mut done = 0;
            while done < run.pages {
                let gpa = run.gpa + done * PAGE_SIZE as u64;
                let outside = || InstallError::OutsideRegions {
                    path: self.install.working_set.path().to_owned(),
                    gpa,
                    pages: run.pages - done,
                };
                let first_page = info.page_index_of_gpa(gpa).ok_or_else(outside)?;
                // The pages of a run are contiguous in the file up to the end of a region.
                let pages = (done..run.pages)
                    .take_while(|page| {
                        let gpa = run.gpa + page * PAGE_SIZE as u64;
                        info.page_index_of_gpa(gpa) == Some(first_page + page - done)
                    })
                    .count() as u64;
                let started = Instant::now();
                let bytes = &mut buffer.as_mut_slice()[..pages as usize * PAGE_SIZE];
                // Verifies each page that it reads.
                self.memory.read_pages(first_page, bytes)?;
                let copy_started = Instant::now();
                report.pages += self.placer.place_run(gpa, bytes, Placement::Copy)?;
                report.read_ns += (copy_started - started).as_nanos() as u64;
                report.copy_ns += copy_started.elapsed().as_nanos() as u64;
                report.bytes_read += bytes.len() as u64;
                done += pages;
            }
        }
        Ok(report)
    }
}
