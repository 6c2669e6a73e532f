//! The prefetch: a working set, installed before the guest runs.
//!
//! The pages come from the file past the page cache and go into guest memory with UFFDIO_COPY, a
//! contiguous run at a time (REAP, section 5.2). Waking is left out, because nobody waits yet.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use reapvm_snapshot::PAGE_SIZE;
use reapvm_snapshot::checksum::crc32c;
use serde::{Deserialize, Serialize};

use crate::extents::Extent;
use crate::page_buffer::HUGE_PAGE_BYTES;
use crate::paged_memory::{PagedMemory, install_run};
use crate::serve::ServeError;
use crate::working_set::{WorkingSet, WorkingSetError};
use crate::working_set_reader::WorkingSetReader;

/// What [`InstallMethod::Streamed`] reads in one request: as much as fits into one huge page.
const PIECE_PAGES: u64 = (HUGE_PAGE_BYTES / PAGE_SIZE) as u64;

/// How many threads install pieces. One of two always has a read under way while the other one
/// copies; more would need more processors than a small machine has.
const STREAMS: usize = 2;

/// Stack of a thread that installs pieces: it calls nothing deep and keeps its buffer elsewhere.
const STREAM_STACK_BYTES: usize = 128 << 10;

/// How a working set gets from its file into guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstallMethod {
    /// As in the paper (REAP, section 5.2): one read of the whole file, and when it is done the
    /// pages are copied.
    OneRead,
    /// Two threads read the file in pieces of 2 MiB, each again and again into the same memory,
    /// and copy what they have read: the disk and the copying do not wait for each other, and no
    /// memory of the size of the working set has to be found first.
    #[default]
    Streamed,
}

/// A name that is none of the install methods.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown install method \"{name}\": use one of one-read or streamed")]
pub struct ParseInstallMethodError {
    /// The name as it was given.
    pub name: String,
}

impl InstallMethod {
    /// All methods.
    pub const ALL: [Self; 2] = [Self::OneRead, Self::Streamed];

    /// The name that the command line and the results use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OneRead => "one-read",
            Self::Streamed => "streamed",
        }
    }
}

impl fmt::Display for InstallMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for InstallMethod {
    type Err = ParseInstallMethodError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|method| method.as_str() == name)
            .ok_or_else(|| ParseInstallMethodError {
                name: name.to_owned(),
            })
    }
}

/// What an install did and where its time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InstallReport {
    /// How it was done.
    pub method: InstallMethod,
    /// Pages put in place.
    pub pages: u64,
    /// Contiguous runs of pages in the working set.
    pub extents: u64,
    /// Bytes read: the whole file.
    pub bytes_read: u64,
    /// Time in reads, summed over the threads that read.
    pub read_ns: u64,
    /// Time to verify the pages, summed over the threads.
    pub verify_ns: u64,
    /// Time to copy the pages into guest memory, summed over the threads.
    pub copy_ns: u64,
    /// How many threads read, verified and copied.
    pub threads: u64,
    /// Time of the whole.
    pub total_ns: u64,
}

impl InstallReport {
    /// Adds what another thread did for the same install.
    fn add(&mut self, other: &Self) {
        self.pages += other.pages;
        self.read_ns += other.read_ns;
        self.verify_ns += other.verify_ns;
        self.copy_ns += other.copy_ns;
        self.threads += other.threads;
    }
}

/// Why a working set was not installed. Pages before the cause are in place, and they are right;
/// the machine may be dropped, or go on as if on demand.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The working set is missing, damaged, or belongs to another snapshot.
    #[error(transparent)]
    WorkingSet(#[from] WorkingSetError),
    /// The working set has a page that guest memory has not.
    #[error(
        "the working set {} has {pages} pages at guest address {gpa:#x}, not all of them in guest \
         memory: record again",
        path.display()
    )]
    OutsideRegions {
        /// The file.
        path: std::path::PathBuf,
        /// Guest-physical address of the run.
        gpa: u64,
        /// Length of the run.
        pages: u64,
    },
    /// A page could not be put in place.
    #[error("cannot install the working set")]
    Install(#[from] ServeError),
    /// A thread cannot be started.
    #[error("cannot start a thread to install the working set")]
    Spawn(#[source] std::io::Error),
    /// A thread panicked.
    #[error("a thread that installs the working set panicked")]
    Panicked,
    /// The pager serves already: what it would install, the guest may have written since.
    #[error("a working set must be installed before the pager is started")]
    AlreadyStarted,
}

/// Installs what is in the file of `reader`.
pub(crate) fn install(
    memory: &mut PagedMemory,
    reader: &WorkingSetReader,
    method: InstallMethod,
) -> Result<InstallReport, InstallError> {
    let started = Instant::now();
    let mut report = match method {
        InstallMethod::OneRead => install_one_read(memory, reader),
        InstallMethod::Streamed => install_streamed(memory, reader),
    }?;
    report.method = method;
    report.bytes_read = reader.len_bytes();
    // Buffers are unmapped by now, which takes time too and is part of what an install costs.
    report.total_ns = started.elapsed().as_nanos() as u64;
    Ok(report)
}

fn install_one_read(
    memory: &mut PagedMemory,
    reader: &WorkingSetReader,
) -> Result<InstallReport, InstallError> {
    let started = Instant::now();
    let (set, file_bytes) = reader.read_whole()?;
    check_inside(memory, set.extents(), reader.path())?;
    let mut report = InstallReport {
        extents: set.extents().len() as u64,
        read_ns: started.elapsed().as_nanos() as u64,
        threads: 1,
        ..InstallReport::default()
    };
    let pages = file_bytes
        .as_slice()
        .get(reader.data_offset() as usize..)
        .unwrap_or_default();
    let memory = RwLock::new(memory);
    for piece in pieces(set.extents(), set.page_count()) {
        install_piece(&memory, &set, &piece, pages, reader.path(), &mut report)?;
    }
    Ok(report)
}

fn install_streamed(
    memory: &mut PagedMemory,
    reader: &WorkingSetReader,
) -> Result<InstallReport, InstallError> {
    let started = Instant::now();
    let set = reader.read_tables()?;
    check_inside(memory, set.extents(), reader.path())?;
    let mut report = InstallReport {
        extents: set.extents().len() as u64,
        read_ns: started.elapsed().as_nanos() as u64,
        ..InstallReport::default()
    };
    let stream = Stream {
        memory: RwLock::new(memory),
        reader,
        set: &set,
        pieces: pieces(set.extents(), PIECE_PAGES),
        next: AtomicUsize::new(0),
        has_failed: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        // A set of one piece needs one thread, an empty one none.
        let others = (1..STREAMS.min(stream.pieces.len()))
            .map(|_| {
                thread::Builder::new()
                    .name("working-set".to_owned())
                    .stack_size(STREAM_STACK_BYTES)
                    .spawn_scoped(scope, || stream.run())
                    .map_err(|error| {
                        stream.has_failed.store(true, Ordering::Relaxed);
                        InstallError::Spawn(error)
                    })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let own = stream.run();
        // All are waited for before any error is looked at: the scope would panic for a thread
        // that did and was not joined.
        let results: Vec<_> = others
            .into_iter()
            .map(|other| other.join().unwrap_or(Err(InstallError::Panicked)))
            .collect();
        report.add(&own?);
        for result in results {
            report.add(&result?);
        }
        Ok(report)
    })
}

/// What the threads of a streamed install share.
struct Stream<'a> {
    memory: RwLock<&'a mut PagedMemory>,
    reader: &'a WorkingSetReader,
    set: &'a WorkingSet,
    pieces: Vec<Piece>,
    /// Index of the next piece that no thread has taken.
    next: AtomicUsize,
    /// A thread has failed; the others need not go on.
    has_failed: AtomicBool,
}

impl Stream<'_> {
    /// Installs pieces until none is left or a thread has failed.
    fn run(&self) -> Result<InstallReport, InstallError> {
        let result = self.install_pieces();
        if result.is_err() {
            self.has_failed.store(true, Ordering::Relaxed);
        }
        result
    }

    fn install_pieces(&self) -> Result<InstallReport, InstallError> {
        let mut report = InstallReport {
            threads: 1,
            ..InstallReport::default()
        };
        let longest = self.pieces.iter().map(|piece| piece.pages).max();
        let mut buffer = self
            .reader
            .buffer(longest.unwrap_or(1) * PAGE_SIZE as u64)?;
        while let Some(piece) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if self.has_failed.load(Ordering::Relaxed) {
                break;
            }
            let read_started = Instant::now();
            let bytes = &mut buffer.as_mut_slice()[..piece.pages as usize * PAGE_SIZE];
            self.reader.read_pages(piece.first_page, bytes)?;
            report.read_ns += read_started.elapsed().as_nanos() as u64;
            let path = self.reader.path();
            install_piece(&self.memory, self.set, piece, bytes, path, &mut report)?;
        }
        Ok(report)
    }
}

/// Refuses the working set before its first page is in place if any is outside guest memory.
fn check_inside(memory: &PagedMemory, extents: &[Extent], path: &Path) -> Result<(), InstallError> {
    match extents
        .iter()
        .find(|extent| !memory.holds(extent.gpa, extent.pages))
    {
        Some(extent) => Err(InstallError::OutsideRegions {
            path: path.to_owned(),
            gpa: extent.gpa,
            pages: extent.pages,
        }),
        None => Ok(()),
    }
}

/// Consecutive pages of a working-set file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// Number of its first page in the file.
    first_page: u64,
    pages: u64,
    /// Index of the extent that the first page belongs to.
    extent: usize,
    /// How many pages of that extent come before it.
    pages_before: u64,
}

impl Piece {
    /// Its runs: guest-physical address and number of pages.
    fn runs(self, extents: &[Extent]) -> impl Iterator<Item = (u64, u64)> {
        let mut skipped = self.pages_before;
        let mut left = self.pages;
        extents
            .get(self.extent..)
            .unwrap_or_default()
            .iter()
            .map_while(move |extent| {
                let gpa = extent.gpa + skipped * PAGE_SIZE as u64;
                let pages = (extent.pages - skipped).min(left);
                skipped = 0;
                left -= pages;
                (pages > 0).then_some((gpa, pages))
            })
    }
}

/// Cuts the pages of `extents` into pieces of `piece_pages`, at least 1; the last may be shorter.
fn pieces(extents: &[Extent], piece_pages: u64) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut first_page = 0;
    for (index, extent) in extents.iter().enumerate() {
        let mut pages_before = 0;
        while pages_before < extent.pages {
            let pages_left = extent.pages - pages_before;
            let taken = match pieces.last_mut().filter(|last| last.pages < piece_pages) {
                Some(last) => {
                    let taken = pages_left.min(piece_pages - last.pages);
                    last.pages += taken;
                    taken
                }
                None => {
                    let taken = pages_left.min(piece_pages);
                    pieces.push(Piece {
                        first_page,
                        pages: taken,
                        extent: index,
                        pages_before,
                    });
                    taken
                }
            };
            pages_before += taken;
            first_page += taken;
        }
    }
    pieces
}

/// Verifies and installs `piece` of `set`, whose pages are `bytes`.
fn install_piece(
    memory: &RwLock<&mut PagedMemory>,
    set: &WorkingSet,
    piece: &Piece,
    bytes: &[u8],
    path: &Path,
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
            path: path.to_owned(),
        };
        let (run, rest) = bytes_left
            .split_at_checked(pages as usize * PAGE_SIZE)
            .ok_or_else(truncated)?;
        let (run_crcs, rest_crcs) = crcs_left
            .split_at_checked(pages as usize)
            .ok_or_else(truncated)?;
        (bytes_left, crcs_left) = (rest, rest_crcs);

        // A run is verified right before it is copied: the copy finds it in the caches.
        let verify_started = Instant::now();
        let gpas = Extent { gpa, pages }.page_gpas();
        for ((gpa, page), expected) in gpas.zip(run.chunks_exact(PAGE_SIZE)).zip(run_crcs) {
            if crc32c(page) != *expected {
                return Err(WorkingSetError::CorruptPage {
                    path: path.to_owned(),
                    gpa,
                }
                .into());
            }
        }
        let copy_started = Instant::now();
        report.pages += install_run(memory, gpa, run)?;
        report.verify_ns += (copy_started - verify_started).as_nanos() as u64;
        report.copy_ns += copy_started.elapsed().as_nanos() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_round_trip_and_agree_with_serde() {
        for method in InstallMethod::ALL {
            assert_eq!(method.to_string().parse(), Ok(method));
            let json = serde_json::to_string(&method).unwrap();
            assert_eq!(json, format!("\"{method}\""));
        }
        let error = "mmap".parse::<InstallMethod>().unwrap_err().to_string();
        assert!(error.contains("one-read") && error.contains("streamed"));
    }

    #[test]
    fn pieces_of_no_pages_are_none() {
        assert_eq!(pieces(&[], 4), []);
    }

    proptest! {
        #[test]
        fn pieces_hold_each_page_once_and_in_order(
            lengths in prop::collection::vec((1u64..40, 1u64..4), 0..30),
            piece_pages in 1u64..50,
        ) {
            let mut gpa = 0;
            let extents: Vec<Extent> = lengths
                .iter()
                .map(|&(pages, gap)| {
                    let extent = Extent { gpa, pages };
                    gpa += (pages + gap) * PAGE_SIZE as u64;
                    extent
                })
                .collect();
            let expected: Vec<u64> = extents.iter().flat_map(Extent::page_gpas).collect();
            let cut = pieces(&extents, piece_pages);
            let mut found = Vec::new();
            for piece in &cut {
                prop_assert_eq!(piece.first_page, found.len() as u64);
                for (gpa, pages) in piece.runs(&extents) {
                    found.extend(Extent { gpa, pages }.page_gpas());
                }
                prop_assert_eq!(piece.first_page + piece.pages, found.len() as u64);
            }
            prop_assert_eq!(found, expected);
            let full = cut.len().saturating_sub(1);
            prop_assert!(cut[..full].iter().all(|piece| piece.pages == piece_pages));
        }
    }
}
