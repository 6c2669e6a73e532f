//! Scratch directories beside the build: on a disk, as O_DIRECT does not work on every tmpfs.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The directory of the profile that the tests were built with, such as `target/debug`.
///
/// # Panics
/// If this program is not where cargo puts test programs.
pub fn profile_dir() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    // target/<profile>/deps/<test>-<hash>
    program.ancestors().nth(2).unwrap().to_owned()
}

/// Where scratch directories are made: `REAPVM_TEST_DIR`, or a folder beside the build.
pub fn parent() -> PathBuf {
    std::env::var_os("REAPVM_TEST_DIR")
        .map_or_else(|| profile_dir().join("reapvm-tests"), PathBuf::from)
}

/// A new directory that is removed when it is dropped.
///
/// # Panics
/// If it cannot be made.
pub fn dir() -> TempDir {
    let parent = parent();
    std::fs::create_dir_all(&parent).unwrap();
    tempfile::Builder::new()
        .prefix("t-")
        .tempdir_in(parent)
        .unwrap()
}

/// The names in `dir`, sorted, hidden ones too.
///
/// # Panics
/// If it cannot be read.
pub fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
