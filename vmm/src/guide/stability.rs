//! What may change.
//!
//! The crates follow semantic versioning. Before 1.0 a minor version may change interfaces and
//! formats; `CHANGELOG.md` says what changed, and `make semver` compares the interfaces with the last
//! release, or with any revision.
//!
//! | meant to stay | |
//! |---|---|
//! | [`machine`](crate::machine), [`config`](crate::config), [`function_vm`](crate::function_vm), [`invocation`](crate::invocation) | machines, their description and their life |
//! | [`memory::MemoryHooks`](crate::memory::MemoryHooks), [`PageSource`](reapvm_reap::PageSource), [`FaultPolicy`](reapvm_reap::FaultPolicy), [`fault_channel`](reapvm_reap::fault_channel) | hooks |
//! | [`Pager`](reapvm_reap::Pager), [`WorkingSet`](reapvm_reap::WorkingSet), [`reapvm_reap::trace`] | paging, working sets, traces |
//! | [`reapvm_snapshot`] | the snapshot's format, reader and writer |
//!
//! | unstable: may change in any version | why |
//! |---|---|
//! | [`arch`](crate::arch), [`boot`](crate::boot), [`vcpu`](crate::vcpu), [`interrupts`](crate::interrupts), [`generation_id`](crate::generation_id) | the machine's inside; what is saved of it is stable by its format |
//! | [`cold_start`](crate::cold_start), [`observe`](crate::observe), [`tuning`](crate::tuning), [`residency`](crate::residency), [`clock`](crate::clock) | what the program `reapvm` is made of; their results get fields |
//! | [`reapvm_reap::EvolvingSet`], [`reapvm_reap::TouchProbe`], [`reapvm_reap::SetLayout`], [`reapvm_reap::InstallReport`] | research that goes on |
//! | `reapvm_devices`, `reapvm_analysis` | devices follow what guests need; reports follow their readers |
//!
//! Errors and counts are `#[non_exhaustive]`: match them with a last arm for what is new.
//!
//! Formats have versions of their own: a snapshot, working set or trace of another version is
//! refused by number, never misread.
