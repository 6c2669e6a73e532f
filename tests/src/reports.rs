//! What `reapvm invoke` reports, as tests read it.

use std::path::Path;

use serde_json::Value;

use crate::launcher;

/// One start of the snapshot in `dir` by the program, with further `arguments`; its report.
///
/// # Panics
/// If it fails.
pub fn invoke(dir: &Path, input: &Value, arguments: &[&str]) -> Value {
    let mut command = launcher::command(["invoke", "--json"]);
    command
        .arg(dir)
        .args(["--input", &input.to_string()])
        .args(arguments);
    launcher::finish(launcher::start(&mut command)).json()
}

/// A number of a report.
///
/// # Panics
/// If it is none.
pub fn count(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("no number: {value}"))
}
