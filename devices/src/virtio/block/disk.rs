//! The file behind a disk: opened, checked, and locked against a second writer.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;

use rustix::fs::{FlockOperation, Mode, OFlags, fcntl_setfl, flock, open};
use rustix::io::Errno;

use super::{BlockConfig, BlockError, SECTOR_BYTES};

/// An open disk. The lock goes with the file.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) file: File,
    pub(super) nsectors: u64,
    pub(super) read_only: bool,
}

impl Disk {
    pub(super) fn open(config: &BlockConfig) -> Result<Self, BlockError> {
        let path = || config.path.clone();
        let (access, flags, lock) = if config.read_only {
            (
                "reading",
                OFlags::RDONLY,
                FlockOperation::NonBlockingLockShared,
            )
        } else {
            (
                "reading and writing",
                OFlags::RDWR,
                FlockOperation::NonBlockingLockExclusive,
            )
        };
        // Not blocking: a FIFO at the path would otherwise wait for its other end.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let file = open(&config.path, flags, Mode::empty()).map_err(|errno| BlockError::Open {
            path: path(),
            access,
            advice: open_advice(errno, config.read_only),
            source: errno.into(),
        })?;
        let mut file = File::from(file);
        let host = |what| {
            move |source: io::Error| BlockError::Host {
                path: path(),
                what,
                source,
            }
        };
        let kind = file.metadata().map_err(host("look at"))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(BlockError::NotADisk(path()));
        }
        // On a non-blocking file, io_uring gives up where it would have to wait for the disk.
        fcntl_setfl(&file, OFlags::empty()).map_err(|errno| host("look at")(errno.into()))?;
        match flock(&file, lock) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(BlockError::InUse { path: path() }),
            Err(errno) => return Err(host("lock")(errno.into())),
        }
        // The length in the metadata of a block device is 0.
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(host("look at"))?;
        if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(BlockError::Size {
                path: path(),
                size_bytes,
            });
        }
        Ok(Self {
            file,
            nsectors: size_bytes / SECTOR_BYTES,
            read_only: config.read_only,
        })
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
