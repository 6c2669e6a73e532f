//! `reapvm trace record`.

use std::process::ExitCode;

use reapvm::clock;
use reapvm::cold_start::{ColdStart, WorkingSetOptions};
use reapvm::observe::TraceOptions;
use reapvm_reap::page_cache;

use crate::bench::worker;
use crate::cli::TraceRecordArguments;
use crate::command::CommandResult;
use crate::command::invoke::trace_line;

pub(super) fn run(arguments: &TraceRecordArguments) -> CommandResult {
    let overrides = arguments.overrides.overrides()?;
    let trace = TraceOptions {
        path: arguments.out.clone(),
        max_records: arguments.records,
        function: arguments.function.clone(),
        source: arguments.source,
    };
    let start = ColdStart {
        dir: &arguments.dir,
        mode: arguments.mode,
        set: WorkingSetOptions::default(),
        install: arguments.install.options(&arguments.dir)?,
        overrides: &overrides,
        input: &arguments.input,
        timeout: arguments.timeout,
        keep_recording: false,
        count_resident: true,
        trace: Some(&trace),
        started_ns: clock::monotonic_ns(),
    };
    if !arguments.warm_page_cache {
        page_cache::evict_directory(&arguments.dir)?;
    }
    // In a process of its own, as every cold start.
    let report = worker::invoke(&start, &arguments.overrides.to_arguments())?;
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(ExitCode::SUCCESS);
    }
    let trace = report.trace.as_ref().map(trace_line).unwrap_or_default();
    println!("{}: {trace}", arguments.out.display());
    Ok(ExitCode::SUCCESS)
}
