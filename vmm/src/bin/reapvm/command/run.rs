//! `reapvm run`.

use std::error::Error;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use reapvm::invocation::describe_exit;
use reapvm::machine::{Console, Machine};
use reapvm::vcpu::GuestExit;

use super::CommandResult;
use crate::cli::{Run, Serial};
use crate::output::print_error;
use crate::terminal::{RawTerminal, Termination, watch_termination};

/// Exit code when the guest's kernel has panicked.
const GUEST_PANICKED: u8 = 3;

pub(super) fn run(arguments: &Run) -> CommandResult {
    let config = arguments.machine.config()?;
    let console = console(&arguments.serial)?;
    // Before any thread is started: they all inherit the blocked signals.
    let termination = watch_termination()?;
    let machine = Machine::boot(config, console)?;
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
    super::raise_descriptor_limit();
    let exits = Arc::clone(machine.exits());
    termination.on_signal(move |_| exits.end(GuestExit::Stopped))?;
    let terminal = match serial {
        Serial::Stdio => RawTerminal::enter(),
        Serial::None | Serial::File(_) => None,
    };
    let exit = match machine.resume() {
        Ok(()) => machine.wait(timeout),
        // A signal that came while the machine was being made.
        Err(error) => match machine.exits().reason() {
            Some(exit) => Some(exit),
            None => return Err(error.into()),
        },
    };
    drop(terminal);
    match exit {
        Some(exit) => Ok(exit_code(&exit, &termination)),
        None => Err(format!(
            "the guest had not ended after {:.1} s (--timeout)",
            timeout.unwrap_or_default().as_secs_f64()
        )
        .into()),
    }
}

/// What the program ends with when its guest has ended so; a failure is told.
pub(super) fn exit_code(exit: &GuestExit, termination: &Termination) -> ExitCode {
    let code = match exit {
        GuestExit::Reset => return ExitCode::SUCCESS,
        // As a shell reports a program that a signal has ended.
        GuestExit::Stopped => {
            return ExitCode::from(128 + termination.signal().unwrap_or(libc::SIGTERM as u8));
        }
        GuestExit::Panicked => ExitCode::from(GUEST_PANICKED),
        _ => ExitCode::FAILURE,
    };
    let message: Box<dyn Error> = format!("the guest failed: {}", describe_exit(exit)).into();
    print_error(message.as_ref());
    code
}
