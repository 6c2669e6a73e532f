//! The hidden directory in which a snapshot is built, and the rename that publishes it.
//!
//! It is `.NAME.partial-<16 hexadecimal digits>` beside the destination `NAME`: on the same
//! filesystem, so that a rename suffices. Its writer holds a lock (flock) on the directory for as
//! long as it lives, and the kernel gives it back however the writer ends. A directory of that name
//! whose lock is free is what a dead writer left, or the older snapshot that it had just replaced:
//! the next writer to the same destination removes it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::directory::LOCK_PATIENCE;
use crate::files::{TEMPORARY_INFIX, has_random_suffix, random_suffix, sync_directory};
use crate::limits::{
    MANIFEST_FILE, MEMORY_FILE, MEMORY_INDEX_FILE, STATE_FILE, TRACE_FILE, WORKING_SET_FILE,
    WORKING_SET_STATE_FILE,
};
use crate::writer::CreateError;

const PARTIAL_INFIX: &str = ".partial-";
/// How often others may get in between before that is an error. Another writer does so for no
/// longer than a rename takes, so that a thousand times in a row is no accident.
const ATTEMPTS: u32 = 1000;
/// How long to leave a directory to another writer that holds its lock.
const LOCK_WAIT: Duration = Duration::from_millis(1);

/// The names that a snapshot's files have. A directory with others in it is not replaced, for
/// replacing removes what was there.
const SNAPSHOT_FILES: [&str; 7] = [
    MANIFEST_FILE,
    STATE_FILE,
    MEMORY_FILE,
    MEMORY_INDEX_FILE,
    WORKING_SET_FILE,
    WORKING_SET_STATE_FILE,
    TRACE_FILE,
];

/// A locked hidden directory; removed on drop unless it was published.
#[derive(Debug)]
pub(crate) struct Staging {
    target: PathBuf,
    parent: PathBuf,
    path: PathBuf,
    published: bool,
    /// Keeps other writers from taking it for a leftover.
    lock: Option<File>,
}

/// What is in the place of a snapshot.
enum Occupant {
    Nothing,
    EmptyDirectory,
    Snapshot,
    Foreign(String),
}

impl Staging {
    /// A new hidden directory beside `dir`, after removing those that dead writers left there.
    pub(crate) fn create(dir: &Path) -> Result<Self, CreateError> {
        let (target, parent, name) = resolve(dir)?;
        if let Occupant::Foreign(reason) = occupant(&target)? {
            return Err(CreateError::Foreign {
                path: target,
                reason,
            });
        }
        let mut prefix = OsString::from(".");
        prefix.push(&name);
        prefix.push(PARTIAL_INFIX);
        remove_leftovers(&parent, &prefix);

        for _ in 0..ATTEMPTS {
            let mut staging_name = prefix.clone();
            staging_name.push(
                random_suffix()
                    .map_err(|source| CreateError::io("name a directory in", &parent, source))?,
            );
            let path = parent.join(staging_name);
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(source) => return Err(CreateError::io("create", &path, source)),
            }
            // Between its creation and its lock it looks like a leftover, so another writer may
            // take it for one: then a new one is made.
            match lock(&path) {
                Ok(Some(lock)) => {
                    return Ok(Self {
                        target,
                        parent,
                        path,
                        published: false,
                        lock: Some(lock),
                    });
                }
                Ok(None) => {}
                Err(source) => {
                    let _ = fs::remove_dir(&path);
                    return Err(CreateError::Lock { path, source });
                }
            }
        }
        Err(CreateError::Contended { path: parent })
    }

    /// Where the files of the snapshot are written.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the directory in its place. What it holds is durable already.
    pub(crate) fn publish(mut self) -> Result<(), CreateError> {
        let older = self.rename_into_place()?;
        self.published = true;
        // From here on the next writer may replace it, however long removing the older one takes.
        self.lock = None;
        // Before the removal: a crash in between must not find the older one removed and the new
        // one not yet there.
        sync_directory(&self.parent).map_err(|source| CreateError::Sync {
            path: self.target.clone(),
            source,
        })?;
        if older.is_some() {
            remove_snapshot_directory(&self.path).map_err(|source| CreateError::RemoveOld {
                path: self.path.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Returns the older snapshot, locked, if there was one: it now has the hidden name.
    fn rename_into_place(&mut self) -> Result<Option<File>, CreateError> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            attempts += 1;
            // Replaces nothing, or an empty directory; never one with files in it.
            let error = match fs::rename(&self.path, &self.target) {
                Ok(()) => return Ok(None),
                Err(error) => error,
            };
            match occupant(&self.target)? {
                Occupant::Snapshot => {}
                Occupant::Foreign(reason) => return Err(self.foreign(reason)),
                Occupant::Nothing | Occupant::EmptyDirectory
                    if matches!(
                        error.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                    ) =>
                {
                    // It went away between the rename and the look at it.
                    continue;
                }
                Occupant::Nothing | Occupant::EmptyDirectory => {
                    return Err(CreateError::io("move into place", &self.target, error));
                }
            }
            // Locked before it gets a hidden name, or another writer would take it for a leftover
            // while it may still have to be put back.
            match lock(&self.target) {
                Ok(Some(older)) => {
                    if self.replace(&older)? {
                        return Ok(Some(older));
                    }
                }
                // A working set that is being written into it may take longer than other writers do.
                Ok(None) => {
                    attempts -= u32::from(Instant::now() < deadline);
                    std::thread::sleep(LOCK_WAIT);
                }
                Err(source) => {
                    let path = self.target.clone();
                    return Err(CreateError::Lock { path, source });
                }
            }
        }
        Err(CreateError::Contended {
            path: self.target.clone(),
        })
    }

    /// Exchanges the hidden directory with `older`, the snapshot at the destination. Returns
    /// `false`, and has changed nothing, when the destination is no longer that.
    fn replace(&mut self, older: &File) -> Result<bool, CreateError> {
        match self.exchange() {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(false),
            Err(errno @ (Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)) => {
                let path = self.target.clone();
                return Err(CreateError::ExchangeUnsupported {
                    path,
                    source: errno.into(),
                });
            }
            Err(errno) => return Err(CreateError::io("replace", &self.target, errno.into())),
        }
        // What is under the hidden name is removed next, so it is looked at once more, now that
        // nobody knows its name: it may not be what was at the destination a moment ago.
        match self.looks_replaceable(older) {
            Ok(true) => Ok(true),
            refused => {
                self.put_back()?;
                refused
            }
        }
    }

    /// Whether the hidden name is that of `older`, and that has nothing of others in it.
    fn looks_replaceable(&self, older: &File) -> Result<bool, CreateError> {
        let same = is_named(older, &self.path)
            .map_err(|source| CreateError::io("look at", &self.path, source))?;
        match occupant(&self.path)? {
            Occupant::Foreign(reason) => Err(self.foreign(reason)),
            _ => Ok(same),
        }
    }

    fn put_back(&mut self) -> Result<(), CreateError> {
        // Should it fail, what has the hidden name is not ours to remove.
        self.published = true;
        self.exchange().map_err(|errno| {
            CreateError::io("put back the contents of", &self.target, errno.into())
        })?;
        self.published = false;
        Ok(())
    }

    fn exchange(&self) -> Result<(), Errno> {
        rustix::fs::renameat_with(CWD, &self.path, CWD, &self.target, RenameFlags::EXCHANGE)
    }

    fn foreign(&self, reason: String) -> CreateError {
        CreateError::Foreign {
            path: self.target.clone(),
            reason,
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            // There is already an error on its way, or nobody asks.
            let _ = remove_snapshot_directory(&self.path);
        }
    }
}

/// The destination, its parent and its name, without symbolic links and `.` or `..`.
fn resolve(dir: &Path) -> Result<(PathBuf, PathBuf, OsString), CreateError> {
    let no_name = || CreateError::NoName {
        path: dir.to_owned(),
    };
    let target = match fs::canonicalize(dir) {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = dir.file_name().ok_or_else(no_name)?;
            fs::canonicalize(crate::files::parent_of(dir))
                .map_err(|source| CreateError::Parent {
                    path: dir.to_owned(),
                    source,
                })?
                .join(name)
        }
        Err(source) => {
            return Err(CreateError::Parent {
                path: dir.to_owned(),
                source,
            });
        }
    };
    match (target.parent(), target.file_name()) {
        (Some(parent), Some(name)) => {
            let (parent, name) = (parent.to_owned(), name.to_owned());
            Ok((target, parent, name))
        }
        _ => Err(no_name()),
    }
}

/// What `path` names: looked at again when it names something else by the time it was looked at.
fn occupant(path: &Path) -> Result<Occupant, CreateError> {
    let look_at = |source| CreateError::io("look at", path, source);
    for _ in 0..ATTEMPTS {
        let directory = match open_directory(path) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(Occupant::Nothing),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Ok(Occupant::Foreign("it is not a directory".to_owned()));
            }
            Err(errno) => return Err(look_at(errno.into())),
        };
        let found = match contents(&directory) {
            Ok(found) => found,
            // The directory was removed after it was opened.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(look_at(source)),
        };
        // Otherwise another writer may just have replaced it, and be removing what was counted.
        if is_named(&directory, path).map_err(look_at)? {
            return Ok(found);
        }
    }
    Err(CreateError::Contended {
        path: path.to_owned(),
    })
}

/// What a directory is, by the names in it.
fn contents(directory: &File) -> io::Result<Occupant> {
    let (mut empty, mut has_manifest) = (true, false);
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        if entry.file_type() == FileType::Directory || !is_of_a_snapshot(name) {
            let name = name.to_string_lossy();
            return Ok(Occupant::Foreign(format!(
                "it holds `{}`, which is not of a snapshot",
                name.escape_debug()
            )));
        }
        empty = false;
        has_manifest |= name == MANIFEST_FILE;
    }
    Ok(match (empty, has_manifest) {
        (true, _) => Occupant::EmptyDirectory,
        (false, true) => Occupant::Snapshot,
        (false, false) => Occupant::Foreign(format!("it holds files, but no {MANIFEST_FILE}")),
    })
}

/// Not through a link: what is looked at is what would be replaced.
fn open_directory(path: &Path) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

/// Whether a file of this name is a snapshot's, or a temporary one of
/// [`replace_file`](crate::files::replace_file) for such.
fn is_of_a_snapshot(name: &OsStr) -> bool {
    SNAPSHOT_FILES.iter().any(|file| {
        name == *file || has_random_suffix(name, format!(".{file}{TEMPORARY_INFIX}").as_bytes())
    })
}

/// Locks the directory `path`, without waiting. `None` when another process holds the lock, or
/// the directory is no longer what `path` names.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let directory = match open_directory(path) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    // It may have been removed, or published, between the opening and the locking.
    Ok(is_named(&directory, path)?.then_some(directory))
}

/// Whether `path` names the open directory.
fn is_named(directory: &File, path: &Path) -> io::Result<bool> {
    let open = directory.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes what dead writers left beside the destination. What cannot be removed stays: it harms
/// nobody but the disk, and the new snapshot does not depend on it.
fn remove_leftovers(parent: &Path, prefix: &OsStr) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        if !has_random_suffix(&entry.file_name(), prefix.as_bytes()) {
            continue;
        }
        let path = entry.path();
        if let Ok(Some(_lock)) = lock(&path) {
            let _ = remove_snapshot_directory(&path);
        }
    }
}

/// Removes a snapshot, whole or not. Where somebody put something else in it, it removes nothing.
fn remove_snapshot_directory(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if let Some(other) = entries
        .iter()
        .find(|entry| !is_of_a_snapshot(&entry.file_name()))
    {
        return Err(io::Error::new(
            io::ErrorKind::DirectoryNotEmpty,
            format!(
                "it holds {:?}, which is not of a snapshot",
                other.file_name()
            ),
        ));
    }
    // The manifest first: without it, what remains for a moment is not a snapshot.
    ignore_missing(fs::remove_file(path.join(MANIFEST_FILE)))?;
    for entry in entries {
        ignore_missing(fs::remove_file(entry.path()))?;
    }
    ignore_missing(fs::remove_dir(path))
}

/// Another writer may be removing the same leftover.
fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The destination became something else after it was looked at.
    #[test]
    fn what_is_exchanged_by_mistake_is_put_back() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("s");
        let mut staging = Staging::create(&dir).unwrap();
        fs::write(staging.path().join(STATE_FILE), "new").unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("notes.txt"), "precious").unwrap();
        let older = lock(&dir).unwrap().unwrap();
        let error = staging.replace(&older).unwrap_err();
        assert!(matches!(error, CreateError::Foreign { .. }), "{error:?}");
        let notes = fs::read_to_string(dir.join("notes.txt")).unwrap();
        assert_eq!(notes, "precious");
        let state = fs::read_to_string(staging.path().join(STATE_FILE)).unwrap();
        assert_eq!(state, "new");
        let hidden = staging.path().to_owned();
        drop(staging);
        assert!(!hidden.exists());
        assert!(dir.join("notes.txt").exists());
    }

    /// The destination went away, or became another snapshot, after it was looked at.
    #[test]
    fn a_destination_that_changed_is_looked_at_again() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("s");
        let mut staging = Staging::create(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        let older = lock(&dir).unwrap().unwrap();
        fs::rename(&dir, parent.path().join("elsewhere")).unwrap();
        assert!(!staging.replace(&older).unwrap());
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(MANIFEST_FILE), "another").unwrap();
        assert!(!staging.replace(&older).unwrap());
        assert_eq!(fs::read(dir.join(MANIFEST_FILE)).unwrap(), b"another");
        let older = lock(&dir).unwrap().unwrap();
        assert!(staging.replace(&older).unwrap());
        assert!(!dir.join(MANIFEST_FILE).exists());
    }

    #[test]
    fn a_directory_that_lost_its_name_is_not_locked_by_it() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a");
        fs::create_dir(&path).unwrap();
        let directory = lock(&path).unwrap().unwrap();
        assert!(lock(&path).unwrap().is_none());
        assert!(is_named(&directory, &path).unwrap());
        fs::rename(&path, parent.path().join("b")).unwrap();
        assert!(!is_named(&directory, &path).unwrap());
        fs::create_dir(&path).unwrap();
        assert!(!is_named(&directory, &path).unwrap());
        assert!(lock(&path).unwrap().is_some());
    }

    #[test]
    fn removal_takes_only_a_snapshots_files() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a");
        fs::create_dir(&path).unwrap();
        let names = [
            MANIFEST_FILE,
            MEMORY_FILE,
            ".working-set.tmp-0123456789abcdef",
            "notes.txt",
        ];
        for name in names {
            fs::write(path.join(name), "").unwrap();
        }
        let error = remove_snapshot_directory(&path).unwrap_err();
        assert!(error.to_string().contains("notes.txt"), "{error}");
        assert_eq!(fs::read_dir(&path).unwrap().count(), names.len());
        fs::remove_file(path.join("notes.txt")).unwrap();
        remove_snapshot_directory(&path).unwrap();
        assert!(!path.exists());
        remove_snapshot_directory(&path).unwrap();
    }
}
