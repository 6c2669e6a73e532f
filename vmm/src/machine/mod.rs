//! A machine: vCPUs, memory, devices and their life.
//!
//! ```text
//!   boot() ─┐
//!           ├─> Paused ──resume()──> Running ──(guest ends)──> Ended
//! restore() ┘     ^  └──save()           │
//!                 └────────pause()───────┘
//! ```
//! Builders return a paused machine. A transition that the picture does not have is an error.

mod build;
mod console;
mod device_set;
mod event_loop;
mod exits;
mod power;
mod pre_fault;
mod prepared;
mod save;
mod update;
mod virtio_devices;

use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::{Kvm, VmFd};
use reapvm_devices::virtio::balloon::BalloonHandle;
use reapvm_devices::virtio::vsock::{VsockConnectError, VsockHandle};
use thiserror::Error;

use crate::config::{ConfigError, VmConfig};
use crate::memory::{MemoryError, MemoryManager};
use crate::vcpu::{FirstRun, GuestExit, VcpuError, VcpuHandle};

pub use build::{BuildError, PagerFailureHook, RestoreOptions, config_of, open_kvm};
pub use console::{Console, ConsoleWatch};
pub use device_set::DeviceError;
pub use event_loop::EventLoopError;
pub use exits::ExitEvents;
pub use pre_fault::{PreFaulted, can_pre_fault};
pub use prepared::{PrepareOptions, PreparedMachine};
pub use save::SaveError;
pub use update::UpdateError;

pub(crate) use power::SOFT_OFF_SLEEP_TYPE;

use device_set::DeviceSet;
use event_loop::EventLoop;

/// How long a vCPU may take to leave the guest. It needs microseconds; one that waits for a page
/// of a slow disk needs longer.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// No vCPU runs.
    Paused,
    /// vCPUs run.
    Running,
    /// The guest has ended; nothing but dropping the machine is left.
    Ended,
}

impl fmt::Display for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Paused => "paused",
            Self::Running => "running",
            Self::Ended => "ended",
        })
    }
}

/// A call on a machine failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MachineError {
    /// The machine is not in the state that the call needs.
    #[error("cannot {action} a machine that is {state}")]
    Transition {
        /// What was asked for.
        action: &'static str,
        /// Where the machine is.
        state: Lifecycle,
    },
    /// A vCPU's thread.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// A vCPU does not leave the guest.
    #[error("vCPU {0} did not stop within {seconds} s", seconds = PAUSE_TIMEOUT.as_secs())]
    PauseTimeout(u8),
    /// The machine has no vsock device.
    #[error("the machine has no vsock device")]
    NoVsock,
    /// The vsock device does not take the connection.
    #[error("cannot connect to port {port} of the guest")]
    Connect {
        /// The guest's port.
        port: u32,
        /// What the device said.
        #[source]
        source: VsockConnectError,
    },
    /// No socket pair.
    #[error("cannot create a socket pair")]
    SocketPair(#[source] std::io::Error),
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// When the steps of a restore were done, on the monotonic clock; zero for a booted machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreMarks {
    /// vCPUs, interrupt controllers, devices and memory mappings were as they were saved.
    pub state_loaded_ns: u64,
    /// The working set was installed, if the mode has one, and faults were being served.
    pub memory_ready_ns: u64,
}

/// A virtual machine.
///
/// Dropping it ends it: vCPUs first, then the pager, then the device thread. In that order no
/// thread is left waiting for a page that nobody serves.
pub struct Machine {
    config: VmConfig,
    state: Lifecycle,
    vcpus: Vec<VcpuHandle>,
    exits: Arc<ExitEvents>,
    first_run: Arc<FirstRun>,
    memory: MemoryManager,
    devices: DeviceSet,
    restore_marks: RestoreMarks,
    pre_faulted: Option<PreFaulted>,
    // Only kept to be stopped: after the pager (see Drop), as a device may wait for a page.
    _event_loop: EventLoop,
    vm: Arc<VmFd>,
    _kvm: Arc<Kvm>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("config", &self.config)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// The machine's configuration: what it was made from, and what was changed since.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Guest memory and its pager.
    pub fn memory(&self) -> &MemoryManager {
        &self.memory
    }

    /// Where the machine is in its life.
    pub fn state(&self) -> Lifecycle {
        if self.exits.reason().is_some() {
            Lifecycle::Ended
        } else {
            self.state
        }
    }

    /// How and when the guest ends.
    pub fn exits(&self) -> &Arc<ExitEvents> {
        &self.exits
    }

    /// When the first vCPU entered the guest, on the monotonic clock.
    pub fn first_run_ns(&self) -> Option<u64> {
        self.first_run.monotonic_ns()
    }

    /// When the steps of the restore were done.
    pub fn restore_marks(&self) -> RestoreMarks {
        self.restore_marks
    }

    /// What KVM entered in the guest's page tables before its first instruction, if that was asked
    /// for and the memory mode is prefetch: the others install nothing.
    pub fn pre_faulted(&self) -> Option<PreFaulted> {
        self.pre_faulted
    }

    fn require(&self, action: &'static str, wanted: Lifecycle) -> Result<(), MachineError> {
        let state = self.state();
        if state == wanted {
            Ok(())
        } else {
            Err(MachineError::Transition { action, state })
        }
    }

    /// Lets the vCPUs run.
    ///
    /// # Errors
    /// The machine is not paused, or a vCPU's thread is gone.
    pub fn resume(&mut self) -> Result<(), MachineError> {
        self.require("resume", Lifecycle::Paused)?;
        self.memory.mark_resumed()?;
        for vcpu in &self.vcpus {
            vcpu.resume()?;
        }
        self.state = Lifecycle::Running;
        Ok(())
    }

    /// Takes all vCPUs out of the guest and waits until they are.
    ///
    /// # Errors
    /// The machine is not running, or a vCPU does not stop.
    pub fn pause(&mut self) -> Result<(), MachineError> {
        self.require("pause", Lifecycle::Running)?;
        let mut waiting = Vec::with_capacity(self.vcpus.len());
        for vcpu in &self.vcpus {
            waiting.push((vcpu.index(), vcpu.request_pause()?));
        }
        for (index, paused) in waiting {
            paused
                .recv_timeout(PAUSE_TIMEOUT)
                .map_err(|_| MachineError::PauseTimeout(index))?;
        }
        self.state = Lifecycle::Paused;
        Ok(())
    }

    /// Waits until the guest ends by itself; none if it has not after `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<GuestExit> {
        self.exits.wait(timeout)
    }

    /// The vsock device, to connect into the guest from other threads.
    ///
    /// # Errors
    /// [`MachineError::NoVsock`].
    pub fn vsock(&self) -> Result<VsockHandle, MachineError> {
        self.devices.vsock.clone().ok_or(MachineError::NoVsock)
    }

    /// The balloon, to change its target and to read the guest's statistics; none if the machine
    /// has none.
    pub fn balloon(&self) -> Option<BalloonHandle> {
        self.devices.balloon.clone()
    }

    /// Connects to `port` of the guest from inside this process; no socket file is needed. The
    /// guest sees the connection as soon as it runs. If it refuses, the stream ends.
    ///
    /// # Errors
    /// The machine has no vsock device, or it does not take the connection.
    pub fn connect(&self, port: u32) -> Result<UnixStream, MachineError> {
        self.connect_by(VsockHandle::connect, port)
    }

    /// As [`connect`](Self::connect), but the stream first carries the line `OK <host port>` when
    /// the guest has accepted.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_acknowledged(&self, port: u32) -> Result<UnixStream, MachineError> {
        self.connect_by(VsockHandle::connect_acknowledged, port)
    }

    fn connect_by(
        &self,
        connect: fn(&VsockHandle, u32, UnixStream) -> Result<(), VsockConnectError>,
        port: u32,
    ) -> Result<UnixStream, MachineError> {
        let (ours, theirs) = UnixStream::pair().map_err(MachineError::SocketPair)?;
        connect(&self.vsock()?, port, theirs)
            .map_err(|source| MachineError::Connect { port, source })?;
        Ok(ours)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // All are told before any is waited for.
        for vcpu in &self.vcpus {
            vcpu.request_stop();
        }
        self.vcpus.clear();
        // Closing the userfaultfd lets a device that waits for a page go on; the guest does not
        // run any more, so that what the device reads there does not matter.
        self.memory.close_pager();
    }
}
