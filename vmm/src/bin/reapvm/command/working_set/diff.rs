//! `reapvm working-set diff`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use reapvm_reap::WorkingSet;
use reapvm_snapshot::PAGE_SIZE;
use serde::Serialize;

use super::{describe, file_of, mib, ms, needed, snapshot_of, table};
use crate::cli::WorkingSetDiff;
use crate::command::CommandResult;

#[derive(Serialize)]
struct Side {
    file: PathBuf,
    pages: u64,
    recordings: u16,
    /// How long the guest runs, by its own clock, until it needs the last page; none if that is not
    /// known.
    last_needed_ms: Option<f64>,
}

impl Side {
    fn of(set: &WorkingSet, path: &Path) -> Self {
        Self {
            file: file_of(path),
            pages: set.page_count(),
            recordings: set.recordings(),
            last_needed_ms: set.touch_curve().last().map(|point| ms(point.own_ns)),
        }
    }
}

/// Counts of pages.
#[derive(Serialize)]
struct Report {
    first: Side,
    second: Side,
    both: u64,
    only_first: u64,
    only_second: u64,
    jaccard: f64,
}

pub(super) fn run(arguments: &WorkingSetDiff) -> CommandResult {
    let snapshot = snapshot_of(&arguments.first, arguments.snapshot.as_deref())?;
    let first = describe(&arguments.first, &snapshot)?;
    let second = describe(&arguments.second, &snapshot)?;
    let difference = first.touch_counts().difference(&second.touch_counts());
    let report = Report {
        first: Side::of(&first, &arguments.first),
        second: Side::of(&second, &arguments.second),
        both: difference.both.len() as u64,
        only_first: difference.only_first.len() as u64,
        only_second: difference.only_second.len() as u64,
        jaccard: difference.jaccard(),
    };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(ExitCode::SUCCESS);
    }
    let side = |name: &str, side: &Side, set: &WorkingSet| {
        let file = side.file.display();
        println!("{name:<8}{file}: needed {}", needed(set.touch_curve()));
    };
    side("first", &report.first, &first);
    side("second", &report.second, &second);
    let share = |pages: u64, all: u64| match all {
        0 => "-".to_owned(),
        all => format!("{:.1} %", 100.0 * pages as f64 / all as f64),
    };
    let row = |name: &str, pages: u64| {
        [
            name.to_owned(),
            pages.to_string(),
            format!("{:.1}", mib(pages * PAGE_SIZE as u64)),
            share(pages, report.first.pages),
            share(pages, report.second.pages),
        ]
    };
    println!(
        "{}",
        table(
            ["pages", "count", "MiB", "of the first", "of the second"],
            [
                row("in the first", report.first.pages),
                row("in the second", report.second.pages),
                row("in both", report.both),
                row("only in the first", report.only_first),
                row("only in the second", report.only_second),
            ]
        )
    );
    println!("Jaccard index: {:.4}", report.jaccard);
    Ok(ExitCode::SUCCESS)
}
