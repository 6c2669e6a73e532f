//! reapvm: a minimal KVM hypervisor with record-and-prefetch (REAP) in its memory manager.
//!
//! A [`machine::Machine`] is made by [`machine::Machine::boot`] from a [`config::VmConfig`] or by
//! [`machine::Machine::restore`] from a snapshot directory, is paused when it is made, and can be
//! resumed, paused and saved. How memory comes back is a
//! [`reapvm_reap::MemoryRestoreMode`]. [`invocation`] calls a function in the guest and takes
//! the marks of a cold start.
//!
//! The [`guide`] has a chapter for who [starts machines](guide::launch), who [builds another
//! prefetcher or page store](guide::fork) and who [traces faults](guide::trace), each with whole
//! programs, and says [what may change](guide::stability).
//!
//! | module | what it is |
//! |---|---|
//! | [`machine`] | a virtual machine and its life: boot, restore, resume, pause, save |
//! | [`config`] | what a machine consists of, from a command line, a file or a snapshot |
//! | [`memory`] | guest memory, its pager, and the [hooks](memory::MemoryHooks) into it |
//! | [`function_vm`], [`invocation`] | guests that serve a function, and calling it |
//! | [`cold_start`] | one cold start with its marks; what `reapvm invoke` does |
//! | [`observe`] | traces, of the pager and of modes without one |
//! | [`tuning`], [`residency`], [`clock`] | how a disk is read best, what is resident, which clock |
//! | [`arch`], [`boot`], [`vcpu`], [`interrupts`], [`generation_id`] | the inside of a machine |
//!
//! The other crates: [`reapvm_reap`] has the pager, working sets and traces and knows no KVM,
//! [`reapvm_snapshot`] the snapshot's format, [`reapvm_devices`] the devices.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod arch;
pub mod boot;
pub mod clock;
pub mod cold_start;
pub mod config;
pub mod function_vm;
pub mod generation_id;
pub mod guide;
pub mod interrupts;
pub mod invocation;
pub mod machine;
pub mod memory;
pub mod observe;
mod pagemap;
pub mod residency;
pub mod tuning;
pub mod vcpu;
