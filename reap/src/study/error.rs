//! Why the measurements of a study are not written or read.

use std::io;
use std::path::PathBuf;

use reapvm_snapshot::files::ReplaceFileError;

use super::{MEASUREMENTS_FILE, VERSION};

/// The measurements of a study cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StudyFileError {
    /// There are none.
    #[error(
        "there is no study in '{}' (no {MEASUREMENTS_FILE}): make one with `reapvm study --output {}`",
        dir.display(), dir.display()
    )]
    Missing {
        /// The folder.
        dir: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read the measurements '{}'", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write the measurements '{}'", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReplaceFileError,
    },
    /// The file ends too early.
    #[error("the measurements '{}' are truncated: measure again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("'{}' holds no measurements of a study, or damaged ones", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is no JSON of a study.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// The file is of another version.
    #[error(
        "the measurements '{}' are of version {version}, this program reads version {VERSION}: \
         measure again",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The file says what cannot be.
    #[error("the measurements '{}' cannot be right: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What cannot be.
        reason: String,
    },
}
