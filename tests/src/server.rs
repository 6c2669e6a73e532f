//! `reapvm serve`, and clients of it.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::launcher::{self, Ended};

/// How long anything of this may take before it counts as hanging.
pub const LIMIT: Duration = Duration::from_secs(300);

/// Waits until `is_so`.
///
/// # Panics
/// If that takes longer than [`LIMIT`]: then with `what` was waited for.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(
            Instant::now() < deadline,
            "gave up after {} s: {what}",
            LIMIT.as_secs()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends `signal` to a process.
///
/// # Panics
/// If there is none.
pub fn signal(pid: u32, signal: i32) {
    assert!(try_signal(pid, signal), "there is no process {pid}");
}

/// Sends `signal` to a process; false if there is none.
pub fn try_signal(pid: u32, signal: i32) -> bool {
    // SAFETY: kill takes no memory of ours; the processes are those that the test has started.
    unsafe { libc::kill(pid as i32, signal) == 0 }
}

/// Whether the process is there and not a zombie.
pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}

/// A server.
pub struct Server {
    child: Option<Child>,
    /// Its process.
    pub pid: u32,
    /// Its socket.
    pub socket: PathBuf,
}

impl Server {
    /// Starts `reapvm serve --socket SOCKET ARGUMENTS` and waits until it listens.
    ///
    /// # Panics
    /// If it does not.
    pub fn start<S: Into<OsString>>(socket: &Path, arguments: impl IntoIterator<Item = S>) -> Self {
        let child = Self::spawn(socket, arguments);
        let mut server = Self {
            pid: child.id(),
            child: Some(child),
            socket: socket.to_owned(),
        };
        let deadline = Instant::now() + LIMIT;
        while UnixStream::connect(socket).is_err() {
            let child = server.child.as_mut().unwrap();
            if child.try_wait().unwrap().is_some() {
                panic!("{:?}", launcher::finish(server.child.take().unwrap()));
            }
            assert!(Instant::now() < deadline, "the server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// Starts it and does not wait.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn<S: Into<OsString>>(
        socket: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Child {
        let mut command = launcher::command(["serve", "--socket"]);
        command.arg(socket);
        for argument in arguments {
            command.arg(argument.into());
        }
        launcher::start(&mut command)
    }

    /// A new connection.
    ///
    /// # Panics
    /// If the server does not take it.
    pub fn client(&self) -> Client {
        Client::connect(&self.socket)
    }

    /// The answer to one request on a connection of its own.
    ///
    /// # Panics
    /// If there is none.
    pub fn ask(&self, request: &Value) -> Value {
        let mut client = self.client();
        client.send(request);
        client.receive()
    }

    /// What the server says of itself.
    ///
    /// # Panics
    /// If it says nothing.
    pub fn status(&self) -> Value {
        self.ask(&json!({"op": "status"}))["result"].clone()
    }

    /// Waits until so many machines are ready and none is being prepared or ended.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn wait_for_ready(&self, count: u64) {
        wait_until(&format!("{count} machines ready"), || {
            let workers = &self.status()["workers"];
            workers["ready"] == count && workers["preparing"] == 0 && workers["ending"] == 0
        });
    }

    /// The processes of its machines whose command line has `needle` in it.
    ///
    /// # Panics
    /// If the kernel does not say.
    pub fn workers(&self, needle: &str) -> Vec<u32> {
        let mut pids = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap() {
            // Children are listed with the thread that has made them.
            let children = task.unwrap().path().join("children");
            let children = std::fs::read_to_string(children).unwrap_or_default();
            pids.extend(
                children
                    .split_whitespace()
                    .map(|pid| pid.parse::<u32>().unwrap()),
            );
        }
        pids.retain(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.contains("serve-worker") && line.contains(needle))
        });
        pids
    }

    /// Its open descriptors.
    ///
    /// # Panics
    /// If the kernel does not say.
    pub fn descriptor_count(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid))
            .unwrap()
            .count()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end.
    pub fn finish(mut self) -> Ended {
        launcher::finish(self.child.take().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let _ = child.kill();
        let deadline = Instant::now() + LIMIT;
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                // Not a panic: this may be the unwinding of one.
                eprintln!(
                    "gave up after {} s: server {} was killed and has not ended",
                    LIMIT.as_secs(),
                    self.pid
                );
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A connection to a server.
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects to `socket`.
    ///
    /// # Panics
    /// If nobody listens there.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Self(BufReader::new(stream))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The server has closed the connection.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    /// Sends a request.
    ///
    /// # Panics
    /// If the server does not take it.
    pub fn send(&mut self, request: &Value) {
        self.send_bytes(format!("{request}\n").as_bytes()).unwrap();
    }

    /// Says that no more requests come.
    ///
    /// # Panics
    /// If the connection is gone.
    pub fn end_requests(&self) {
        self.0
            .get_ref()
            .shutdown(std::net::Shutdown::Write)
            .unwrap();
    }

    /// The next answer; none if the server has closed the connection.
    ///
    /// # Panics
    /// If it is no JSON, or none comes within [`LIMIT`].
    pub fn next_answer(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no answer within {} s: {error}", LIMIT.as_secs()),
        }
    }

    /// The next answer.
    ///
    /// # Panics
    /// If there is none.
    pub fn receive(&mut self) -> Value {
        self.next_answer()
            .expect("the server has closed the connection")
    }
}
