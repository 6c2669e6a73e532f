//! The block device (5.2): a disk whose sectors are those of a file or a block device of the host.
//!
//! Requests go to the kernel by an io_uring, straight between the file and guest memory. What the
//! guest says of them is checked before: the kernel only gets ranges of guest memory and of the
//! disk that are there.

mod device;
mod disk;
mod request;
mod ring;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::rate_limiter::{RateLimiterConfig, RateLimiterError, RateLimiterState};

pub use device::Block;
pub use disk::DiskFile;

/// Bytes of a sector, the unit of all positions and of the capacity (5.2.4).
pub const SECTOR_BYTES: u64 = 512;
/// What a driver gets of a disk's id at most, in bytes (5.2.6).
pub const MAX_ID_BYTES: usize = virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES as usize;

/// How a disk is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockConfig {
    /// A raw image, or a block device. Its length is a multiple of 512 bytes.
    pub path: PathBuf,
    /// The guest cannot write. Others may then have the file open for reading too.
    pub read_only: bool,
    /// What the guest may do in a time.
    pub rate_limiter: RateLimiterConfig,
    /// The serial number that the guest sees: at most 20 printable ASCII characters.
    pub id: String,
}

/// Why there is no such disk.
#[derive(Debug, Error)]
pub enum BlockError {
    /// The file is not there, or this process may not open it so.
    #[error("cannot open the disk '{path}' for {access}: {advice}")]
    Open {
        /// The file.
        path: PathBuf,
        /// "reading" or "reading and writing".
        access: &'static str,
        /// What to do.
        advice: &'static str,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// A directory, a socket, a terminal.
    #[error("'{0}' cannot be a disk: it is neither a file nor a block device")]
    NotADisk(PathBuf),
    /// The host does not tell its length, or cannot lock it.
    #[error("cannot {what} the disk '{path}'")]
    Host {
        /// The file.
        path: PathBuf,
        /// "look at" or "lock".
        what: &'static str,
        /// The errno.
        #[source]
        source: io::Error,
    },
    /// It is empty, or has a part of a sector.
    #[error(
        "the disk '{path}' has {size_bytes} bytes: it must have a multiple of 512, and not none \
         (truncate -s %512 pads a raw image)"
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its length.
        size_bytes: u64,
    },
    /// Somebody else has it. Two that do not know of each other would destroy what is on it.
    #[error(
        "the disk '{path}' is in use: it can be opened for writing once, or for reading by many; \
         stop the other virtual machine, or give each its own copy"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The guest could not be told that id.
    #[error("the disk id '{0}' is not usable: at most 20 printable ASCII characters")]
    Id(String),
    /// The host has no io_uring for this process.
    #[error(
        "disks need io_uring, which this host does not let the process use (kernel before 5.6, \
         kernel.io_uring_disabled, or a seccomp filter)"
    )]
    NoIoUring(#[source] io::Error),
    /// No eventfd.
    #[error("cannot create an eventfd for a disk")]
    EventFd(#[source] io::Error),
    /// The limits are not usable.
    #[error("the rate limiter of the disk is not usable")]
    RateLimiter(#[from] RateLimiterError),
}

/// What a snapshot keeps of a disk: not its contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Sectors of 512 bytes.
    pub nsectors: u64,
    /// Whether the guest cannot write.
    pub read_only: bool,
    /// Whether the driver may have made requests available that the device did not come to.
    pub requests_waiting: bool,
    /// The tokens of the rate limiter.
    pub rate_limiter: RateLimiterState,
}
