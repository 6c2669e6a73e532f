//! How a disk is best read: measured once, and kept with what tells the disk from others.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use reapvm_reap::InstallOptions;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Pieces that are tried, in bytes, with each of [`DEPTHS`].
const PIECES_BYTES: [u64; 5] = [64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20];
/// Reads under way in each thread.
const DEPTHS: [usize; 5] = [1, 2, 4, 8, 16];
/// Length of the file that is read.
const FILE_BYTES: u64 = 64 << 20;
/// Measurements of each combination; the median counts.
const ROUNDS: usize = 3;
/// A combination that needs less memory is taken if it is nearly as fast: in percent of the best.
const NEARLY_PCT: f64 = 95.0;

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
        /// What the system said.
        #[source]
        source: io::Error,
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
    /// What that gave, in MiB/s.
    pub mib_s: f64,
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

/// One combination that was measured.
pub type Tried = Tuning;

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

/// Measures the disk under the directory `dir` with a file that is removed afterwards; tells `on_tried`
/// of each combination.
///
/// # Errors
/// [`TuningError::Measure`].
pub fn measure(dir: &Path, mut on_tried: impl FnMut(&Tried)) -> Result<Tuning, TuningError> {
    let failed = |source| TuningError::Measure {
        path: dir.to_owned(),
        source,
    };
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
    write_noise(file.as_file_mut()).map_err(failed)?;
    let mut tried = Vec::new();
    for piece_bytes in PIECES_BYTES {
        for depth in DEPTHS {
            let mut times_s = (0..ROUNDS)
                .map(|_| {
                    reapvm_reap::read_time(file.path(), piece_bytes, depth)
                        .map(|time| time.as_secs_f64())
                })
                .collect::<io::Result<Vec<_>>>()
                .map_err(failed)?;
            times_s.sort_by(f64::total_cmp);
            let result = Tried {
                piece_bytes,
                depth,
                mib_s: (FILE_BYTES >> 20) as f64 / times_s[ROUNDS / 2],
            };
            on_tried(&result);
            tried.push(result);
        }
    }
    choose(&tried).ok_or_else(|| failed(io::Error::other("nothing was measured")))
}

/// The combination with the least memory in flight of those that are nearly as fast as the best.
fn choose(tried: &[Tried]) -> Option<Tuning> {
    let best = tried.iter().map(|one| one.mib_s).fold(0.0, f64::max);
    tried
        .iter()
        .filter(|one| one.mib_s >= best * NEARLY_PCT / 100.0)
        .min_by_key(|one| (one.piece_bytes * one.depth as u64, one.piece_bytes))
        .copied()
}

/// Not zeros and not one block again and again: some disks keep those elsewhere.
fn write_noise(file: &mut fs::File) -> io::Result<()> {
    let mut block = vec![0_u8; 1 << 20];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..FILE_BYTES >> 20 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()
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
    fn the_one_with_the_least_memory_of_the_fast_ones_is_chosen() {
        let tried = |piece_bytes, depth, mib_s| Tried {
            piece_bytes,
            depth,
            mib_s,
        };
        let all = [
            tried(4096, 1, 100.0),
            tried(8192, 4, 960.0),
            tried(16384, 2, 970.0),
            tried(65536, 16, 1000.0),
            tried(4096, 8, 949.0),
        ];
        assert_eq!(choose(&all), Some(all[1]));
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn what_is_kept_is_found_for_its_disk_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/tunings.json");
        let tuning = Tuning {
            piece_bytes: 128 << 10,
            depth: 8,
            mib_s: 1234.5,
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
