//! `reapvm run`.

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use reapvm::invocation::describe_exit;
use reapvm::machine::{Console, Machine};
use reapvm::vcpu::GuestExit;

use super::CommandResult;
use crate::cli::{Run, Serial};
use crate::terminal::{RawTerminal, Termination, watch_termination};

pub(super) fn run(arguments: &Run) -> CommandResult {
    let config = arguments.machine.config()?;
    // Before any thread is started: they all inherit the blocked signals.
    let termination = watch_termination()?;
    let machine = Machine::boot(config, console(&arguments.serial)?)?;
    run_to_its_end(machine, &arguments.serial, termination, arguments.timeout)
}

/// The serial port's two ends.
pub(super) fn console(serial: &Serial) -> Result<Console, String> {
    Ok(match serial {
        Serial::Stdio => Console {
            output: Box::new(std::io::stdout()),
            input: Some(
                std::io::stdin()
                    .as_fd()
                    .try_clone_to_owned()
                    .map_err(|error| format!("cannot use standard input: {error}"))?,
            ),
        },
        Serial::None => Console::none(),
        Serial::File(path) => Console {
            output: Box::new(std::fs::File::create(path).map_err(|error| {
                format!(
                    "cannot write the serial port's output to '{}': {error}",
                    path.display()
                )
            })?),
            input: None,
        },
    })
}

/// Lets `machine` run until its guest, a signal or `timeout` ends it.
pub(super) fn run_to_its_end(
    mut machine: Machine,
    serial: &Serial,
    termination: Termination,
    timeout: Option<Duration>,
) -> CommandResult {
    let exits = Arc::clone(machine.exits());
    termination.on_signal(move |_| exits.end(GuestExit::Stopped))?;
    let terminal = match serial {
        Serial::Stdio => RawTerminal::enter(),
        Serial::None | Serial::File(_) => None,
    };
    machine.resume()?;
    let exit = machine.wait(timeout);
    drop(terminal);
    match exit {
        Some(GuestExit::Reset) => Ok(ExitCode::SUCCESS),
        Some(GuestExit::Stopped) => {
            // As a shell reports a program that a signal has ended.
            Ok(ExitCode::from(
                128 + termination.signal().unwrap_or(libc::SIGTERM as u8),
            ))
        }
        Some(exit) => Err(format!("the guest failed: {}", describe_exit(&exit)).into()),
        None => Err(format!(
            "the guest had not ended after {:.1} s (--timeout)",
            timeout.unwrap_or_default().as_secs_f64()
        )
        .into()),
    }
}
