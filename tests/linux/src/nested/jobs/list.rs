//! The list of all jobs.

use super::{
    Job, Needs, balloon, bench, big_memory, boot, clock, clones, damage, diff, disk, functions,
    integration, job, modes, network, pre_fault, study, tracepoints,
};
use crate::nested::vm::{Image, SMALL_KERNEL};

/// A function in Python.
macro_rules! function {
    ($name:literal) => {
        job(
            concat!("function-", $name),
            concat!(
                $name,
                " in Python: recorded with one input, prefetched for another"
            ),
            || functions::run($name),
        )
        .needing(Needs::Rootfs)
    };
}

/// A program of the integration tests.
macro_rules! integration {
    ($name:literal, $about:literal) => {
        job(
            concat!("integration-", $name),
            concat!("tests/tests/", $name, ".rs: ", $about),
            || integration::run($name),
        )
        .needing(Needs::IntegrationPrograms)
        .by_hand()
    };
}

/// Less than the nested host has by default, as reapvm demands, and more than there is room for below
/// the hole: a quarter of a GiB of it is above 4 GiB. Most is never touched.
const BIG_MEMORY_MIB: u64 = 3584;
/// Most of it above 4 GiB.
const HUGE_MEMORY_MIB: u64 = 10 << 10;

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
        || big_memory::run("6.12", BIG_MEMORY_MIB),
    ),
    job(
        "huge-memory",
        "6.12 with 10 GiB, most of them above 4 GiB, restored on demand",
        || big_memory::run("6.12", HUGE_MEMORY_MIB),
    )
    .with_host_memory_mib(12 << 10),
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
        "diff-6.1",
        "6.1: what was written since a snapshot, merged with it, is the machine that went on",
        || diff::run("6.1"),
    ),
    job("diff-6.12", "6.12: the same", || diff::run("6.12")),
    job(
        "tracepoints",
        "6.12: traces from the kernel's tracepoint, with nested paging",
        || tracepoints::run("6.12"),
    ),
    job(
        "pre-fault",
        "6.12 with 2 vCPUs: pages that KVM enters ahead are not faulted on, by invoke and serve",
        || pre_fault::run("6.12"),
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
    .needing(Needs::SmallKernel),
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
    function!("helloworld"),
    function!("chameleon"),
    function!("pyaes"),
    function!("image_rotate"),
    function!("json_serdes"),
    function!("lr_serving"),
    function!("cnn_serving"),
    function!("rnn_serving"),
    function!("lr_training"),
    function!("video_processing"),
    job(
        "bench",
        "reapvm bench with a function in Python, from boot to table",
        || bench::run("helloworld"),
    )
    .needing(Needs::Rootfs)
    .by_hand(),
    job(
        "study",
        "reapvm study of a function in Python, from boot to report",
        || study::run("helloworld"),
    )
    .needing(Needs::Rootfs)
    .by_hand(),
    integration!("boot", "guests boot, serve and end"),
    integration!("cli", "errors and exit codes of the program"),
    integration!("corpus", "the fuzz targets' corpus"),
    integration!("damage", "damaged snapshots"),
    integration!("diff", "differential snapshots"),
    integration!("machine", "machines by options and files"),
    integration!("control", "machines that are changed while they run"),
    integration!("running", "how machines end, and what is saved of them"),
    integration!(
        "hooks",
        "page sources, fault policies and listeners of programs"
    ),
    integration!("writes", "traces of the pages that guests write"),
    integration!(
        "study",
        "studies that are measured, interrupted and reported"
    ),
    integration!("serve", "starts from prepared machines"),
    integration!("evolving_set", "working sets that follow their function"),
    integration!(
        "working_set",
        "working sets that are shown, compared and merged"
    ),
    integration!("trace", "traces of faults"),
    integration!("restore", "restore modes"),
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
