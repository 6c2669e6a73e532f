//! `reapvm bench --ladder`: the same cold start by one method after the other, in one program.
//!
//! Each rung differs from the one before in one thing, so that the table says what that thing is
//! worth. All rungs take turns within a run, from snapshots that were proved to be out of the page
//! cache, and each response is compared with that of the uninterrupted machine.

mod sizes;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use reapvm::cold_start::{ColdStart, ColdStartReport, InstallMs, WorkingSetOptions};
use reapvm::config::Overrides;
use reapvm::machine::can_pre_fault;
use reapvm::tuning::{self, Tuning};
use reapvm_reap::{
    InstallMethod, InstallOptions, MemoryRestoreMode, ReadPath, SetLayout, WorkingSet,
};
use reapvm_snapshot::{PAGE_SIZE, Snapshot};
use serde::Serialize;

use super::disk::{self, Disk};
use super::fio::{self, Bandwidth};
use super::image::BenchImage;
use super::report::Host;
use super::stats::{Summary, median, summarise};
use super::{
    Progress, RECORDED_SEED, TIMEOUT, boot_and_save, cold_start, host, input, measured_input,
    write_json,
};
use crate::cli::Bench;
use crate::command::CommandResult;

/// A way to bring memory back.
#[derive(Clone, Copy)]
struct Rung {
    name: &'static str,
    mode: MemoryRestoreMode,
    options: InstallOptions,
}

/// All rungs, from the kernel's own faults to the default.
fn rungs(tuning: &Tuning, can_pre_fault: bool) -> Vec<Rung> {
    let mode = |name, mode| Rung {
        name,
        mode,
        options: InstallOptions::default(),
    };
    let install = |name, method, read_path| Rung {
        name,
        mode: MemoryRestoreMode::Prefetch,
        options: InstallOptions {
            read_path,
            ..InstallOptions::new(method)
        },
    };
    let mut rungs = vec![
        mode("file mapping", MemoryRestoreMode::File),
        mode("on demand", MemoryRestoreMode::OnDemand),
        install("memory file, 16 threads", InstallMethod::MemoryFile, None),
        install("set, buffered", InstallMethod::Buffered, None),
        install("set, one read (REAP)", InstallMethod::OneRead, None),
        install(
            "streams, a read each",
            InstallMethod::Streamed,
            Some(ReadPath::Pread),
        ),
        install(
            "streams, io_uring",
            InstallMethod::Streamed,
            Some(ReadPath::IoUring),
        ),
        Rung {
            options: tuning.apply(InstallOptions {
                read_path: Some(ReadPath::IoUring),
                ..InstallOptions::new(InstallMethod::Streamed)
            }),
            ..install("streams, tuned", InstallMethod::Streamed, None)
        },
        install(
            "streams, moved",
            InstallMethod::Moved,
            Some(ReadPath::IoUring),
        ),
        install(
            "into guest memory",
            InstallMethod::Direct,
            Some(ReadPath::IoUring),
        ),
        install(
            "while the guest runs",
            InstallMethod::Overlapped,
            Some(ReadPath::IoUring),
        ),
    ];
    if can_pre_fault {
        rungs.push(Rung {
            options: InstallOptions {
                read_path: Some(ReadPath::IoUring),
                pre_fault: true,
                ..InstallOptions::new(InstallMethod::Streamed)
            },
            ..install(PRE_FAULTED, InstallMethod::Streamed, None)
        });
    }
    rungs
}

/// The rung that not every KVM has.
const PRE_FAULTED: &str = "streams, pre-faulted";

/// One rung of one function.
#[derive(Clone, Debug, Serialize)]
struct Step {
    function: String,
    rung: &'static str,
    mode: MemoryRestoreMode,
    /// What ran, in prefetch mode: medians of its times.
    install: Option<InstallMs>,
    runs: usize,
    total_ms: Summary,
    first_run_ms: f64,
    /// Faults that the pager served, median.
    faults: f64,
    /// Bytes read by the time of the installation, median of the runs.
    mib_s: Option<f64>,
    /// The same as a part of the best that the disk gives, in percent.
    of_disk_pct: Option<f64>,
    /// What no installation can be faster than: its bytes at the disk's best.
    bound_ms: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Report {
    image: &'static str,
    host: Host,
    disk: Disk,
    /// How the reads of the tuned rung are made.
    tuning: Tuning,
    functions: Vec<Function>,
    steps: Vec<Step>,
    sizes: Vec<sizes::SizeStep>,
}

/// What is known of a function beside the rungs.
#[derive(Debug, Serialize)]
struct Function {
    name: String,
    /// What the disk gives for its set.
    bandwidth: Bandwidth,
    /// How its set lies in memory.
    set: SetLayout,
}

fn summarise_step(
    function: &str,
    rung: &Rung,
    reports: &[ColdStartReport],
    bandwidth: &Bandwidth,
) -> Step {
    let of = |value: &dyn Fn(&ColdStartReport) -> f64| {
        median(&reports.iter().map(value).collect::<Vec<_>>())
    };
    let installs: Vec<&InstallMs> = reports
        .iter()
        .filter_map(|report| report.install_ms.as_ref())
        .collect();
    let install = installs.first().map(|first| {
        let part = |value: fn(&InstallMs) -> f64| {
            median(&installs.iter().map(|i| value(i)).collect::<Vec<_>>())
        };
        InstallMs {
            read: part(|i| i.read),
            verify: part(|i| i.verify),
            copy: part(|i| i.copy),
            total: part(|i| i.total),
            lead_pages: part(|i| i.lead_pages as f64) as u64,
            ..(*first).clone()
        }
    });
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let rates: Vec<f64> = installs
        .iter()
        .map(|install| mib(install.bytes_read) / install.total * 1e3)
        .collect();
    let mib_s = (!rates.is_empty()).then(|| median(&rates));
    Step {
        function: function.to_owned(),
        rung: rung.name,
        mode: rung.mode,
        runs: reports.len(),
        total_ms: summarise(&reports.iter().map(|r| r.total_ms).collect::<Vec<_>>()),
        first_run_ms: of(&|r| r.marks_ms.first_run),
        faults: of(&|r| r.faults.uffd as f64),
        mib_s,
        of_disk_pct: mib_s.map(|mib_s| 100.0 * mib_s / bandwidth.mib_s),
        bound_ms: install
            .as_ref()
            .map(|install| mib(install.bytes_read) / bandwidth.mib_s * 1e3),
        install,
    }
}

fn measure_function(
    image: &BenchImage,
    function: &str,
    arguments: &Bench,
    disk: &Disk,
    rungs: &[Rung],
    progress: &Progress,
) -> Result<(Function, Vec<Step>), Box<dyn Error>> {
    let dir: PathBuf = arguments.dir.join(function);
    progress.function(format!("{function}: booting, saving, recording"));
    let warm = boot_and_save(image, function, &dir, arguments.runs)?;
    let recorded_input = input(RECORDED_SEED);
    let overrides = Overrides::default();
    let recording = ColdStart {
        overrides: &overrides,
        dir: &dir,
        mode: MemoryRestoreMode::Record,
        set: WorkingSetOptions::default(),
        install: InstallOptions::default(),
        input: &recorded_input,
        timeout: TIMEOUT,
        keep_recording: true,
        trace: None,
        count_resident: false,
        started_ns: 0,
    };
    cold_start(image, &recording, &warm.recorded_response)?;
    // Nothing that was written may still be on its way to the disk.
    rustix::fs::sync();
    let set = dir.join(reapvm_snapshot::WORKING_SET_FILE);
    let layout = layout_of(&dir)?;
    let bandwidth = fio::measure(&[set], disk)?;
    let mut reports: Vec<Vec<ColdStartReport>> = vec![Vec::new(); rungs.len()];
    progress.function(format!("{function}: cold starts"));
    for run in 0..arguments.runs {
        let input = measured_input(run);
        for (rung, reports) in rungs.iter().zip(&mut reports) {
            let start = ColdStart {
                mode: rung.mode,
                install: rung.options,
                input: &input,
                ..recording
            };
            let report = cold_start(image, &start, &warm.expected[&run])?;
            if let Some(install) = &report.install_ms
                && install.method != rung.options.method
            {
                return Err(format!(
                    "asked for the install method {}, but {} ran",
                    rung.options.method, install.method
                )
                .into());
            }
            progress.step(format!(
                "{function}: {}, {:.1} ms",
                rung.name, report.total_ms
            ));
            reports.push(report);
        }
    }
    let steps = rungs
        .iter()
        .zip(&reports)
        .map(|(rung, reports)| summarise_step(function, rung, reports, &bandwidth))
        .collect();
    let function = Function {
        name: function.to_owned(),
        bandwidth,
        set: layout,
    };
    Ok((function, steps))
}

/// How the working set of the snapshot in `dir` lies in memory.
fn layout_of(dir: &Path) -> Result<SetLayout, Box<dyn Error>> {
    let snapshot = Snapshot::open(dir)?;
    let memory_bytes = snapshot.manifest().memory.page_count() * PAGE_SIZE as u64;
    let path = snapshot.working_set_path();
    let set = WorkingSet::describe(&path, &snapshot.id(), memory_bytes)?;
    Ok(SetLayout::of(&set))
}

/// The table of one function, as Markdown.
fn render(steps: &[Step], function: &Function) -> String {
    let (bandwidth, set) = (&function.bandwidth, &function.set);
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header([
            "rung",
            "start ms",
            "x file",
            "first run ms",
            "install ms",
            "x one read",
            "waiting",
            "verifying",
            "placing",
            "MiB",
            "zero pages",
            "MiB/s",
            "% of disk",
            "faults",
        ]);
    for column in 1..14 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let file_ms = steps.first().map(|step| step.total_ms.p50);
    let one_read_ms = steps
        .iter()
        .filter_map(|step| step.install.as_ref())
        .find(|install| install.method == InstallMethod::OneRead)
        .map(|install| install.total);
    for step in steps {
        let install = |value: &dyn Fn(&InstallMs) -> f64| {
            step.install
                .as_ref()
                .map_or("-".to_owned(), |i| format!("{:.1}", value(i)))
        };
        let ratio = |base: Option<f64>, own: Option<f64>| match (base, own) {
            (Some(base), Some(own)) if own > 0.0 => format!("{:.2}", base / own),
            _ => "-".to_owned(),
        };
        table.add_row([
            step.rung.to_owned(),
            format!("{:.1}", step.total_ms.p50),
            ratio(file_ms, Some(step.total_ms.p50)),
            format!("{:.1}", step.first_run_ms),
            install(&|i| i.total),
            ratio(one_read_ms, step.install.as_ref().map(|i| i.total)),
            install(&|i| i.read / i.threads.max(1) as f64),
            install(&|i| i.verify / i.threads.max(1) as f64),
            install(&|i| i.copy / i.threads.max(1) as f64),
            install(&|i| i.bytes_read as f64 / f64::from(1 << 20)),
            step.install
                .as_ref()
                .map_or("-".to_owned(), |i| i.zero_pages.to_string()),
            step.mib_s
                .map_or("-".to_owned(), |rate| format!("{rate:.0}")),
            step.of_disk_pct
                .map_or("-".to_owned(), |share| format!("{share:.0}")),
            format!("{:.0}", step.faults),
        ]);
    }
    let bound = steps.iter().find_map(|step| step.bound_ms);
    let blocks = &set.blocks_2mib;
    format!(
        "{}\n\n{table}\n\ndisk: {:.0} MiB/s ({}); the set cannot be read in less than {:.1} ms\n\
         set: {} pages in runs of {:.1}, {} of them zero: {:.1} MiB that are not read\n\
         2 MiB blocks: {} hold the set, which covers {:.1} % of them; {} are covered by 50 % or \
         more, {} by 90 %\n\
         waiting, verifying and placing are ms for each of the threads\n",
        function.name,
        bandwidth.mib_s,
        bandwidth.what,
        bound.unwrap_or_default(),
        set.pages,
        set.mean_run_pages,
        set.zero_pages,
        (set.zero_pages * PAGE_SIZE as u64) as f64 / f64::from(1 << 20),
        blocks.blocks,
        blocks.covered_pct,
        blocks.half_covered,
        blocks.nearly_covered,
    )
}

/// Runs the benchmark.
pub(super) fn run(arguments: &Bench, image: &BenchImage, functions: &[String]) -> CommandResult {
    let host = host()?;
    eprintln!("measuring the disk");
    let disk = disk::measure(&arguments.dir)?;
    eprintln!("tuning the reads");
    let tuning = tuning::measure(&arguments.dir, |_| {})?;
    let can_pre_fault = can_pre_fault()?;
    let rungs = rungs(&tuning, can_pre_fault);
    let steps_a_function = arguments.runs as usize * rungs.len();
    let steps = (steps_a_function * functions.len()) as u64;
    let progress = Progress::new(steps + sizes::steps(&rungs, arguments.runs));
    let mut report = Report {
        image: image.name(),
        host,
        disk,
        tuning,
        functions: Vec::new(),
        steps: Vec::new(),
        sizes: sizes::measure(&arguments.dir, &rungs, arguments.runs, &progress)?,
    };
    let mut tables = Vec::new();
    for name in functions {
        let (function, mut steps) =
            measure_function(image, name, arguments, &report.disk, &rungs, &progress)
                .map_err(|error| format!("{name}: {}", crate::output::chain(error.as_ref())))?;
        tables.push(render(&steps, &function));
        report.functions.push(function);
        report.steps.append(&mut steps);
    }
    progress.0.finish_and_clear();
    println!("{}", tables.join("\n"));
    println!("{}", sizes::render(&report.sizes));
    if !can_pre_fault {
        println!("{PRE_FAULTED}: absent, this KVM has no KVM_PRE_FAULT_MEMORY");
    }
    println!(
        "tuned: reads of {} KiB, {} under way in each of two threads; untuned: {} KiB, {}",
        report.tuning.piece_bytes >> 10,
        report.tuning.depth,
        InstallOptions::DEFAULT_PIECE_BYTES >> 10,
        InstallOptions::DEFAULT_DEPTH
    );
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const TUNING: Tuning = Tuning {
        piece_bytes: 512 << 10,
        depth: 2,
        mib_s: 1000.0,
        gain_pct: 6.0,
    };

    #[test]
    fn rungs_have_names_of_their_own_and_start_with_what_they_are_compared_with() {
        let rungs = rungs(&TUNING, true);
        assert_eq!(rungs[0].mode, MemoryRestoreMode::File);
        let names: std::collections::BTreeSet<_> = rungs.iter().map(|rung| rung.name).collect();
        assert_eq!(names.len(), rungs.len());
        assert!(
            rungs
                .iter()
                .any(|rung| rung.options.method == InstallMethod::OneRead)
        );
    }

    #[test]
    fn a_table_compares_each_rung_with_the_mapping_and_with_one_read() {
        let bandwidth = Bandwidth {
            mib_s: 1000.0,
            what: "a disk".to_owned(),
            tried: Vec::new(),
        };
        let start = |total_ms, install: Option<(InstallMethod, f64)>| {
            let report = serde_json::json!({
                "function": null, "mode": "prefetch", "response": {}, "total_ms": total_ms,
                "marks_ms": {
                    "process_start": 0.0, "state_loaded": 1.0, "memory_ready": 2.0,
                    "first_run": 3.0, "request_sent": 4.0, "first_byte": 5.0, "response": total_ms,
                },
                "install_ms": install.map(|(method, total)| serde_json::json!({
                    "method": method, "read_path": "io-uring", "threads": 2, "read": 8.0,
                    "verify": 1.0, "copy": 2.0, "total": total, "bytes_read": 10 << 20,
                    "extents": 3, "lead_pages": 100, "zero_pages": 30,
                })),
                "faults": {
                    "uffd": 7, "kernel_major": 0, "kernel_minor": 0, "prefetched_pages": 0,
                    "missed_pages": 0, "early_pages": 0,
                },
                "working_set_pages": null, "working_set_use": null, "evolution": null,
                "trace": null, "guest_resident_kib": null, "vmm_overhead_kib": null,
            });
            serde_json::from_value::<ColdStartReport>(report).unwrap()
        };
        let rungs = rungs(&TUNING, true);
        let steps = [
            summarise_step("f", &rungs[0], &[start(100.0, None)], &bandwidth),
            summarise_step(
                "f",
                &rungs[4],
                &[start(40.0, Some((InstallMethod::OneRead, 25.0)))],
                &bandwidth,
            ),
            summarise_step(
                "f",
                &rungs[6],
                &[
                    start(19.0, Some((InstallMethod::Streamed, 20.0))),
                    start(20.0, Some((InstallMethod::Streamed, 12.5))),
                    start(21.0, Some((InstallMethod::Streamed, 10.0))),
                ],
                &bandwidth,
            ),
        ];
        assert_eq!(steps[2].mib_s, Some(800.0));
        assert_eq!(steps[2].of_disk_pct, Some(80.0));
        assert_eq!(steps[2].bound_ms, Some(10.0));
        let layout = serde_json::json!({
            "recordings": 1, "pages": 2560, "zero_pages": 256, "bytes": 10 << 20,
            "file_bytes": 9 << 20, "extents": 1600, "mean_run_pages": 1.6, "run_pages": [],
            "blocks_2mib": {
                "blocks": 80, "covered_pct": 6.25, "half_covered": 3, "nearly_covered": 1,
                "density_pct": [],
            },
            "touched_by": [],
        });
        let function = Function {
            name: "f".to_owned(),
            bandwidth,
            set: serde_json::from_value(layout).unwrap(),
        };
        let table = render(&steps, &function);
        assert!(table.contains("256 of them zero: 1.0 MiB that are not read"));
        assert!(table.contains("80 hold the set") && table.contains("3 are covered by 50 %"));
        let row = table
            .lines()
            .find(|line| line.contains("streams, io_uring"))
            .unwrap();
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(
            cells[2..],
            [
                "20.0", "5.00", "3.0", "12.5", "2.00", "4.0", "0.5", "1.0", "10.0", "30", "800",
                "80", "7", ""
            ]
        );
    }
}
