//! `reapvm serve`: starts machines on request, from snapshots that it keeps ready.
//!
//! Each machine is a process of its own, made and prepared before the request comes and ended after
//! its answer. That costs the start one message over a socket, some ten microseconds, and buys what
//! threads cannot give: a machine that crashes, is killed for its memory or hangs takes no other
//! with it, and all that it held, KVM's objects included, goes back when it ends. KVM binds a
//! virtual machine to the process that made it, so what is prepared is prepared in the process
//! that will run it.
//!
//! The server itself is one thread that never blocks on a client, a machine or a disk longer than
//! it takes to look at a manifest. It has no KVM and no guest memory.

mod answers;
mod client;
mod lines;
mod machine;
mod processes;
pub(crate) mod protocol;
mod request;
mod schedule;
mod server;
mod socket;
mod template;
mod worker;

use std::collections::BTreeMap;
use std::process::ExitCode;

use reapvm::cold_start::WorkingSetPolicy;
use reapvm::machine::{BuildError, can_pre_fault};
use reapvm_reap::MemoryRestoreMode;

pub(crate) use request::{Connection, invocation_request, run as request};
pub(crate) use worker::run as run_worker;

use crate::cli::Serve;
use crate::command::CommandResult;
use crate::terminal::watch_termination;
use processes::{ProcessEvent, Processes};
use server::Server;
use socket::ServerSocket;
use template::Template;

pub(crate) fn run(arguments: Serve) -> CommandResult {
    let policy = arguments.working_set.working_set_policy;
    if policy != WorkingSetPolicy::Fixed && arguments.memory != MemoryRestoreMode::Prefetch {
        return Err(format!(
            "the working-set policy {policy} decides by itself how memory comes back: leave out \
             --memory"
        )
        .into());
    }
    // Each start would fail of it: better said before one is asked for.
    if arguments.pre_fault && !can_pre_fault()? {
        return Err(BuildError::NoPreFault.into());
    }
    let mut templates = BTreeMap::new();
    for argument in &arguments.snapshots {
        let template = Template::open(argument)?;
        if let Some(other) = templates.insert(argument.name.clone(), template) {
            return Err(format!(
                "two snapshots have the name '{}': give one of them another, NAME=DIR",
                other.name
            )
            .into());
        }
    }
    crate::command::raise_descriptor_limit();
    // Before any thread is started: they all inherit the blocked signals, and so do the workers,
    // whom the server ends itself.
    let termination = watch_termination()?;
    let socket = ServerSocket::bind(&arguments.socket)?;
    let processes = Processes::new()?;
    let notifier = processes.notifier();
    termination.on_signal(move |signal| notifier.send(ProcessEvent::Signal(signal)))?;
    let signal = Server::new(arguments, socket, processes, templates).run()?;
    Ok(match signal {
        // As a shell reports a program that a signal has ended.
        Some(signal) => ExitCode::from(128 + signal),
        None => ExitCode::SUCCESS,
    })
}
