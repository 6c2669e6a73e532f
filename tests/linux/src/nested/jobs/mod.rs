//! The jobs: each runs in a nested host of its own.

mod balloon;
mod boot;
mod clock;
mod clones;
mod damage;
mod disk;
mod functions;
mod modes;
mod network;

use super::say;
use super::vm::Image;

/// A job.
pub struct Job {
    /// Its name.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Whether it needs the root file system with the Python functions.
    pub needs_rootfs: bool,
    /// Panics where something is wrong.
    run: fn(),
}

/// All jobs: those that take longest first, so that none of them is left alone at the end.
pub const JOBS: &[Job] = &[
    Job {
        name: "boot-6.1",
        about: "vmlinux 6.1 with 1, 2 and 4 vCPUs",
        needs_rootfs: false,
        run: || boot::run("6.1", Image::Vmlinux, &[1, 2, 4]),
    },
    Job {
        name: "boot-6.12",
        about: "vmlinux 6.12 with 1, 2 and 4 vCPUs",
        needs_rootfs: false,
        run: || boot::run("6.12", Image::Vmlinux, &[1, 2, 4]),
    },
    Job {
        name: "bzimage",
        about: "Debian's own vmlinuz, 6.1 and 6.12, with 2 vCPUs",
        needs_rootfs: false,
        run: || {
            boot::run("6.1", Image::Vmlinuz, &[2]);
            boot::run("6.12", Image::Vmlinuz, &[2]);
        },
    },
    Job {
        name: "modes-6.1",
        about: "6.1: every restore mode gives the same answer, record then prefetch",
        needs_rootfs: false,
        run: || modes::run("6.1", 1),
    },
    Job {
        name: "modes-6.12",
        about: "6.12 with 2 vCPUs: every restore mode gives the same answer, record then prefetch",
        needs_rootfs: false,
        run: || modes::run("6.12", 2),
    },
    Job {
        name: "clock",
        about: "wall clock, monotonic clock and timers after a pause and a restore, 6.1 and 6.12",
        needs_rootfs: false,
        run: clock::run,
    },
    Job {
        name: "clones",
        about: "clones of one snapshot draw different random bytes",
        needs_rootfs: false,
        run: || clones::run("6.12"),
    },
    Job {
        name: "disk-6.1",
        about: "6.1: a disk through a snapshot taken while it is written, restored on demand",
        needs_rootfs: false,
        run: || disk::written_through_a_snapshot("6.1", "ondemand"),
    },
    Job {
        name: "disk-6.12",
        about: "6.12: the same, restored by file, and a read-only disk",
        needs_rootfs: false,
        run: || {
            disk::read_only("6.12");
            disk::written_through_a_snapshot("6.12", "file");
        },
    },
    Job {
        name: "network",
        about: "ping and HTTP over a tap, before and after a restore",
        needs_rootfs: false,
        run: network::run,
    },
    Job {
        name: "balloon-6.1",
        about: "6.1: a balloon takes memory from a guest",
        needs_rootfs: false,
        run: || {
            balloon::inflated("6.1");
        },
    },
    Job {
        name: "balloon-6.12",
        about: "6.12: the same, and it stays inflated through a restore by every mode",
        needs_rootfs: false,
        run: || balloon::restored("6.12"),
    },
    Job {
        name: "function-helloworld",
        about: "helloworld in Python: recorded with one input, prefetched for another",
        needs_rootfs: true,
        run: || functions::run("helloworld"),
    },
    Job {
        name: "function-chameleon",
        about: "chameleon in Python: recorded with one input, prefetched for another",
        needs_rootfs: true,
        run: || functions::run("chameleon"),
    },
    Job {
        name: "function-pyaes",
        about: "pyaes in Python: recorded with one input, prefetched for another",
        needs_rootfs: true,
        run: || functions::run("pyaes"),
    },
    Job {
        name: "function-image_rotate",
        about: "image_rotate in Python: recorded with one input, prefetched for another",
        needs_rootfs: true,
        run: || functions::run("image_rotate"),
    },
    Job {
        name: "function-json_serdes",
        about: "json_serdes in Python: recorded with one input, prefetched for another",
        needs_rootfs: true,
        run: || functions::run("json_serdes"),
    },
    Job {
        name: "function-lr_serving",
        about: "lr_serving in Python: recorded with one input, prefetched for another",
        needs_rootfs: true,
        run: || functions::run("lr_serving"),
    },
    Job {
        name: "function-cnn_serving",
        about: "cnn_serving in Python: recorded with one input, prefetched for another",
        needs_rootfs: true,
        run: || functions::run("cnn_serving"),
    },
    Job {
        name: "function-rnn_serving",
        about: "rnn_serving in Python: recorded with one input, prefetched for another",
        needs_rootfs: true,
        run: || functions::run("rnn_serving"),
    },
    Job {
        name: "function-lr_training",
        about: "lr_training in Python: recorded with one input, prefetched for another",
        needs_rootfs: true,
        run: || functions::run("lr_training"),
    },
    Job {
        name: "function-video_processing",
        about: "video_processing in Python: recorded with one input, prefetched for another",
        needs_rootfs: true,
        run: || functions::run("video_processing"),
    },
    Job {
        name: "damage",
        about: "a damaged snapshot ends in an error, also where KVM meets the damage first",
        needs_rootfs: false,
        run: || damage::run("6.12"),
    },
    Job {
        name: "panic",
        about: "a guest whose kernel panics is reset and reapvm ends, 6.1 and 6.12",
        needs_rootfs: false,
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
