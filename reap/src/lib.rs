//! Record-and-prefetch (REAP) of a guest's working set, inside the hypervisor.
//!
//! A function that starts from a snapshot touches a small and stable part of its memory. REAP
//! (Ustiugov et al., *Benchmarking, Analysis, and Optimization of Serverless Function Snapshots*,
//! ASPLOS 2021) records which pages the first invocation touches, packs them in one file, and on
//! the next cold start reads that file at once and installs its pages before the first
//! instruction runs, instead of fetching them fault by fault.
//!
//! | part | what it does |
//! |---|---|
//! | [`Pager`] | owns the userfaultfd, serves missing pages on a thread named `pager` |
//! | [`PageSource`] | where the pages come from: [`SnapshotPageSource`] for a snapshot on disk |
//! | [`FaultPolicy`] | which pages a fault installs besides the one that was touched |
//! | [`FaultListener`] | each fault while it happens |
//! | [`PageStates`] | which pages are in place, for who saves the memory without touching it |
//! | [`Recording`] | the first touch of each page, in order |
//! | [`WorkingSet`] | the file of the recorded pages, packed in the order of their installation |
//! | [`EvolvingSet`] | a working set that is recorded again when it misses too much |
//! | [`TouchCounts`] | the pages of one or more recordings, to merge and to compare |
//! | [`TouchProbe`] | which prefetched pages the guest touched, by the kernel's marks |
//! | [`WorkingSetReader`] | reads that file past the page cache, for [`Pager::begin_install`] |
//! | [`WriteTracker`] | which pages are written, in which order |
//! | [`FaultTrace`] | every fault, in a bounded buffer, while that is wanted |
//! | [`trace`] | touches of pages as a file |
//!
//! This crate knows neither KVM nor devices: memory is a list of [`MemoryRegion`]s.
//!
//! # Lifecycle
//! [`Pager::new`] takes the memory, [`Pager::start`] begins to serve, [`Pager::begin_install`]
//! prefetches beside it (optional), [`Pager::stop`] ends it once nothing runs any more that
//! touches the memory.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::panic,
        reason = "a test fails by panicking"
    )
)]

pub mod averages;
mod error_chain;
mod evolution;
mod extents;
mod fault_cost;
mod hooks;
mod install;
mod mode;
mod page_bitmap;
mod page_buffer;
pub mod page_cache;
mod page_states;
mod paged_memory;
mod pager;
mod phase;
mod recorder;
mod region;
mod regular_file;
mod serve;
mod set_layout;
mod source;
mod stats;
pub mod study;
mod touch_counts;
mod touch_curve;
mod touch_probe;
pub mod trace;
mod tracer;
mod uffd;
mod wire;
mod working_set;
mod working_set_reader;
mod write_tracker;

pub use error_chain::error_chain;
pub use evolution::{
    EvolutionError, EvolutionRules, EvolvingSet, Plan, Prefetched, RecordReason, Recorded,
    WorkingSetState, WorkingSetStateError,
};
pub use extents::{Extent, merge_first_touch};
pub use fault_cost::{FaultCostError, measure_fault_ns};
pub use hooks::{
    FaultAround, FaultInfo, FaultListener, FaultPlan, FaultPolicy, FaultSender, ListenError,
    PagerHooks, fault_channel,
};
pub use install::{
    Install, InstallError, InstallMethod, InstallOptions, InstallReport, InstallTrial, LeadRule,
    ParseInstallMethodError, ReadPath, TrialError,
};
pub use mode::{MemoryRestoreMode, ParseMemoryRestoreModeError};
pub use page_states::{PageState, PageStates};
pub use pager::{DEFAULT_SPIN, Pager, PagerConfig, PagerError};
pub use phase::{Phase, PhaseCell};

pub use recorder::{FirstTouch, Recording};
pub use region::{MemoryRegion, RegionError};
pub use serve::ServeError;
pub use set_layout::{Bar, BlockDensity, SetLayout, TouchedBy};
pub use source::{
    Page, PageSource, PageSourceError, SharedSource, SnapshotPageSource, VerifiedSource,
};
pub use stats::PagerStats;
pub use touch_counts::{Difference, MergeRule, PageTouches, TooManyRecordings, TouchCounts};
pub use touch_curve::CurvePoint;
pub use touch_probe::{TouchProbe, TouchProbeError, TouchedPages};
pub use trace::{Access, Outcome, TraceError, TraceRecord};
pub use tracer::{DEFAULT_TRACE_RECORDS, FaultTrace};
pub use uffd::UffdError;
pub use working_set::{WorkingSet, WorkingSetError};
pub use working_set_reader::WorkingSetReader;
pub use write_tracker::{WriteTracker, WriteTrackerError};

/// [`reapvm_snapshot::PAGE_SIZE`] as the type of addresses and lengths in guest memory.
pub(crate) const PAGE_SIZE_BYTES: u64 = reapvm_snapshot::PAGE_SIZE as u64;
