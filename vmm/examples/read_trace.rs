//! Reads a fault trace: by its path, or one that is made first.
//!
//! `cargo run -p reapvm --example read_trace [TRACE]`; to make one it needs `/dev/kvm` and
//! `/dev/userfaultfd`.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reapvm::cold_start::write_recording;
use reapvm::config::VmConfig;
use reapvm::function_vm::{ReadyWhen, create_snapshot};
use reapvm::invocation::Connection;
use reapvm::machine::{Machine, RestoreOptions};
use reapvm_reap::MemoryRestoreMode;
use reapvm_reap::trace::TraceReader;
use reapvm_snapshot::{PAGE_SIZE, Snapshot};
use serde_json::json;

const TIMEOUT: Duration = Duration::from_secs(60);

/// What is in a trace.
#[derive(Default)]
struct Summary {
    /// Records by the kind of thread that touched the page and how, as far as the kernel says.
    kinds: BTreeMap<String, u64>,
    /// Pages that are touched right after the one before them in guest memory.
    sequential: u64,
    pages: u64,
}

fn read(path: &Path) -> Result<Summary, Box<dyn Error>> {
    // Checks header and end block; blocks of records are checked as they come. Only one is held.
    let mut reader = TraceReader::open(path, None)?;
    let threads: BTreeMap<u32, String> = reader
        .summary()
        .threads
        .iter()
        .map(|thread| (thread.thread_id, format!("{:?}", thread.kind)))
        .collect();
    let mut summary = Summary::default();
    let mut last_gpa = None;
    while let Some(record) = reader.next_record()? {
        let thread = threads.get(&record.thread_id).map_or("?", String::as_str);
        let kind = format!("{thread}, {:?}", record.access);
        *summary.kinds.entry(kind).or_default() += 1;
        if record.is_first_touch {
            summary.pages += 1;
            let follows = last_gpa.is_some_and(|gpa: u64| gpa + PAGE_SIZE as u64 == record.gpa);
            summary.sequential += u64::from(follows);
            last_gpa = Some(record.gpa);
        }
    }
    Ok(summary)
}

/// Records a function's first touches; its snapshot then has a trace, and a working set.
fn record(dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let config = VmConfig::for_function("helloworld")?;
    create_snapshot(config, &ReadyWhen::default(), None, dir, TIMEOUT)?;
    let snapshot = Arc::new(Snapshot::open(dir)?);
    let options = RestoreOptions::new(MemoryRestoreMode::Record);
    let mut machine = Machine::restore(&snapshot, options)?;
    machine.resume()?;
    let input = json!({ "seed": 1 });
    Connection::open(&machine)?.call(&machine, &input, TIMEOUT)?;
    machine.pause()?;
    write_recording(&machine, &snapshot, &input)?;
    Ok(snapshot.trace_path())
}

fn main() -> Result<(), Box<dyn Error>> {
    let scratch = tempfile::tempdir()?;
    let path = match std::env::args_os().nth(1) {
        Some(path) => path.into(),
        None => record(&scratch.path().join("hello.snap"))?,
    };
    let summary = read(&path)?;
    for (kind, records) in &summary.kinds {
        println!("{kind}: {records}");
    }
    println!(
        "{} pages, {} after their neighbour",
        summary.pages, summary.sequential
    );
    Ok(())
}

#[cfg(test)]
#[test]
fn a_recording_can_be_read() {
    let scratch = tempfile::tempdir().expect("there is room");
    let path = record(&scratch.path().join("hello.snap")).expect("it is recorded");
    let summary = read(&path).expect("it can be read");
    assert!(summary.pages > 50 && summary.sequential < summary.pages);
    assert_eq!(summary.kinds.values().sum::<u64>(), summary.pages);
}
