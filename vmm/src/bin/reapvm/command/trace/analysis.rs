//! What the program `reapvm-trace` does: `reapvm trace export|diff|report|symbols`, and the report of a
//! study.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::cli::TraceAnalysis;
use crate::command::CommandResult;

/// The program, which comes in the same directory as this one.
const PROGRAM: &str = "reapvm-trace";

pub(super) fn run(subcommand: &str, arguments: &TraceAnalysis) -> CommandResult {
    become_program(subcommand, &arguments.arguments)
}

/// Where the program is.
///
/// # Errors
/// It is not there.
pub(crate) fn program() -> Result<PathBuf, Box<dyn std::error::Error>> {
    let program = std::env::current_exe()?.with_file_name(PROGRAM);
    match program.metadata() {
        Ok(_) => Ok(program),
        Err(error) => Err(format!(
            "cannot run '{}', which has to be beside reapvm: {error}",
            program.display()
        )
        .into()),
    }
}

/// Becomes the program. Its code is not in this one, because every virtual machine would carry it.
pub(crate) fn become_program(subcommand: &str, arguments: &[OsString]) -> CommandResult {
    let program = program()?;
    let error = Command::new(&program)
        .arg(subcommand)
        .args(arguments)
        .exec();
    Err(format!("cannot run '{}': {error}", program.display()).into())
}
