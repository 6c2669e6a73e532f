//! The kernels that `guest-images/linux/fetch-kernels` has fetched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

/// The kernels cannot be used.
#[derive(Debug, Error)]
#[error("cannot use the kernels of {}: {reason}; fetch them with make linux-kernels", path.display())]
pub struct KernelsError {
    /// The manifest.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

#[derive(Deserialize)]
struct Manifest {
    kernels: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    series: String,
    release: String,
}

/// One kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Such as `6.12`.
    pub series: String,
    /// As `uname -r` gives it.
    pub release: String,
    /// The folder with `vmlinuz`, `vmlinux` and `modules`.
    pub folder: PathBuf,
}

/// Reads the manifest in `folder`.
///
/// # Errors
/// [`KernelsError`].
pub fn read(folder: &Path) -> Result<Vec<Kernel>, KernelsError> {
    let path = folder.join("manifest.json");
    let error = |reason: String| KernelsError {
        path: path.clone(),
        reason,
    };
    let text = fs::read_to_string(&path).map_err(|e: io::Error| error(e.to_string()))?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|e| error(e.to_string()))?;
    if manifest.kernels.is_empty() {
        return Err(error("there are none".to_owned()));
    }
    Ok(manifest
        .kernels
        .into_iter()
        .map(|entry| Kernel {
            folder: folder.join(&entry.series),
            series: entry.series,
            release: entry.release,
        })
        .collect())
}
