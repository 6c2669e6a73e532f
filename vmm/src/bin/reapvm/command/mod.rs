//! One file a subcommand.

mod image;
mod invoke;
mod restore;
mod run;
mod save;
mod snapshot;
mod trace;
mod tune;
mod working_set;

use std::error::Error;
use std::process::ExitCode;

use crate::cli::Command;
use crate::{bench, serve, study};

pub(crate) use invoke::print as print_report;
pub(crate) use trace::analysis;

/// What a subcommand returns: it fails with whatever error it met, which `main` prints.
pub(crate) type CommandResult = Result<ExitCode, Box<dyn Error>>;

pub(crate) fn run(command: Command, process_start_ns: u64) -> CommandResult {
    match command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Snapshot(command) => snapshot::run(command),
        Command::Invoke(arguments) => invoke::run(&arguments, process_start_ns),
        Command::Restore(arguments) => restore::run(&arguments),
        Command::Trace(command) => trace::run(command),
        Command::Serve(arguments) => serve::run(arguments),
        Command::Request(arguments) => serve::request(&arguments),
        Command::ServeWorker(arguments) => serve::run_worker(&arguments, process_start_ns),
        Command::WorkingSet(command) => working_set::run(command),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Study(arguments) => study::run(&arguments),
        Command::Tune(arguments) => tune::run(&arguments),
        Command::Image(command) => image::run(command),
    }
}
