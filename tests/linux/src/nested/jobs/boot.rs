//! A stock kernel boots, finds its processors and devices, and answers.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reapvm_guest_init::protocol::Request;
use reapvm_guest_init::seeded;
use serde_json::json;

use crate::nested::say;
use crate::nested::vm::{CMDLINE, Image, Vm};

/// How far the guest's wall clock may be from the host's, besides what it may have lost by booting: a
/// kernel reads the time once and counts ticks for a while, until it takes kvm-clock for its clock.
/// On a busy host, ticks go missing.
const MAX_CLOCK_ERROR_NS: u64 = 2_000_000_000;

/// With so many vCPUs at most, a guest's watchdog looks for processors that do not get on. Of more
/// than that, on the one processor that the nested host has, some wait for their turn for longer than
/// it allows when the machine is busy.
const MAX_WATCHED_VCPUS: u64 = 8;

/// Exit code of reapvm when the guest's kernel has said that it panicked.
const GUEST_PANICKED: i32 = 3;

/// Boots `image` with each number of vCPUs.
pub(super) fn run(series: &str, image: Image, vcpu_counts: &[u64]) {
    for &vcpus in vcpu_counts {
        let start = Instant::now();
        let mut cmdline = CMDLINE.to_owned();
        if vcpus > MAX_WATCHED_VCPUS {
            cmdline.push_str(" nowatchdog");
        }
        let more = ["--vcpus", &vcpus.to_string(), "--rng"];
        let vm = Vm::boot_with(series, image, &cmdline, &more);
        check(&vm, vcpus, start.elapsed());
        say(&format!("{series} with {vcpus} vCPUs answers"));
    }
}

/// A kernel that panics is reset, and reapvm ends with it.
pub(super) fn panics(series: &str) {
    let cmdline = format!("{CMDLINE} rdinit=/nonexistent root=/dev/nonexistent");
    let vm = Vm::start(series, Image::Vmlinux, &cmdline, &[]);
    vm.wait_for_console("that the kernel panics", |text| {
        text.contains("Kernel panic - not syncing")
    });
    assert_eq!(vm.wait_for_end(), Some(0));
}

fn host_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_nanos() as u64
}

/// A kernel with the driver of pvpanic says that it panics, and reapvm's exit code does.
pub(super) fn reports_its_panic(series: &str) {
    let vm = Vm::boot(series, Image::Vmlinux, &[]);
    // It does not live to answer.
    let _ = vm.connect().ask(&Request::Panic {});
    assert_eq!(vm.wait_for_end(), Some(GUEST_PANICKED));
    say(&format!("{series} reports its panic"));
}

fn check(vm: &Vm, vcpus: u64, boot: Duration) {
    let value = json!({"text": "a", "numbers": [1, 2, 3]});
    assert_eq!(
        vm.ask(&Request::Echo {
            value: value.clone()
        }),
        value
    );

    let cpus = vm.ask(&Request::Cpus {});
    assert_eq!(cpus["online"], vcpus, "{cpus}");
    let each: Vec<u64> = (0..vcpus).collect();
    assert_eq!(cpus["ran_on"], json!(each), "{cpus}");
    // One package, with a core for each vCPU.
    assert_eq!(cpus["packages"], 1, "{cpus}");
    assert_eq!(cpus["cores"], vcpus, "{cpus}");

    // The answer takes its time on a busy machine.
    let before_ns = host_ns();
    let clock = vm.ask(&Request::Clock {});
    let after_ns = host_ns();
    let guest_ns = clock["realtime_ns"].as_u64().unwrap();
    assert!(
        guest_ns + MAX_CLOCK_ERROR_NS + boot.as_nanos() as u64 > before_ns
            && guest_ns < after_ns + MAX_CLOCK_ERROR_NS,
        "host {before_ns} to {after_ns}, guest {clock}, booted in {boot:?}"
    );
    assert_eq!(clock["source"], "kvm-clock");

    let draws = [vm.ask(&Request::Random {}), vm.ask(&Request::Random {})];
    assert_ne!(draws[0]["bytes"], draws[1]["bytes"]);
    assert_eq!(draws[0]["bytes"].as_str().unwrap().len(), 32);
    assert!(
        draws[0]["hardware"]
            .as_str()
            .unwrap()
            .starts_with("virtio_rng"),
        "{draws:?}"
    );

    let mut bytes = vec![0; 1 << 20];
    seeded::fill(vcpus, 0, &mut bytes);
    let digest = vm.ask(&Request::MemoryDigest {
        pages: 256,
        seed: vcpus,
    });
    assert_eq!(digest["sha256"], seeded::sha256_hex(&bytes));

    let slept = vm.ask(&Request::Sleep { ms: 100 });
    assert!(
        slept["slept_ns"].as_u64().unwrap() >= 100_000_000,
        "{slept}"
    );

    vm.check_kernel_log();
}
