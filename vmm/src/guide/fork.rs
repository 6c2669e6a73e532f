//! Build another prefetcher, page store or format on it.
//!
//! [`RestoreOptions`](crate::machine::RestoreOptions) take
//! [`MemoryHooks`](crate::memory::MemoryHooks), which are hung into the pager of one machine; a cold
//! start with all its marks takes them through [`cold_start::run_with`](crate::cold_start::run_with).
//! Nothing has to be changed in reapvm for what follows.
//!
//! | hook | trait or type | runs | when it fails |
//! |---|---|---|---|
//! | pages from elsewhere | [`PageSource`](reapvm_reap::PageSource) | on the pager's thread, while a vCPU waits | the machine ends with an error that names the page |
//! | another prefetcher | [`FaultPolicy`](reapvm_reap::FaultPolicy) | on the pager's thread, before each fault is served | a panic ends the machine |
//! | faults as they happen | [`FaultListener`](reapvm_reap::FaultListener) | on a thread of yours | a full ring drops and counts |
//!
//! Code that runs on the pager's thread must not touch guest memory: it would wait for itself. What
//! a policy brings is in [`PagerStats::policy_pages`](reapvm_reap::PagerStats::policy_pages), apart
//! from the faults, so that a prefetcher's gain (fewer faults) and price (pages for nothing) can both
//! be counted. A release build with `panic = "abort"`, as that of the program `reapvm`, ends the
//! process at a panic.
//!
//! Without a virtual machine, [`reapvm_reap::Pager`] serves any private anonymous memory: a prefetcher
//! can be tried on a thread that touches pages, as the tests in `reap/tests` do.
//!
//! # Pages from a compressed file
//! ```no_run
#![doc = include_str!("../../examples/compressed_source.rs")]
//! ```
//!
//! # A prefetcher in a page of code
//! ```no_run
#![doc = include_str!("../../examples/fault_policy.rs")]
//! ```
//!
//! # Formats
//! * A snapshot is read by [`reapvm_snapshot::Snapshot`] and written by
//!   [`reapvm_snapshot::SnapshotWriter`]; state of a device of yours goes into a section of its own
//!   ([`reapvm_snapshot::Persist`]).
//! * A working set is any list of pages: [`reapvm_reap::WorkingSet::write`] takes the addresses in
//!   the order of their installation, from wherever they come, and a page source for the contents.
//! * [`reapvm_reap::TouchCounts`] merges and compares what several recordings touched.
