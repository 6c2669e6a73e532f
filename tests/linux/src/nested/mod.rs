//! Inside the nested host.
//!
//! The first program makes the machine usable and runs the job in a process of its own, so that
//! whatever becomes of the job, there is somebody to say so. Jobs are written as tests are: what is
//! wrong panics.
#![allow(clippy::unwrap_used, clippy::panic)]

pub mod client;
pub mod console;
pub mod denial;
pub mod jobs;
pub mod kernel_log;
pub mod ping;
pub mod reapvm;
pub mod snapshot;
pub mod tap;
pub mod threads;
pub mod vm;

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use reapvm_guest_init::{filesystems, interface, kernel_modules};
use rustix::mount::MountFlags;
use rustix::system::{RebootCommand, reboot};

use crate::verdict;

/// Where the disk of the jobs is mounted.
pub const JOB_FOLDER: &str = "/job";
/// The folder, in that of the jobs, with the programs of the integration tests.
pub const INTEGRATION_FOLDER: &str = "integration";
/// The folder, in that of those programs, with the fuzz targets' corpus.
pub const CORPUS_FOLDER: &str = "fuzz-corpus";
/// Where an empty disk is mounted.
pub const SCRATCH_FOLDER: &str = "/scratch";

/// How long a guest may take to boot, and anything else to happen that a job waits for. Far more than
/// is needed where the machine is idle: that of the nested host may be shared.
pub const PATIENCE: Duration = Duration::from_secs(480);

/// The disk with the root file system of the Python functions, where there is one.
pub const ROOTFS_DEVICE: &str = "/dev/vdc";

/// How often the first program says that it runs.
const ALIVE_PERIOD: Duration = Duration::from_secs(60);

/// Says something to the runner.
pub fn say(message: &str) {
    // One string, so that it is written at once: other processes write to the console too.
    let line = format!("{}{message}\n", verdict::PREFIX);
    print!("{line}");
}

/// The program: the first one of the nested host, or a job.
pub fn main() {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("job"), Some(name)) => jobs::run(&name),
        _ => {
            std::thread::spawn(|| {
                loop {
                    std::thread::sleep(ALIVE_PERIOD);
                    say(verdict::ALIVE);
                }
            });
            let passed = first_program().unwrap_or_else(|error| {
                say(&format!("the nested host is not usable: {error}"));
                false
            });
            say(if passed {
                verdict::PASSED
            } else {
                verdict::FAILED
            });
            // There is nothing left to do when this fails: the runner's time limit ends it.
            let _ = reboot(RebootCommand::PowerOff);
        }
    }
}

fn first_program() -> Result<bool, Box<dyn Error>> {
    filesystems::mount_pseudo()?;
    kernel_modules::load_all(Path::new("/modules"))?;
    filesystems::mount_at("ext4", JOB_FOLDER, "/dev/vda", MountFlags::RDONLY)?;
    filesystems::mount_at("ext4", SCRATCH_FOLDER, "/dev/vdb", MountFlags::empty())?;
    interface::bring_up("lo", std::net::Ipv4Addr::LOCALHOST, 8)?;
    let parameters = fs::read_to_string("/proc/cmdline")?;
    let job = parameters
        .split_whitespace()
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(name, _)| *name == verdict::JOB_PARAMETER)
        .map(|(_, job)| job)
        .ok_or("no job is named on the kernel's command line")?;
    let status = Command::new("/proc/self/exe").args(["job", job]).status()?;
    if !status.success() {
        say(&format!("the job ended with {status}"));
    }
    Ok(status.success())
}
