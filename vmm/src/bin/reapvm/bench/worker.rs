//! One cold start in a process of its own, as a launcher would start it.

use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use reapvm::clock;
use reapvm::cold_start::ColdStartReport;
use reapvm_reap::MemoryRestoreMode;
use serde_json::Value;

/// Starts `reapvm invoke` and returns what it reports. The clock starts right before the new
/// process is made, so that making it and its exec are counted.
pub(crate) fn invoke(
    dir: &Path,
    mode: MemoryRestoreMode,
    input: &Value,
    timeout: Duration,
    keep_recording: bool,
) -> Result<ColdStartReport, Box<dyn Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("invoke")
        .arg(dir)
        .args(["--memory", mode.as_str(), "--json", "--input"])
        .arg(input.to_string())
        .args(["--timeout", &timeout.as_secs_f64().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if !keep_recording {
        command.arg("--discard-recording");
    }
    command.arg(format!("--started-at-ns={}", clock::monotonic_ns()));
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
