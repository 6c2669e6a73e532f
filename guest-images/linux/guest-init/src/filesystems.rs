//! The file systems that every Linux program expects.

use std::ffi::CStr;
use std::fs;
use std::io;

use rustix::mount::{MountFlags, mount};
use thiserror::Error;

/// A file system could not be mounted.
#[derive(Debug, Error)]
#[error("cannot mount {kind} at {at}")]
pub struct MountError {
    /// The kind of file system.
    pub kind: &'static str,
    /// Where.
    pub at: &'static str,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

const PSEUDO_FILE_SYSTEMS: [(&str, &str); 4] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
];

/// Mounts `/proc`, `/sys`, `/dev` and an empty `/tmp`.
///
/// # Errors
/// [`MountError`] with the first that could not be mounted.
pub fn mount_pseudo() -> Result<(), MountError> {
    for (kind, at) in PSEUDO_FILE_SYSTEMS {
        mount_at(kind, at, kind, MountFlags::NOSUID)?;
    }
    Ok(())
}

/// Mounts `device` with a file system of `kind` at `at`, a folder that is made if need be.
///
/// # Errors
/// [`MountError`].
pub fn mount_at(
    kind: &'static str,
    at: &'static str,
    device: &str,
    flags: MountFlags,
) -> Result<(), MountError> {
    let error = |source| MountError { kind, at, source };
    fs::create_dir_all(at).map_err(error)?;
    mount(device, at, kind, flags, None::<&CStr>).map_err(|errno| error(errno.into()))
}
