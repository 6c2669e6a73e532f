//! Start virtual machines from your own program.
//!
//! A machine is described by a [`VmConfig`](crate::config::VmConfig): kernel, memory, vCPUs, devices.
//! [`Machine::boot`](crate::machine::Machine::boot) makes one from it,
//! [`Machine::restore`](crate::machine::Machine::restore) from a snapshot. Either is
//! paused when it is made; [`resume`](crate::machine::Machine::resume) lets it run,
//! [`pause`](crate::machine::Machine::pause) stops it,
//! [`save`](crate::machine::Machine::save) writes a snapshot, and dropping it ends it. What a call
//! needs of the machine's state and does not find is an error, not a wait.
//!
//! [`function_vm`](crate::function_vm) boots a guest and saves it when it serves.
//! [`invocation`](crate::invocation) calls the function in it over vsock. [`cold_start`](crate::cold_start)
//! does all of a cold start, with its marks, as `reapvm invoke` does.
//!
//! # How memory comes back
//! [`MemoryRestoreMode`](reapvm_reap::MemoryRestoreMode) says it: whole before the first instruction,
//! by a mapping of the file, at the first touch of each page, or, with a working set that was recorded
//! before, by prefetching that. A mode that cannot run is an error; no other takes its place.
//! [`InstallOptions`](reapvm_reap::InstallOptions) says how a working set is read and put in place.
//!
//! A machine can be made ready before a request comes:
//! [`PreparedMachine`](crate::machine::PreparedMachine) has everything but the contents of memory.
//!
//! # A whole program
//! ```no_run
#![doc = include_str!("../../examples/embed.rs")]
//! ```
