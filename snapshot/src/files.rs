//! Replacing a file so that a reader, or a crash, sees the old one or the new one, never a mixture.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a file was not replaced. The old one, if there was one, is untouched, except after
/// [`ReplaceFileError::Sync`]: then the new one is in place, but a crash may still undo it.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceFileError {
    /// The path names no file.
    #[error("{path} does not name a file")]
    NoFileName {
        /// The path given.
        path: PathBuf,
    },
    /// The filesystem or the user's quota is full.
    #[error(
        "no space left to write {path}: free space there, or choose another filesystem; nothing was changed"
    )]
    NoSpace {
        /// The file to replace.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The new file could not be created, written or put in place.
    #[error("cannot {action} {path}; nothing was changed")]
    Write {
        /// What failed.
        action: &'static str,
        /// The file to replace, or the temporary one beside it.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The new file is in place, but its directory could not be made durable.
    #[error("{path} was replaced, but its directory could not be synced: a crash may undo it")]
    Sync {
        /// The file that was replaced.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Replaces the file `path` by what `write` writes to a new one.
///
/// The new file is made in the same directory under a hidden temporary name, written, fsynced,
/// renamed over `path`, and the directory is fsynced. It is opened for reading and writing, with
/// the permissions that the umask leaves. Returns what `write` returned.
///
/// # Errors
/// When `write` or a step of the file system fails; the temporary file is then removed.
pub fn replace_file<T>(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<T>,
) -> Result<T, ReplaceFileError> {
    let Some(name) = path.file_name() else {
        return Err(ReplaceFileError::NoFileName {
            path: path.to_owned(),
        });
    };
    let parent = parent_of(path);
    let failed = |action, at: &Path, source: io::Error| {
        if is_no_space(&source) {
            ReplaceFileError::NoSpace {
                path: path.to_owned(),
                source,
            }
        } else {
            ReplaceFileError::Write {
                action,
                path: at.to_owned(),
                source,
            }
        }
    };

    let suffix =
        random_suffix().map_err(|source| failed("name a temporary file for", path, source))?;
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(TEMPORARY_INFIX);
    temporary_name.push(&suffix);
    let temporary = RemoveOnDrop {
        path: Some(parent.join(temporary_name)),
    };
    let temporary_path = temporary.path.as_deref().unwrap_or(path);

    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(temporary_path)
        .map_err(|source| failed("create", temporary_path, source))?;
    let written = write(&mut file).map_err(|source| failed("write", path, source))?;
    // Before the rename: otherwise a crash may leave the new name on a file without its contents.
    file.sync_all()
        .map_err(|source| failed("sync", path, source))?;
    fs::rename(temporary_path, path).map_err(|source| failed("replace", path, source))?;
    temporary.keep();
    sync_directory(parent).map_err(|source| ReplaceFileError::Sync {
        path: path.to_owned(),
        source,
    })?;
    Ok(written)
}

/// Removes the temporary files beside `path` that [`replace_file`] calls which did not end, because
/// their process was killed, have left there and that have not been written to for `age`. What
/// cannot be removed stays: it harms nobody but the disk.
pub fn remove_leftovers(path: &Path, age: Duration) {
    let Some(name) = path.file_name() else {
        return;
    };
    let Ok(entries) = fs::read_dir(parent_of(path)) else {
        return;
    };
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    prefix.push(TEMPORARY_INFIX);
    for entry in entries.flatten() {
        if !has_random_suffix(&entry.file_name(), prefix.as_bytes()) {
            continue;
        }
        let is_old = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|modified| modified.elapsed().ok())
            .is_some_and(|idle| idle >= age);
        if is_old {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether `name` is `prefix` and a random part.
pub(crate) fn has_random_suffix(name: &OsStr, prefix: &[u8]) -> bool {
    name.as_bytes().strip_prefix(prefix).is_some_and(|suffix| {
        suffix.len() == RANDOM_DIGITS
            && suffix
                .iter()
                .all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Length of the random part of a temporary file's name.
const RANDOM_DIGITS: usize = 16;

/// What stands between a file's name and the random part, in the name of its temporary file.
pub(crate) const TEMPORARY_INFIX: &str = ".tmp-";

/// The directory that holds `path`; `.` for a bare name.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Sixteen random hexadecimal digits.
pub(crate) fn random_suffix() -> io::Result<String> {
    let number = getrandom::u64().map_err(io::Error::other)?;
    Ok(format!("{number:016x}"))
}

/// Whether a write failed for want of room: the filesystem, the quota or the file-size limit.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// A file that goes with its guard unless it is kept.
struct RemoveOnDrop {
    path: Option<PathBuf>,
}

impl RemoveOnDrop {
    fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Nothing to tell and nobody to tell it to: the first error is already on its way.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn creates_and_replaces() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        for text in ["first, the longer one", "second"] {
            let length = replace_file(&path, |file| {
                file.write_all(text.as_bytes()).map(|()| text.len())
            });
            assert_eq!(length.unwrap(), text.len());
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(names(directory.path()), ["f"]);
        }
    }

    #[test]
    fn a_failed_write_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        fs::write(&path, "old").unwrap();
        let error = replace_file(&path, |file| {
            file.write_all(b"half")?;
            Err::<(), _>(io::Error::other("broken"))
        })
        .unwrap_err();
        assert!(
            matches!(
                error,
                ReplaceFileError::Write {
                    action: "write",
                    ..
                }
            ),
            "{error:?}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(directory.path()), ["f"]);
    }

    #[test]
    fn leftovers_go_when_they_are_old_and_nothing_else_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        let mut kept = vec![
            "f",
            ".f.tmp-0123",
            ".f.tmp-0123456789ABCDEF",
            ".g.tmp-0123456789abcdef",
        ];
        for name in kept.iter().chain(&[".f.tmp-0123456789abcdef"]) {
            fs::write(directory.path().join(name), "").unwrap();
        }
        remove_leftovers(&path, Duration::from_secs(3600));
        assert_eq!(names(directory.path()).len(), 5);
        remove_leftovers(&path, Duration::ZERO);
        kept.sort_unstable();
        assert_eq!(names(directory.path()), kept);
    }

    #[test]
    fn says_when_there_is_no_space() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        let error = replace_file(&path, |_| {
            File::options()
                .write(true)
                .open("/dev/full")?
                .write_all(b"x")
        })
        .unwrap_err();
        assert!(
            matches!(error, ReplaceFileError::NoSpace { .. }),
            "{error:?}"
        );
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn refuses_what_it_cannot_replace() {
        let directory = tempfile::tempdir().unwrap();
        let is_a_directory = replace_file(directory.path(), |_| Ok(())).unwrap_err();
        assert!(matches!(
            is_a_directory,
            ReplaceFileError::Write {
                action: "replace",
                ..
            }
        ));
        let no_name = replace_file(Path::new("/"), |_| Ok(())).unwrap_err();
        assert!(matches!(no_name, ReplaceFileError::NoFileName { .. }));
        let no_parent = replace_file(&directory.path().join("a/b"), |_| Ok(())).unwrap_err();
        assert!(matches!(
            no_parent,
            ReplaceFileError::Write {
                action: "create",
                ..
            }
        ));
        assert!(names(directory.path()).is_empty());
    }
}
