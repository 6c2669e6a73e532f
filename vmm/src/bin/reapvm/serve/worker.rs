//! The process of one machine: it prepares the machine, waits for a request, serves it, ends.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use reapvm::clock;
use reapvm::cold_start::{self, ColdStart, WorkingSetOptions};
use reapvm::config::Overrides;
use reapvm::machine::{PrepareOptions, PreparedMachine};
use reapvm_reap::{InstallMethod, InstallOptions, MemoryRestoreMode};
use reapvm_snapshot::Snapshot;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::protocol::MAX_REQUEST_BYTES;
use crate::bus_error;
use crate::cli::ServeWorker;
use crate::command::CommandResult;
use crate::output;

/// What the server tells a worker, once.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) mode: MemoryRestoreMode,
    pub(super) install: InstallMethod,
    pub(super) pre_fault: bool,
    pub(super) set: WorkingSetOptions,
    pub(super) input: Value,
    pub(super) timeout_s: f64,
    pub(super) keep_recording: bool,
    pub(super) count_resident: bool,
    /// When the request arrived, on the monotonic clock.
    pub(super) received_ns: u64,
}

/// What a worker tells the server.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Message {
    /// The machine is prepared.
    Ready { snapshot_id: String },
    /// Its memory is in place: it reads no more than what it misses.
    MemoryReady,
    /// It has answered.
    Answer {
        control_ms: f64,
        report: Box<RawValue>,
    },
    /// It could not be prepared or started, or its function failed.
    Failed { message: String },
}

pub(crate) fn run(arguments: &ServeWorker, process_start_ns: u64) -> CommandResult {
    let socket = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map(UnixStream::from)?;
    socket.local_addr().map_err(|error| {
        format!("this is a part of `reapvm serve`, which gives it a socket: {error}")
    })?;
    let code = match work(arguments, &socket, process_start_ns) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = output::chain(error.as_ref());
            // If the server has gone there is nobody to tell.
            let _ = send(&socket, &Message::Failed { message });
            ExitCode::FAILURE
        }
    };
    Ok(code)
}

fn send(mut socket: &UnixStream, message: &Message) -> Result<(), Box<dyn Error>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(socket.write_all(&line)?)
}

fn work(
    arguments: &ServeWorker,
    socket: &UnixStream,
    process_start_ns: u64,
) -> Result<(), Box<dyn Error>> {
    let snapshot = Arc::new(Snapshot::open(&arguments.dir)?);
    bus_error::explain_for(arguments.memory)?;
    let prepared = PreparedMachine::new(&snapshot, PrepareOptions::new(arguments.memory))?;
    let snapshot_id = snapshot.id().to_string();
    send(socket, &Message::Ready { snapshot_id })?;

    let mut line = Vec::new();
    // An order is a request with a few more fields, and JSON may have become longer by escapes.
    let limit = 8 * MAX_REQUEST_BYTES as u64;
    BufReader::new(socket.take(limit)).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        // The server has no use for this machine any more.
        return Ok(());
    }
    let order: Order = serde_json::from_slice(&line)?;
    end_with_the_server(socket)?;
    let start = ColdStart {
        dir: &arguments.dir,
        mode: order.mode,
        set: order.set,
        install: InstallOptions {
            pre_fault: order.pre_fault,
            ..InstallOptions::new(order.install)
        },
        overrides: &Overrides::default(),
        input: &order.input,
        timeout: Duration::try_from_secs_f64(order.timeout_s)?,
        keep_recording: order.keep_recording,
        count_resident: order.count_resident,
        trace: None,
        started_ns: order.received_ns,
    };
    // Of a process that was started for a request that had come before, the beginning is a part
    // of the start; otherwise the mark is where the order was read.
    let begun_ns = if process_start_ns > order.received_ns {
        process_start_ns
    } else {
        clock::monotonic_ns()
    };
    let invoked = cold_start::run_prepared(prepared, &start, begun_ns, || {
        // A server that has gone ends this process in another way.
        let _ = send(socket, &Message::MemoryReady);
    })?;
    // Before the machine is taken apart.
    send(
        socket,
        &Message::Answer {
            control_ms: invoked.report.control_ms(),
            report: to_raw_value(&invoked.report)?,
        },
    )?;
    Ok(())
}

/// Ends the process, whatever its machine does, when the server's end of the socket is closed.
fn end_with_the_server(socket: &UnixStream) -> Result<(), Box<dyn Error>> {
    let mut socket = socket.try_clone()?;
    std::thread::Builder::new()
        .name("server-watch".to_owned())
        .stack_size(128 << 10)
        .spawn(move || {
            // No second order comes.
            let _ = socket.read(&mut [0]);
            std::process::exit(1);
        })?;
    Ok(())
}
