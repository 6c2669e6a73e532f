//! `reapvm trace`.

pub(crate) mod analysis;
mod info;
mod record;

use super::CommandResult;
use crate::cli::TraceCommand;

pub(super) fn run(command: TraceCommand) -> CommandResult {
    match command {
        TraceCommand::Record(arguments) => record::run(&arguments),
        TraceCommand::Info(arguments) => info::run(&arguments),
        TraceCommand::Export(arguments) => analysis::run("export", &arguments),
        TraceCommand::Diff(arguments) => analysis::run("diff", &arguments),
        TraceCommand::Report(arguments) => analysis::run("report", &arguments),
        TraceCommand::Symbols(arguments) => analysis::run("symbols", &arguments),
    }
}
