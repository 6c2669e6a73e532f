//! The jobs: each runs in a nested host of its own.

mod balloon;
mod big_memory;
mod boot;
mod clock;
mod clones;
mod damage;
mod disk;
mod functions;
mod integration;
mod modes;
mod network;

use super::say;
use super::vm::{Image, SMALL_KERNEL};

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
    /// Panics where something is wrong.
    run: fn(),
}

const fn job(name: &'static str, about: &'static str, run: fn()) -> Job {
    Job {
        name,
        about,
        needs: Needs::Nothing,
        by_hand: false,
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
}

/// All jobs: those that take longest first, so that none of them is left alone at the end.
pub const JOBS: &[Job] = &[
    job("boot-6.1", "vmlinux 6.1 with 1, 2 and 4 vCPUs", || {
        boot::run("6.1", Image::Vmlinux, &[1, 2, 4])
    }),
    job("boot-6.12", "vmlinux 6.12 with 1, 2 and 4 vCPUs", || {
        boot::run("6.12", Image::Vmlinux, &[1, 2, 4])
    }),
    job(
        "vcpus-32",
        "vmlinux 6.12 with 32 vCPUs: as many as there can be",
        || boot::run("6.12", Image::Vmlinux, &[32]),
    ),
    job(
        "big-memory",
        "6.12 with memory above the 32-bit hole, restored on demand",
        || big_memory::run("6.12"),
    ),
    job(
        "bzimage",
        "Debian's own vmlinuz, 6.1 and 6.12, with 2 vCPUs",
        || {
            boot::run("6.1", Image::Vmlinuz, &[2]);
            boot::run("6.12", Image::Vmlinuz, &[2]);
        },
    ),
    job(
        "network",
        "ping and HTTP over a tap, before and after a restore",
        network::run,
    ),
    job(
        "network-in-flight",
        "6.12: frames on their way at the snapshot are sent once, and the driver hears of them",
        || network::saved_while_it_sends("6.12"),
    ),
    job(
        "clock",
        "wall clock, monotonic clock and timers after a pause and a restore, 6.1 and 6.12",
        clock::run,
    ),
    job(
        "balloon-6.12",
        "6.12: a balloon takes memory from a guest, and stays inflated through every restore mode",
        || balloon::restored("6.12"),
    ),
    job(
        "disk-6.1",
        "6.1: a disk through a snapshot taken while it is written, restored on demand",
        || disk::written_through_a_snapshot("6.1", "ondemand"),
    ),
    job(
        "disk-6.12",
        "6.12: the same, restored by file, and a read-only disk",
        || {
            disk::read_only("6.12");
            disk::written_through_a_snapshot("6.12", "file");
        },
    ),
    job(
        "modes-6.1",
        "6.1: every restore mode gives the same answer, record then prefetch",
        || modes::run("6.1", 1),
    ),
    job(
        "modes-6.12",
        "6.12 with 2 vCPUs: every restore mode gives the same answer, record then prefetch",
        || modes::run("6.12", 2),
    ),
    job(
        "small-kernel",
        "the project's own kernel, as vmlinux and as bzImage, and by every restore mode",
        || {
            boot::run(SMALL_KERNEL, Image::Vmlinux, &[1]);
            boot::run(SMALL_KERNEL, Image::Vmlinuz, &[2]);
            modes::run(SMALL_KERNEL, 2);
        },
    )
    .needing(Needs::SmallKernel)
    // Fails so far: the kernel boots, and reapvm-guest-init ends with a panic, of which nothing is
    // said on the console.
    .by_hand(),
    job(
        "clones",
        "clones of one snapshot draw different random bytes",
        || clones::run("6.12"),
    ),
    job(
        "balloon-6.1",
        "6.1: a balloon takes memory from a guest",
        || {
            balloon::inflated("6.1");
        },
    ),
    job(
        "function-helloworld",
        "helloworld in Python: recorded with one input, prefetched for another",
        || functions::run("helloworld"),
    )
    .needing(Needs::Rootfs),
    job(
        "function-chameleon",
        "chameleon in Python: recorded with one input, prefetched for another",
        || functions::run("chameleon"),
    )
    .needing(Needs::Rootfs),
    job(
        "function-pyaes",
        "pyaes in Python: recorded with one input, prefetched for another",
        || functions::run("pyaes"),
    )
    .needing(Needs::Rootfs),
    job(
        "function-image_rotate",
        "image_rotate in Python: recorded with one input, prefetched for another",
        || functions::run("image_rotate"),
    )
    .needing(Needs::Rootfs),
    job(
        "function-json_serdes",
        "json_serdes in Python: recorded with one input, prefetched for another",
        || functions::run("json_serdes"),
    )
    .needing(Needs::Rootfs),
    job(
        "function-lr_serving",
        "lr_serving in Python: recorded with one input, prefetched for another",
        || functions::run("lr_serving"),
    )
    .needing(Needs::Rootfs),
    job(
        "function-cnn_serving",
        "cnn_serving in Python: recorded with one input, prefetched for another",
        || functions::run("cnn_serving"),
    )
    .needing(Needs::Rootfs),
    job(
        "function-rnn_serving",
        "rnn_serving in Python: recorded with one input, prefetched for another",
        || functions::run("rnn_serving"),
    )
    .needing(Needs::Rootfs),
    job(
        "function-lr_training",
        "lr_training in Python: recorded with one input, prefetched for another",
        || functions::run("lr_training"),
    )
    .needing(Needs::Rootfs),
    job(
        "function-video_processing",
        "video_processing in Python: recorded with one input, prefetched for another",
        || functions::run("video_processing"),
    )
    .needing(Needs::Rootfs),
    job(
        "integration-boot",
        "tests/tests/boot.rs: guests boot, serve and end",
        || integration::run("boot"),
    )
    .needing(Needs::IntegrationPrograms)
    .by_hand(),
    job(
        "integration-cli",
        "tests/tests/cli.rs: errors and exit codes of the program",
        || integration::run("cli"),
    )
    .needing(Needs::IntegrationPrograms)
    .by_hand(),
    job(
        "integration-corpus",
        "tests/tests/corpus.rs: the fuzz targets' corpus",
        || integration::run("corpus"),
    )
    .needing(Needs::IntegrationPrograms)
    .by_hand(),
    job(
        "integration-damage",
        "tests/tests/damage.rs: damaged snapshots",
        || integration::run("damage"),
    )
    .needing(Needs::IntegrationPrograms)
    .by_hand(),
    job(
        "integration-diff",
        "tests/tests/diff.rs: differential snapshots",
        || integration::run("diff"),
    )
    .needing(Needs::IntegrationPrograms)
    .by_hand(),
    job(
        "integration-machine",
        "tests/tests/machine.rs: machines by options and files",
        || integration::run("machine"),
    )
    .needing(Needs::IntegrationPrograms)
    .by_hand(),
    job(
        "integration-control",
        "tests/tests/control.rs: machines that are changed while they run",
        || integration::run("control"),
    )
    .needing(Needs::IntegrationPrograms)
    .by_hand(),
    job(
        "integration-running",
        "tests/tests/running.rs: how machines end, and what is saved of them",
        || integration::run("running"),
    )
    .needing(Needs::IntegrationPrograms)
    .by_hand(),
    job(
        "integration-serve",
        "tests/tests/serve.rs: starts from prepared machines",
        || integration::run("serve"),
    )
    .needing(Needs::IntegrationPrograms)
    .by_hand(),
    job(
        "integration-trace",
        "tests/tests/trace.rs: traces of faults",
        || integration::run("trace"),
    )
    .needing(Needs::IntegrationPrograms)
    .by_hand(),
    job(
        "integration-restore",
        "tests/tests/restore.rs: restore modes",
        || integration::run("restore"),
    )
    .needing(Needs::IntegrationPrograms)
    .by_hand(),
    job(
        "damage",
        "a damaged snapshot ends in an error, also where KVM meets the damage first",
        || damage::run("6.12"),
    ),
    job(
        "panic",
        "a guest whose kernel panics is reset and reapvm ends, 6.1 and 6.12",
        || {
            boot::panics("6.1");
            boot::panics("6.12");
        },
    ),
    job(
        "pvpanic",
        "a guest whose kernel panics says so, and reapvm's exit code does, 6.1 and 6.12",
        || {
            boot::reports_its_panic("6.1");
            boot::reports_its_panic("6.12");
        },
    ),
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
