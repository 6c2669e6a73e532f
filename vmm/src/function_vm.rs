//! Booting a built-in function and saving it when it is ready to be cold-started.

use std::path::Path;
use std::time::{Duration, Instant};

use reapvm_snapshot::Manifest;
use serde_json::Value;
use thiserror::Error;

use crate::config::VmConfig;
use crate::invocation::{Connection, InvokeError, describe_exit};
use crate::machine::{BuildError, Console, ConsoleWatch, Machine, MachineError, SaveError};

/// The line by which a guest says that it serves.
const READY_LINE: &str = "ready";
/// How long the guest may take to let go of the warm-up's connection.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// A function could not be brought to the point where it can be saved.
#[derive(Debug, Error)]
pub enum FunctionVmError {
    /// The machine cannot be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// It cannot be resumed or paused.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// It cannot be saved.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// The warm-up invocation failed.
    #[error("the warm-up invocation failed")]
    WarmUp(#[source] InvokeError),
    /// The guest did not say that it serves.
    #[error("the guest was not ready {reason}; its console said:\n{console}")]
    NotReady {
        /// "within 60 s" or how it ended.
        reason: String,
        /// The end of its console's output.
        console: String,
    },
    /// The guest holds on to a connection that is closed.
    #[error("the guest did not close the warm-up's connection within {} s", SETTLE_TIMEOUT.as_secs())]
    NotSettled,
}

/// A booted machine that serves its function.
pub struct FunctionVm {
    /// The machine, running.
    pub machine: Machine,
    /// Its console.
    pub console: ConsoleWatch,
}

impl FunctionVm {
    /// Boots `config` and waits until the guest says that it serves.
    ///
    /// # Errors
    /// See [`FunctionVmError`].
    pub fn boot(config: VmConfig, timeout: Duration) -> Result<Self, FunctionVmError> {
        let (console, watch) = Console::watched();
        let mut machine = Machine::boot(config, console)?;
        machine.resume()?;
        let exits = machine.exits();
        if !watch.wait_for_line(READY_LINE, timeout, || exits.reason().is_some()) {
            let reason = exits.reason().map_or_else(
                || format!("within {:.1} s", timeout.as_secs_f64()),
                |exit| format!("before it ended: {}", describe_exit(&exit)),
            );
            return Err(FunctionVmError::NotReady {
                reason,
                console: watch.text(),
            });
        }
        Ok(Self {
            machine,
            console: watch,
        })
    }

    /// One invocation on a connection of its own.
    ///
    /// # Errors
    /// See [`Connection::call`].
    pub fn invoke(&self, input: &Value, timeout: Duration) -> Result<Value, InvokeError> {
        let mut connection = Connection::open(&self.machine)?;
        Ok(connection.call(&self.machine, input, timeout)?.value)
    }

    /// Waits until no connection is left, pauses the machine and saves it to `dir`.
    ///
    /// # Errors
    /// See [`FunctionVmError`].
    pub fn save(&mut self, dir: &Path) -> Result<Manifest, FunctionVmError> {
        let vsock = self.machine.vsock()?;
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        while vsock.connection_count() > 0 {
            if Instant::now() > deadline {
                return Err(FunctionVmError::NotSettled);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.machine.pause()?;
        Ok(self.machine.save(dir)?)
    }
}

/// Boots the built-in function of `config`, serves one warm-up invocation with `warm_up` and
/// saves the machine to `dir`.
///
/// # Errors
/// See [`FunctionVmError`].
pub fn create_snapshot(
    config: VmConfig,
    warm_up: &Value,
    dir: &Path,
    timeout: Duration,
) -> Result<Manifest, FunctionVmError> {
    let mut vm = FunctionVm::boot(config, timeout)?;
    vm.invoke(warm_up, timeout)
        .map_err(FunctionVmError::WarmUp)?;
    vm.save(dir)
}
