//! `reapvm snapshot`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use reapvm::function_vm::{FunctionVm, ReadyWhen};
use reapvm::machine::{Console, Machine};
use reapvm_reap::trace::TraceReader;
use reapvm_reap::{WorkingSet, WorkingSetError};
use reapvm_snapshot::{PAGE_SIZE, Snapshot};
use serde::Serialize;

use super::CommandResult;
use super::save::{SaveWhenReady, ready_when};
use crate::cli::{SnapshotCommand, SnapshotCreate, SnapshotInfo, SnapshotMerge, SnapshotVerify};
use crate::output;
use crate::terminal::watch_termination;

pub(super) fn run(command: SnapshotCommand) -> CommandResult {
    match command {
        SnapshotCommand::Create(arguments) => create(&arguments),
        SnapshotCommand::Info(arguments) => info(&arguments),
        SnapshotCommand::Verify(arguments) => verify(&arguments),
        SnapshotCommand::Merge(arguments) => merge(&arguments),
    }
}

fn create(arguments: &SnapshotCreate) -> CommandResult {
    let config = arguments.machine.config()?;
    let name = config.function.clone();
    let ready = match (&arguments.wait_for, &name) {
        (Some(wait_for), _) => ready_when(wait_for),
        (None, Some(_)) => ReadyWhen::default(),
        (None, None) => {
            return Err(
                "when is the guest ready to be saved? Say so with --wait-for TEXT or vsock:PORT"
                    .into(),
            );
        }
    };
    let default_warm_up = serde_json::json!({"seed": 0});
    let warm_up = match (&arguments.warm_up, &name) {
        (Some(input), _) => Some(input),
        (None, Some(_)) => Some(&default_warm_up),
        (None, None) => None,
    };
    let (console, watch) = Console::watched();
    // Before any thread is started: they all inherit the blocked signals.
    let termination = watch_termination()?;
    let vm = FunctionVm {
        machine: Machine::boot(config, console)?,
        console: watch,
    };
    let save = SaveWhenReady {
        ready: Some(ready),
        warm_up,
        timeout: arguments.timeout,
        output: &arguments.output,
        diff_of: None,
        name: name.as_deref().unwrap_or("a machine"),
    };
    save.run(vm, &termination)
}

/// What `snapshot info` tells of a file that is made after the snapshot.
#[derive(Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
enum Recorded<T> {
    /// There is none yet.
    Absent,
    /// It is there, whole, and belongs to this snapshot.
    Valid(T),
    /// It is there but cannot be used.
    Unusable { reason: String },
}

#[derive(Serialize)]
struct WorkingSetInfo {
    pages: u64,
    zero_pages: u64,
    extents: usize,
    recordings: u16,
    len_bytes: u64,
}

#[derive(Serialize)]
struct TraceInfo {
    records: u64,
}

#[derive(Serialize)]
struct Info<'a> {
    #[serde(flatten)]
    manifest: &'a reapvm_snapshot::Manifest,
    memory_on_disk_bytes: u64,
    working_set: Recorded<WorkingSetInfo>,
    trace: Recorded<TraceInfo>,
}

fn working_set_of(snapshot: &Snapshot, memory_bytes: u64) -> Recorded<WorkingSetInfo> {
    match WorkingSet::verify(&snapshot.working_set_path(), &snapshot.id(), memory_bytes) {
        Ok(set) => Recorded::Valid(WorkingSetInfo {
            pages: set.page_count(),
            zero_pages: set.zero_page_count(),
            extents: set.extents().len(),
            recordings: set.recordings(),
            len_bytes: set.len_bytes(),
        }),
        Err(WorkingSetError::Missing { .. }) => Recorded::Absent,
        Err(error) => Recorded::Unusable {
            reason: output::chain(&error),
        },
    }
}

fn trace_of(snapshot: &Snapshot) -> Recorded<TraceInfo> {
    if !snapshot.trace_path().exists() {
        return Recorded::Absent;
    }
    // Whole and checked, without holding it.
    let read =
        TraceReader::open(&snapshot.trace_path(), Some(&snapshot.id())).and_then(|mut reader| {
            let mut records = 0;
            while reader.next_record()?.is_some() {
                records += 1;
            }
            Ok(records)
        });
    match read {
        Ok(records) => Recorded::Valid(TraceInfo { records }),
        Err(error) => Recorded::Unusable {
            reason: output::chain(&error),
        },
    }
}

fn disk_bytes(path: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    // st_blocks counts units of 512 bytes, whatever the file system's block size.
    Ok(std::fs::metadata(path)?.blocks() * 512)
}

fn info(arguments: &SnapshotInfo) -> CommandResult {
    let snapshot = Snapshot::open(&arguments.dir)?;
    let manifest = snapshot.manifest();
    let memory = &manifest.memory;
    let pages = memory.page_count();
    let info = Info {
        manifest,
        memory_on_disk_bytes: disk_bytes(&arguments.dir.join(&manifest.files.memory.name))?,
        working_set: working_set_of(&snapshot, pages * PAGE_SIZE as u64),
        trace: trace_of(&snapshot),
    };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&info)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let row = |name: &str, value: String| println!("{name:<18}{value}");
    row("snapshot", manifest.id.to_string());
    row("format", manifest.format_version.to_string());
    if let Some(base) = memory.base {
        row("diff against", format!("snapshot {base}"));
    }
    row("made by", manifest.creator.clone());
    row(
        "made at",
        format!("{} s since 1970", manifest.created_unix_s),
    );
    row(
        "host",
        format!(
            "{}, Linux {}",
            manifest.host.cpu_model, manifest.host.kernel_release
        ),
    );
    if let Ok(config) = reapvm::machine::config_of(&snapshot) {
        row(
            "function",
            config
                .function
                .unwrap_or_else(|| "(not a built-in one)".into()),
        );
        row(
            "machine",
            format!(
                "{} vCPU, {} MiB",
                config.machine_config.vcpu_count, config.machine_config.mem_size_mib
            ),
        );
    }
    row(
        "memory",
        format!(
            "{:.1} MiB: {} data pages, {} zero pages{}; {:.1} MiB on disk",
            mib(pages * PAGE_SIZE as u64),
            memory.data_pages,
            memory.zero_pages,
            match memory.base {
                Some(_) => format!(", {} pages as in the base", memory.unchanged_pages),
                None => String::new(),
            },
            mib(info.memory_on_disk_bytes)
        ),
    );
    row(
        "booted resident",
        format!("{:.1} MiB", mib(memory.booted_resident_bytes)),
    );
    row("state", format!("{} bytes", manifest.files.state.len_bytes));
    if memory.base.is_some() {
        row("restore", "not by itself: reapvm snapshot merge".into());
        return Ok(ExitCode::SUCCESS);
    }
    row(
        "working set",
        match &info.working_set {
            Recorded::Absent => "none yet: invoke with --memory record".into(),
            Recorded::Valid(set) => format!(
                "{} pages in {} runs, {:.1} MiB, of {} recording{}; belongs to this snapshot",
                set.pages,
                set.extents,
                mib(set.len_bytes),
                set.recordings,
                if set.recordings == 1 { "" } else { "s" }
            ),
            Recorded::Unusable { reason } => format!("NOT USABLE: {reason}"),
        },
    );
    row(
        "trace",
        match &info.trace {
            Recorded::Absent => "none yet".into(),
            Recorded::Valid(trace) => format!("{} first touches", trace.records),
            Recorded::Unusable { reason } => format!("NOT USABLE: {reason}"),
        },
    );
    Ok(ExitCode::SUCCESS)
}

fn merge(arguments: &SnapshotMerge) -> CommandResult {
    let base = Arc::new(Snapshot::open(&arguments.base)?);
    let diffs = arguments
        .diff
        .iter()
        .map(|dir| Snapshot::open(dir).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()?;
    let bar = progress_bar("merging");
    let creator = concat!("reapvm ", env!("CARGO_PKG_VERSION"));
    let output = &arguments.output;
    let merged = reapvm_snapshot::merge(&base, &diffs, output, creator, &mut |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
    });
    bar.finish_and_clear();
    let manifest = merged?;
    println!(
        "{}: snapshot {}, {} of {} pages hold data",
        output.display(),
        manifest.id,
        manifest.memory.data_pages,
        manifest.memory.page_count()
    );
    Ok(ExitCode::SUCCESS)
}

/// A bar for an operation that goes through guest memory.
fn progress_bar(what: &str) -> ProgressBar {
    let template = format!("{what} {{bar:40}} {{bytes}}/{{total_bytes}} {{bytes_per_sec}}");
    ProgressBar::new(0).with_style(
        ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()),
    )
}

fn verify(arguments: &SnapshotVerify) -> CommandResult {
    let snapshot = Snapshot::open(&arguments.dir)?;
    let bar = progress_bar("verifying");
    let report = snapshot.verify_with_progress(&mut |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.checked_bytes);
    });
    bar.finish_and_clear();
    let report = report?;
    let memory = &snapshot.manifest().memory;
    let memory_bytes = memory.page_count() * PAGE_SIZE as u64;
    let mut wrong: Vec<String> = report
        .bad_pages
        .iter()
        .map(|bad| format!("guest-physical page {:#x} is not what was saved", bad.gpa))
        .collect();
    let unlisted = report.bad_page_count - report.bad_pages.len() as u64;
    if unlisted > 0 {
        wrong.push(format!("and {unlisted} more pages"));
    }
    for reason in [
        match working_set_of(&snapshot, memory_bytes) {
            Recorded::Unusable { reason } => Some(reason),
            _ => None,
        },
        match trace_of(&snapshot) {
            Recorded::Unusable { reason } => Some(reason),
            _ => None,
        },
    ]
    .into_iter()
    .flatten()
    {
        wrong.push(reason);
    }
    if wrong.is_empty() {
        println!("{}: every checksum is right", arguments.dir.display());
        return Ok(ExitCode::SUCCESS);
    }
    for line in &wrong {
        eprintln!("{line}");
    }
    Err(format!("the snapshot '{}' is damaged", arguments.dir.display()).into())
}
