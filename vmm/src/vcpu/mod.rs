//! **Unstable.** vCPUs: a named thread each, started paused.
//!
//! A vCPU is paused by setting `immediate_exit` in its `kvm_run` page and then sending its
//! thread a signal. Whichever comes first, a KVM_RUN that is about to start or one that is under
//! way, ends with EINTR, after KVM has completed any I/O of the exit before: the registers are
//! then whole and can be saved.

mod exit;
mod handle;
mod run_loop;
mod state;

pub use exit::{GuestExit, VcpuRunError};
pub use handle::{VcpuError, VcpuHandle};
pub(crate) use run_loop::panic_text;
pub use run_loop::{FirstRun, VcpuContext};
pub use state::{VcpuState, VcpuStateError, restore as restore_state};
