//! Saving a machine when its guest is ready, for `snapshot create` and `restore --save-to`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use reapvm::function_vm::{FunctionVm, FunctionVmError, ReadyWhen};
use reapvm::vcpu::GuestExit;
use reapvm_snapshot::{Manifest, SnapshotId};
use serde_json::Value;

use super::CommandResult;
use super::run::exit_code;
use crate::cli::WaitFor;
use crate::terminal::Termination;

/// By what the guest shows that it is ready.
pub(super) fn ready_when(wait_for: &WaitFor) -> ReadyWhen {
    match wait_for {
        WaitFor::Text(text) => ReadyWhen::ConsoleText(text.clone()),
        WaitFor::VsockPort(port) => ReadyWhen::VsockPort(*port),
    }
}

/// When and how a machine is saved.
pub(super) struct SaveWhenReady<'a> {
    /// What is waited for; none: the guest is ready as it is.
    pub(super) ready: Option<ReadyWhen>,
    /// The input of an invocation that is served first.
    pub(super) warm_up: Option<&'a Value>,
    /// How long each of the two may take.
    pub(super) timeout: Duration,
    /// The snapshot directory to make.
    pub(super) output: &'a Path,
    /// Only what was written since this snapshot.
    pub(super) diff_of: Option<SnapshotId>,
    /// What the machine is called.
    pub(super) name: &'a str,
}

impl SaveWhenReady<'_> {
    /// Lets the paused machine run until it is ready, saves it, and says so.
    pub(super) fn run(&self, mut vm: FunctionVm, termination: &Termination) -> CommandResult {
        let exits = Arc::clone(vm.machine.exits());
        termination.on_signal({
            let exits = Arc::clone(&exits);
            move |_| exits.end(GuestExit::Stopped)
        })?;
        match self.save(&mut vm) {
            Ok(manifest) => {
                self.say(&manifest);
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => match exits.reason() {
                // The reason why it could not be saved.
                Some(exit @ GuestExit::Stopped) => Ok(exit_code(&exit, termination)),
                Some(exit @ GuestExit::Panicked) => {
                    eprintln!("{error}");
                    Ok(exit_code(&exit, termination))
                }
                _ => Err(error.into()),
            },
        }
    }

    fn save(&self, vm: &mut FunctionVm) -> Result<Manifest, FunctionVmError> {
        if let Some(ReadyWhen::VsockPort(_)) = self.ready {
            // Before any time is spent on waiting for what cannot be.
            vm.machine.vsock()?;
        }
        vm.machine.resume()?;
        if let Some(ready) = &self.ready {
            vm.wait_until(ready, self.timeout)?;
        }
        if let Some(input) = self.warm_up {
            vm.invoke(input, self.timeout)
                .map_err(FunctionVmError::WarmUp)?;
        }
        match &self.diff_of {
            Some(base) => vm.save_diff(self.output, base),
            None => vm.save(self.output),
        }
    }

    fn say(&self, manifest: &Manifest) {
        let diff = match manifest.memory.base {
            Some(base) => format!(", a diff against snapshot {base}"),
            None => String::new(),
        };
        println!(
            "{}: snapshot {} of {}{diff}, {} of {} pages hold data",
            self.output.display(),
            manifest.id,
            self.name,
            manifest.memory.data_pages,
            manifest.memory.page_count()
        );
    }
}
