//! **Unstable.** How a disk is best read: measured once, and kept with what tells the disk from others.

mod measure;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use reapvm_reap::InstallOptions;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use measure::{Tried, measure};

/// A tuning cannot be made, kept or used.
#[derive(Debug, Error)]
pub enum TuningError {
    /// The system does not say what the disk is.
    #[error("cannot tell what disk '{}' is on", path.display())]
    Device {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The disk cannot be measured.
    #[error("cannot measure the disk under '{}'", path.display())]
    Measure {
        /// The directory.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no directory for what is kept between runs.
    #[error("there is no place to keep tunings: set XDG_CACHE_HOME or HOME")]
    NoCache,
    /// What was kept cannot be read or written.
    #[error("cannot read or write the tunings in '{}'", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// They cannot be replaced.
    #[error(transparent)]
    Replace(#[from] reapvm_snapshot::files::ReplaceFileError),
    /// What was kept is damaged, or another program's.
    #[error("the tunings in '{}' make no sense: remove the file and run reapvm tune again", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        #[source]
        source: serde_json::Error,
    },
    /// The disk was never measured.
    #[error("the disk under '{}' ({device}) was not measured: run reapvm tune {}", path.display(), path.display())]
    NotTuned {
        /// The directory.
        path: PathBuf,
        /// What tells the disk.
        device: String,
    },
}

/// How a disk is best read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// Bytes that one read asks for.
    pub piece_bytes: u64,
    /// Reads under way in each of two threads.
    pub depth: usize,
    /// What that installed, in MiB/s.
    pub mib_s: f64,
    /// How much less time that took than the default's reads, in percent; 0: these are the
    /// default's.
    pub gain_pct: f64,
}

impl Tuning {
    /// `options` with reads of this size and number.
    #[must_use]
    pub fn apply(&self, options: InstallOptions) -> InstallOptions {
        InstallOptions {
            piece_bytes: self.piece_bytes,
            depth: self.depth,
            ..options
        }
    }
}

/// What tells the disk under `path` from others: its number, its model where it has one, its size.
///
/// # Errors
/// [`TuningError::Device`].
pub fn device_of(path: &Path) -> Result<String, TuningError> {
    let metadata = fs::metadata(path).map_err(|source| TuningError::Device {
        path: path.to_owned(),
        source,
    })?;
    let (major, minor) = (
        rustix::fs::major(metadata.dev()),
        rustix::fs::minor(metadata.dev()),
    );
    let sys = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // A partition's disk is the directory above; a file system without a disk has neither.
    let read = |name: &str| {
        fs::read_to_string(sys.join(name))
            .or_else(|_| fs::read_to_string(sys.join("..").join(name)))
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    Ok(format!(
        "{major}:{minor} {} {} sectors",
        read("device/model"),
        read("size")
    ))
}

/// Where tunings are kept: `reapvm/tunings.json` in the user's cache.
///
/// # Errors
/// [`TuningError::NoCache`].
pub fn cache_path() -> Result<PathBuf, TuningError> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .map(|cache| cache.join("reapvm/tunings.json"))
        .ok_or(TuningError::NoCache)
}

fn read_all(path: &Path) -> Result<BTreeMap<String, Tuning>, TuningError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| TuningError::Corrupt {
            path: path.to_owned(),
            source,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(source) => Err(TuningError::Cache {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Keeps `tuning` for the disk `device` in the file `path`, beside those of others.
///
/// # Errors
/// The file cannot be read or replaced, or is damaged.
pub fn keep(path: &Path, device: &str, tuning: Tuning) -> Result<(), TuningError> {
    let failed = |source| TuningError::Cache {
        path: path.to_owned(),
        source,
    };
    let mut all = read_all(path)?;
    all.insert(device.to_owned(), tuning);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    reapvm_snapshot::files::replace_file(path, |file| {
        serde_json::to_writer_pretty(file, &all).map_err(io::Error::from)
    })?;
    Ok(())
}

/// What was kept in the file `path` for the disk under the directory `dir`.
///
/// # Errors
/// The disk was never measured, or the file cannot be read or is damaged.
pub fn find(path: &Path, dir: &Path) -> Result<Tuning, TuningError> {
    let device = device_of(dir)?;
    read_all(path)?
        .get(&device)
        .copied()
        .ok_or_else(|| TuningError::NotTuned {
            path: dir.to_owned(),
            device,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_for_its_disk_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/tunings.json");
        let tuning = Tuning {
            piece_bytes: 128 << 10,
            depth: 8,
            mib_s: 1234.5,
            gain_pct: 7.0,
        };
        let missing = find(&path, dir.path()).unwrap_err();
        assert!(matches!(missing, TuningError::NotTuned { .. }), "{missing}");
        keep(&path, "8:0 another disk", Tuning { depth: 2, ..tuning }).unwrap();
        keep(&path, &device_of(dir.path()).unwrap(), tuning).unwrap();
        assert_eq!(find(&path, dir.path()).unwrap(), tuning);
        let options = tuning.apply(InstallOptions::default());
        assert_eq!((options.piece_bytes, options.depth), (128 << 10, 8));

        for damage in ["", "{", "[]", r#"{"x": {"piece_bytes": -1}}"#] {
            fs::write(&path, damage).unwrap();
            let error = find(&path, dir.path()).unwrap_err();
            assert!(matches!(error, TuningError::Corrupt { .. }), "{error}");
        }
        let nowhere = Path::new("/nonexistent/dir");
        assert!(matches!(
            device_of(nowhere),
            Err(TuningError::Device { .. })
        ));
    }
}
