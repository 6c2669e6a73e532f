//! The results of a benchmark, as they stand in its JSON file.

use reapvm::cold_start::{ColdStartReport, Faults, InstallMs, MarksMs};
use serde::Serialize;

use super::disk::Disk;
use super::stats::{Summary, geometric_mean, mean, median, summarise};

/// The warm mode's name; the others are those of `MemoryRestoreMode`.
pub(crate) const WARM: &str = "warm";

/// Where it was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Host {
    pub(crate) cpu_model: String,
    pub(crate) cpus: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) reapvm: &'static str,
}

/// Everything that a benchmark found.
#[derive(Debug, Serialize)]
pub(crate) struct BenchReport {
    /// Whose functions: "builtin" or "linux".
    pub(crate) image: &'static str,
    pub(crate) host: Host,
    pub(crate) disk: Disk,
    pub(crate) results: Vec<CellResult>,
    pub(crate) summary: Totals,
}

/// One function in one mode. Single numbers are medians.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CellResult {
    pub(crate) function: String,
    pub(crate) mode: String,
    pub(crate) runs: usize,
    /// From the launcher's exec to the response; for warm, from the request to the response.
    pub(crate) total_ms: Summary,
    pub(crate) marks_ms: Option<MarksMs>,
    /// Reading and installing the working set.
    pub(crate) install_ms: Option<f64>,
    pub(crate) install: Option<InstallMs>,
    pub(crate) faults: Option<Faults>,
    pub(crate) booted_resident_mib: f64,
    pub(crate) working_set_pages: Option<u64>,
    /// Largest of the runs, in KiB.
    pub(crate) vmm_overhead_kib: Option<u64>,
    /// The least that a start of this kind can take here (prefetch): warm, and before it the
    /// longest of what happens at once: reading the set at the disk's bandwidth, copying it, and
    /// setting up the machine.
    pub(crate) bound_ms: Option<f64>,
}

/// All functions together.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Totals {
    pub(crate) speedup_vs_file_geomean: Option<f64>,
    pub(crate) speedup_vs_file_mean: Option<f64>,
    /// 100 x (1 - faults of prefetch / faults on demand), over all functions; inputs other than recorded.
    pub(crate) uffd_faults_eliminated_pct: Option<f64>,
    /// The same for the function for which it is least.
    pub(crate) uffd_faults_eliminated_min_pct: Option<f64>,
    /// Median over the functions of (record / ondemand - 1) x 100.
    pub(crate) record_overhead_pct: Option<f64>,
    /// Median of exec to first KVM_RUN, over the modes that read no memory before it.
    pub(crate) exec_to_first_run_ms: Option<f64>,
    /// Largest resident memory beyond the guest's of any cold start, in KiB.
    pub(crate) vmm_overhead_max_kib: Option<u64>,
}

fn median_of(reports: &[ColdStartReport], value: impl Fn(&ColdStartReport) -> f64) -> f64 {
    median(&reports.iter().map(value).collect::<Vec<_>>())
}

fn median_count(reports: &[ColdStartReport], value: impl Fn(&ColdStartReport) -> u64) -> u64 {
    median_of(reports, |report| value(report) as f64).round() as u64
}

/// Summarises the cold starts of one function in one mode.
pub(crate) fn cold_cell(
    function: &str,
    mode: &str,
    reports: &[ColdStartReport],
    booted_resident_mib: f64,
) -> CellResult {
    let mark = |value: fn(&MarksMs) -> f64| median_of(reports, |r| value(&r.marks_ms));
    let installs: Vec<InstallMs> = reports
        .iter()
        .filter_map(|r| r.install_ms.clone())
        .collect();
    let install = installs.first().map(|first| {
        let part =
            |value: fn(&InstallMs) -> f64| median(&installs.iter().map(value).collect::<Vec<_>>());
        InstallMs {
            read: part(|i| i.read),
            verify: part(|i| i.verify),
            copy: part(|i| i.copy),
            total: part(|i| i.total),
            ..first.clone()
        }
    });
    CellResult {
        function: function.to_owned(),
        mode: mode.to_owned(),
        runs: reports.len(),
        total_ms: summarise(&reports.iter().map(|r| r.total_ms).collect::<Vec<_>>()),
        marks_ms: Some(MarksMs {
            process_start: mark(|m| m.process_start),
            state_loaded: mark(|m| m.state_loaded),
            memory_ready: mark(|m| m.memory_ready),
            first_run: mark(|m| m.first_run),
            request_sent: mark(|m| m.request_sent),
            connected: mark(|m| m.connected),
            first_byte: mark(|m| m.first_byte),
            response: mark(|m| m.response),
        }),
        install_ms: install.as_ref().map(|install| install.total),
        install,
        faults: Some(Faults {
            uffd: median_count(reports, |r| r.faults.uffd),
            kernel_major: median_count(reports, |r| r.faults.kernel_major),
            kernel_minor: median_count(reports, |r| r.faults.kernel_minor),
            prefetched_pages: median_count(reports, |r| r.faults.prefetched_pages),
            missed_pages: median_count(reports, |r| r.faults.missed_pages),
            early_pages: median_count(reports, |r| r.faults.early_pages),
        }),
        booted_resident_mib,
        working_set_pages: reports
            .iter()
            .filter_map(|r| r.working_set_pages)
            .next_back(),
        vmm_overhead_kib: reports.iter().filter_map(|r| r.vmm_overhead_kib).max(),
        bound_ms: None,
    }
}

/// The cell of warm invocations.
pub(crate) fn warm_cell(function: &str, times_ms: &[f64], booted_resident_mib: f64) -> CellResult {
    CellResult {
        function: function.to_owned(),
        mode: WARM.to_owned(),
        runs: times_ms.len(),
        total_ms: summarise(times_ms),
        marks_ms: None,
        install_ms: None,
        install: None,
        faults: None,
        booted_resident_mib,
        working_set_pages: None,
        vmm_overhead_kib: None,
        bound_ms: None,
    }
}

/// `T >= T_warm + max(WS bytes / disk bandwidth, copy, control)` for a prefetch cell.
pub(crate) fn bound_ms(warm_ms: f64, cell: &CellResult, disk: &Disk) -> Option<f64> {
    let (install, marks) = (cell.install.as_ref()?, cell.marks_ms?);
    let read_ms = install.bytes_read as f64 / f64::from(1 << 20) / disk.seq_read_mib_s * 1e3;
    let copy_ms = install.copy / install.threads.max(1) as f64;
    Some(warm_ms + read_ms.max(copy_ms).max(marks.state_loaded))
}

/// The cell of `function` in `mode`.
pub(crate) fn find<'a>(
    results: &'a [CellResult],
    function: &str,
    mode: &str,
) -> Option<&'a CellResult> {
    results
        .iter()
        .find(|cell| cell.function == function && cell.mode == mode)
}

/// What the functions have in common.
pub(crate) fn totals(results: &[CellResult], functions: &[String]) -> Totals {
    let pairs = |a: &str, b: &str| -> Vec<(CellResult, CellResult)> {
        functions
            .iter()
            .filter_map(|f| Some((find(results, f, a)?.clone(), find(results, f, b)?.clone())))
            .collect()
    };
    let some = |values: &[f64], of: fn(&[f64]) -> f64| (!values.is_empty()).then(|| of(values));
    let speedups: Vec<f64> = pairs("file", "prefetch")
        .iter()
        .map(|(file, prefetch)| file.total_ms.p50 / prefetch.total_ms.p50)
        .collect();
    let faults: Vec<(f64, f64)> = pairs("ondemand", "prefetch")
        .iter()
        .filter_map(|(ondemand, prefetch)| {
            Some((ondemand.faults?.uffd as f64, prefetch.faults?.uffd as f64))
        })
        .collect();
    let eliminated = |faults: f64, missed: f64| 100.0 * (1.0 - missed / faults);
    let (all, missed) = faults
        .iter()
        .fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1));
    let overheads: Vec<f64> = pairs("ondemand", "record")
        .iter()
        .map(|(ondemand, record)| 100.0 * (record.total_ms.p50 / ondemand.total_ms.p50 - 1.0))
        .collect();
    let starts: Vec<f64> = results
        .iter()
        .filter(|cell| cell.install_ms.is_none() && cell.mode != "copy")
        .filter_map(|cell| Some(cell.marks_ms?.first_run))
        .collect();
    Totals {
        speedup_vs_file_geomean: some(&speedups, geometric_mean),
        speedup_vs_file_mean: some(&speedups, mean),
        uffd_faults_eliminated_pct: (all > 0.0).then(|| eliminated(all, missed)),
        uffd_faults_eliminated_min_pct: faults
            .iter()
            .map(|&(faults, missed)| eliminated(faults, missed))
            .min_by(f64::total_cmp),
        record_overhead_pct: some(&overheads, median),
        exec_to_first_run_ms: some(&starts, median),
        vmm_overhead_max_kib: results
            .iter()
            .filter_map(|cell| cell.vmm_overhead_kib)
            .max(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(mode: &str, p50: f64, uffd: u64, missed: u64) -> CellResult {
        let mut cell = warm_cell("f", &[p50], 0.0);
        cell.mode = mode.to_owned();
        cell.faults = Some(Faults {
            uffd,
            missed_pages: missed,
            early_pages: 0,
            ..Default::default()
        });
        cell
    }

    #[test]
    fn totals_are_ratios_of_medians() {
        let results = [
            cell("file", 100.0, 0, 0),
            cell("ondemand", 80.0, 200, 0),
            cell("record", 88.0, 200, 0),
            cell("prefetch", 20.0, 4, 4),
        ];
        let totals = totals(&results, &["f".to_owned()]);
        assert_eq!(totals.speedup_vs_file_mean, Some(5.0));
        assert_eq!(totals.uffd_faults_eliminated_pct, Some(98.0));
        assert!((totals.record_overhead_pct.unwrap() - 10.0).abs() < 1e-9);
    }

    #[test]
    fn totals_without_the_modes_they_need_are_absent_and_not_zero() {
        let totals = totals(&[cell("prefetch", 20.0, 4, 4)], &["f".to_owned()]);
        assert_eq!(totals.speedup_vs_file_mean, None);
        assert_eq!(totals.uffd_faults_eliminated_pct, None);
    }
}
