//! Loading kernel modules from an initial RAM disk.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::system::finit_module;
use thiserror::Error;

/// A module could not be loaded.
#[derive(Debug, Error)]
#[error("cannot load the kernel module {}", path.display())]
pub struct ModuleError {
    /// The module's file, or the folder of modules.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Loads every file of `folder` as a module, in the order of the names, and returns how many there
/// were. A module that is there already counts. Modules get no parameters.
///
/// # Errors
/// [`ModuleError`] with the first that could not be loaded.
pub fn load_all(folder: &Path) -> Result<usize, ModuleError> {
    let error = |path: &Path, source| ModuleError {
        path: path.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|source| error(folder, source))? {
        files.push(entry.map_err(|source| error(folder, source))?.path());
    }
    files.sort();
    for path in &files {
        let file = File::open(path).map_err(|source| error(path, source))?;
        match finit_module(&file, &CString::default(), 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(error(path, errno.into())),
        }
    }
    Ok(files.len())
}
