//! **Unstable.** One cold start, with its marks: from the launcher's exec to the whole response.

mod set_use;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reapvm_reap::{
    EvolutionError, FaultCostError, InstallMethod, InstallOptions, InstallReport, LeadRule,
    MemoryRestoreMode, PageSourceError, Phase, ReadPath, Recording, TouchCounts, TraceError,
    WorkingSet, WorkingSetError, measure_fault_ns,
};
use reapvm_snapshot::{LockError, OpenError, Snapshot};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::config::Overrides;
use crate::invocation::{Connection, InvokeError};
use crate::machine::{
    BuildError, Machine, MachineError, PreFaulted, PreparedMachine, RestoreOptions, config_of,
};
use crate::memory::MemoryHooks;
use crate::observe::{self, Observation, ObserveError, TraceOptions, TraceReport};
use crate::residency;
use set_use::SetRun;

pub use set_use::{
    EvolutionReport, MeasuredUse, ParseWorkingSetPolicyError, SetUse, WorkingSetOptions,
    WorkingSetPolicy,
};

/// What is to be started.
pub struct ColdStart<'a> {
    /// The snapshot directory.
    pub dir: &'a Path,
    /// How memory comes back, unless the working set's policy says that.
    pub mode: MemoryRestoreMode,
    /// What is to be known of the working set, and done about it.
    pub set: WorkingSetOptions,
    /// How the working set is installed, in prefetch mode.
    pub install: InstallOptions,
    /// What this instance has other than the machine that was saved.
    pub overrides: &'a Overrides,
    /// The function's input.
    pub input: &'a Value,
    /// How long the response may take.
    pub timeout: Duration,
    /// Whether a recording replaces the snapshot's working set and trace.
    pub keep_recording: bool,
    /// Whether resident memory is counted when the response is there: reading what the kernel says
    /// of it takes a millisecond.
    pub count_resident: bool,
    /// A trace of every fault, if there is to be one.
    pub trace: Option<&'a TraceOptions>,
    /// The zero of all marks on the monotonic clock: the launcher's exec, or the arrival of a
    /// request.
    pub started_ns: u64,
}

/// A cold start failed.
#[derive(Debug, Error)]
pub enum ColdStartError {
    /// The snapshot cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The machine cannot be restored.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The machine cannot be resumed or paused.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The function cannot be called.
    #[error(transparent)]
    Invoke(#[from] InvokeError),
    /// The recording cannot be read back from memory.
    #[error(transparent)]
    Source(#[from] PageSourceError),
    /// The working set cannot be written.
    #[error(transparent)]
    WorkingSet(#[from] WorkingSetError),
    /// The working set cannot evolve.
    #[error(transparent)]
    Evolution(#[from] EvolutionError),
    /// The guest's own time cannot be told from that of its faults.
    #[error(transparent)]
    FaultCost(#[from] FaultCostError),
    /// Nothing can be written beside the snapshot, because another has taken its place, or another
    /// process keeps its directory locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The trace cannot be written.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The guest cannot be observed, or the trace not be written.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// The process's memory cannot be read.
    #[error("cannot read this process's memory use")]
    Residency(#[source] std::io::Error),
}

/// Milliseconds from the launcher's exec to each step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MarksMs {
    /// The program's first own instructions: after exec and dynamic linking.
    pub process_start: f64,
    /// vCPUs, devices and memory mappings are as they were saved.
    pub state_loaded: f64,
    /// The working set is installed (prefetch), and faults are served.
    pub memory_ready: f64,
    /// The first KVM_RUN.
    pub first_run: f64,
    /// The request was handed to the connection, which takes it before the guest has accepted.
    pub request_sent: f64,
    /// The guest accepted the connection.
    #[serde(default)]
    pub connected: f64,
    /// First byte of the response.
    pub first_byte: f64,
    /// The response is whole.
    pub response: f64,
}

/// Page faults of one cold start, until the response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// Served by the pager.
    pub uffd: u64,
    /// Major faults of the process since the restore began.
    pub kernel_major: u64,
    /// Minor faults of the process since the restore began.
    pub kernel_minor: u64,
    /// Pages that were installed as a working set.
    pub prefetched_pages: u64,
    /// Faults on pages that the working set lacks; 0 in other modes.
    pub missed_pages: u64,
    /// Faults on pages that the installation had not brought yet; 0 in other modes. All faults
    /// of the pager are these and the missed ones.
    pub early_pages: u64,
}

/// What the installation of a working set did, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstallMs {
    /// How it was done.
    pub method: InstallMethod,
    /// How the pages were read.
    pub read_path: ReadPath,
    /// Threads that did it.
    pub threads: u64,
    /// Reading the working-set file, summed over the threads.
    pub read: f64,
    /// Verifying its pages, summed over the threads.
    pub verify: f64,
    /// Copying them into guest memory, summed over the threads.
    pub copy: f64,
    /// All of it.
    pub total: f64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Pages that are zero, and were neither in the file nor read.
    pub zero_pages: u64,
    /// Contiguous runs.
    pub extents: u64,
    /// Pages in place when the guest was let go.
    pub lead_pages: u64,
    /// What decided that.
    #[serde(default)]
    pub lead_rule: LeadRule,
    /// Why the rest was served on demand, if that was allowed and happened.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fell_back: Option<String>,
}

impl From<InstallReport> for InstallMs {
    fn from(report: InstallReport) -> Self {
        Self {
            method: report.method,
            read_path: report.read_path,
            threads: report.threads,
            read: ms(report.read_ns),
            verify: ms(report.verify_ns),
            copy: ms(report.copy_ns),
            total: ms(report.total_ns),
            bytes_read: report.bytes_read,
            zero_pages: report.zero_pages,
            extents: report.extents,
            lead_pages: report.lead_pages,
            lead_rule: report.lead_rule,
            fell_back: report.fell_back,
        }
    }
}

/// What KVM entered in the guest's page tables before its first instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PreFaultMs {
    /// Pages.
    pub pages: u64,
    /// How long that took, in milliseconds. It is a part of the time until memory is ready.
    pub total: f64,
}

impl From<PreFaulted> for PreFaultMs {
    fn from(done: PreFaulted) -> Self {
        Self {
            pages: done.pages,
            total: ms(done.took_ns),
        }
    }
}

/// The result of one cold start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ColdStartReport {
    /// The function, where the guest is the built-in one.
    pub function: Option<String>,
    /// The mode that really ran.
    pub mode: MemoryRestoreMode,
    /// What the guest answered, whole.
    pub response: Value,
    /// From exec to the whole response, in ms.
    pub total_ms: f64,
    /// The steps.
    pub marks_ms: MarksMs,
    /// The installation of the working set, in prefetch mode.
    pub install_ms: Option<InstallMs>,
    /// What was entered in the guest's page tables ahead, in prefetch mode and if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pre_fault_ms: Option<PreFaultMs>,
    /// Page faults until the response.
    pub faults: Faults,
    /// Pages of the working set: installed (prefetch) or recorded (record).
    pub working_set_pages: Option<u64>,
    /// How well the working set fitted: of a prefetch, and of a recording where there was a set.
    pub working_set_use: Option<MeasuredUse>,
    /// What this start did to the working set, where its policy is not that it is fixed.
    pub evolution: Option<EvolutionReport>,
    /// What is in the trace, if one was asked for.
    #[serde(default)]
    pub trace: Option<TraceReport>,
    /// Resident guest memory after the response, in KiB, if it was counted.
    pub guest_resident_kib: Option<u64>,
    /// Resident memory of the process beyond the guest's at the response, in KiB, if it was
    /// counted.
    pub vmm_overhead_kib: Option<u64>,
}

impl ColdStartReport {
    /// From the start to the first KVM_RUN in ms, without the time in which everything else was
    /// done and only the working set was waited for.
    #[must_use]
    pub fn control_ms(&self) -> f64 {
        let marks = &self.marks_ms;
        marks.first_run - (marks.memory_ready - marks.state_loaded)
    }
}

/// A machine that has answered. It ends when this is dropped, which takes some milliseconds: what
/// it has answered should be handed on before.
#[derive(Debug)]
pub struct Invoked {
    /// The answer, with what it took.
    pub report: ColdStartReport,
    /// The machine; paused if it was recording, or if its working set was measured or evolves,
    /// otherwise running.
    pub machine: Machine,
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// (major, minor) page faults of this process so far.
fn kernel_faults() -> (u64, u64) {
    // SAFETY: all-zero is a valid rusage; getrusage only writes into it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    (usage.ru_majflt as u64, usage.ru_minflt as u64)
}

/// Restores, invokes and measures. What is written (the working set and the trace in record mode,
/// the set and its state where it evolves) is written after the response has arrived.
///
/// # Errors
/// See [`ColdStartError`]. A pager that fails ends the call with its error.
pub fn run(start: &ColdStart<'_>, process_start_ns: u64) -> Result<Invoked, ColdStartError> {
    run_with(start, process_start_ns, MemoryHooks::default())
}

/// As [`run`], with `hooks` in the pager: a page source, fault policy or listener of the caller's.
///
/// # Errors
/// See [`ColdStartError`]. A mode without a pager refuses hooks.
pub fn run_with(
    start: &ColdStart<'_>,
    process_start_ns: u64,
    hooks: MemoryHooks,
) -> Result<Invoked, ColdStartError> {
    run_watched(start, process_start_ns, hooks, |_| {})
}

/// As [`run_with`]; `on_restored` is called with the paused machine, right before it runs. What it
/// takes from there can end the guest from another thread ([`Machine::exits`]): the call then fails,
/// and what the machine has made on the host, such as its sockets, is removed.
///
/// # Errors
/// See [`run_with`].
pub fn run_watched(
    start: &ColdStart<'_>,
    process_start_ns: u64,
    hooks: MemoryHooks,
    on_restored: impl FnOnce(&Machine),
) -> Result<Invoked, ColdStartError> {
    let faults_before = kernel_faults();
    let snapshot = Arc::new(Snapshot::open(start.dir)?);
    let set_run = SetRun::plan(&snapshot, start.mode, start.set)?;
    check_trace(start, set_run.mode)?;
    let options = RestoreOptions {
        install: start.install,
        overrides: start.overrides.clone(),
        trace_records: pager_records(start, set_run.mode),
        observation: set_run.observation(),
        track_dirty_pages: start
            .trace
            .is_some_and(|trace| trace.source.needs_dirty_log()),
        hooks,
        ..RestoreOptions::new(set_run.mode)
    };
    let machine = Machine::restore(&snapshot, options)?;
    on_restored(&machine);
    invoke(machine, &set_run, start, process_start_ns, faults_before)
}

/// As [`run`], with a machine that was prepared before: directory and overrides of `start` are
/// those that it was prepared with. `on_memory_ready` is called right before the guest runs: the
/// working set has been read by then.
///
/// # Errors
/// See [`ColdStartError`].
pub fn run_prepared(
    mut prepared: PreparedMachine,
    start: &ColdStart<'_>,
    process_start_ns: u64,
    on_memory_ready: impl FnOnce(),
) -> Result<Invoked, ColdStartError> {
    let faults_before = kernel_faults();
    let snapshot = Arc::clone(prepared.snapshot());
    let set_run = SetRun::plan(&snapshot, start.mode, start.set)?;
    check_trace(start, set_run.mode)?;
    if let Some(max_records) = pager_records(start, set_run.mode) {
        prepared.trace_faults(max_records);
    }
    prepared.record_misses(set_run.observation().misses);
    let machine = prepared.restore(set_run.mode, start.install, None)?;
    on_memory_ready();
    invoke(machine, &set_run, start, process_start_ns, faults_before)
}

/// Whether there is somebody who sees what is to be traced.
fn check_trace(start: &ColdStart<'_>, mode: MemoryRestoreMode) -> Result<(), ColdStartError> {
    match start.trace {
        Some(trace) => Ok(Observation::check(trace.source, mode)?),
        None => Ok(()),
    }
}

/// How many faults the pager is to keep for a trace, if it is to keep any.
fn pager_records(start: &ColdStart<'_>, mode: MemoryRestoreMode) -> Option<u64> {
    let trace = start.trace?;
    Observation::is_of_pager(trace.source, mode).then_some(trace.max_records)
}

fn invoke(
    mut machine: Machine,
    set_run: &SetRun<'_>,
    start: &ColdStart<'_>,
    process_start_ns: u64,
    (major_before, minor_before): (u64, u64),
) -> Result<Invoked, ColdStartError> {
    let mut observation = match start.trace {
        Some(trace) => Some(Observation::begin(&machine, set_run.mode, trace)?),
        None => None,
    };
    if let Some(observation) = &mut observation {
        observation.end_phase(&machine, Phase::Restore)?;
    }
    // Opened before the guest runs: it finds the connection request when it wakes.
    let mut connection = Connection::open(&machine)?;
    machine.resume()?;
    let reply = connection.call(&machine, start.input, start.timeout)?;
    let (major, minor) = kernel_faults();
    let stats = machine.memory().pager_stats();
    // Everything below is after the clock has stopped.
    let since = |ns: u64| ms(ns.saturating_sub(start.started_ns));
    let restore = machine.restore_marks();
    let marks_ms = MarksMs {
        process_start: since(process_start_ns),
        state_loaded: since(restore.state_loaded_ns),
        memory_ready: since(restore.memory_ready_ns),
        first_run: since(machine.first_run_ns().unwrap_or_default()),
        request_sent: since(reply.marks.request_sent_ns),
        connected: since(machine.vsock()?.last_accepted_ns().unwrap_or_default()),
        first_byte: since(reply.marks.first_byte_ns),
        response: since(reply.marks.response_ns),
    };
    // Where the guest did not wait for all of it, the rest may still be on its way.
    let install = machine
        .memory()
        .finish_install()
        .map_err(BuildError::Memory)?;
    // When the buffers of the installation are gone.
    let memory = start
        .count_resident
        .then(|| residency::process_memory(&machine.memory().host_ranges()))
        .transpose()
        .map_err(ColdStartError::Residency)?;
    let prefetched_pages = install.as_ref().map(|report| report.pages);
    if start.trace.is_some() || set_run.needs_rest() {
        // What is written is then whole.
        machine.pause()?;
    }
    let trace = match (start.trace, observation) {
        (Some(options), Some(mut observation)) => {
            observation.end_phase(&machine, Phase::Request)?;
            let input = start.input.to_string();
            let id = set_run.snapshot().id();
            observation.finish(&machine, &id, set_run.mode, options, &input)?
        }
        _ => None,
    };
    let faults = Faults {
        uffd: stats.faults,
        kernel_major: major - major_before,
        kernel_minor: minor - minor_before,
        prefetched_pages: prefetched_pages.unwrap_or_default(),
        early_pages: stats.early_faults,
        missed_pages: match set_run.mode {
            MemoryRestoreMode::Prefetch => stats.faults - stats.early_faults,
            _ => 0,
        },
    };
    let set_result = set_run.finish(&machine, start)?;
    let report = ColdStartReport {
        function: machine.config().function.clone(),
        mode: set_run.mode,
        response: reply.value,
        total_ms: marks_ms.response,
        marks_ms,
        install_ms: install.map(InstallMs::from),
        pre_fault_ms: machine.pre_faulted().map(PreFaultMs::from),
        faults,
        working_set_pages: prefetched_pages.or(set_result.recorded_pages),
        working_set_use: set_result.set_use,
        evolution: set_result.evolution,
        trace,
        guest_resident_kib: memory.map(|memory| memory.guest_kib),
        vmm_overhead_kib: memory.map(|memory| memory.vmm_kib),
    };
    Ok(Invoked { report, machine })
}

/// Writes the working set and the trace of a recording machine into its snapshot, each replaced
/// at once. `input` is what the trace says that it was recorded with. Returns the number of pages.
///
/// # Errors
/// The snapshot's memory cannot be read, another snapshot has taken its place, or the files cannot be
/// written.
pub fn write_recording(
    machine: &Machine,
    snapshot: &Arc<Snapshot>,
    input: &Value,
) -> Result<u64, ColdStartError> {
    let memory = machine.memory();
    let (Some(recording), Some(mut source)) = (memory.recording(), memory.page_source()) else {
        return Ok(0);
    };
    let touches = touches_of(&recording)?;
    let id = snapshot.id();
    let _lock = snapshot.directory().lock()?;
    let path = snapshot.working_set_path();
    let working_set = WorkingSet::write_counted(&path, &id, &touches, &mut *source)?;
    let input = input.to_string();
    let trace_path = snapshot.trace_path();
    observe::write_first_touches(machine, &id, &trace_path, &recording, Some(&input))?;
    Ok(working_set.page_count())
}

/// The pages that `recording` touched until the response, and when by the guest's own clock.
fn touches_of(recording: &Recording) -> Result<TouchCounts, ColdStartError> {
    let touches = recording.first_touches_until_idle(measure_fault_ns()?);
    Ok(TouchCounts::of_first_touches(&touches))
}

/// The function that the snapshot in `dir` serves, if its guest is the built-in one.
///
/// # Errors
/// The snapshot cannot be opened or described.
pub fn function_of(dir: &Path) -> Result<Option<String>, ColdStartError> {
    Ok(config_of(&Snapshot::open(dir)?)?.function)
}
