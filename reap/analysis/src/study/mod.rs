//! The report of a study: the findings of the REAP paper, tested on what `reapvm study` has measured.
//!
//! | part | what it does |
//! |---|---|
//! | `invocation`, `findings` | what traces and measurements tell of each function |
//! | `sets`, `readahead`, `symbols` | reuse and working sets, simulated readahead, the guest's functions |
//! | `claims` | the paper's claims, judged |
//! | `tables`, `figures`, `page`, `markdown` | what is written: data, figures, one HTML file, the claims |

mod claims;
mod figures;
mod findings;
mod invocation;
mod linux;
mod markdown;
mod numbers;
mod page;
mod readahead;
mod sets;
mod symbols;
mod tables;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use reapvm_reap::study::{Study, StudyFileError};
use reapvm_reap::trace::TraceError;
use reapvm_snapshot::files::{ReplaceFileError, replace_file};

use crate::plot::PlotError;
use findings::Function;
use symbols::GuestSymbols;
use tables::Tables;

/// The report, in the study's folder.
pub const REPORT_FILE: &str = "report.html";
/// The paper's claims as Markdown, in the study's folder.
const CLAIMS_FILE: &str = "claims.md";
/// The folder with the data of all figures, in the study's folder.
const DATA_FOLDER: &str = "data";

/// A report was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StudyError {
    /// The measurements cannot be read.
    #[error(transparent)]
    Measurements(#[from] StudyFileError),
    /// Nothing was measured to its end.
    #[error(
        "the study in '{}' ended before its first function was measured: nothing can be said of it",
        dir.display()
    )]
    Empty {
        /// The study's folder.
        dir: PathBuf,
    },
    /// A trace cannot be read to its end.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The figures of Linux guests cannot be read.
    #[error("cannot use the figures of Linux guests in '{}': {reason}", path.display())]
    LinuxFigures {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The guest's symbols cannot be read.
    #[error("cannot use the symbols in '{}': {reason}", path.display())]
    Symbols {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A figure cannot be drawn.
    #[error(transparent)]
    Plot(#[from] PlotError),
    /// The report cannot be written.
    #[error("cannot write the report")]
    Write(#[from] ReplaceFileError),
    /// The folder for the data cannot be made.
    #[error("cannot make the folder '{}'", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What goes into a report beside the measurements.
#[derive(Clone, Copy, Debug, Default)]
pub struct StudyOptions<'a> {
    /// Figures of Linux guests.
    pub linux_figures: Option<&'a Path>,
    /// Symbols of the guest: an ELF file or a System.map.
    pub symbols: Option<&'a Path>,
    /// How far the guest's kernel was moved from where it was linked.
    pub moved_by: u64,
}

/// What a report says in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StudyOutcome {
    /// The report's file.
    pub report: PathBuf,
    /// Length of the report, in bytes.
    pub report_bytes: u64,
    /// Each claim of the paper and what became of it.
    pub claims: Vec<String>,
    /// What of the plan was not measured; empty for a whole study.
    pub missing: Vec<String>,
}

/// Makes the report and the data of the study in the folder `dir`. `command` is shown as what makes
/// the report.
///
/// Everything is computed before anything is written, and the report is written last.
///
/// # Errors
/// Measurements or traces are not there, truncated, damaged or foreign; or the folder cannot be
/// written to.
pub fn write_report(
    dir: &Path,
    options: &StudyOptions<'_>,
    command: &str,
) -> Result<StudyOutcome, StudyError> {
    let study = Study::read(dir)?;
    if study.functions.is_empty() {
        return Err(StudyError::Empty {
            dir: dir.to_owned(),
        });
    }
    let linux = options.linux_figures.map(linux::read).transpose()?;
    let symbols = GuestSymbols::find(dir, options.symbols, options.moved_by)?;
    let functions = study
        .functions
        .iter()
        .map(|measured| Function::new(dir, &study, measured, &symbols))
        .collect::<Result<Vec<_>, _>>()?;
    let claims = claims::claims(&study, &functions, &linux.unwrap_or_default());
    let tables = Tables::new(&study, &functions, &claims);
    let missing = study.missing();
    let page = page::page(&study, &functions, &claims, &tables, &missing, command)?;

    let data = dir.join(DATA_FOLDER);
    std::fs::create_dir_all(&data).map_err(|source| StudyError::Folder {
        path: data.clone(),
        source,
    })?;
    for table in tables.all() {
        table.write(&data)?;
    }
    let text = markdown::claims(&study, &functions, &claims);
    replace_file(&dir.join(CLAIMS_FILE), |file| {
        file.write_all(text.as_bytes())
    })?;
    let report = dir.join(REPORT_FILE);
    replace_file(&report, |file| file.write_all(page.as_bytes()))?;
    Ok(StudyOutcome {
        report,
        report_bytes: page.len() as u64,
        claims: claims
            .iter()
            .map(|claim| {
                format!(
                    "{:<13} {}: {} (paper: {})",
                    claim.verdict.as_str(),
                    claim.claim,
                    claim.ours,
                    claim.paper
                )
            })
            .collect(),
        missing,
    })
}
