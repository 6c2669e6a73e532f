//! Making a full snapshot of one and the diffs that follow it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::id::SnapshotId;
use crate::limits::{PAGE_BYTES, PAGE_SIZE};
use crate::manifest::Manifest;
use crate::memory_index::{MemoryIndex, PageKind};
use crate::memory_reader::{MemoryReadError, MemoryReader};
use crate::reader::{ReadError, Snapshot};
use crate::writer::{CreateError, ManifestParts, SnapshotWriter};

/// How many pages are read and written at once: 1 MiB.
const MAX_RUN_PAGES: u64 = 256;

/// Why snapshots are not merged. They themselves are untouched, and what was at the destination
/// is still there, except where [`CreateError`] says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// There is nothing to merge.
    #[error("there is no diff to merge into {base}: give at least one")]
    NoDiffs {
        /// Directory of the base.
        base: PathBuf,
    },
    /// The base is a diff itself.
    #[error(
        "{dir} cannot be the base: it is itself a diff, against snapshot {base}; begin with that one"
    )]
    BaseIsDiff {
        /// Its directory.
        dir: PathBuf,
        /// What it is a diff against.
        base: SnapshotId,
    },
    /// What was given as a diff holds all pages.
    #[error("{dir} is not a diff but a full snapshot")]
    NotADiff {
        /// Its directory.
        dir: PathBuf,
    },
    /// A diff does not follow what comes before it.
    #[error(
        "{dir} is a diff against snapshot {expected}, but {before} is snapshot {found}: give the diffs in the order in which they were made, and none may be missing"
    )]
    OtherBase {
        /// Directory of the diff.
        dir: PathBuf,
        /// The snapshot that it is a diff against.
        expected: SnapshotId,
        /// Directory of what comes before it.
        before: PathBuf,
        /// The snapshot that that is.
        found: SnapshotId,
    },
    /// The two have memory of another shape, although one names the other.
    #[error("the memory regions of {dir} are not those of its base: one of the two was edited")]
    Regions {
        /// Directory of the diff.
        dir: PathBuf,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A page cannot be read, or is damaged.
    #[error(transparent)]
    Memory(#[from] MemoryReadError),
    /// The new snapshot cannot be written.
    #[error(transparent)]
    Create(#[from] CreateError),
}

/// How far a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeProgress {
    /// Bytes of guest memory that are done.
    pub done_bytes: u64,
    /// Bytes of guest memory that there are.
    pub total_bytes: u64,
}

/// Where the pages of the merged snapshot come from, the newest last.
struct Layers<'a>(Vec<(&'a MemoryReader, &'a MemoryIndex)>);

impl<'a> Layers<'a> {
    /// The newest layer that does not leave the page to the one before it, and whether the page is
    /// zero there; none if the page is in no layer.
    fn layer_of(&self, page_index: u64) -> Option<(usize, bool)> {
        self.0
            .iter()
            .enumerate()
            .rev()
            .find_map(|(layer, (_, index))| match index.page_kind(page_index)? {
                PageKind::Unchanged => None,
                kind => Some((layer, kind == PageKind::Zero)),
            })
    }

    /// As [`layer_of`](Self::layer_of), and how many pages up to `end` are alike in this.
    fn run_at(&self, first: u64, end: u64) -> (Option<(usize, bool)>, u64) {
        let from = self.layer_of(first);
        let pages = (first + 1..end)
            .take_while(|page| self.layer_of(*page) == from)
            .count();
        (from, pages as u64 + 1)
    }
}

/// Makes a full snapshot in the directory `dir` of `base`, a full snapshot too, and `diffs`, each
/// of which has the one before it as its base: what a machine would have saved that was saved in
/// full when the last diff was made. It has an id of its own. `creator` is the program that does
/// so; `progress` is called after each piece of guest memory.
///
/// Every page that is written was checked. `dir` may be the directory of one of the snapshots that
/// are merged: it is replaced when the new one is whole.
///
/// # Errors
/// When the snapshots do not follow each other, one is damaged, or the new one cannot be written.
pub fn merge(
    base: &Arc<Snapshot>,
    diffs: &[Arc<Snapshot>],
    dir: &Path,
    creator: &str,
    progress: &mut dyn FnMut(MergeProgress),
) -> Result<Manifest, MergeError> {
    let last = check_chain(base, diffs)?;
    let readers = std::iter::once(base)
        .chain(diffs)
        .map(|snapshot| MemoryReader::open(Arc::clone(snapshot)))
        .collect::<Result<Vec<_>, _>>()?;
    let layers = readers
        .iter()
        .map(|reader| Ok((reader, reader.index()?)))
        .collect::<Result<_, ReadError>>()?;
    let state = last.read_state()?;

    let mut writer = SnapshotWriter::create(dir)?;
    writer.write_state(&state)?;
    let size_bytes = last.manifest().files.memory.len_bytes;
    let mut memory = writer.memory_writer(size_bytes)?;
    write_pages(&Layers(layers), size_bytes, &mut memory, progress)?;
    memory.finish()?;
    let of_last = last.manifest();
    Ok(writer.finish(ManifestParts {
        creator: creator.to_owned(),
        vm: of_last.vm.clone(),
        host: of_last.host.clone(),
        regions: of_last.memory.regions.clone(),
        booted_resident_bytes: of_last.memory.booted_resident_bytes,
    })?)
}

/// Checks that each diff follows what comes before it; returns the last.
fn check_chain<'a>(
    base: &'a Arc<Snapshot>,
    diffs: &'a [Arc<Snapshot>],
) -> Result<&'a Arc<Snapshot>, MergeError> {
    if let Some(of_base) = base.manifest().memory.base {
        return Err(MergeError::BaseIsDiff {
            dir: base.dir().to_owned(),
            base: of_base,
        });
    }
    let mut before = base;
    for diff in diffs {
        let dir = || diff.dir().to_owned();
        let Some(expected) = diff.manifest().memory.base else {
            return Err(MergeError::NotADiff { dir: dir() });
        };
        if expected != before.id() {
            return Err(MergeError::OtherBase {
                dir: dir(),
                expected,
                before: before.dir().to_owned(),
                found: before.id(),
            });
        }
        if diff.manifest().memory.regions != before.manifest().memory.regions {
            return Err(MergeError::Regions { dir: dir() });
        }
        before = diff;
    }
    diffs.last().ok_or_else(|| MergeError::NoDiffs {
        base: base.dir().to_owned(),
    })
}

fn write_pages(
    layers: &Layers<'_>,
    size_bytes: u64,
    memory: &mut crate::memory_writer::MemoryWriter<'_>,
    progress: &mut dyn FnMut(MergeProgress),
) -> Result<(), MergeError> {
    let page_count = size_bytes / PAGE_BYTES;
    let mut buffer = vec![0; MAX_RUN_PAGES as usize * PAGE_SIZE];
    let mut page = 0;
    while page < page_count {
        let end = page_count.min(page + MAX_RUN_PAGES);
        let (from, run_pages) = layers.run_at(page, end);
        let file_offset = page * PAGE_BYTES;
        let run_bytes = run_pages * PAGE_BYTES;
        match from {
            Some((_, true)) => memory.write_zero_pages(file_offset, run_bytes)?,
            // The base has every page, so there is none that is in no layer; if there were, the
            // base would refuse to give it.
            other => {
                let layer = other.map_or(0, |(layer, _)| layer);
                let run = &mut buffer[..run_bytes as usize];
                layers.0[layer].0.read_pages(page, run)?;
                memory.write_pages(file_offset, run)?;
            }
        }
        page += run_pages;
        progress(MergeProgress {
            done_bytes: page * PAGE_BYTES,
            total_bytes: size_bytes,
        });
    }
    Ok(())
}
