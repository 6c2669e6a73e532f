//! The program `reapvm`, run to its end.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::console::Console;
use super::{JOB_FOLDER, PATIENCE, say, threads};

/// How long one run may take: it may boot a guest and ask it.
const LIMIT: Duration = PATIENCE.saturating_mul(2);

/// When it is said what a run that still goes on is doing: before anything that it waits for itself
/// has taken too long.
const SLOW: Duration = Duration::from_secs(PATIENCE.as_secs() * 3 / 4);

/// A command that runs reapvm.
pub fn command() -> Command {
    let mut command = Command::new(Path::new(JOB_FOLDER).join("reapvm"));
    command.stdin(Stdio::null());
    command
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; none if a signal or the time limit ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs reapvm with `arguments` to its end.
pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ended {
    finish(command().args(arguments))
}

/// Runs `command`, a reapvm, to its end.
pub fn finish(command: &mut Command) -> Ended {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (stdout, stderr) = (Console::default(), Console::default());
    stdout.follow(child.stdout.take().unwrap());
    stderr.follow(child.stderr.take().unwrap());
    // Waits for the end of both: nothing is found in them before.
    let start = Instant::now();
    let mut slow = false;
    while child.try_wait().unwrap().is_none() && start.elapsed() < LIMIT {
        if !slow && start.elapsed() > SLOW {
            slow = true;
            for line in threads::describe(child.id()) {
                say(&format!("slow | {line}"));
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let status = child.wait().unwrap();
    for console in [&stdout, &stderr] {
        console.wait(Duration::from_secs(5), |_| false);
    }
    Ended {
        code: status.code(),
        stdout: stdout.text(),
        stderr: stderr.text(),
    }
}

impl Ended {
    /// Standard output of a run that succeeded.
    ///
    /// # Panics
    /// If it did not.
    pub fn success(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.stdout
    }

    /// The JSON on standard output.
    ///
    /// # Panics
    /// If the run failed or there is none.
    pub fn json(self) -> Value {
        let stdout = self.success();
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error} in: {stdout}"))
    }
}
