//! `reapvm restore`.

use std::sync::Arc;

use reapvm::machine::{Machine, RestoreOptions};
use reapvm_snapshot::Snapshot;

use super::CommandResult;
use super::run::{console, run_to_its_end};
use crate::cli::Restore;
use crate::terminal::watch_termination;

pub(super) fn run(arguments: &Restore) -> CommandResult {
    let snapshot = Arc::new(Snapshot::open(&arguments.dir)?);
    // Before any thread is started: they all inherit the blocked signals.
    let termination = watch_termination()?;
    let options = RestoreOptions {
        overrides: arguments.overrides.overrides()?,
        console: console(&arguments.serial)?,
        ..RestoreOptions::new(arguments.memory)
    };
    let machine = Machine::restore(&snapshot, options)?;
    run_to_its_end(machine, &arguments.serial, termination, arguments.timeout)
}
