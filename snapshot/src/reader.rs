//! Reading a snapshot.
//!
//! Opening is on the path of every cold start, so it does little: one read of the manifest and a
//! look at the length of each file. Each file's own checksum is checked when the file is read.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::checksum::crc32c;
use crate::directory::SnapshotDirectory;
use crate::id::SnapshotId;
use crate::limits::{
    MANIFEST_FILE, MAX_MANIFEST_BYTES, TRACE_FILE, WORKING_SET_FILE, WORKING_SET_STATE_FILE,
};
use crate::manifest::{FileInfo, Manifest, ManifestError};
use crate::memory_index::{MemoryIndex, MemoryIndexError};
use crate::state::{StateError, StateFile};

/// Why a directory is not opened as a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such directory.
    #[error("there is no snapshot at {dir}: no such directory")]
    NotFound {
        /// The path given.
        dir: PathBuf,
    },
    /// It is not a directory.
    #[error("{dir} is not a snapshot: a snapshot is a directory")]
    NotADirectory {
        /// The path given.
        dir: PathBuf,
    },
    /// It has no manifest.
    #[error(
        "{dir} is not a snapshot: it has no {MANIFEST_FILE}, which is written last; if it is a snapshot half written, create it again"
    )]
    NoManifest {
        /// The path given.
        dir: PathBuf,
    },
    /// Its manifest is refused.
    #[error("cannot use the snapshot {dir}: its {MANIFEST_FILE} is refused")]
    Manifest {
        /// The path given.
        dir: PathBuf,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A file of it is missing or has another length.
    #[error("cannot use the snapshot {dir}: a file of it is not as its manifest says")]
    File {
        /// The path given.
        dir: PathBuf,
        /// Which, and why.
        #[source]
        source: ReadError,
    },
    /// The directory or its manifest cannot be read.
    #[error("cannot read {path}")]
    Io {
        /// What was read.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why a file of a snapshot is not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not there.
    #[error("{path} is missing: create the snapshot again")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It is a directory, a link, a device.
    #[error("{path} is not a regular file: create the snapshot again")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// It is truncated, or longer than it was.
    #[error(
        "{path} has {actual_bytes} bytes instead of {expected_bytes}: create the snapshot again"
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length when it was written.
        expected_bytes: u64,
        /// Its length now.
        actual_bytes: u64,
    },
    /// Its checksum does not match.
    #[error(
        "{path} is damaged: crc32c {actual:08x} instead of {expected:08x}; create the snapshot again"
    )]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The checksum when it was written.
        expected: u32,
        /// The checksum of what is there.
        actual: u32,
    },
    /// It is whole, but it is not a state.
    #[error("{path} is not a usable state")]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: StateError,
    },
    /// It is whole, but it is not the memory index of this snapshot.
    #[error("{path} is not a usable memory index")]
    MemoryIndex {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: MemoryIndexError,
    },
    /// It is that of a diff, and the manifest is not, or the other way round.
    #[error("{path} does not fit the manifest: only one of the two is that of a diff")]
    Kind {
        /// The memory index.
        path: PathBuf,
    },
    /// It counts other pages than the manifest.
    #[error(
        "{path} has {index_data_pages} data pages and {index_zero_pages} zero pages, the manifest {manifest_data_pages} and {manifest_zero_pages}: create the snapshot again"
    )]
    PageCounts {
        /// The memory index.
        path: PathBuf,
        /// Data pages in it.
        index_data_pages: u64,
        /// Zero pages in it.
        index_zero_pages: u64,
        /// Data pages in the manifest.
        manifest_data_pages: u64,
        /// Zero pages in the manifest.
        manifest_zero_pages: u64,
    },
    /// It cannot be read.
    #[error("cannot read {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A snapshot, open for reading.
///
/// It keeps its directory open: when another snapshot takes its place meanwhile, its files are
/// still read from the old directory or, once they are removed, not found. They are never mixed.
#[derive(Debug)]
pub struct Snapshot {
    directory: Arc<SnapshotDirectory>,
    manifest: Manifest,
}

impl Snapshot {
    /// Opens the snapshot in the directory `dir`.
    ///
    /// Checks the manifest (checksum, version, meaning) and that every file is there with the right
    /// length. What is in the files is checked when they are read.
    ///
    /// # Errors
    /// When it is not a snapshot, not one of this version, or not whole.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let directory = SnapshotDirectory::open(dir).map_err(|source| {
            let dir = dir.to_owned();
            match source.kind() {
                io::ErrorKind::NotFound => OpenError::NotFound { dir },
                io::ErrorKind::NotADirectory => OpenError::NotADirectory { dir },
                _ => OpenError::Io { path: dir, source },
            }
        })?;
        let bytes = read_manifest(directory.file(), dir)?;
        let manifest = Manifest::decode(&bytes).map_err(|source| OpenError::Manifest {
            dir: dir.to_owned(),
            source,
        })?;
        let snapshot = Self {
            directory: Arc::new(directory),
            manifest,
        };
        let files = &snapshot.manifest.files;
        for info in [&files.state, &files.memory, &files.memory_index] {
            snapshot
                .check_length(info)
                .map_err(|source| OpenError::File {
                    dir: dir.to_owned(),
                    source,
                })?;
        }
        Ok(snapshot)
    }

    /// The directory, as it was given.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// The directory, to be locked before files are put into it.
    #[must_use]
    pub fn directory(&self) -> &Arc<SnapshotDirectory> {
        &self.directory
    }

    /// The snapshot's identity.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        self.manifest.id
    }

    /// What it is and where it comes from.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Reads the state and checks it.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn read_state(&self) -> Result<StateFile, ReadError> {
        let info = &self.manifest.files.state;
        StateFile::decode(&self.read_checked(info)?).map_err(|source| ReadError::State {
            path: self.path_of(info),
            source,
        })
    }

    /// Opens guest memory for reading. What is in it is not checked: compare each page with
    /// [`MemoryIndex::verify_page`].
    ///
    /// # Errors
    /// When it cannot be opened, or has another length than when it was written.
    pub fn open_memory(&self) -> Result<File, ReadError> {
        self.open_file(&self.manifest.files.memory)
    }

    /// Reads the index of the pages of guest memory and checks it. Every call reads the file.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or belongs to another snapshot.
    pub fn memory_index(&self) -> Result<MemoryIndex, ReadError> {
        let info = &self.manifest.files.memory_index;
        let index =
            MemoryIndex::decode(self.read_checked(info)?, &self.manifest.id).map_err(|source| {
                ReadError::MemoryIndex {
                    path: self.path_of(info),
                    source,
                }
            })?;
        let memory = &self.manifest.memory;
        if index.is_diff() != memory.base.is_some() {
            return Err(ReadError::Kind {
                path: self.path_of(info),
            });
        }
        // The length of the index is checked to be that of the manifest's pages: where these two
        // counts agree, so does the third.
        let index_data_pages = index.data_page_count();
        if (index.zero_page_count(), index_data_pages) != (memory.zero_pages, memory.data_pages) {
            return Err(ReadError::PageCounts {
                path: self.path_of(info),
                index_data_pages,
                index_zero_pages: index.zero_page_count(),
                manifest_data_pages: memory.data_pages,
                manifest_zero_pages: memory.zero_pages,
            });
        }
        Ok(index)
    }

    /// Where the working set of this snapshot is, once it has been recorded.
    #[must_use]
    pub fn working_set_path(&self) -> PathBuf {
        self.dir().join(WORKING_SET_FILE)
    }

    /// Where the state of this snapshot's working set is, once it has evolved.
    #[must_use]
    pub fn working_set_state_path(&self) -> PathBuf {
        self.dir().join(WORKING_SET_STATE_FILE)
    }

    /// Where the fault trace of this snapshot is, once it has been recorded.
    #[must_use]
    pub fn trace_path(&self) -> PathBuf {
        self.dir().join(TRACE_FILE)
    }

    /// The path of a file of the snapshot, for messages.
    pub(crate) fn path_of(&self, info: &FileInfo) -> PathBuf {
        self.dir().join(&info.name)
    }

    fn check_length(&self, info: &FileInfo) -> Result<(), ReadError> {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::statat(self.directory.file(), info.name.as_str(), flags) {
            Ok(stat) => {
                let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                self.compare_length(info, is_file, stat.st_size.try_into().unwrap_or(0))
            }
            Err(Errno::NOENT) => Err(ReadError::Missing {
                path: self.path_of(info),
            }),
            Err(errno) => Err(ReadError::Io {
                path: self.path_of(info),
                source: errno.into(),
            }),
        }
    }

    fn compare_length(
        &self,
        info: &FileInfo,
        is_file: bool,
        actual_bytes: u64,
    ) -> Result<(), ReadError> {
        if !is_file {
            return Err(ReadError::NotAFile {
                path: self.path_of(info),
            });
        }
        if actual_bytes != info.len_bytes {
            return Err(ReadError::Length {
                path: self.path_of(info),
                expected_bytes: info.len_bytes,
                actual_bytes,
            });
        }
        Ok(())
    }

    fn open_file(&self, info: &FileInfo) -> Result<File, ReadError> {
        let io = |source| ReadError::Io {
            path: self.path_of(info),
            source,
        };
        let file = match open_no_follow(self.directory.file(), &info.name) {
            Ok(file) => file,
            Err(Errno::NOENT) => {
                return Err(ReadError::Missing {
                    path: self.path_of(info),
                });
            }
            Err(Errno::LOOP) => {
                return Err(ReadError::NotAFile {
                    path: self.path_of(info),
                });
            }
            Err(errno) => return Err(io(errno.into())),
        };
        let metadata = file.metadata().map_err(io)?;
        self.compare_length(info, metadata.is_file(), metadata.size())?;
        Ok(file)
    }

    /// A whole file whose checksum is in the manifest.
    fn read_checked(&self, info: &FileInfo) -> Result<Vec<u8>, ReadError> {
        let file = self.open_file(info)?;
        let bytes = read_bounded(&file, info.len_bytes).map_err(|source| ReadError::Io {
            path: self.path_of(info),
            source,
        })?;
        if bytes.len() as u64 != info.len_bytes {
            return Err(ReadError::Length {
                path: self.path_of(info),
                expected_bytes: info.len_bytes,
                actual_bytes: bytes.len() as u64,
            });
        }
        let actual = crc32c(&bytes);
        // The manifest was checked to have one.
        let expected = info.crc32c.unwrap_or_default();
        if actual != expected {
            return Err(ReadError::Checksum {
                path: self.path_of(info),
                expected,
                actual,
            });
        }
        Ok(bytes)
    }
}

fn read_manifest(directory: &File, dir: &Path) -> Result<Vec<u8>, OpenError> {
    let path = || dir.join(MANIFEST_FILE);
    let file = match open_no_follow(directory, MANIFEST_FILE) {
        Ok(file) => file,
        Err(Errno::NOENT) => {
            return Err(OpenError::NoManifest {
                dir: dir.to_owned(),
            });
        }
        Err(errno) => {
            return Err(OpenError::Io {
                path: path(),
                source: errno.into(),
            });
        }
    };
    let metadata = file.metadata().map_err(|source| OpenError::Io {
        path: path(),
        source,
    })?;
    if !metadata.is_file() {
        let source = ReadError::NotAFile { path: path() };
        return Err(OpenError::File {
            dir: dir.to_owned(),
            source,
        });
    }
    if metadata.size() > MAX_MANIFEST_BYTES {
        let source = ManifestError::TooLong;
        return Err(OpenError::Manifest {
            dir: dir.to_owned(),
            source,
        });
    }
    read_bounded(&file, metadata.size()).map_err(|source| OpenError::Io {
        path: path(),
        source,
    })
}

/// Neither a link that leads elsewhere, nor a pipe that waits for ever.
fn open_no_follow(directory: &File, name: &str) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty()).map(File::from)
}

/// Up to `len_bytes` of a file that was seen to be so long, however long it is by now.
fn read_bounded(file: &File, len_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let capacity = usize::try_from(len_bytes).map_err(io::Error::other)?;
    bytes
        .try_reserve_exact(capacity)
        .map_err(io::Error::other)?;
    file.take(len_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}
