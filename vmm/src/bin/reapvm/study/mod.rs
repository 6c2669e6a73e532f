//! `reapvm study`: what the REAP paper says of functions, measured here.
//!
//! This program measures and keeps what it finds in a folder; the report on it is made by
//! `reapvm-trace`, as those on traces are.

mod folder;
mod measure;

use std::error::Error;
use std::ffi::OsString;

use reapvm::observe;
use reapvm_reap::study::{Start, StartKind, StartPhasesMs, Study, StudyHost, StudyPlan};

use crate::bench::image::BenchImage;
use crate::bench::{self, Progress};
use crate::cli::StudyArguments;
use crate::command::{CommandResult, analysis};
use folder::StudyFolder;

/// Seed of the first input; the next ones follow. None of them is the warm-up's.
const FIRST_SEED: u64 = 1;

pub(crate) fn run(arguments: &StudyArguments) -> CommandResult {
    // Whoever has measured for minutes wants a report.
    analysis::program()?;
    if !arguments.report_only {
        measure_all(arguments)?;
    }
    analysis::become_program("study", &report_arguments(arguments))
}

fn report_arguments(arguments: &StudyArguments) -> Vec<OsString> {
    let mut rest = vec![arguments.output.clone().into_os_string()];
    let mut option = |name: &str, value: Option<OsString>| {
        if let Some(value) = value {
            rest.extend([name.into(), value]);
        }
    };
    let path = |path: &Option<std::path::PathBuf>| path.clone().map(Into::into);
    option("--linux-figures", path(&arguments.linux_figures));
    option("--symbols", path(&arguments.symbols));
    option("--moved-by", arguments.moved_by.clone().map(Into::into));
    rest
}

fn measure_all(arguments: &StudyArguments) -> Result<(), Box<dyn Error>> {
    let functions = bench::selected_functions(&arguments.functions)?;
    let image = BenchImage::of(&arguments.image)?;
    // What can go wrong with the folder goes wrong before anything is measured.
    let folder = StudyFolder::prepare(&arguments.output)?;
    let plan = StudyPlan {
        image: image.name().to_owned(),
        functions: functions.clone(),
        inputs: (0..u64::from(arguments.inputs))
            .map(|at| bench::input(FIRST_SEED + at))
            .collect(),
        repetitions: arguments.repetitions,
        command: std::env::args().skip(1).collect(),
        began_unix_ms: reapvm::clock::realtime_ns() / 1_000_000,
    };
    eprintln!("measuring the disk");
    let mut study = Study::new(plan, host(&folder)?);
    folder.begin(&study, &image)?;
    let starts = measure::starts_a_function(&study.plan);
    let progress = Progress::new(starts * functions.len() as u64);
    for function in &functions {
        let measured =
            measure::function(&image, function, &study.plan, &folder, arguments, &progress)
                .map_err(|error| {
                    format!(
                        "{function}: {}; the functions before it are kept, see --report-only",
                        crate::output::chain(error.as_ref())
                    )
                })?;
        study.functions.push(measured);
        study.write(folder.root())?;
    }
    progress.finish();
    if !arguments.keep_snapshots {
        folder.remove_snapshots()?;
    }
    Ok(())
}

fn host(folder: &StudyFolder) -> Result<StudyHost, Box<dyn Error>> {
    let host = bench::host()?;
    let disk = bench::disk::measure(folder.root())?;
    Ok(StudyHost {
        cpu_model: host.cpu_model,
        cpus: host.cpus as u64,
        memory_mib: host.memory_mib,
        kernel: host.kernel,
        reapvm: host.reapvm.to_owned(),
        has_nested_paging: observe::uses_nested_paging(),
        disk_seq_read_mib_s: disk.seq_read_mib_s,
        disk_rand_read_4k_us: disk.rand_read_4k_us,
    })
}

/// What a study keeps of a cold start.
fn summarise(
    kind: StartKind,
    input: usize,
    repetition: u32,
    report: &reapvm::cold_start::ColdStartReport,
    trace: Option<String>,
) -> Start {
    let marks = &report.marks_ms;
    // In other modes nothing is waited for between the two.
    let working_set = match report.install_ms {
        Some(_) => marks.memory_ready - marks.state_loaded,
        None => 0.0,
    };
    let phase = |ms: f64| ms.max(0.0);
    Start {
        kind,
        input,
        repetition,
        total_ms: report.total_ms,
        phases_ms: StartPhasesMs {
            launch: phase(marks.process_start),
            restore: phase(marks.first_run - marks.process_start - working_set),
            working_set: phase(working_set),
            connection: phase(marks.connected - marks.first_run),
            processing: phase(marks.response - marks.connected),
        },
        pager_faults: report.faults.uffd,
        missed_pages: report.faults.missed_pages,
        major_faults: report.faults.kernel_major,
        minor_faults: report.faults.kernel_minor,
        working_set_pages: report.working_set_pages,
        guest_resident_kib: report.guest_resident_kib.unwrap_or_default(),
        trace,
    }
}
