//! `reapvm run`.

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use reapvm::config::{BootSource, Kernel, MachineConfig, VmConfig, VsockSettings};
use reapvm::invocation::describe_exit;
use reapvm::machine::{Console, Machine};
use reapvm::vcpu::GuestExit;

use super::CommandResult;
use crate::cli::Run;
use crate::terminal::{RawTerminal, watch_termination};

/// Kernel command line of a guest that gives none.
const DEFAULT_CMDLINE: &str = "console=ttyS0";
const DEFAULT_MEMORY_MIB: u64 = 256;

fn config_of(arguments: &Run) -> Result<VmConfig, reapvm::config::ConfigError> {
    let mut config = match &arguments.guest.function {
        Some(name) => VmConfig::for_function(name)?,
        None => VmConfig {
            boot_source: BootSource {
                kernel: arguments
                    .guest
                    .kernel
                    .clone()
                    .map_or(Kernel::Builtin, Kernel::Path),
                initrd: arguments.initrd.clone(),
                cmdline: arguments
                    .cmdline
                    .clone()
                    .unwrap_or_else(|| DEFAULT_CMDLINE.to_owned()),
            },
            machine_config: MachineConfig {
                vcpu_count: 1,
                mem_size_mib: DEFAULT_MEMORY_MIB,
            },
            vsock: None,
            rng: false,
            function: None,
        },
    };
    config.machine_config.vcpu_count = arguments.vcpus;
    if let Some(mem_size_mib) = arguments.mem {
        config.machine_config.mem_size_mib = mem_size_mib;
    }
    if let Some(path) = &arguments.vsock_uds {
        config.vsock = Some(VsockSettings {
            guest_cid: arguments.vsock_cid,
            uds_path: Some(path.clone()),
        });
    }
    config.rng = arguments.rng;
    Ok(config)
}

pub(super) fn run(arguments: Run) -> CommandResult {
    let config = config_of(&arguments)?;
    // Before any thread is started: they all inherit the blocked signals.
    let termination = watch_termination()?;
    let console = Console {
        output: Box::new(std::io::stdout()),
        input: Some(std::io::stdin().as_fd().try_clone_to_owned()?),
    };
    let mut machine = Machine::boot(config, console)?;
    let exits = Arc::clone(machine.exits());
    termination.on_signal(move |_| exits.end(GuestExit::Stopped))?;
    let terminal = RawTerminal::enter();
    machine.resume()?;
    let exit = machine.wait(arguments.timeout);
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
            arguments.timeout.unwrap_or_default().as_secs_f64()
        )
        .into()),
    }
}
