//! The programs of the integration tests, with kvm_amd in the place of what they are usually run on.

use std::path::Path;
use std::process::Command;

use crate::nested::{CORPUS_FOLDER, INTEGRATION_FOLDER, JOB_FOLDER, SCRATCH_FOLDER};

/// Tests that set up a mount namespace, by programs that the nested host has not; those of hosts.rs
/// all do.
const SKIPPED: [&str; 2] = ["without_dev_kvm", "without_userfaultfd"];

/// Runs the program `name`, whose output goes to the console.
pub(super) fn run(name: &str) {
    let folder = Path::new(JOB_FOLDER).join(INTEGRATION_FOLDER);
    let mut command = Command::new(folder.join(name));
    command
        .env("REAPVM_BINARY", Path::new(JOB_FOLDER).join("reapvm"))
        .env("REAPVM_TEST_DIR", Path::new(SCRATCH_FOLDER).join("tests"))
        .env("REAPVM_TEST_CORPUS", folder.join(CORPUS_FOLDER))
        // Two machines at once on the one processor would only wait for each other.
        .arg("--test-threads=1");
    for name in SKIPPED {
        command.args(["--skip", name]);
    }
    let status = command.status().unwrap();
    assert!(status.success(), "{name} ended with {status}");
}
