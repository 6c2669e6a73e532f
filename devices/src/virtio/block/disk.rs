//! The file behind a disk: opened, checked, and locked against a second writer.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, fcntl_setfl, flock, open};
use rustix::io::Errno;

use super::{BlockConfig, BlockError, SECTOR_BYTES};

/// A file that can be a disk: it is open, and not locked yet.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    path: PathBuf,
    read_only: bool,
}

impl DiskFile {
    /// Opens `path`, without waiting for anything.
    ///
    /// # Errors
    /// When it may not be opened so, or is neither a file nor a block device.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, BlockError> {
        let (access, flags) = if read_only {
            ("reading", OFlags::RDONLY)
        } else {
            ("reading and writing", OFlags::RDWR)
        };
        // Not blocking: a FIFO at the path would otherwise wait for its other end.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let file = open(path, flags, Mode::empty()).map_err(|errno| BlockError::Open {
            path: path.to_owned(),
            access,
            advice: open_advice(errno, read_only),
            source: errno.into(),
        })?;
        let file = File::from(file);
        let look = host(path, "look at");
        let kind = file.metadata().map_err(&look)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(BlockError::NotADisk(path.to_owned()));
        }
        // On a non-blocking file, io_uring gives up where it would have to wait for the disk.
        fcntl_setfl(&file, OFlags::empty()).map_err(|errno| look(errno.into()))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            read_only,
        })
    }

    /// Whether the guest cannot write.
    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Locks the file, for writing against everybody, for reading against those who write, and
    /// takes its length.
    pub(super) fn lock(self) -> Result<Disk, BlockError> {
        let Self {
            file,
            path,
            read_only,
        } = self;
        let operation = if read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match flock(&file, operation) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(BlockError::InUse { path }),
            Err(errno) => return Err(host(&path, "lock")(errno.into())),
        }
        Ok(Disk {
            nsectors: nsectors(&file, &path)?,
            file,
            path,
            read_only,
        })
    }
}

/// An open disk. The lock goes with the file.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) nsectors: u64,
    pub(super) read_only: bool,
}

impl Disk {
    pub(super) fn open(config: &BlockConfig) -> Result<Self, BlockError> {
        DiskFile::open(&config.path, config.read_only)?.lock()
    }

    /// What this disk becomes with `new`. If that is its own file, it keeps the one that it has
    /// open: its lock would keep the other out.
    pub(super) fn replacement(&self, new: DiskFile) -> Result<Replacement, BlockError> {
        let identity = |file: &File, path: &Path| {
            let metadata = file.metadata().map_err(host(path, "look at"))?;
            Ok::<_, BlockError>((metadata.dev(), metadata.ino()))
        };
        if identity(&self.file, &self.path)? == identity(&new.file, &new.path)? {
            return Ok(Replacement::Same {
                nsectors: nsectors(&new.file, &new.path)?,
                path: new.path,
            });
        }
        new.lock().map(Replacement::Other)
    }
}

/// What a disk becomes.
#[derive(Debug)]
pub(super) enum Replacement {
    /// The file is the one that it has, by the same or another name.
    Same { nsectors: u64, path: PathBuf },
    /// Another file.
    Other(Disk),
}

/// The length of a disk. In the metadata of a block device it is 0.
fn nsectors(mut file: &File, path: &Path) -> Result<u64, BlockError> {
    let size_bytes = file.seek(SeekFrom::End(0)).map_err(host(path, "look at"))?;
    if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(BlockError::Size {
            path: path.to_owned(),
            size_bytes,
        });
    }
    Ok(size_bytes / SECTOR_BYTES)
}

fn host(path: &Path, what: &'static str) -> impl Fn(io::Error) -> BlockError {
    move |source| BlockError::Host {
        path: path.to_owned(),
        what,
        source,
    }
}

fn open_advice(errno: Errno, read_only: bool) -> &'static str {
    match errno {
        Errno::NOENT => "there is no such file",
        Errno::ACCESS | Errno::PERM | Errno::ROFS if !read_only => {
            "it may not be written; attach it read-only, or make it writable"
        }
        Errno::ACCESS | Errno::PERM => "it may not be read",
        Errno::ISDIR => "it is a directory",
        _ => "the host refuses",
    }
}
