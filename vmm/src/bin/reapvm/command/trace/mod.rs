//! `reapvm trace`.

#[cfg(feature = "analysis")]
mod analysis;
mod info;
mod record;

use super::CommandResult;
use crate::cli::TraceCommand;

pub(super) fn run(command: TraceCommand) -> CommandResult {
    match command {
        TraceCommand::Record(arguments) => record::run(&arguments),
        TraceCommand::Info(arguments) => info::run(&arguments),
        #[cfg(feature = "analysis")]
        TraceCommand::Export(arguments) => analysis::export(&arguments),
        #[cfg(feature = "analysis")]
        TraceCommand::Diff(arguments) => analysis::diff(&arguments),
        #[cfg(feature = "analysis")]
        TraceCommand::Report(arguments) => analysis::report(&arguments),
    }
}
