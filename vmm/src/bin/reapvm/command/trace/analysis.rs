//! `reapvm trace export|diff|report|symbols`: what the program `reapvm-trace` does.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::cli::TraceAnalysis;
use crate::command::CommandResult;

/// The program, which comes in the same directory as this one.
const PROGRAM: &str = "reapvm-trace";

/// Becomes the program. Its code is not in this one, because every virtual machine would carry it.
pub(super) fn run(subcommand: &str, arguments: &TraceAnalysis) -> CommandResult {
    let program = std::env::current_exe()?.with_file_name(PROGRAM);
    let error = Command::new(&program)
        .arg(subcommand)
        .args(&arguments.arguments)
        .exec();
    Err(format!(
        "cannot run '{}', which has to be beside reapvm: {error}",
        program.display()
    )
    .into())
}
