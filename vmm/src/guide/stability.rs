//! What may change.
//!
//! The crates follow semantic versioning. Before 1.0 a minor version may change interfaces and
//! formats; `CHANGELOG.md` says what changed. `tests/api` lists the public interface of each crate, a
//! test compares it with the sources, and `make api` lists it anew: so every change of an interface is
//! in the diff of its commit, as breaking or not. A released version keeps its interface, apart from
//! what is unstable, until the version is raised; the test sees to that, too.
//!
//! | meant to stay | |
//! |---|---|
//! | [`machine`](crate::machine), [`config`](crate::config), [`function_vm`](crate::function_vm), [`invocation`](crate::invocation) | machines, their description and their life |
//! | [`memory::MemoryHooks`](crate::memory::MemoryHooks), [`PageSource`](reapvm_reap::PageSource), [`FaultPolicy`](reapvm_reap::FaultPolicy), [`fault_channel`](reapvm_reap::fault_channel) | hooks |
//! | [`Pager`](reapvm_reap::Pager), [`WorkingSet`](reapvm_reap::WorkingSet), [`reapvm_reap::trace`] | paging, working sets, traces |
//! | [`reapvm_snapshot`] | the snapshot's format, reader and writer |
//!
//! What is unstable says so where it is documented, in its first words. All else is meant to stay, also
//! where the first table does not name it.
//!
//! | unstable: may change in any version | why |
//! |---|---|
//! | [`arch`](crate::arch), [`boot`](crate::boot), [`vcpu`](crate::vcpu), [`interrupts`](crate::interrupts), [`generation_id`](crate::generation_id) | the machine's inside; what is saved of it is stable by its format |
//! | [`cold_start`](crate::cold_start), [`observe`](crate::observe), [`tuning`](crate::tuning), [`residency`](crate::residency), [`clock`](crate::clock) | what the program `reapvm` is made of; their results get fields |
//! | [`reapvm_reap::EvolvingSet`], [`reapvm_reap::EvolutionRules`], [`reapvm_reap::EvolutionError`], [`reapvm_reap::Plan`], [`reapvm_reap::Prefetched`], [`reapvm_reap::Recorded`], [`reapvm_reap::RecordReason`], [`reapvm_reap::WorkingSetState`], [`reapvm_reap::WorkingSetStateError`] | research that goes on: sets that follow their function |
//! | [`reapvm_reap::TouchProbe`], [`reapvm_reap::TouchedPages`], [`reapvm_reap::TouchProbeError`] | research that goes on: which pages a guest used |
//! | [`reapvm_reap::SetLayout`], [`reapvm_reap::BlockDensity`], [`reapvm_reap::TouchedBy`], [`reapvm_reap::Bar`] | research that goes on: how sets lie in memory |
//! | [`reapvm_reap::averages`] | what the programs share |
//! | [`reapvm_reap::InstallReport`], [`reapvm_reap::LeadRule`] | they get fields and rules |
//! | `reapvm_devices`, `reapvm_analysis` | devices follow what guests need; reports follow their readers |
//!
//! Errors and counts are `#[non_exhaustive]`: match them with a last arm for what is new.
//!
//! Formats have versions of their own: a snapshot, working set or trace of another version is
//! refused by number, never misread.
