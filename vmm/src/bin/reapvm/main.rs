//! `reapvm`: runs virtual machines, saves them, and starts them cold.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod bench;
mod bus_error;
mod cli;
mod command;
mod output;
mod serve;
mod study;
mod terminal;

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: the mark "process_start" of a cold start.
    let process_start_ns = reapvm::clock::monotonic_ns();
    let arguments = cli::Arguments::of_this_process();
    let command = arguments.command;
    let default = command.runs_for_long().then(output::warnings);
    output::set_up_logging(arguments.logging.log.or(default));
    match command::run(command, process_start_ns) {
        Ok(code) => code,
        Err(error) => {
            output::print_error(error.as_ref());
            ExitCode::FAILURE
        }
    }
}
