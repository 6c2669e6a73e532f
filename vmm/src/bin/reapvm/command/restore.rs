//! `reapvm restore`.

use std::sync::Arc;
use std::time::Duration;

use reapvm::function_vm::FunctionVm;
use reapvm::machine::{Machine, RestoreOptions};
use reapvm_snapshot::Snapshot;

use super::CommandResult;
use super::run::{console, run_to_its_end};
use super::save::{SaveWhenReady, ready_when};
use crate::bus_error;
use crate::cli::Restore;
use crate::terminal::watch_termination;

/// How long a guest may take to be ready to be saved, unless --timeout says.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn run(arguments: &Restore) -> CommandResult {
    let snapshot = Arc::new(Snapshot::open(&arguments.dir)?);
    let console = console(&arguments.serial)?;
    // Before any thread is started: they all inherit the blocked signals.
    let termination = watch_termination()?;
    bus_error::explain_for(arguments.memory)?;
    let options = RestoreOptions {
        overrides: arguments.overrides.overrides()?,
        track_dirty_pages: arguments.diff,
        ..RestoreOptions::new(arguments.memory)
    };
    let Some(output) = &arguments.save_to else {
        let machine = Machine::restore(&snapshot, RestoreOptions { console, ..options })?;
        return run_to_its_end(machine, &arguments.serial, termination, arguments.timeout);
    };
    let (console, watch) = console.and_watched();
    let machine = Machine::restore(&snapshot, RestoreOptions { console, ..options })?;
    let name = machine.config().function.clone();
    let save = SaveWhenReady {
        ready: arguments.wait_for.as_ref().map(ready_when),
        warm_up: arguments.warm_up.as_ref(),
        timeout: arguments.timeout.unwrap_or(READY_TIMEOUT),
        output,
        diff_of: arguments.diff.then(|| snapshot.id()),
        name: name.as_deref().unwrap_or("a machine"),
    };
    let vm = FunctionVm {
        machine,
        console: watch,
    };
    save.run(vm, &termination)
}
