//! `reapvm bench`: warm and cold starts of the built-in functions, measured the same way for all.
//!
//! Modes are interleaved run by run, so that a disk or a host that changes its pace changes it
//! for all of them. Before each cold start the snapshot's files leave the page cache, and a file
//! that stays there ends the benchmark. Every response is compared with the one that the
//! uninterrupted machine gave to the same input.

mod concurrent;
pub(crate) mod disk;
mod fio;
pub(crate) mod image;
mod ladder;
mod report;
mod stats;
mod table;
pub(crate) mod worker;

use std::collections::BTreeMap;
use std::error::Error;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reapvm::cold_start::{ColdStart, ColdStartReport, WorkingSetOptions};
use reapvm::config::{Overrides, VmConfig};
use reapvm::function_vm::{self, FunctionVm};
use reapvm::invocation::Connection;
use reapvm_reap::MemoryRestoreMode;
use reapvm_reap::page_cache;
use reapvm_snapshot::{HostInfo, Manifest};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::Bench;
use crate::command::CommandResult;
use image::BenchImage;
use report::{BenchReport, CellResult, Host};

/// How long one boot or one invocation may take.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);
/// Seed of the warm-up before the snapshot, and of every recording.
const WARM_UP_SEED: u64 = 0;
const RECORDED_SEED: u64 = 1;
/// Seeds of the measured runs: none of them was recorded.
const FIRST_MEASURED_SEED: u64 = 1000;

pub(crate) fn input(seed: u64) -> Value {
    json!({ "seed": seed })
}

fn measured_input(run: u32) -> Value {
    input(FIRST_MEASURED_SEED + u64::from(run))
}

pub(crate) fn selected_functions(names: &str) -> Result<Vec<String>, Box<dyn Error>> {
    if names == "all" {
        return Ok(reapvm_guest_images::FUNCTIONS
            .iter()
            .map(|f| f.name.to_owned())
            .collect());
    }
    let mut functions: Vec<String> = Vec::new();
    for name in names.split(',').map(str::trim) {
        VmConfig::for_function(name)?;
        if !functions.iter().any(|known| known == name) {
            functions.push(name.to_owned());
        }
    }
    Ok(functions)
}

pub(crate) fn host() -> Result<Host, Box<dyn Error>> {
    let info = HostInfo::detect()?;
    let system = rustix::system::sysinfo();
    Ok(Host {
        cpu_model: info.cpu_model,
        cpus: std::thread::available_parallelism()?.get(),
        memory_mib: (system.totalram as u64).saturating_mul(u64::from(system.mem_unit)) >> 20,
        kernel: info.kernel_release,
        reapvm: env!("CARGO_PKG_VERSION"),
    })
}

/// Progress on a terminal as a bar, otherwise a line a function.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new(steps: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
        bar.set_style(
            ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.enable_steady_tick(Duration::from_millis(500));
        Self(bar)
    }

    pub(crate) fn function(&self, text: String) {
        if std::io::stderr().is_terminal() {
            self.0.set_message(text);
        } else {
            eprintln!("{text}");
        }
    }

    pub(crate) fn step(&self, text: String) {
        self.0.set_message(text);
        self.0.inc(1);
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// Warm times and the response to each measured input.
struct Warm {
    times_ms: Vec<f64>,
    expected: BTreeMap<u32, Value>,
    recorded_response: Value,
    booted_resident_mib: f64,
}

/// Saves a machine that serves `function` to `dir`, and boots another one, which goes on: both have
/// served the warm-up only.
pub(crate) fn save_and_boot(
    image: &BenchImage,
    function: &str,
    dir: &Path,
) -> Result<(Manifest, FunctionVm), Box<dyn Error>> {
    let config = image.config(function)?;
    let ready = image.ready();
    let manifest = function_vm::create_snapshot(
        config.clone(),
        &ready,
        Some(&input(WARM_UP_SEED)),
        dir,
        TIMEOUT,
    )?;
    let vm = FunctionVm::boot_until(config, &ready, TIMEOUT)?;
    vm.invoke(&input(WARM_UP_SEED), TIMEOUT)?;
    Ok((manifest, vm))
}

/// Calls the function of a machine that runs: how long it took, in ms, and what it answered.
pub(crate) fn warm_call(vm: &FunctionVm, input: &Value) -> Result<(f64, Value), Box<dyn Error>> {
    let mut connection = Connection::open(&vm.machine)?;
    let started_ns = reapvm::clock::monotonic_ns();
    let reply = connection.call(&vm.machine, input, TIMEOUT)?;
    let took_ms = (reply.marks.response_ns - started_ns) as f64 / 1e6;
    Ok((took_ms, reply.value))
}

/// Saves `function` to `dir`, and measures warm invocations on the machine that goes on.
fn boot_and_save(
    image: &BenchImage,
    function: &str,
    dir: &Path,
    runs: u32,
) -> Result<Warm, Box<dyn Error>> {
    let (manifest, vm) = save_and_boot(image, function, dir)?;
    let recorded_response = vm.invoke(&input(RECORDED_SEED), TIMEOUT)?;
    let mut times_ms = Vec::new();
    let mut expected = BTreeMap::new();
    for run in 0..runs {
        let (took_ms, response) = warm_call(&vm, &measured_input(run))?;
        times_ms.push(took_ms);
        expected.insert(run, response);
    }
    Ok(Warm {
        times_ms,
        expected,
        recorded_response,
        booted_resident_mib: manifest.memory.booted_resident_bytes as f64 / f64::from(1 << 20),
    })
}

/// A cold start in a process of its own, whose response has to be `expected`.
pub(crate) fn cold_start(
    image: &BenchImage,
    start: &ColdStart<'_>,
    expected: &Value,
) -> Result<ColdStartReport, Box<dyn Error>> {
    page_cache::evict_directory(start.dir)?;
    for disk in image.disks() {
        page_cache::evict(disk)?;
    }
    let report = worker::invoke(start, &[])?;
    let (mode, input) = (start.mode, start.input);
    if report.mode != mode {
        return Err(format!("asked for memory mode {mode}, but {} ran", report.mode).into());
    }
    if report.response != *expected {
        return Err(format!(
            "memory mode {mode} gave another response to {input} than the uninterrupted machine:\n\
             {}\ninstead of\n{expected}",
            report.response
        )
        .into());
    }
    Ok(report)
}

fn measure_function(
    image: &BenchImage,
    function: &str,
    arguments: &Bench,
    progress: &Progress,
) -> Result<Vec<CellResult>, Box<dyn Error>> {
    let dir = arguments.dir.join(function);
    progress.function(format!("{function}: booting, saving, warm invocations"));
    let warm = boot_and_save(image, function, &dir, arguments.runs)?;
    progress.step(format!("{function}: recording"));
    let recorded_input = input(RECORDED_SEED);
    let overrides = Overrides::default();
    let recording = ColdStart {
        overrides: &overrides,
        dir: &dir,
        mode: MemoryRestoreMode::Record,
        set: WorkingSetOptions::default(),
        install: arguments.install.options(&arguments.dir)?,
        input: &recorded_input,
        timeout: TIMEOUT,
        keep_recording: false,
        count_resident: true,
        trace: None,
        started_ns: 0,
    };
    if arguments.modes.contains(&MemoryRestoreMode::Prefetch) {
        // The one that prefetch uses. The measured recordings are thrown away: what is measured
        // ends with the response, and rewriting files between the runs would make the disk's
        // write-back and discards a part of whatever is measured next.
        let kept = ColdStart {
            keep_recording: true,
            trace: None,
            ..recording
        };
        cold_start(image, &kept, &warm.recorded_response)?;
    }
    progress.function(format!("{function}: cold starts"));
    let mut reports: BTreeMap<usize, Vec<ColdStartReport>> = BTreeMap::new();
    for run in 0..arguments.runs {
        for (column, &mode) in arguments.modes.iter().enumerate() {
            let report = if mode == MemoryRestoreMode::Record {
                cold_start(image, &recording, &warm.recorded_response)?
            } else {
                let other_input = measured_input(run);
                let start = ColdStart {
                    mode,
                    input: &other_input,
                    ..recording
                };
                cold_start(image, &start, &warm.expected[&run])?
            };
            progress.step(format!("{function}: {mode}, {:.1} ms", report.total_ms));
            reports.entry(column).or_default().push(report);
        }
    }
    let mut cells = vec![report::warm_cell(
        function,
        &warm.times_ms,
        warm.booted_resident_mib,
    )];
    for (column, reports) in reports {
        let mode = arguments.modes[column].as_str();
        cells.push(report::cold_cell(
            function,
            mode,
            &reports,
            warm.booted_resident_mib,
        ));
    }
    Ok(cells)
}

pub(crate) fn run(arguments: &Bench) -> CommandResult {
    let functions = selected_functions(&arguments.functions)?;
    let image = BenchImage::of(&arguments.image)?;
    std::fs::create_dir_all(&arguments.dir).map_err(|error| {
        format!(
            "cannot make the directory '{}': {error}",
            arguments.dir.display()
        )
    })?;
    if arguments.ladder {
        return ladder::run(arguments, &image, &functions);
    }
    if !arguments.concurrent.is_empty() || !arguments.clones.is_empty() {
        return concurrent::run(arguments, &image, &functions);
    }
    let host = host()?;
    eprintln!("measuring the disk");
    let disk = disk::measure(&arguments.dir)?;
    let steps_a_function = 1 + u64::from(arguments.runs) * arguments.modes.len() as u64;
    let progress = Progress::new(steps_a_function * functions.len() as u64);
    let mut results = Vec::new();
    for function in &functions {
        let mut cells = measure_function(&image, function, arguments, &progress)
            .map_err(|error| format!("{function}: {}", crate::output::chain(error.as_ref())))?;
        let warm_ms = cells[0].total_ms.p50;
        for cell in &mut cells {
            cell.bound_ms = report::bound_ms(warm_ms, cell, &disk);
        }
        results.append(&mut cells);
    }
    progress.finish();
    let summary = report::totals(&results, &functions);
    let report = BenchReport {
        image: image.name(),
        host,
        disk,
        results,
        summary,
    };
    println!("{}", table::render(&report, &functions, &arguments.modes));
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes all results to `path`, whose directory is made.
fn write_json(path: &Path, report: &impl Serialize) -> Result<(), Box<dyn Error>> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    reapvm_snapshot::files::replace_file(path, |file| {
        serde_json::to_writer_pretty(file, report).map_err(std::io::Error::from)
    })?;
    eprintln!("all results: {}", path.display());
    Ok(())
}
