//! Figures of Linux guests, which nested hosts that QEMU emulates have counted: no times.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;

use super::StudyError;

/// Most of the file that is read: ten functions take 2 KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// One function.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinuxFigures {
    /// Its name.
    pub(super) function: String,
    /// Resident when the booted machine was saved.
    pub(super) booted_bytes: u64,
    /// Pages of a recording.
    pub(super) pages: u64,
    /// Runs of neighbours that they lie in.
    pub(super) runs: u64,
    /// Pages of it that an invocation with another input touches too.
    pub(super) same_pages: u64,
    /// Faults on demand.
    pub(super) faults: u64,
    /// Of these, those left when the recording is prefetched for the other input.
    pub(super) missed: u64,
}

/// Reads the lines of JSON in `path`.
pub(super) fn read(path: &Path) -> Result<Vec<LinuxFigures>, StudyError> {
    let failed = |reason: String| StudyError::LinuxFigures {
        path: path.to_owned(),
        reason,
    };
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut figures: Vec<LinuxFigures> = Vec::new();
    for (at, line) in BufReader::new(file.take(MAX_FILE_BYTES))
        .lines()
        .enumerate()
    {
        let line = line.map_err(|error| failed(error.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let failed = |reason: String| failed(format!("line {}: {reason}", at + 1));
        let one: LinuxFigures =
            serde_json::from_str(&line).map_err(|error| failed(error.to_string()))?;
        if one.same_pages > one.pages || one.runs > one.pages || one.missed > one.faults {
            return Err(failed("a part of it is more than the whole".to_owned()));
        }
        if figures.iter().any(|known| known.function == one.function) {
            return Err(failed(format!("{} is there twice", one.function)));
        }
        figures.push(one);
    }
    if figures.is_empty() {
        return Err(failed("it has no line".to_owned()));
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_others_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            super::read(file.path())
        };
        let line = r#"{"function":"f","booted_bytes":9,"pages":8,"runs":4,"same_pages":7,"faults":9,"missed":1}"#;
        let figures = read(&format!("{line}\n\n")).unwrap();
        assert_eq!((figures.len(), figures[0].same_pages), (1, 7));
        for (text, needle) in [
            (String::new(), "no line"),
            ("| f | 96 |".to_owned(), "line 1"),
            (line[..40].to_owned(), "line 1"),
            (format!("{line}\n{line}"), "line 2: f is there twice"),
            (
                line.replace("\"same_pages\":7", "\"same_pages\":70"),
                "more than the whole",
            ),
        ] {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
        assert!(super::read(Path::new("/no/such/file")).is_err());
    }
}
