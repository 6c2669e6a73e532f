//! Know which pages a function touches, and when.
//!
//! `reapvm trace record` makes a trace, `reapvm trace export` gives it to other programs, and
//! `docs/trace.md` says what each field means and what each source cannot see. In a program of
//! yours:
//!
//! * [`RestoreOptions::trace_records`](crate::machine::RestoreOptions::trace_records) keeps the faults
//!   of a machine, for [`MemoryManager::fault_trace`](crate::memory::MemoryManager::fault_trace);
//! * [`reapvm_reap::trace`] reads and writes traces as files, a block at a time;
//! * [`observe`](crate::observe) traces modes without a pager, by KVM's tracepoint or the page tables;
//! * [`MemoryManager::track_writes`](crate::memory::MemoryManager::track_writes) keeps the first write
//!   to each page, in order;
//! * a [listener](reapvm_reap::FaultListener) gets each record while the machine runs.
//!
//! # Read a trace
//! ```no_run
#![doc = include_str!("../../examples/read_trace.rs")]
//! ```
//!
//! # Watch faults as they happen
//! ```no_run
#![doc = include_str!("../../examples/live_faults.rs")]
//! ```
