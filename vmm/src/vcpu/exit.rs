//! How a guest's run ends.

use reapvm_reap::PagerError;
use thiserror::Error;

/// Why the guest stopped by itself.
#[derive(Clone, Debug)]
pub enum GuestExit {
    /// It asked for a reset through the i8042 controller: the way a guest ends itself here.
    Reset,
    /// Its kernel panicked, and said so through the pvpanic device.
    Panicked,
    /// It shut down through a triple fault.
    TripleFault {
        /// The vCPU's instruction pointer. KVM on AMD has none: the processor leaves the state
        /// undefined, and KVM resets the vCPU before it tells of the shutdown.
        rip: Option<u64>,
    },
    /// KVM could not go on.
    Failed(VcpuRunError),
    /// The launcher was told to stop it.
    Stopped,
    /// The event loop of the devices could not go on.
    DevicesFailed(String),
    /// The pager could not serve a page.
    PagerFailed(PagerError),
}

/// KVM_RUN cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VcpuRunError {
    /// KVM_RUN failed.
    #[error("KVM_RUN of vCPU {index} failed with errno {errno} at rip {rip:#x}")]
    Run {
        /// Which vCPU.
        index: u8,
        /// The errno.
        errno: i32,
        /// Instruction pointer.
        rip: u64,
    },
    /// An exit that no part of reapvm handles.
    #[error(
        "vCPU {index} left the guest with an exit that reapvm does not handle, {what}, at rip {rip:#x}"
    )]
    Unhandled {
        /// Which vCPU.
        index: u8,
        /// The exit, as KVM names it.
        what: String,
        /// Instruction pointer.
        rip: u64,
    },
}
