//! `reapvm bench --concurrent` and `--clones`: many cold starts at the same moment.
//!
//! Independent functions have a copy of a snapshot each, so that they share neither a file nor a
//! page of the page cache; clones share one. All that are started together count from the same
//! moment, so that who waits for its turn is not measured as faster.

mod copies;
mod starts;
mod table;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use reapvm::cold_start::{ColdStart, WorkingSetOptions};
use reapvm::config::Overrides;
use reapvm_reap::MemoryRestoreMode;
use reapvm_reap::page_cache;
use serde::Serialize;
use serde_json::Value;

use super::disk::{self, Disk};
use super::fio::{self, Bandwidth};
use super::image::BenchImage;
use super::report::Host;
use super::stats::{Summary, mean, median, summarise};
use super::{
    Progress, RECORDED_SEED, TIMEOUT, boot_and_save, cold_start, host, input, measured_input,
    write_json,
};
use crate::cli::{Bench, StartBy};
use crate::command::CommandResult;
use starts::{Server, Start, Started};

/// What is started together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// A copy of a snapshot each.
    Distinct,
    /// All of one snapshot.
    Clones,
}

/// Everything that was found.
#[derive(Debug, Serialize)]
struct Report {
    image: &'static str,
    host: Host,
    disk: Disk,
    bandwidth: Bandwidth,
    results: Vec<Cell>,
}

/// N starts at the same moment.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Cell {
    pub(super) kind: Kind,
    /// "invoke" or "serve".
    pub(super) start_by: &'static str,
    pub(super) mode: MemoryRestoreMode,
    /// How many were started together.
    pub(super) count: u32,
    /// How often.
    pub(super) runs: usize,
    pub(super) mean_ms: f64,
    /// Over all starts of all runs, from the common beginning to the response.
    pub(super) latency_ms: Summary,
    /// Bytes of working sets that are read for one run.
    pub(super) working_set_bytes: u64,
    /// Those bytes by the time from the common beginning until the last of them is in place; median
    /// of the runs. None in modes that read none.
    pub(super) mib_s: Option<f64>,
    /// The same as a part of the disk's best, in percent.
    pub(super) of_disk_pct: Option<f64>,
    /// The same bytes at the disk's best: no run can have read them faster.
    pub(super) bound_ms: Option<f64>,
    /// Request to first KVM_RUN without the wait for the working set, median; of a server.
    pub(super) control_ms: Option<f64>,
}

/// A function that was saved and recorded.
struct Original {
    dir: PathBuf,
    expected: BTreeMap<u32, Value>,
}

fn make_original(
    image: &BenchImage,
    function: &str,
    arguments: &Bench,
) -> Result<Original, Box<dyn Error>> {
    let dir = arguments.dir.join(function);
    let warm = boot_and_save(image, function, &dir, arguments.runs)?;
    let recording = ColdStart {
        overrides: &Overrides::default(),
        dir: &dir,
        mode: MemoryRestoreMode::Record,
        set: WorkingSetOptions::default(),
        install: arguments.install.options(&arguments.dir)?,
        input: &input(RECORDED_SEED),
        timeout: TIMEOUT,
        keep_recording: true,
        trace: None,
        count_resident: false,
        started_ns: 0,
    };
    cold_start(image, &recording, &warm.recorded_response)?;
    Ok(Original {
        dir,
        expected: warm.expected,
    })
}

fn working_set(dir: &Path) -> PathBuf {
    dir.join(reapvm_snapshot::WORKING_SET_FILE)
}

/// The snapshots on disk.
struct Snapshots {
    originals: Vec<Original>,
    /// Copies of them in turn.
    copies: Vec<PathBuf>,
}

impl Snapshots {
    /// The n-th of the starts of one run.
    fn start(&self, kind: Kind, index: usize, run: u32) -> Start {
        let (dir, original) = match kind {
            Kind::Distinct => (
                self.copies[index].clone(),
                &self.originals[index % self.originals.len()],
            ),
            Kind::Clones => (self.originals[0].dir.clone(), &self.originals[0]),
        };
        Start {
            dir,
            input: measured_input(run),
            expected: original.expected[&run].clone(),
        }
    }
}

/// Takes what the starts read out of the page cache.
fn evict(image: &BenchImage, starts: &[Start]) -> Result<(), Box<dyn Error>> {
    for start in starts {
        page_cache::evict_directory(&start.dir)?;
    }
    for disk in image.disks() {
        page_cache::evict(disk)?;
    }
    Ok(())
}

/// The runs of one cell.
fn measure_cell(
    image: &BenchImage,
    snapshots: &Snapshots,
    (kind, by, mode, count): (Kind, StartBy, MemoryRestoreMode, u32),
    arguments: &Bench,
    progress: &Progress,
) -> Result<Vec<Vec<Started>>, Box<dyn Error>> {
    let of_run = |run| -> Vec<Start> {
        (0..count as usize)
            .map(|index| snapshots.start(kind, index, run))
            .collect()
    };
    let (templates, ready) = match kind {
        Kind::Distinct => (snapshots.copies[..count as usize].to_vec(), 1),
        Kind::Clones => (vec![snapshots.originals[0].dir.clone()], count as usize),
    };
    let server = match by {
        StartBy::Invoke => None,
        StartBy::Serve => Some(Server::start(
            &templates,
            ready,
            arguments.max_reading,
            mode,
            &arguments.install,
        )?),
    };
    let mut runs = Vec::new();
    for run in 0..arguments.runs {
        let starts = of_run(run);
        if let Some(server) = &server {
            server.wait_until_ready()?;
        }
        evict(image, &starts)?;
        let started = match &server {
            None => {
                starts::by_processes(&starts, mode, arguments.install.options(&arguments.dir)?)?
            }
            Some(server) => server.invoke(&starts, templates.len(), mode)?,
        };
        progress.step(format!("{count} x {mode} by {}", by.as_str()));
        runs.push(started);
    }
    if let Some(server) = server {
        server.stop()?;
    }
    Ok(runs)
}

fn summarise_cell(
    (kind, by, mode, count): (Kind, StartBy, MemoryRestoreMode, u32),
    runs: &[Vec<Started>],
    bandwidth: &Bandwidth,
) -> Cell {
    let latencies: Vec<f64> = runs.iter().flatten().map(|s| s.latency_ms).collect();
    let bytes_of = |run: &[Started]| -> u64 {
        run.iter()
            .filter_map(|s| s.report.install_ms.as_ref())
            .map(|install| install.bytes_read)
            .sum()
    };
    let bytes = runs.first().map_or(0, |run| bytes_of(run));
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let rates: Vec<f64> = runs
        .iter()
        .filter(|_| bytes > 0)
        .map(|run| {
            let last_ms = run.iter().map(|s| s.in_place_ms).fold(0.0, f64::max);
            mib(bytes_of(run)) / last_ms * 1e3
        })
        .collect();
    let mib_s = (!rates.is_empty()).then(|| median(&rates));
    let controls: Vec<f64> = runs.iter().flatten().filter_map(|s| s.control_ms).collect();
    Cell {
        kind,
        start_by: by.as_str(),
        mode,
        count,
        runs: runs.len(),
        mean_ms: mean(&latencies),
        latency_ms: summarise(&latencies),
        working_set_bytes: bytes,
        mib_s,
        of_disk_pct: mib_s.map(|mib_s| 100.0 * mib_s / bandwidth.mib_s),
        bound_ms: (bytes > 0).then(|| mib(bytes) / bandwidth.mib_s * 1e3),
        control_ms: (!controls.is_empty()).then(|| median(&controls)),
    }
}

/// Runs the benchmark.
pub(super) fn run(arguments: &Bench, image: &BenchImage, functions: &[String]) -> CommandResult {
    let host = host()?;
    eprintln!("measuring the disk");
    let disk = disk::measure(&arguments.dir)?;
    let most = arguments.concurrent.iter().copied().max().unwrap_or(0) as usize;
    let mut cells = Vec::new();
    for (kind, counts) in [
        (Kind::Distinct, &arguments.concurrent),
        (Kind::Clones, &arguments.clones),
    ] {
        for &count in counts {
            for &mode in &arguments.concurrent_modes {
                for &by in &arguments.start_by {
                    cells.push((kind, by, mode, count));
                }
            }
        }
    }
    let used = functions.len().min(most.max(1));
    let steps = used + most + cells.len() * arguments.runs as usize;
    let progress = Progress::new(steps as u64);
    let mut snapshots = Snapshots {
        originals: Vec::new(),
        copies: Vec::new(),
    };
    for function in &functions[..used] {
        progress.function(format!("{function}: booting, saving, recording"));
        let original = make_original(image, function, arguments)
            .map_err(|error| format!("{function}: {}", crate::output::chain(error.as_ref())))?;
        snapshots.originals.push(original);
        progress.step(format!("{function}: recorded"));
    }
    for index in 0..most {
        let copy = arguments.dir.join(format!("copy-{index}"));
        copies::copy_snapshot(&snapshots.originals[index % used].dir, &copy)?;
        snapshots.copies.push(copy);
        progress.step(format!("{} copies", index + 1));
    }
    // Nothing that was written may still be on its way to the disk.
    rustix::fs::sync();
    progress.function("measuring the disk on the working sets".to_owned());
    let sets: Vec<PathBuf> = match snapshots.copies.as_slice() {
        [] => vec![working_set(&snapshots.originals[0].dir)],
        copies => copies.iter().map(|dir| working_set(dir)).collect(),
    };
    let bandwidth = fio::measure(&sets, &disk)?;
    let mut results = Vec::new();
    for cell in cells {
        let (_, by, mode, count) = cell;
        progress.function(format!("{count} at once, {mode}, by {}", by.as_str()));
        let runs = measure_cell(image, &snapshots, cell, arguments, &progress)?;
        results.push(summarise_cell(cell, &runs, &bandwidth));
    }
    progress.0.finish_and_clear();
    for copy in &snapshots.copies {
        std::fs::remove_dir_all(copy)?;
    }
    println!("{}", table::render(&results, &bandwidth));
    let report = Report {
        image: image.name(),
        host,
        disk,
        bandwidth,
        results,
    };
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    Ok(ExitCode::SUCCESS)
}
