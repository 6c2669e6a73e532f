//! Programs of the system that the runner calls.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use thiserror::Error;

/// A program could not be run or failed.
#[derive(Debug, Error)]
pub enum ToolError {
    /// It is not there.
    #[error("cannot start {program}; guest-images/linux/setup installs it")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("{program} failed: {output}")]
    Failed {
        /// The program.
        program: String,
        /// What it said on standard error.
        output: String,
    },
}

/// A command for `program`, which an ordinary user finds in `/usr/sbin` too.
pub fn command(program: &str) -> Command {
    let found = ["/usr/sbin", "/sbin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.exists());
    found.map_or_else(|| Command::new(program), Command::new)
}

/// Runs `program` with `arguments` to its end and returns its standard output.
///
/// # Errors
/// See [`ToolError`].
pub fn run<S: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Result<Vec<u8>, ToolError> {
    let output = command(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ToolError::Start {
            program: program.to_owned(),
            source,
        })?;
    if !output.status.success() {
        return Err(ToolError::Failed {
            program: program.to_owned(),
            output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(output.stdout)
}
