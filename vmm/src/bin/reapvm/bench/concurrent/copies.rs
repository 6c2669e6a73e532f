//! Copies of snapshots, so that machines that start at once share no file.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use rustix::fs::SeekFrom as SeekTo;
use rustix::io::Errno;

/// A copy of the snapshot `from` in `to`: its files, with their holes. What was there is removed.
pub(super) fn copy_snapshot(from: &Path, to: &Path) -> Result<(), String> {
    copy_files(from, to).map_err(|error| {
        let (from, to) = (from.display(), to.display());
        format!("cannot copy '{from}' to '{to}': {error}")
    })
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            copy_sparse(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Copies the parts of a file that hold data, by `SEEK_DATA` of lseek(2), which takes a file of a file
/// system without holes for data throughout.
fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let (mut source, mut target) = (File::open(from)?, File::create_new(to)?);
    target.set_len(source.metadata()?.len())?;
    let mut hole = 0;
    loop {
        let data = match rustix::fs::seek(&source, SeekTo::Data(hole)) {
            Ok(data) => data,
            // There is none from here on.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        hole = rustix::fs::seek(&source, SeekTo::Hole(data))?;
        source.seek(SeekFrom::Start(data))?;
        target.seek(SeekFrom::Start(data))?;
        io::copy(&mut (&mut source).take(hole - data), &mut target)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn files_are_copied_with_their_holes_over_what_was_there() {
        // On the file system of the build directory: the default one for temporary files may be tmpfs.
        let scratch = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(to.join("old"), "old").unwrap();
        fs::write(from.join("state"), "state").unwrap();
        fs::write(from.join("empty"), "").unwrap();
        let memory = File::create_new(from.join("memory")).unwrap();
        memory.set_len(64 << 20).unwrap();
        for at in [8 << 20, 33 << 20] {
            memory.write_all_at(&[7; 5000], at).unwrap();
        }

        copy_snapshot(&from, &to).unwrap();
        assert!(!to.join("old").exists());
        for name in ["state", "empty", "memory"] {
            let (a, b) = (fs::read(from.join(name)), fs::read(to.join(name)));
            assert!(a.unwrap() == b.unwrap(), "{name}");
        }
        let blocks = fs::metadata(to.join("memory")).unwrap().blocks();
        assert!(blocks * 512 < 1 << 20, "{blocks}");
        let missing = scratch.path().join("missing");
        let error = copy_snapshot(&missing, &to).unwrap_err();
        assert!(error.contains("missing"), "{error}");
    }
}
