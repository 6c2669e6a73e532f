//! `reapvm trace info`.

use std::process::ExitCode;

use reapvm_reap::trace::TraceReader;

use crate::cli::TraceInfo;
use crate::command::CommandResult;

pub(super) fn run(arguments: &TraceInfo) -> CommandResult {
    let mut reader = TraceReader::open(&arguments.file, None)?;
    let mut first_touches = 0_u64;
    let mut by_outcome = [0_u64; 4];
    while let Some(record) = reader.next_record()? {
        first_touches += u64::from(record.is_first_touch);
        by_outcome[record.outcome as usize] += 1;
    }
    if arguments.json {
        let value = serde_json::json!({
            "version": reapvm_reap::trace::VERSION,
            "header": reader.header(),
            "summary": reader.summary(),
            "first_touches": first_touches,
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(ExitCode::SUCCESS);
    }
    let header = reader.header();
    let summary = reader.summary();
    let row = |name: &str, value: String| println!("{name:<18}{value}");
    let none = || "(not said)".to_owned();
    row("trace of", header.function.clone().unwrap_or_else(none));
    row("input", header.input.clone().unwrap_or_else(none));
    row("memory mode", header.mode.to_string());
    row("source", header.source.as_str().to_owned());
    row("snapshot", header.snapshot.to_string());
    row("made by", header.creator.clone());
    row(
        "records",
        match summary.dropped {
            0 => format!("{}, none dropped", summary.records),
            dropped => format!("{}, and {dropped} that did not fit", summary.records),
        },
    );
    row("first touches", first_touches.to_string());
    let [miss, zero, hit, unknown] = by_outcome;
    row(
        "outcomes",
        format!(
            "{miss} read from the snapshot, {zero} zero, {hit} already there, {unknown} not known"
        ),
    );
    for (number, thread) in summary.threads.iter().enumerate() {
        let name = if number == 0 { "threads" } else { "" };
        row(name, thread.label());
    }
    for (number, limit) in header.limits.iter().enumerate() {
        let name = if number == 0 { "cannot see" } else { "" };
        row(name, limit.describe().to_owned());
    }
    for note in &summary.notes {
        row("note", note.clone());
    }
    Ok(ExitCode::SUCCESS)
}
