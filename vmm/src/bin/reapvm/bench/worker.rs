//! One cold start in a process of its own, as a launcher would start it.

use std::error::Error;
use std::ffi::OsString;
use std::process::{Command, Stdio};

use reapvm::clock;
use reapvm::cold_start::{ColdStart, ColdStartReport, WorkingSetPolicy};

use crate::cli::working_set_arguments;

/// Starts `reapvm invoke` and returns what it reports. The clock starts right before the new
/// process is made, whatever `start` says, so that making it and its exec are counted. Overrides are
/// given as `more_arguments`.
pub(crate) fn invoke(
    start: &ColdStart<'_>,
    more_arguments: &[OsString],
) -> Result<ColdStartReport, Box<dyn Error>> {
    invoke_from(start, more_arguments, clock::monotonic_ns)
}

/// As [`invoke`], but the clock has started at `begun_ns`, as it did for others.
pub(crate) fn invoke_at(
    start: &ColdStart<'_>,
    more_arguments: &[OsString],
    begun_ns: u64,
) -> Result<ColdStartReport, Box<dyn Error>> {
    invoke_from(start, more_arguments, || begun_ns)
}

fn invoke_from(
    start: &ColdStart<'_>,
    more_arguments: &[OsString],
    clock_starts: impl FnOnce() -> u64,
) -> Result<ColdStartReport, Box<dyn Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("invoke")
        .arg(start.dir)
        .args(working_set_arguments(&start.set))
        .args(crate::cli::install_arguments(&start.install))
        .args(more_arguments)
        .args(["--json", "--input", &start.input.to_string()])
        .args(["--timeout", &start.timeout.as_secs_f64().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(trace) = start.trace {
        command.arg("--trace").arg(&trace.path);
        command.args(["--trace-records", &trace.max_records.to_string()]);
        command.args(["--trace-source", trace.source.as_str()]);
        if let Some(label) = &trace.function {
            command.args(["--trace-function", label]);
        }
    }
    if start.set.policy == WorkingSetPolicy::Fixed {
        command.args(["--memory", start.mode.as_str()]);
    }
    if !start.keep_recording {
        command.arg("--discard-recording");
    }
    command.arg(format!("--started-at-ns={}", clock_starts()));
    let output = command.spawn()?.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let said = errors.trim().trim_start_matches("error: ");
        return Err(if said.is_empty() {
            format!("the launcher ended with {}", output.status).into()
        } else {
            said.into()
        });
    }
    eprint!("{errors}");
    Ok(serde_json::from_slice(&output.stdout)?)
}
