//! Writing a snapshot: everything beside its destination first, then one rename.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::checksum::crc32c;
use crate::files::{self, ReplaceFileError, replace_file};
use crate::id::{GenerateIdError, SnapshotId};
use crate::limits::{
    DIFF_FORMAT_VERSION, FORMAT_VERSION, MANIFEST_FILE, MAX_MEMORY_BYTES, STATE_FILE,
};
use crate::manifest::{FileInfo, Files, HostInfo, Manifest, ManifestError, MemoryInfo, RegionInfo};
use crate::memory_index::MemoryIndexError;
use crate::memory_writer::{MemoryWriter, WrittenMemory};
use crate::staging::Staging;
use crate::state::{StateError, StateFile};

/// Why a snapshot was not created. An older one in its place is whole, and nothing is left behind,
/// except where a variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The path cannot be that of a new directory.
    #[error("{path} cannot be the directory of a snapshot: it must have a name and a parent")]
    NoName {
        /// The path given.
        path: PathBuf,
    },
    /// The directory that is to hold the snapshot's is not there.
    #[error(
        "cannot create a snapshot at {path}: its parent directory cannot be used; create it first"
    )]
    Parent {
        /// The path given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something else is in the place of the snapshot.
    #[error(
        "will not replace {path}: {reason}; a snapshot replaces only an empty directory or another snapshot, so remove it yourself or choose another path"
    )]
    Foreign {
        /// The place of the snapshot.
        path: PathBuf,
        /// What is there.
        reason: String,
    },
    /// The filesystem, the quota or the limit on the size of files is exhausted.
    #[error(
        "no space left to write {path}: free space there, or choose another filesystem; nothing was kept"
    )]
    NoSpace {
        /// The file that was written.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A step of the file system failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What failed.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The filesystem cannot lock a directory, so that leftovers could not be told from live writers.
    #[error(
        "cannot lock {path}: create the snapshot on a filesystem that supports flock, such as ext4, xfs, btrfs or tmpfs"
    )]
    Lock {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The filesystem cannot exchange two directories in one step.
    #[error(
        "cannot replace {path} in one step on this filesystem: remove the older snapshot first, or create the new one at another path"
    )]
    ExchangeUnsupported {
        /// The place of the snapshot.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others kept changing the destination.
    #[error("cannot put a snapshot at {path}: others keep changing it")]
    Contended {
        /// The place of the snapshot, or of its temporary directory.
        path: PathBuf,
    },
    /// There was no id.
    #[error(transparent)]
    GenerateId(#[from] GenerateIdError),
    /// The state cannot be written.
    #[error("cannot write the state of the snapshot")]
    State(#[from] StateError),
    /// The manifest cannot be written: the parts that were given do not fit together.
    #[error("cannot write the manifest of the snapshot")]
    Manifest(#[from] ManifestError),
    /// The manifest cannot be put in place.
    #[error("cannot write the manifest of the snapshot")]
    ReplaceManifest(#[from] ReplaceFileError),
    /// The memory index cannot be made.
    #[error("cannot index the memory of the snapshot")]
    MemoryIndex(#[from] MemoryIndexError),
    /// The size of guest memory is not one that a snapshot can have.
    #[error(
        "guest memory of {size_bytes} bytes cannot be saved: it must be a positive multiple of 4096, at most {MAX_MEMORY_BYTES}"
    )]
    MemorySize {
        /// The size given.
        size_bytes: u64,
    },
    /// A write to guest memory is not aligned, or passes its end.
    #[error(
        "cannot write {len_bytes} bytes at offset {file_offset:#x} of the memory file of {size_bytes} bytes: both must be multiples of 4096 and inside it"
    )]
    PageRange {
        /// The offset given.
        file_offset: u64,
        /// The length given.
        len_bytes: u64,
        /// The size of guest memory.
        size_bytes: u64,
    },
    /// A page was said to be as in the base of a snapshot that has none.
    #[error("a snapshot that is no diff cannot leave pages to a base")]
    NoBase,
    /// A page was written before.
    #[error("page {page_index} of guest memory was written twice")]
    PageTwice {
        /// The page.
        page_index: u64,
    },
    /// Pages were never written.
    #[error(
        "{count} pages of guest memory were never written, the first is page {first_page_index}"
    )]
    PagesMissing {
        /// How many.
        count: u64,
        /// The first of them.
        first_page_index: u64,
    },
    /// A part was not written.
    #[error("the snapshot has no {what} yet: write it before finishing")]
    NotWritten {
        /// The part.
        what: &'static str,
    },
    /// A part was written before.
    #[error("the {what} of the snapshot was written twice")]
    WrittenTwice {
        /// The part.
        what: &'static str,
    },
    /// The new snapshot is in place and whole, but a crash may still undo that.
    #[error(
        "the snapshot is at {path}, but its parent directory could not be synced: a crash may undo it"
    )]
    Sync {
        /// The place of the snapshot.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The new snapshot is in place and whole, and the one that it replaced is still there.
    #[error(
        "the snapshot is in place, but the one it replaced could not be removed: remove {path} yourself"
    )]
    RemoveOld {
        /// Where the older one is now.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl CreateError {
    /// A failed step, or the want of space if that is what failed it.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if files::is_no_space(&source) {
            Self::NoSpace { path, source }
        } else {
            Self::Io {
                action,
                path,
                source,
            }
        }
    }
}

/// What [`SnapshotWriter::finish`] adds to what was written, to make the manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct ManifestParts {
    /// The program that creates the snapshot, and its version.
    pub creator: String,
    /// The virtual machine's configuration.
    pub vm: serde_json::Value,
    /// The host.
    pub host: HostInfo,
    /// The regions of guest memory: they must cover the memory file exactly.
    pub regions: Vec<RegionInfo>,
    /// How much of the guest's memory is resident on the host, in bytes.
    pub booted_resident_bytes: u64,
}

/// A snapshot in the making.
///
/// It is built in a hidden directory beside its destination, locked by this process, and takes its
/// place when [`finish`](SnapshotWriter::finish) has made it durable. Dropped before, it leaves
/// nothing; killed before, it leaves the hidden directory, which the next writer to the same
/// destination removes.
#[derive(Debug)]
pub struct SnapshotWriter {
    staging: Staging,
    id: SnapshotId,
    state: Option<FileInfo>,
    memory: Option<WrittenMemory>,
}

impl SnapshotWriter {
    /// Begins a snapshot that is to be the directory `dir`.
    ///
    /// # Errors
    /// When `dir` is something else than absent, an empty directory or a snapshot with nothing
    /// else in it, or its parent cannot be written.
    pub fn create(dir: &Path) -> Result<Self, CreateError> {
        let id = SnapshotId::generate()?;
        Ok(Self {
            staging: Staging::create(dir)?,
            id,
            state: None,
            memory: None,
        })
    }

    /// The identity of the snapshot in the making.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Writes the state.
    ///
    /// # Errors
    /// When it is too long, cannot be written, or was written before.
    pub fn write_state(&mut self, state: &StateFile) -> Result<(), CreateError> {
        if self.state.is_some() {
            return Err(CreateError::WrittenTwice { what: "state" });
        }
        self.state = Some(self.write_small_file(STATE_FILE, &state.encode()?)?);
        Ok(())
    }

    /// Begins guest memory of `size_bytes` in all regions together.
    ///
    /// # Errors
    /// When that is no size for it, the file cannot be created, or memory was written before.
    pub fn memory_writer(&mut self, size_bytes: u64) -> Result<MemoryWriter<'_>, CreateError> {
        self.begin_memory(size_bytes, None)
    }

    /// Begins guest memory of `size_bytes` in all regions together, of which only the pages are
    /// written that differ from the snapshot `base`: this snapshot is a diff.
    ///
    /// # Errors
    /// As [`memory_writer`](Self::memory_writer).
    pub fn diff_memory_writer(
        &mut self,
        size_bytes: u64,
        base: SnapshotId,
    ) -> Result<MemoryWriter<'_>, CreateError> {
        self.begin_memory(size_bytes, Some(base))
    }

    fn begin_memory(
        &mut self,
        size_bytes: u64,
        base: Option<SnapshotId>,
    ) -> Result<MemoryWriter<'_>, CreateError> {
        if self.memory.is_some() {
            return Err(CreateError::WrittenTwice { what: "memory" });
        }
        MemoryWriter::new(self, size_bytes, base)
    }

    /// Writes the manifest, makes everything durable, and puts the snapshot in its place; an older
    /// snapshot there goes in the same instant and is then removed.
    ///
    /// # Errors
    /// When a part is missing, the parts do not fit together, or a step of the file system fails.
    pub fn finish(self, parts: ManifestParts) -> Result<Manifest, CreateError> {
        let state = self
            .state
            .ok_or(CreateError::NotWritten { what: "state" })?;
        let memory = self
            .memory
            .ok_or(CreateError::NotWritten { what: "memory" })?;
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let manifest = Manifest {
            format_version: match memory.base {
                None => FORMAT_VERSION,
                Some(_) => DIFF_FORMAT_VERSION,
            },
            id: self.id,
            // A clock before 1970 is no reason to lose a snapshot.
            created_unix_s: since_epoch.map_or(0, |elapsed| elapsed.as_secs()),
            creator: parts.creator,
            vm: parts.vm,
            host: parts.host,
            memory: MemoryInfo {
                regions: parts.regions,
                zero_pages: memory.zero_pages,
                data_pages: memory.data_pages,
                base: memory.base,
                unchanged_pages: memory.unchanged_pages,
                booted_resident_bytes: parts.booted_resident_bytes,
            },
            files: Files {
                state,
                memory: memory.memory,
                memory_index: memory.memory_index,
            },
        };
        let bytes = manifest.encode()?;
        // Also syncs the directory, and with it the names of the files that were synced before.
        replace_file(&self.staging.path().join(MANIFEST_FILE), |file| {
            file.write_all(&bytes)
        })?;
        self.staging.publish()?;
        Ok(manifest)
    }

    /// Creates a file of the snapshot.
    pub(crate) fn create_file(&self, name: &str) -> Result<(File, PathBuf), CreateError> {
        let path = self.staging.path().join(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.map_err(|source| CreateError::io("create", &path, source))?;
        Ok((file, path))
    }

    /// Writes a file of the snapshot that is at hand whole.
    pub(crate) fn write_small_file(
        &self,
        name: &str,
        bytes: &[u8],
    ) -> Result<FileInfo, CreateError> {
        let (mut file, path) = self.create_file(name)?;
        file.write_all(bytes)
            .map_err(|source| CreateError::io("write", &path, source))?;
        file.sync_all()
            .map_err(|source| CreateError::io("sync", &path, source))?;
        Ok(FileInfo {
            name: name.to_owned(),
            len_bytes: bytes.len() as u64,
            crc32c: Some(crc32c(bytes)),
        })
    }

    /// Keeps what a [`MemoryWriter`] has finished.
    pub(crate) fn set_memory(&mut self, memory: WrittenMemory) {
        self.memory = Some(memory);
    }
}
