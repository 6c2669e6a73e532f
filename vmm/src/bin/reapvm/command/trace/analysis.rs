//! `reapvm trace export|diff|report`.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use reapvm_analysis::Comparison;
use reapvm_reap::trace::TraceReader;
use reapvm_snapshot::files::replace_file;

use crate::cli::{TraceDiff, TraceExport, TraceReportArguments};
use crate::command::CommandResult;

pub(super) fn export(arguments: &TraceExport) -> CommandResult {
    let mut reader = TraceReader::open(&arguments.file, None)?;
    let format = arguments.format;
    let Some(out) = &arguments.out else {
        return match reapvm_analysis::export::export(&mut reader, format, io::stdout()) {
            // Who reads the output has enough of it: `| head`.
            Err(error) if error.is_closed_output() => Ok(ExitCode::SUCCESS),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(ExitCode::SUCCESS),
        };
    };
    // What is in a damaged trace before the damage must not be taken for all of it.
    let records = replace_file(out, |file| {
        reapvm_analysis::export::export(&mut reader, format, file).map_err(io::Error::other)
    })?;
    println!("{}: {records} records as {format}", out.display());
    Ok(ExitCode::SUCCESS)
}

pub(super) fn diff(arguments: &TraceDiff) -> CommandResult {
    let mut first = TraceReader::open(&arguments.first, None)?;
    let mut second = TraceReader::open(&arguments.second, None)?;
    let comparison = Comparison::of(&mut first, &mut second)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&comparison)?);
        return Ok(ExitCode::SUCCESS);
    }
    let Comparison {
        same_snapshot,
        pages,
        other_pages,
        common_pages,
        jaccard,
        order_correlation,
        touches,
        other_touches,
        service_p50_ns,
        other_service_p50_ns,
    } = comparison;
    if !same_snapshot {
        eprintln!("note: the traces are of different snapshots: a page is not the same in both");
    }
    let row = |name: &str, first: String, second: String| {
        println!("{name:<22}{first:>12}{second:>12}");
    };
    row("", "first".into(), "second".into());
    row("faults", touches.to_string(), other_touches.to_string());
    row("pages", pages.to_string(), other_pages.to_string());
    row(
        "only here",
        (pages - common_pages).to_string(),
        (other_pages - common_pages).to_string(),
    );
    let us = |ns: u64| format!("{:.1}", ns as f64 / 1e3);
    row(
        "median service (us)",
        us(service_p50_ns),
        us(other_service_p50_ns),
    );
    println!(
        "{:<22}{common_pages:>12} pages, {:.1} % of those of either",
        "common",
        jaccard * 100.0
    );
    match order_correlation {
        Some(rho) => println!("{:<22}{rho:>12.3} (1: the same, -1: reversed)", "order"),
        None => println!("{:<22}{:>12}", "order", "-"),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn report(arguments: &TraceReportArguments) -> CommandResult {
    let mut reader = TraceReader::open(&arguments.file, None)?;
    let command = format!(
        "reapvm trace report {} -o {}",
        quoted(&arguments.file),
        quoted(&arguments.out)
    );
    let page = reapvm_analysis::report::report(&mut reader, &command)?;
    replace_file(&arguments.out, |file| file.write_all(page.as_bytes()))?;
    println!("{}: {} bytes", arguments.out.display(), page.len());
    Ok(ExitCode::SUCCESS)
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_for_a_shell() {
        assert_eq!(quoted(Path::new("/tmp/a-b_1.trace")), "/tmp/a-b_1.trace");
        assert_eq!(quoted(Path::new("a b")), "'a b'");
        assert_eq!(quoted(Path::new("it's")), "'it'\\''s'");
    }
}
