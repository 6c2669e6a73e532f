//! `reapvm working-set show`.

use std::path::PathBuf;
use std::process::ExitCode;

use reapvm_reap::{Bar, SetLayout};
use reapvm_snapshot::SnapshotId;
use serde::Serialize;

use super::{describe, file_of, mib, ms, needed, snapshot_of, table};
use crate::cli::WorkingSetShow;
use crate::command::CommandResult;

#[derive(Serialize)]
struct Report {
    file: PathBuf,
    snapshot_id: SnapshotId,
    #[serde(flatten)]
    layout: SetLayout,
}

pub(super) fn run(arguments: &WorkingSetShow) -> CommandResult {
    let snapshot = snapshot_of(&arguments.set, arguments.snapshot.as_deref())?;
    let set = describe(&arguments.set, &snapshot)?;
    let report = Report {
        file: file_of(&arguments.set),
        snapshot_id: set.snapshot_id(),
        layout: SetLayout::of(&set),
    };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(ExitCode::SUCCESS);
    }
    let layout = &report.layout;
    let blocks = &layout.blocks_2mib;
    let row = |name: &str, value: String| println!("{name:<16}{value}");
    row("file", report.file.display().to_string());
    row("snapshot", report.snapshot_id.to_string());
    row("recordings", layout.recordings.to_string());
    row(
        "pages",
        format!(
            "{}: {:.1} MiB, {} of them zero, the file {:.1} MiB",
            layout.pages,
            mib(layout.bytes),
            layout.zero_pages,
            mib(layout.file_bytes)
        ),
    );
    row(
        "runs",
        format!(
            "{}, {:.1} pages each on average",
            layout.extents, layout.mean_run_pages
        ),
    );
    row(
        "2 MiB blocks",
        format!(
            "{} have a page of the set, which covers {:.1} % of them; {} by half or more, {} by \
             nine tenths or more",
            blocks.blocks, blocks.covered_pct, blocks.half_covered, blocks.nearly_covered
        ),
    );
    row("needed", needed(&layout.touch_curve));
    let share = |pages: u64| match layout.pages {
        0 => "-".to_owned(),
        all => format!("{:.1} %", 100.0 * pages as f64 / all as f64),
    };
    let bars = |bars: &[Bar], unit: &str| {
        bars.iter()
            .map(|bar| {
                [
                    match bar.to == bar.from {
                        true => format!("{}{unit}", bar.from),
                        false => format!("{} to {}{unit}", bar.from, bar.to),
                    },
                    bar.count.to_string(),
                    bar.pages.to_string(),
                    share(bar.pages),
                ]
            })
            .collect::<Vec<_>>()
    };
    println!(
        "\n{}",
        table(
            ["pages of a run", "runs", "pages", "of the set"],
            bars(&layout.run_pages, "")
        )
    );
    println!(
        "\n{}",
        table(
            ["covered of a block", "blocks", "pages", "of the set"],
            bars(&blocks.density_pct, " %")
        )
    );
    println!(
        "\n{}",
        table(
            ["touched by recordings", "pages", "of the set"],
            layout.touched_by.iter().map(|touched| [
                format!("{} of {}", touched.recordings, layout.recordings),
                touched.pages.to_string(),
                share(touched.pages),
            ])
        )
    );
    if !layout.touch_curve.is_empty() {
        println!(
            "\n{}",
            table(
                ["from page", "needed after ms"],
                layout
                    .touch_curve
                    .iter()
                    .map(|point| [point.page.to_string(), format!("{:.3}", ms(point.own_ns))])
            )
        );
    }
    Ok(ExitCode::SUCCESS)
}
