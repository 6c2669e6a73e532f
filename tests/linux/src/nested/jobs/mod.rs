//! The jobs: each runs in a nested host of its own.

mod balloon;
mod bench;
mod big_memory;
mod boot;
mod clock;
mod clones;
mod damage;
mod diff;
mod disk;
mod functions;
mod integration;
mod list;
mod modes;
mod network;
mod pre_fault;
mod study;
mod tracepoints;

use std::time::Duration;

use super::say;
pub use list::JOBS;

/// How long a job may take. Half a minute is usual; a machine that is shared may be ten times as slow.
const LIMIT: Duration = Duration::from_secs(900);
/// How long one may take that runs only when it is named.
const LIMIT_BY_HAND: Duration = Duration::from_secs(3600);
/// Memory of the nested host, in MiB, unless the job says otherwise.
const HOST_MEMORY_MIB: u32 = 4096;

/// What a job needs beyond what `make test-linux` always has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// The root file system with the Python functions.
    Rootfs,
    /// The small kernel.
    SmallKernel,
    /// The programs of the integration tests.
    IntegrationPrograms,
}

/// A job.
pub struct Job {
    /// Its name.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// What it needs.
    pub needs: Needs,
    /// Whether it runs only when it is named: it takes long in software emulation.
    pub by_hand: bool,
    /// Memory of the nested host, in MiB. What is never touched in it costs nothing.
    pub host_memory_mib: u32,
    /// Panics where something is wrong.
    run: fn(),
}

const fn job(name: &'static str, about: &'static str, run: fn()) -> Job {
    Job {
        name,
        about,
        needs: Needs::Nothing,
        by_hand: false,
        host_memory_mib: HOST_MEMORY_MIB,
        run,
    }
}

impl Job {
    const fn needing(mut self, needs: Needs) -> Self {
        self.needs = needs;
        self
    }

    const fn by_hand(mut self) -> Self {
        self.by_hand = true;
        self
    }

    const fn with_host_memory_mib(mut self, host_memory_mib: u32) -> Self {
        self.host_memory_mib = host_memory_mib;
        self
    }

    /// How long it may take.
    pub fn limit(&self) -> Duration {
        if self.by_hand { LIMIT_BY_HAND } else { LIMIT }
    }
}

/// Runs the job `name`, in this process.
///
/// # Panics
/// If it fails, or there is no such job.
pub(super) fn run(name: &str) {
    std::panic::set_hook(Box::new(|info| {
        for line in info.to_string().lines() {
            say(line);
        }
    }));
    let job = JOBS.iter().find(|job| job.name == name);
    let job = job.unwrap_or_else(|| panic!("there is no job '{name}'"));
    (job.run)();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_given_twice() {
        let names: std::collections::BTreeSet<_> = JOBS.iter().map(|job| job.name).collect();
        assert_eq!(names.len(), JOBS.len());
    }
}
