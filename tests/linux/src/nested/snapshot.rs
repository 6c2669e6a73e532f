//! Snapshots of guests.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use reapvm_guest_init::protocol::{PORT, Request};
use serde_json::Value;

use super::vm::{CMDLINE, Image, initrd, kernel, scratch};
use super::{PATIENCE, reapvm};

/// The restore modes, in an order in which each can run: what `prefetch` needs, `record` makes.
pub const MODES: [&str; 5] = ["copy", "file", "ondemand", "record", "prefetch"];

/// Boots a guest with a vsock device and `more` arguments, asks it `warm_up` and saves it.
///
/// # Panics
/// If that fails, or the snapshot does not pass its verification.
pub fn create(series: &str, more: &[&str], warm_up: &Request) -> PathBuf {
    let folder = scratch("snapshot");
    let port = format!("vsock:{PORT}");
    let warm_up = serde_json::to_string(warm_up).unwrap();
    let mut arguments: Vec<OsString> = ["snapshot", "create", "--kernel"].map(Into::into).into();
    arguments.push(kernel(series, Image::Vmlinux).into());
    arguments.extend(["--initrd".into(), initrd(series).into()]);
    let timeout = PATIENCE.as_secs().to_string();
    let texts = [
        "--timeout",
        &timeout,
        "--cmdline",
        CMDLINE,
        "--wait-for",
        &port,
        "--warm-up",
        &warm_up,
    ];
    arguments.extend(texts.map(Into::into));
    arguments.extend(["--vsock-cid", "3"].map(Into::into));
    arguments.extend(more.iter().map(Into::into));
    arguments.extend(["--output".into(), folder.clone().into()]);
    reapvm::run(arguments).success();
    reapvm::run([
        "snapshot".into(),
        "verify".into(),
        folder.clone().into_os_string(),
    ])
    .success();
    folder
}

/// Restores a snapshot, asks `request` and returns reapvm's whole report.
///
/// # Panics
/// If that fails, or another mode ran.
pub fn invoke(snapshot: &Path, mode: &str, request: &Request) -> Value {
    let report = reapvm::finish(&mut invocation(snapshot, mode, request)).json();
    assert_eq!(report["mode"], mode, "{report}");
    report
}

/// The command that [`invoke`] runs.
pub fn invocation(snapshot: &Path, mode: &str, request: &Request) -> Command {
    let request = serde_json::to_string(request).unwrap();
    let mut command = reapvm::command();
    command.arg("invoke").arg(snapshot);
    let timeout = PATIENCE.as_secs().to_string();
    let texts = [
        "--memory",
        mode,
        "--input",
        &request,
        "--json",
        "--timeout",
        &timeout,
    ];
    command.args(texts);
    command
}
