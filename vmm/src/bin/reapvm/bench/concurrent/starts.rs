//! Many cold starts at the same moment: by a process each, or by a server.

use std::error::Error;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reapvm::clock;
use reapvm::cold_start::{ColdStart, ColdStartReport, WorkingSetOptions};
use reapvm::config::Overrides;
use reapvm_reap::{InstallOptions, MemoryRestoreMode};
use serde_json::{Value, json};

use super::super::{TIMEOUT, worker};
use crate::cli::InstallArguments;
use crate::serve::protocol::{Invocation, InvocationResult};
use crate::serve::{Connection, invocation_request};

/// How long a server may take to come, to prepare its machines, and to go.
const SERVER_LIMIT: Duration = Duration::from_secs(120);

/// One of the starts.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub(super) dir: PathBuf,
    pub(super) input: Value,
    pub(super) expected: Value,
}

/// How it went.
#[derive(Clone, Debug)]
pub(super) struct Started {
    pub(super) report: ColdStartReport,
    /// From the common beginning to the whole response, in ms.
    pub(super) latency_ms: f64,
    /// From the common beginning to the working set's last page, in ms.
    pub(super) in_place_ms: f64,
    /// From the request to the first KVM_RUN, without the wait for the working set: of a server.
    pub(super) control_ms: Option<f64>,
}

/// When the last page of the working set was in place. A guest may be let go before that: then it is
/// the time that the installation took, from the earliest moment at which it can have begun.
fn in_place_ms(report: &ColdStartReport) -> f64 {
    let marks = &report.marks_ms;
    let installed = report
        .install_ms
        .as_ref()
        .map_or(0.0, |install| marks.process_start + install.total);
    marks.memory_ready.max(installed)
}

/// Checks that it was the function's answer, in the mode that was asked for.
fn check(
    start: &Start,
    mode: MemoryRestoreMode,
    report: &ColdStartReport,
) -> Result<(), Box<dyn Error>> {
    if report.mode != mode {
        return Err(format!("asked for memory mode {mode}, but {} ran", report.mode).into());
    }
    if report.response != start.expected {
        return Err(format!(
            "memory mode {mode} gave another response to {} than the uninterrupted machine:\n\
             {}\ninstead of\n{}",
            start.input, report.response, start.expected
        )
        .into());
    }
    Ok(())
}

/// Starts all at once, each as a process `reapvm invoke`.
pub(super) fn by_processes(
    starts: &[Start],
    mode: MemoryRestoreMode,
    install: InstallOptions,
) -> Result<Vec<Started>, Box<dyn Error>> {
    let overrides = Overrides::default();
    let begun_ns = clock::monotonic_ns();
    std::thread::scope(|scope| {
        let threads: Vec<_> = starts
            .iter()
            .map(|start| {
                let overrides = &overrides;
                scope.spawn(move || {
                    let cold_start = ColdStart {
                        dir: &start.dir,
                        mode,
                        set: WorkingSetOptions::default(),
                        install,
                        overrides,
                        input: &start.input,
                        timeout: TIMEOUT,
                        keep_recording: false,
                        trace: None,
                        count_resident: true,
                        started_ns: begun_ns,
                    };
                    // An error as text, which can leave the thread.
                    worker::invoke_at(&cold_start, &[], begun_ns)
                        .and_then(|report| check(start, mode, &report).map(|()| report))
                        .map_err(|error| crate::output::chain(error.as_ref()))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                let report = thread
                    .join()
                    .map_err(|_| "a thread that starts a process panicked")??;
                Ok(Started {
                    latency_ms: report.marks_ms.response,
                    in_place_ms: in_place_ms(&report),
                    control_ms: None,
                    report,
                })
            })
            .collect()
    })
}

/// A server of snapshots, for one memory mode.
pub(super) struct Server {
    child: Child,
    socket: PathBuf,
    _scratch: tempfile::TempDir,
    ready: u64,
}

impl Server {
    /// Starts `reapvm serve` with the snapshots in `dirs`, each with `ready` prepared machines.
    pub(super) fn start(
        dirs: &[PathBuf],
        ready: usize,
        max_reading: u32,
        mode: MemoryRestoreMode,
        install: &InstallArguments,
    ) -> Result<Self, Box<dyn Error>> {
        // Not beside the snapshots: the path of a socket is short.
        let scratch = tempfile::tempdir()?;
        let socket = scratch.path().join("socket");
        let machines = dirs.len() * ready;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["serve", "--memory", mode.as_str()])
            .args(["--install", install.method.as_str()])
            .args(install.pre_fault.then_some("--pre-fault"))
            .arg("--ready")
            .arg(ready.to_string())
            .arg("--max-running")
            .arg(machines.to_string())
            .arg("--max-reading")
            .arg(max_reading.to_string())
            .arg("--socket")
            .arg(&socket)
            .stdin(Stdio::null());
        for (index, dir) in dirs.iter().enumerate() {
            let mut argument = std::ffi::OsString::from(format!("{index}="));
            argument.push(dir);
            command.arg(argument);
        }
        let mut server = Self {
            child: command.spawn()?,
            socket,
            _scratch: scratch,
            ready: machines as u64,
        };
        let deadline = Instant::now() + SERVER_LIMIT;
        // Its file alone says nothing: a socket is there before anybody listens on it.
        while Connection::open(&server.socket).is_err() {
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("the server ended with {status}").into());
            }
            if Instant::now() > deadline {
                return Err("the server does not come".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Waits until all its machines are prepared and none of an earlier start is left.
    pub(super) fn wait_until_ready(&self) -> Result<(), Box<dyn Error>> {
        let mut connection = Connection::open(&self.socket)?;
        let deadline = Instant::now() + SERVER_LIMIT;
        loop {
            connection.send(&json!({"op": "status"}))?;
            let status = connection.receive()?.into_result()?;
            let status: Value = serde_json::from_str(status.get())?;
            let workers = &status["workers"];
            if workers["ready"] == self.ready && workers["ending"] == 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("the server does not prepare its machines: {status}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts all at once. The n-th is of the n-th snapshot, or of the only one.
    pub(super) fn invoke(
        &self,
        starts: &[Start],
        templates: usize,
        mode: MemoryRestoreMode,
    ) -> Result<Vec<Started>, Box<dyn Error>> {
        let mut connection = Connection::open(&self.socket)?;
        let requests = starts
            .iter()
            .enumerate()
            .map(|(index, start)| {
                let invocation = Invocation {
                    template: (index % templates).to_string(),
                    input: start.input.clone(),
                    mode: None,
                    install: None,
                    snapshot_id: None,
                    timeout_s: TIMEOUT.as_secs_f64(),
                    keep_recording: false,
                    count_resident: false,
                };
                Ok(invocation_request(index as u64, &invocation)?.to_string())
            })
            .collect::<Result<Vec<_>, Box<dyn Error>>>()?;
        let begun_ns = clock::monotonic_ns();
        connection.send_lines(&requests)?;
        let mut started: Vec<Option<Started>> = vec![None; starts.len()];
        for _ in starts {
            let answer = connection.receive()?;
            let latency_ms = (clock::monotonic_ns() - begun_ns) as f64 / 1e6;
            let index = answer
                .id
                .as_u64()
                .and_then(|id| usize::try_from(id).ok())
                .filter(|&index| index < starts.len())
                .ok_or("the server answers what was not asked")?;
            let result: InvocationResult = serde_json::from_str(answer.into_result()?.get())?;
            if !result.prepared {
                return Err("the server had not prepared a machine for each start".into());
            }
            let report: ColdStartReport = serde_json::from_str(result.report.get())?;
            check(&starts[index], mode, &report)?;
            started[index] = Some(Started {
                latency_ms,
                in_place_ms: in_place_ms(&report),
                control_ms: Some(result.control_ms),
                report,
            });
        }
        started
            .into_iter()
            .map(|started| started.ok_or_else(|| "the server has answered one start twice".into()))
            .collect()
    }

    /// Ends it.
    pub(super) fn stop(mut self) -> Result<(), Box<dyn Error>> {
        let mut connection = Connection::open(&self.socket)?;
        connection.send(&json!({"op": "shutdown"}))?;
        connection.receive()?.into_result()?;
        let deadline = Instant::now() + SERVER_LIMIT;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return Err("the server does not end".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Its machines end with it.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
