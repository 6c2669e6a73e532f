//! The `reapvm` program, run as a user would run it.

use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::scratch;

/// How long one run of the program may take.
const LIMIT: Duration = Duration::from_secs(600);

/// The program, built once with the profile and in the target directory of the tests themselves.
/// `REAPVM_BINARY` names another one, where there is no cargo.
///
/// # Panics
/// If it cannot be built.
pub fn path() -> &'static PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| std::env::var_os("REAPVM_BINARY").map_or_else(build, PathBuf::from))
}

fn build() -> PathBuf {
    let profile_dir = scratch::profile_dir();
    let profile = match profile_dir.file_name().and_then(OsStr::to_str).unwrap() {
        "debug" => "dev",
        other => other,
    };
    // Not the compile-time path: a toolchain may be elsewhere when the tests run.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args(["build", "--package", "reapvm", "--bin", "reapvm"])
        // What it runs itself.
        .args(["--package", "reapvm-analysis", "--bin", "reapvm-trace"])
        .args(["--message-format", "json", "--profile", profile])
        .arg("--target-dir")
        .arg(profile_dir.parent().unwrap())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "building reapvm failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "reapvm")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the program that it has built")
}

/// How a program ended and what it said.
pub struct Ended {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "exit code {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.code, self.stdout, self.stderr
        )
    }
}

impl Ended {
    /// Checks that the program succeeded; returns its standard output.
    ///
    /// # Panics
    /// If it failed.
    pub fn success(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// Checks that the program failed as it should: an exit code of 1, or of 2 for a wrong command
    /// line, a message that begins with `error:` and holds each of `needles`, and no panic.
    ///
    /// # Panics
    /// If it did not.
    pub fn failure(&self, needles: &[&str]) {
        assert!(matches!(self.code, Some(1 | 2)), "{self:?}");
        assert!(
            self.stderr.lines().any(|line| line.starts_with("error:")),
            "{self:?}"
        );
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        for needle in needles {
            assert!(self.stderr.contains(needle), "no '{needle}' in: {self:?}");
        }
    }

    /// The standard output as JSON.
    ///
    /// # Panics
    /// If the program failed or its output is no JSON.
    pub fn json(self) -> Value {
        serde_json::from_str(&self.success()).unwrap()
    }
}

/// A command that runs the program with `arguments`.
pub fn command<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(path());
    command.args(arguments).env_remove("REAPVM_LOG");
    command
}

/// Lets `command` write no file beyond `bytes`: EFBIG, without the signal that would end it.
pub fn limit_file_size(command: &mut Command, bytes: u64) {
    let limit = move || {
        let limit = libc::rlimit {
            rlim_cur: bytes,
            rlim_max: bytes,
        };
        // SAFETY: `signal` with SIG_IGN takes no pointer, `setrlimit` reads one `rlimit`, which is
        // borrowed for the call.
        let done = unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN) != libc::SIG_ERR
                && libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) == 0
        };
        if done {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: between fork and exec it makes two system calls and nothing else: it neither allocates
    // nor takes a lock.
    unsafe { command.pre_exec(limit) };
}

/// Runs the program with `arguments` to its end.
///
/// # Panics
/// If it cannot be started or does not end.
pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ended {
    finish(start(&mut command(arguments)))
}

/// Starts `command` with no input and its output taken.
///
/// # Panics
/// If it cannot be started.
pub fn start(command: &mut Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until `child`, made by [`start`], has ended.
///
/// # Panics
/// If it does not end; it is then killed.
pub fn finish(mut child: Child) -> Ended {
    fn drain(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
    let stdout = drain(child.stdout.take().unwrap());
    let stderr = drain(child.stderr.take().unwrap());
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        thread::sleep(Duration::from_millis(2));
    };
    let ended = Ended {
        code: status.and_then(|status| status.code()),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    };
    assert!(status.is_some(), "reapvm did not end: {ended:?}");
    ended
}
