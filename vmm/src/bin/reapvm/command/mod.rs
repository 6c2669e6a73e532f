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

/// A descriptor a connection, a client, a machine: the usual soft limit of 1024 is soon met.
pub(crate) fn raise_descriptor_limit() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
