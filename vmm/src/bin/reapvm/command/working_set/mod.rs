//! `reapvm working-set`: one file a subcommand.

mod diff;
mod merge;
mod show;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use reapvm_reap::{CurvePoint, WorkingSet, WorkingSetError};
use reapvm_snapshot::{PAGE_SIZE, Snapshot, WORKING_SET_FILE};

use super::CommandResult;
use crate::cli::WorkingSetCommand;

pub(super) fn run(command: WorkingSetCommand) -> CommandResult {
    match command {
        WorkingSetCommand::Merge(arguments) => merge::run(&arguments),
        WorkingSetCommand::Diff(arguments) => diff::run(&arguments),
        WorkingSetCommand::Show(arguments) => show::run(&arguments),
    }
}

/// The file that an argument means: a snapshot directory stands for the set in it.
fn file_of(set: &Path) -> PathBuf {
    if set.is_dir() {
        set.join(WORKING_SET_FILE)
    } else {
        set.to_owned()
    }
}

/// The snapshot that the set `first` belongs to: the one that is named, or the one that it lies in.
fn snapshot_of(first: &Path, named: Option<&Path>) -> Result<Arc<Snapshot>, Box<dyn Error>> {
    if let Some(dir) = named {
        return Ok(Arc::new(Snapshot::open(dir)?));
    }
    let file = file_of(first);
    let dir = match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    Snapshot::open(dir).map(Arc::new).map_err(|error| {
        format!(
            "{} does not lie in the snapshot that it belongs to ({error}): name that with \
             --snapshot",
            file.display()
        )
        .into()
    })
}

/// Reads what the set consists of. Its pages are the snapshot's and are not looked at.
fn describe(set: &Path, snapshot: &Snapshot) -> Result<WorkingSet, WorkingSetError> {
    let memory_bytes = snapshot.manifest().memory.page_count() * PAGE_SIZE as u64;
    WorkingSet::describe(&file_of(set), &snapshot.id(), memory_bytes)
}

/// When the guest needs the pages of a set, in words.
fn needed(curve: &[CurvePoint]) -> String {
    match (curve.first(), curve.last()) {
        (Some(first), Some(last)) => format!(
            "from {:.1} to {:.1} ms of the guest's own time",
            ms(first.own_ns),
            ms(last.own_ns)
        ),
        _ => "not known when".to_owned(),
    }
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A Markdown table whose numbers, all columns but the first, stand on the right.
fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in 1..N {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}
