//! `reapvm trace`.

mod info;
mod record;

use super::CommandResult;
use crate::cli::TraceCommand;

pub(super) fn run(command: TraceCommand) -> CommandResult {
    match command {
        TraceCommand::Record(arguments) => record::run(&arguments),
        TraceCommand::Info(arguments) => info::run(&arguments),
    }
}
