//! The programs of the integration tests, as cargo names them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

/// The list cannot be used.
#[derive(Debug, Error)]
pub enum ProgramsError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It names no test program.
    #[error("{} names no test program: it has to be what cargo test --no-run --message-format=json says", .0.display())]
    None(PathBuf),
}

/// A message of cargo's, as far as it is of interest here
/// (<https://doc.rust-lang.org/cargo/reference/external-tools.html#json-messages>).
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

/// Names and paths of the test programs in what cargo said in the file at `path`.
///
/// # Errors
/// See [`ProgramsError`].
pub fn read(path: &Path) -> Result<Vec<(String, PathBuf)>, ProgramsError> {
    let text = fs::read_to_string(path).map_err(|source| ProgramsError::Read {
        path: path.to_owned(),
        source,
    })?;
    let programs = test_programs(&text);
    if programs.is_empty() {
        return Err(ProgramsError::None(path.to_owned()));
    }
    Ok(programs)
}

fn test_programs(messages: &str) -> Vec<(String, PathBuf)> {
    messages
        .lines()
        // Cargo may have more kinds of messages.
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter_map(|message| Some((message.target?, message.executable?)))
        .filter(|(target, _)| target.kind.iter().any(|kind| kind == "test"))
        .map(|(target, executable)| (target.name, executable))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_programs_are_named() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a"},"executable":"/t/a-1"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"boot"},"executable":"/t/boot-1"}
no JSON
{"reason":"build-finished","success":true}
"#;
        assert_eq!(
            test_programs(messages),
            [("boot".to_owned(), PathBuf::from("/t/boot-1"))]
        );
    }
}
