//! Booting a guest that serves a function and saving it when it is ready to be cold-started.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use reapvm_snapshot::{Manifest, SnapshotId};
use serde_json::Value;
use thiserror::Error;

use crate::config::VmConfig;
use crate::invocation::{Connection, InvokeError, describe_exit};
use crate::machine::{BuildError, Console, ConsoleWatch, Machine, MachineError, SaveError};
use crate::vcpu::GuestExit;

/// The line by which the built-in guest says that it serves.
const READY_LINE: &str = "ready";
/// How long a guest that has not answered a connection request is left alone with it.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long to wait before the next connection request.
const PROBE_PAUSE: Duration = Duration::from_millis(20);
/// How long the guest may take to let go of the warm-up's connection: milliseconds, but more than 5 s
/// were seen on a busy machine that emulates the guest's processor.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// The guest or a client of the host holds on to a connection.
    #[error(
        "a connection to the guest is still open after {} s: a machine is saved without any",
        SETTLE_TIMEOUT.as_secs()
    )]
    NotSettled,
}

/// By what a guest shows that it is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadyWhen {
    /// A whole line of its console says this, and nothing else.
    ConsoleLine(String),
    /// Its console says this somewhere.
    ConsoleText(String),
    /// It takes a connection on this vsock port.
    VsockPort(u32),
}

impl Default for ReadyWhen {
    /// What the built-in guest does.
    fn default() -> Self {
        Self::ConsoleLine(READY_LINE.to_owned())
    }
}

/// A booted machine that serves its function.
pub struct FunctionVm {
    /// The machine, running.
    pub machine: Machine,
    /// Its console.
    pub console: ConsoleWatch,
}

impl FunctionVm {
    /// Boots `config` and waits until the built-in guest says that it serves.
    ///
    /// # Errors
    /// See [`FunctionVmError`].
    pub fn boot(config: VmConfig, timeout: Duration) -> Result<Self, FunctionVmError> {
        Self::boot_until(config, &ReadyWhen::default(), timeout)
    }

    /// Boots `config` and waits until its guest is `ready`.
    ///
    /// # Errors
    /// See [`FunctionVmError`].
    pub fn boot_until(
        config: VmConfig,
        ready: &ReadyWhen,
        timeout: Duration,
    ) -> Result<Self, FunctionVmError> {
        let (console, watch) = Console::watched();
        let mut machine = Machine::boot(config, console)?;
        if matches!(ready, ReadyWhen::VsockPort(_)) {
            // Before any time is spent on waiting for what cannot be.
            machine.vsock()?;
        }
        machine.resume()?;
        let vm = Self {
            machine,
            console: watch,
        };
        vm.wait_until(ready, timeout)?;
        Ok(vm)
    }

    /// Waits until the guest, which runs, is `ready`.
    ///
    /// # Errors
    /// [`FunctionVmError::NotReady`], also when the guest has ended.
    pub fn wait_until(&self, ready: &ReadyWhen, timeout: Duration) -> Result<(), FunctionVmError> {
        let (machine, watch) = (&self.machine, &self.console);
        let exits = machine.exits();
        let ended = || exits.reason().is_some();
        let is_ready = match ready {
            ReadyWhen::ConsoleLine(line) => watch.wait_for_line(line, timeout, ended),
            ReadyWhen::ConsoleText(text) => watch.wait_for_text(text, timeout, ended),
            ReadyWhen::VsockPort(port) => wait_for_port(machine, *port, timeout)?,
        };
        if is_ready {
            Ok(())
        } else {
            Err(not_ready(exits.reason().as_ref(), timeout, watch))
        }
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
        self.settle()?;
        Ok(self.machine.save(dir)?)
    }

    /// As [`save`](Self::save), but only what was written since snapshot `base`: see
    /// [`Machine::save_diff`].
    ///
    /// # Errors
    /// See [`FunctionVmError`].
    pub fn save_diff(
        &mut self,
        dir: &Path,
        base: &SnapshotId,
    ) -> Result<Manifest, FunctionVmError> {
        self.settle()?;
        Ok(self.machine.save_diff(dir, base)?)
    }

    /// Waits until no connection is left, and pauses the machine.
    fn settle(&mut self) -> Result<(), FunctionVmError> {
        if self.machine.config().vsock.is_some() {
            let vsock = self.machine.vsock()?;
            let deadline = Instant::now() + SETTLE_TIMEOUT;
            while vsock.connection_count() > 0 {
                if Instant::now() > deadline {
                    return Err(FunctionVmError::NotSettled);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(self.machine.pause()?)
    }
}

/// Boots `config`, waits until its guest is `ready`, serves one invocation with `warm_up`, if there
/// is one, and saves the machine to `dir`.
///
/// # Errors
/// See [`FunctionVmError`].
pub fn create_snapshot(
    config: VmConfig,
    ready: &ReadyWhen,
    warm_up: Option<&Value>,
    dir: &Path,
    timeout: Duration,
) -> Result<Manifest, FunctionVmError> {
    let mut vm = FunctionVm::boot_until(config, ready, timeout)?;
    if let Some(warm_up) = warm_up {
        vm.invoke(warm_up, timeout)
            .map_err(FunctionVmError::WarmUp)?;
    }
    vm.save(dir)
}

fn not_ready(
    exit: Option<&GuestExit>,
    timeout: Duration,
    console: &ConsoleWatch,
) -> FunctionVmError {
    FunctionVmError::NotReady {
        reason: exit.map_or_else(
            || format!("within {:.1} s", timeout.as_secs_f64()),
            |exit| format!("before it ended: {}", describe_exit(exit)),
        ),
        console: console.text(),
    }
}

/// Asks for a connection to `port` until the guest takes one; false if it ends before, or not
/// within `timeout`. The connection is closed again.
fn wait_for_port(machine: &Machine, port: u32, timeout: Duration) -> Result<bool, FunctionVmError> {
    let deadline = Instant::now() + timeout;
    while machine.exits().reason().is_none() && Instant::now() < deadline {
        let mut stream = machine.connect_acknowledged(port)?;
        stream
            .set_read_timeout(Some(PROBE_TIMEOUT))
            .map_err(MachineError::SocketPair)?;
        // Refused: the stream ends. Not answered: the guest's driver may not be up.
        if matches!(stream.read(&mut [0]), Ok(1)) {
            return Ok(true);
        }
        drop(stream);
        std::thread::sleep(PROBE_PAUSE);
    }
    Ok(false)
}
