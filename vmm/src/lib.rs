//! reapvm: a minimal KVM hypervisor with record-and-prefetch (REAP) in its memory manager.
//!
//! A [`machine::Machine`] is made by [`machine::Machine::boot`] from a [`config::VmConfig`] or by
//! [`machine::Machine::restore`] from a snapshot directory, is paused when it is made, and can be
//! resumed, paused and saved. How memory comes back is a
//! [`reapvm_reap::MemoryRestoreMode`]. [`invocation`] calls a function in the guest and takes
//! the marks of a cold start.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod arch;
pub mod boot;
pub mod clock;
pub mod cold_start;
pub mod config;
pub mod function_vm;
pub mod generation_id;
pub mod interrupts;
pub mod invocation;
pub mod machine;
pub mod memory;
pub mod observe;
pub mod residency;
pub mod tuning;
pub mod vcpu;
