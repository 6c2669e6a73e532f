//! `reapvm-trace`: what `reapvm trace export`, `diff`, `report` and `symbols` run, and what makes the
//! report of `reapvm study`.
//!
//! A program of its own, so that a virtual machine does not carry the code for it in memory.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser};

use reapvm_analysis::command::quoted_word;
use reapvm_analysis::export::{Format, UnknownFormat};
use reapvm_analysis::study::{self, StudyOptions};
use reapvm_analysis::{Comparison, SymbolTable, TouchesBySymbol};
use reapvm_reap::error_chain;
use reapvm_reap::trace::TraceReader;
use reapvm_snapshot::files::replace_file;

type CommandResult = Result<ExitCode, Box<dyn Error>>;

/// Exports, compares and reports on traces of page faults.
#[derive(Parser)]
#[command(name = "reapvm trace", version, max_term_width = 100)]
enum Command {
    /// Write a trace in a format that other programs read
    Export(TraceExport),
    /// Compare the pages and the order of two traces
    Diff(TraceDiff),
    /// Write one HTML file with figures of a trace, and their numbers
    Report(TraceReport),
    /// Count touches by the guest's functions, where the trace has its instructions
    Symbols(TraceSymbols),
    /// Make the report of what `reapvm study` has measured
    #[command(hide = true)]
    Study(StudyReport),
}

#[derive(Args)]
struct StudyReport {
    /// The folder of the study
    dir: PathBuf,
    /// Figures of Linux guests
    #[arg(long, value_name = "FILE")]
    linux_figures: Option<PathBuf>,
    /// Symbols of the guest: an ELF file or a System.map
    #[arg(long, value_name = "FILE")]
    symbols: Option<PathBuf>,
    /// How far the guest's kernel was moved from where it was linked (KASLR), in hexadecimal
    #[arg(long, value_name = "HEX", default_value = "0", value_parser = hexadecimal)]
    moved_by: u64,
}

#[derive(Args)]
struct TraceExport {
    /// The trace
    file: PathBuf,
    /// What to write: csv, jsonl, parquet, or chrome (trace-event JSON, for Perfetto)
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    format: Format,
    /// The file to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn format(text: &str) -> Result<Format, String> {
    text.parse()
        .map_err(|error: UnknownFormat| error.to_string())
}

#[derive(Args)]
struct TraceDiff {
    /// A trace
    first: PathBuf,
    /// Another one
    second: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct TraceReport {
    /// The trace
    file: PathBuf,
    /// The HTML file to write; an older one there is replaced at once
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("symbols").required(true))]
struct TraceSymbols {
    /// The trace
    file: PathBuf,
    /// The kernel or the image with its symbols: an ELF file
    #[arg(long, value_name = "FILE", group = "symbols")]
    elf: Option<PathBuf>,
    /// The System.map of the guest's kernel
    #[arg(long, value_name = "FILE", group = "symbols")]
    system_map: Option<PathBuf>,
    /// How far the kernel was moved from where it was linked (KASLR), in hexadecimal
    #[arg(long, value_name = "HEX", default_value = "0", value_parser = hexadecimal)]
    moved_by: u64,
    /// Print no more functions than these
    #[arg(long, value_name = "N", default_value_t = 30)]
    limit: usize,
    /// Print all as JSON
    #[arg(long)]
    json: bool,
}

fn hexadecimal(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16)
        .map_err(|error| format!("not a hexadecimal number: {error}"))
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Export(arguments) => export(&arguments),
        Command::Diff(arguments) => diff(&arguments),
        Command::Report(arguments) => report(&arguments),
        Command::Symbols(arguments) => symbols(&arguments),
        Command::Study(arguments) => report_on_study(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {}", error_chain(error.as_ref()));
        ExitCode::FAILURE
    })
}

fn export(arguments: &TraceExport) -> CommandResult {
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

fn diff(arguments: &TraceDiff) -> CommandResult {
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

fn report(arguments: &TraceReport) -> CommandResult {
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

fn report_on_study(arguments: &StudyReport) -> CommandResult {
    let mut command = format!(
        "reapvm study --report-only --output {}",
        quoted(&arguments.dir)
    );
    for (option, file) in [
        ("--linux-figures", &arguments.linux_figures),
        ("--symbols", &arguments.symbols),
    ] {
        if let Some(file) = file {
            command.push_str(&format!(" {option} {}", quoted(file)));
        }
    }
    if arguments.moved_by > 0 {
        command.push_str(&format!(" --moved-by {:x}", arguments.moved_by));
    }
    let options = StudyOptions {
        linux_figures: arguments.linux_figures.as_deref(),
        symbols: arguments.symbols.as_deref(),
        moved_by: arguments.moved_by,
    };
    let outcome = study::write_report(&arguments.dir, &options, &command)?;
    for claim in &outcome.claims {
        println!("{claim}");
    }
    for missing in &outcome.missing {
        eprintln!("missing: {missing}");
    }
    if !outcome.missing.is_empty() {
        eprintln!("the study is not whole, and its report says so");
    }
    println!(
        "{}: {} bytes, needs no network; the data of its figures is beside it in data/",
        outcome.report.display(),
        outcome.report_bytes
    );
    Ok(ExitCode::SUCCESS)
}

fn symbols(arguments: &TraceSymbols) -> CommandResult {
    let named = |path: &Path, error: &dyn Error| format!("'{}': {error}", path.display());
    let table = match (&arguments.elf, &arguments.system_map) {
        (Some(path), _) => {
            let bytes = std::fs::read(path).map_err(|error| named(path, &error))?;
            SymbolTable::from_elf(&bytes).map_err(|error| named(path, &error))?
        }
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).map_err(|error| named(path, &error))?;
            SymbolTable::from_system_map(&text).map_err(|error| named(path, &error))?
        }
        (None, None) => return Err("give --elf or --system-map".into()),
    };
    let mut reader = TraceReader::open(&arguments.file, None)?;
    let found = TouchesBySymbol::of(&mut reader, &table, arguments.moved_by)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{:>10} {:>10} {:>12}  function",
        "touches", "pages", "service us"
    );
    for symbol in found.symbols.iter().take(arguments.limit) {
        println!(
            "{:>10} {:>10} {:>12.1}  {}",
            symbol.touches,
            symbol.pages,
            symbol.service_ns as f64 / 1e3,
            symbol.symbol
        );
    }
    let left_out = found.symbols.len().saturating_sub(arguments.limit);
    if left_out > 0 {
        println!("and {left_out} more functions");
    }
    println!(
        "{} touches by instructions in no function of the table",
        found.unknown
    );
    println!(
        "{} touches whose instruction the trace does not know",
        found.without_instruction
    );
    Ok(ExitCode::SUCCESS)
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    quoted_word(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Command::command().debug_assert();
    }
}
