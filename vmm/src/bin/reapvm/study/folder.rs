//! The folder of a study.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use reapvm_reap::study::{IMAGE_FILE, MEASUREMENTS_FILE, Study, TRACES_FOLDER};
use reapvm_snapshot::{TRACE_FILE, WORKING_SET_FILE, files};

use crate::bench::image::BenchImage;

/// Where the snapshots lie while they are measured.
const SNAPSHOTS_FOLDER: &str = "snapshots";
/// What the report's program makes: an older one must not be taken for that of a new study.
const REPORT_FILE: &str = "report.html";
const CLAIMS_FILE: &str = "claims.md";
const DATA_FOLDER: &str = "data";

/// Held while a study is measured; the system lets go of it when the process ends, however it does.
const LOCK_FILE: &str = ".lock";

/// A folder that belongs to one study.
pub(super) struct StudyFolder {
    root: PathBuf,
    /// Keeps another study out.
    _lock: File,
}

/// The files of one function while it is measured.
pub(super) struct FunctionFolder {
    /// The snapshot, whose working set is that of the last recording.
    pub(super) base: PathBuf,
    /// The same snapshot with the working set of the first input.
    pub(super) one: PathBuf,
    /// The same snapshot with merged working sets.
    pub(super) merged: PathBuf,
}

impl StudyFolder {
    /// Makes the folder `path`, and removes what an older study has left in it.
    pub(super) fn prepare(path: &Path) -> Result<Self, String> {
        let failed = |what: &Path, error: &io::Error| {
            format!(
                "cannot use '{}' for a study: '{}': {error}; choose another folder with --output",
                path.display(),
                what.display()
            )
        };
        fs::create_dir_all(path).map_err(|error| failed(path, &error))?;
        let lock_path = path.join(LOCK_FILE);
        let lock = File::create(&lock_path).map_err(|error| failed(&lock_path, &error))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => format!(
                "another study is being measured in '{}': wait for it, or choose another folder \
                 with --output",
                path.display()
            ),
            TryLockError::Error(error) => failed(&lock_path, &error),
        })?;
        for name in [REPORT_FILE, CLAIMS_FILE, MEASUREMENTS_FILE, IMAGE_FILE] {
            let file = path.join(name);
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed(&file, &error));
                }
                _ => {}
            }
        }
        for name in [DATA_FOLDER, TRACES_FOLDER, SNAPSHOTS_FOLDER] {
            let folder = path.join(name);
            remove_folder(&folder).map_err(|error| failed(&folder, &error))?;
        }
        for name in [TRACES_FOLDER, SNAPSHOTS_FOLDER] {
            let folder = path.join(name);
            fs::create_dir(&folder).map_err(|error| failed(&folder, &error))?;
        }
        Ok(Self {
            root: path.to_owned(),
            _lock: lock,
        })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Writes what is to be measured, so that a study that ends early says so, and the image with
    /// its symbols.
    pub(super) fn begin(
        &self,
        study: &Study,
        image: &BenchImage,
    ) -> Result<(), Box<dyn std::error::Error>> {
        study.write(&self.root)?;
        if matches!(image, BenchImage::Builtin) {
            files::replace_file(&self.root.join(IMAGE_FILE), |file| {
                io::Write::write_all(file, reapvm_guest_images::image())
            })?;
        }
        Ok(())
    }

    pub(super) fn trace_path(&self, name: &str) -> PathBuf {
        self.root.join(TRACES_FOLDER).join(name)
    }

    /// Makes the folder for the snapshots of `function`.
    pub(super) fn function(&self, function: &str) -> io::Result<FunctionFolder> {
        let folder = self.root.join(SNAPSHOTS_FOLDER).join(function);
        fs::create_dir_all(&folder)?;
        Ok(FunctionFolder {
            base: folder.join("base"),
            one: folder.join("one"),
            merged: folder.join("merged"),
        })
    }

    /// Removes the snapshots of one function.
    pub(super) fn remove_function(&self, function: &str) -> io::Result<()> {
        remove_folder(&self.root.join(SNAPSHOTS_FOLDER).join(function))
    }

    /// Removes all snapshots.
    pub(super) fn remove_snapshots(&self) -> io::Result<()> {
        remove_folder(&self.root.join(SNAPSHOTS_FOLDER))
    }
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Makes `to` the same snapshot as `from`, but for its working set: its files have a second name, so
/// that a disk reads the same places for both.
pub(super) fn link_snapshot(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != WORKING_SET_FILE && name != TRACE_FILE {
            fs::hard_link(entry.path(), to.join(name))?;
        }
    }
    Ok(())
}
