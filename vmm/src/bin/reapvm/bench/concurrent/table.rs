//! The table of many starts at once.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::super::fio::Bandwidth;
use super::{Cell, Kind};

const HEADER: [&str; 12] = [
    "snapshots",
    "at once",
    "mode",
    "by",
    "mean ms",
    "p50 ms",
    "p99 ms",
    "bound ms",
    "working sets MiB",
    "MiB/s",
    "of the disk",
    "control ms",
];
/// The columns that are text.
const TEXT_COLUMNS: [usize; 3] = [0, 2, 3];

/// The table and what belongs under it; Markdown, so that it can be pasted.
pub(super) fn render(cells: &[Cell], bandwidth: &Bandwidth) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(HEADER);
    for index in (0..HEADER.len()).filter(|index| !TEXT_COLUMNS.contains(index)) {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let number = |value: Option<f64>, digits: usize| {
        value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
    };
    for cell in cells {
        let kind = match cell.kind {
            Kind::Distinct => "distinct",
            Kind::Clones => "clones of one",
        };
        table.add_row([
            kind.to_owned(),
            cell.count.to_string(),
            cell.mode.to_string(),
            cell.start_by.to_owned(),
            number(Some(cell.mean_ms), 1),
            number(Some(cell.latency_ms.p50), 1),
            number(Some(cell.latency_ms.p99), 1),
            number(cell.bound_ms, 1),
            number(Some(cell.working_set_bytes as f64 / f64::from(1 << 20)), 1),
            number(cell.mib_s, 0),
            cell.of_disk_pct
                .map_or("-".to_owned(), |percent| format!("{percent:.0} %")),
            number(cell.control_ms, 2),
        ]);
    }
    format!(
        "{table}\n\n\
         Times from the common beginning of all starts to each response. bound = bytes of all \
         working sets / disk: the last start cannot be faster.\n\
         Disk: {:.0} MiB/s ({}).\n\
         control = request to first KVM_RUN without the wait for the working set (serve), median.",
        bandwidth.mib_s, bandwidth.what
    )
}
