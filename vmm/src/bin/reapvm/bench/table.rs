//! The table that a benchmark prints.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use reapvm_reap::MemoryRestoreMode;
use reapvm_snapshot::PAGE_SIZE;

use super::report::{BenchReport, WARM, find};

/// The table and what belongs under it, as lines of text; Markdown, so that it can be pasted.
pub(crate) fn render(
    report: &BenchReport,
    functions: &[String],
    modes: &[MemoryRestoreMode],
) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled);
    let mut header = vec!["function".to_owned(), "warm ms".to_owned()];
    header.extend(modes.iter().map(|mode| format!("{mode} ms")));
    header.extend(
        [
            "bound ms",
            "working set MiB",
            "booted MiB",
            "faults on demand",
            "faults",
            "speed-up",
        ]
        .map(str::to_owned),
    );
    let columns = header.len();
    table.set_header(header);
    for column in 1..columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for function in functions {
        let get = |mode: &str| find(&report.results, function, mode);
        let p50 = |mode: &str| get(mode).map_or("-".into(), |c| format!("{:.1}", c.total_ms.p50));
        let prefetch = get("prefetch");
        let set = prefetch
            .or_else(|| get("record"))
            .and_then(|cell| cell.working_set_pages);
        let mut row = vec![function.clone(), p50(WARM)];
        row.extend(modes.iter().map(|mode| p50(mode.as_str())));
        row.push(
            prefetch
                .and_then(|c| c.bound_ms)
                .map_or("-".into(), |b| format!("{b:.1}")),
        );
        row.push(set.map_or("-".into(), |pages| {
            format!(
                "{:.1}",
                (pages * PAGE_SIZE as u64) as f64 / f64::from(1 << 20)
            )
        }));
        row.push(get(WARM).map_or("-".into(), |c| format!("{:.0}", c.booted_resident_mib)));
        let faults = |mode: &str| get(mode).and_then(|c| c.faults);
        row.push(faults("ondemand").map_or("-".into(), |f| f.uffd.to_string()));
        row.push(faults("prefetch").map_or("-".into(), |f| f.uffd.to_string()));
        row.push(match (get("file"), prefetch) {
            (Some(file), Some(prefetch)) => {
                format!("{:.1}x", file.total_ms.p50 / prefetch.total_ms.p50)
            }
            _ => "-".into(),
        });
        table.add_row(row);
    }
    let totals = &report.summary;
    let mut lines = vec![table.to_string(), String::new()];
    lines.push(format!(
        "Medians; cold starts count from the launcher's exec to the whole response, warm from the \
         request. Disk: {:.0} MiB/s sequential, {:.0} us a random 4 KiB read (O_DIRECT).",
        report.disk.seq_read_mib_s, report.disk.rand_read_4k_us
    ));
    lines.push(
        "bound = warm + max(working set / disk bandwidth, copying it, setting up the machine): no \
         prefetch that waits for its set can be faster here."
            .to_owned(),
    );
    if let (Some(mean), Some(geomean)) =
        (totals.speedup_vs_file_mean, totals.speedup_vs_file_geomean)
    {
        lines.push(format!(
            "prefetch against file: {mean:.2}x on average, {geomean:.2}x geometric mean"
        ));
    }
    if let (Some(all), Some(least)) = (
        totals.uffd_faults_eliminated_pct,
        totals.uffd_faults_eliminated_min_pct,
    ) {
        lines.push(format!(
            "userfaultfd faults eliminated, other input than recorded: {all:.1} % (least: {least:.1} %)"
        ));
    }
    if let Some(percent) = totals.record_overhead_pct {
        lines.push(format!("recording costs {percent:+.1} % over ondemand"));
    }
    if let Some(ms) = totals.exec_to_first_run_ms {
        lines.push(format!(
            "exec to first KVM_RUN, without the working set: {ms:.1} ms"
        ));
    }
    if let Some(kib) = totals.vmm_overhead_max_kib {
        lines.push(format!("VMM memory beyond the guest's: at most {kib} KiB"));
    }
    lines.join("\n")
}
