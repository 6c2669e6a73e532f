//! Installs by themselves, of sets of several sizes: what a method gains or loses as sets grow,
//! without a guest beside it. The functions' own sets are all of about one size.

use std::error::Error;
use std::path::Path;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use reapvm_reap::{InstallMethod, InstallReport, InstallTrial, MemoryRestoreMode};
use serde::Serialize;

use super::super::Progress;
use super::super::stats::median;
use super::Rung;

/// Sizes of the sets, in MiB.
const SETS_MIB: [u64; 3] = [8, 24, 96];

/// One method and one size; medians of the runs, times in ms.
#[derive(Clone, Debug, Serialize)]
pub(super) struct SizeStep {
    set_mib: u64,
    rung: &'static str,
    method: InstallMethod,
    runs: usize,
    total: f64,
    /// Of each thread.
    waiting: f64,
    /// Of each thread.
    verifying: f64,
    /// Of each thread.
    placing: f64,
    mib_s: f64,
}

/// Whether `rung` installs a set from its own file and needs no guest.
fn is_measured(rung: &Rung) -> bool {
    rung.mode == MemoryRestoreMode::Prefetch
        && !rung.options.pre_fault
        && !matches!(
            rung.options.method,
            InstallMethod::MemoryFile | InstallMethod::Overlapped
        )
}

fn summarise(set_mib: u64, rung: &Rung, reports: &[InstallReport]) -> SizeStep {
    let of = |value: &dyn Fn(&InstallReport) -> f64| {
        median(&reports.iter().map(value).collect::<Vec<_>>())
    };
    let a_thread = |report: &InstallReport, ns: u64| ns as f64 / 1e6 / report.threads.max(1) as f64;
    SizeStep {
        set_mib,
        rung: rung.name,
        method: rung.options.method,
        runs: reports.len(),
        total: of(&|report| report.total_ns as f64 / 1e6),
        waiting: of(&|report| a_thread(report, report.read_ns)),
        verifying: of(&|report| a_thread(report, report.verify_ns)),
        placing: of(&|report| a_thread(report, report.copy_ns)),
        mib_s: of(&|report| {
            let mib = report.bytes_read as f64 / f64::from(1 << 20);
            mib * 1e9 / report.total_ns.max(1) as f64
        }),
    }
}

/// How many installs [`measure`] makes.
pub(super) fn steps(rungs: &[Rung], runs: u32) -> u64 {
    let rungs = rungs.iter().filter(|rung| is_measured(rung)).count() as u64;
    SETS_MIB.len() as u64 * rungs * u64::from(runs)
}

/// Installs sets from the directory `dir` by those of `rungs` that can be measured so, `runs` times
/// each, all in turn.
pub(super) fn measure(
    dir: &Path,
    rungs: &[Rung],
    runs: u32,
    progress: &Progress,
) -> Result<Vec<SizeStep>, Box<dyn Error>> {
    let files = tempfile::tempdir_in(dir)?;
    let rungs: Vec<&Rung> = rungs.iter().filter(|rung| is_measured(rung)).collect();
    let mut steps = Vec::new();
    for set_mib in SETS_MIB {
        progress.function(format!("sets of {set_mib} MiB"));
        let path = files.path().join(format!("{set_mib}-mib"));
        let trial = InstallTrial::create(&path, set_mib << 20)?;
        let mut reports = vec![Vec::new(); rungs.len()];
        for _ in 0..runs {
            for (rung, reports) in rungs.iter().zip(&mut reports) {
                let report = trial.run(rung.options)?;
                let total_ms = report.total_ns as f64 / 1e6;
                progress.step(format!("{set_mib} MiB: {}, {total_ms:.1} ms", rung.name));
                reports.push(report);
            }
        }
        steps.extend(
            rungs
                .iter()
                .zip(&reports)
                .map(|(rung, reports)| summarise(set_mib, rung, reports)),
        );
    }
    Ok(steps)
}

/// The table, as Markdown.
pub(super) fn render(steps: &[SizeStep]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header([
            "set MiB",
            "rung",
            "install ms",
            "x one read",
            "waiting",
            "verifying",
            "placing",
            "MiB/s",
        ]);
    for column in [0, 2, 3, 4, 5, 6, 7] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for step in steps {
        let one_read = steps
            .iter()
            .find(|other| other.set_mib == step.set_mib && other.method == InstallMethod::OneRead)
            .map_or(f64::NAN, |one_read| one_read.total);
        table.add_row([
            step.set_mib.to_string(),
            step.rung.to_owned(),
            format!("{:.1}", step.total),
            format!("{:.2}", one_read / step.total),
            format!("{:.1}", step.waiting),
            format!("{:.1}", step.verifying),
            format!("{:.1}", step.placing),
            format!("{:.0}", step.mib_s),
        ]);
    }
    format!(
        "installs alone, by size of the set\n\n{table}\n\nsets of noise in runs of 1.4 pages, \
         without a guest beside the install\n"
    )
}

#[cfg(test)]
mod tests {
    use super::super::{rungs, tests::TUNING};
    use super::*;

    #[test]
    fn each_size_is_compared_with_its_own_one_read() {
        let rungs = rungs(&TUNING, true);
        let rung = |method| {
            rungs
                .iter()
                .find(|rung| rung.options.method == method && is_measured(rung))
                .unwrap()
        };
        let report = |total_ms: u64| InstallReport {
            bytes_read: 10 << 20,
            threads: 2,
            read_ns: 8_000_000,
            total_ns: total_ms * 1_000_000,
            ..InstallReport::default()
        };
        let steps = [
            summarise(8, rung(InstallMethod::OneRead), &[report(20)]),
            summarise(
                8,
                rung(InstallMethod::Streamed),
                &[report(30), report(10), report(8)],
            ),
            summarise(24, rung(InstallMethod::OneRead), &[report(50)]),
            summarise(24, rung(InstallMethod::Direct), &[report(100)]),
        ];
        assert_eq!((steps[1].total, steps[1].mib_s), (10.0, 1000.0));
        let table = render(&steps);
        let rows: Vec<Vec<&str>> = table
            .lines()
            .filter(|line| line.starts_with('|') && line.contains('.'))
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        let ratios: Vec<&str> = rows.iter().map(|row| row[4]).collect();
        assert_eq!(ratios, ["1.00", "2.00", "1.00", "0.50"]);
        assert_eq!(rows[1][5], "4.0");
    }

    #[test]
    fn what_needs_a_guest_or_its_snapshot_is_left_out() {
        let rungs = rungs(&TUNING, true);
        let measured: Vec<_> = rungs.iter().filter(|rung| is_measured(rung)).collect();
        assert!(measured.len() >= 6);
        assert!(
            measured
                .iter()
                .any(|rung| rung.options.method == InstallMethod::OneRead)
        );
        assert_eq!(steps(&rungs, 4), 3 * measured.len() as u64 * 4);
    }
}
