//! A snapshot's directory, held open, and locked while files in it are replaced.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// How long another process may keep the lock: as long as it takes to write a working set to disk,
/// and more.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// How long to leave the lock to another process before asking again.
const LOCK_WAIT: Duration = Duration::from_millis(2);

/// Why a snapshot's directory is not locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The system refuses.
    #[error("cannot lock {dir} against other launchers")]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process keeps the lock.
    #[error(
        "another process has had the lock on {dir} for {} s: is it stopped?",
        LOCK_PATIENCE.as_secs()
    )]
    Held {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory is no longer where it was opened.
    #[error(
        "the snapshot that was opened at {dir} is there no longer, it was replaced or removed meanwhile: nothing was written"
    )]
    Replaced {
        /// Where it was.
        dir: PathBuf,
    },
}

/// A directory and the path by which it was opened.
#[derive(Debug)]
pub struct SnapshotDirectory {
    path: PathBuf,
    file: File,
}

/// The lock (flock) on a snapshot's directory, until it is dropped or the process ends. Nobody puts
/// another snapshot in the place of this one meanwhile, and nobody else changes the files that are
/// made after it: working set, its state, trace.
#[derive(Debug)]
pub struct DirectoryLock {
    _directory: File,
}

impl SnapshotDirectory {
    /// Opens the directory `path`.
    ///
    /// # Errors
    /// When it is not there, not a directory, or cannot be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            path: path.to_owned(),
            file: rustix::fs::open(path, flags, Mode::empty())?.into(),
        })
    }

    /// The path, as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory itself.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Locks the directory, which has to be where it was opened still: what is then written by its
    /// path is in no other. Waits for others.
    ///
    /// # Errors
    /// When it was replaced or removed, another process keeps the lock for a minute, or the file
    /// system has none.
    pub fn lock(&self) -> Result<DirectoryLock, LockError> {
        self.lock_within(LOCK_PATIENCE)
    }

    fn lock_within(&self, patience: Duration) -> Result<DirectoryLock, LockError> {
        let dir = || self.path.clone();
        let failed = |source| LockError::Io { dir: dir(), source };
        // The lock belongs to what one call of open has made, and this object may have one already.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = match rustix::fs::openat(&self.file, ".", flags, Mode::empty()) {
            Ok(directory) => File::from(directory),
            Err(Errno::NOENT) => return Err(LockError::Replaced { dir: dir() }),
            Err(errno) => return Err(failed(errno.into())),
        };
        let deadline = Instant::now() + patience;
        loop {
            match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(LOCK_WAIT),
                Err(Errno::WOULDBLOCK) => return Err(LockError::Held { dir: dir() }),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        // Who replaces a snapshot locks it first: from here on it stays.
        if !is_named(&directory, &self.path).map_err(failed)? {
            return Err(LockError::Replaced { dir: dir() });
        }
        Ok(DirectoryLock {
            _directory: directory,
        })
    }
}

/// Whether `path` names the open directory, by itself or by a link.
fn is_named(directory: &File, path: &Path) -> io::Result<bool> {
    let open = directory.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_kept_is_an_error_and_one_that_is_let_go_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let directory = SnapshotDirectory::open(parent.path()).unwrap();
        let held = directory.lock().unwrap();
        let error = directory
            .lock_within(Duration::from_millis(20))
            .unwrap_err();
        assert!(matches!(error, LockError::Held { .. }), "{error}");
        drop(held);
        directory.lock_within(Duration::ZERO).unwrap();
    }

    #[test]
    fn a_directory_that_was_replaced_or_removed_is_not_locked() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("s");
        fs::create_dir(&path).unwrap();
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let directory = SnapshotDirectory::open(&path).unwrap();
        let linked = SnapshotDirectory::open(&link).unwrap();
        drop(linked.lock().unwrap());
        fs::rename(&path, parent.path().join("hidden")).unwrap();
        fs::create_dir(&path).unwrap();
        for directory in [&directory, &linked] {
            let error = directory.lock().unwrap_err();
            assert!(matches!(error, LockError::Replaced { .. }), "{error}");
        }
        fs::remove_dir(parent.path().join("hidden")).unwrap();
        let error = directory.lock().unwrap_err();
        assert!(matches!(error, LockError::Replaced { .. }), "{error}");
    }
}
