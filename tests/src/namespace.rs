//! The program in a mount namespace of its own, where a host can lack what it has.

use std::process::Command;

use crate::launcher::{self, Ended};

/// Runs the shell commands `script` with `arguments` in a mount namespace of its own. There,
/// `/mnt` is empty but for the program, `/mnt/reapvm`.
///
/// # Panics
/// If the test does not run as root, or the script does not end.
pub fn shell(script: &str, arguments: &[&str]) -> Ended {
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    assert!(root, "run this test as root: it makes a mount namespace");
    let script = format!(
        "set -e; mount -t tmpfs tmpfs /mnt; chmod 755 /mnt; cp \"$1\" /mnt/reapvm; shift; {script}"
    );
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .args([&script, "sh"])
        .arg(launcher::path())
        .args(arguments)
        .env_remove("REAPVM_LOG");
    launcher::finish(launcher::start(&mut command))
}

/// Runs the program in a mount namespace of its own, after the shell commands `prepare`, as user
/// `uid`, who may read what these put into `/mnt`.
///
/// # Panics
/// As [`shell`].
pub fn run(prepare: &str, uid: u32, arguments: &[&str]) -> Ended {
    let script = format!(
        "{prepare}; \
         exec setpriv --reuid {uid} --regid {uid} --clear-groups /mnt/reapvm \"$@\""
    );
    shell(&script, arguments)
}
