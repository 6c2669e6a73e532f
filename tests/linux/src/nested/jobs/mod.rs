//! The jobs: each runs in a nested host of its own.

mod boot;

use super::say;

/// A job.
pub struct Job {
    /// Its name.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Panics where something is wrong.
    run: fn(),
}

/// All jobs.
pub const JOBS: &[Job] = &[
    Job {
        name: "boot-6.1",
        about: "vmlinux 6.1 with 1, 2 and 4 vCPUs",
        run: || boot::run("6.1"),
    },
    Job {
        name: "boot-6.12",
        about: "vmlinux 6.12 with 1, 2 and 4 vCPUs",
        run: || boot::run("6.12"),
    },
    Job {
        name: "panic",
        about: "a guest whose kernel panics is reset and reapvm ends, 6.1 and 6.12",
        run: || {
            boot::panics("6.1");
            boot::panics("6.12");
        },
    },
];

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
