//! `reapvm restore`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use reapvm::function_vm::{FunctionVm, FunctionVmError, ReadyWhen};
use reapvm::machine::{Machine, RestoreOptions};
use reapvm::vcpu::GuestExit;
use reapvm_snapshot::{Manifest, Snapshot};

use super::CommandResult;
use super::run::{console, exit_code, run_to_its_end};
use super::snapshot::ready_when;
use crate::cli::Restore;
use crate::terminal::{Termination, watch_termination};

/// How long a guest may take to be ready to be saved, unless --timeout says.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn run(arguments: &Restore) -> CommandResult {
    let snapshot = Arc::new(Snapshot::open(&arguments.dir)?);
    let console = console(&arguments.serial)?;
    // Before any thread is started: they all inherit the blocked signals.
    let termination = watch_termination()?;
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
    let vm = FunctionVm {
        machine: Machine::restore(&snapshot, RestoreOptions { console, ..options })?,
        console: watch,
    };
    run_and_save(vm, &snapshot, arguments, output, &termination)
}

/// Lets the machine run until it is ready, and saves it.
fn run_and_save(
    mut vm: FunctionVm,
    snapshot: &Snapshot,
    arguments: &Restore,
    output: &Path,
    termination: &Termination,
) -> CommandResult {
    let exits = Arc::clone(vm.machine.exits());
    termination.on_signal({
        let exits = Arc::clone(&exits);
        move |_| exits.end(GuestExit::Stopped)
    })?;
    match save(&mut vm, snapshot, arguments, output) {
        Ok(manifest) => {
            let kind = match manifest.memory.base {
                Some(base) => format!("a diff against snapshot {base}"),
                None => "in full".to_owned(),
            };
            println!(
                "{}: snapshot {}, {kind}, {} of {} pages hold data",
                output.display(),
                manifest.id,
                manifest.memory.data_pages,
                manifest.memory.page_count()
            );
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => match exits.reason() {
            // Why it could not be saved.
            Some(exit @ (GuestExit::Stopped | GuestExit::Panicked)) => {
                Ok(exit_code(&exit, termination))
            }
            _ => Err(error.into()),
        },
    }
}

fn save(
    vm: &mut FunctionVm,
    snapshot: &Snapshot,
    arguments: &Restore,
    output: &Path,
) -> Result<Manifest, FunctionVmError> {
    let timeout = arguments.timeout.unwrap_or(READY_TIMEOUT);
    let ready = arguments.wait_for.as_ref().map(ready_when);
    if let Some(ReadyWhen::VsockPort(_)) = ready {
        // Before any time is spent on waiting for what cannot be.
        vm.machine.vsock()?;
    }
    vm.machine.resume()?;
    if let Some(ready) = &ready {
        vm.wait_until(ready, timeout)?;
    }
    if let Some(input) = &arguments.warm_up {
        vm.invoke(input, timeout).map_err(FunctionVmError::WarmUp)?;
    }
    if arguments.diff {
        vm.save_diff(output, &snapshot.id())
    } else {
        vm.save(output)
    }
}
