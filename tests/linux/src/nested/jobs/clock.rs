//! Time after a restore.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reapvm_guest_init::protocol::Request;

use crate::nested::vm::Vm;
use crate::nested::{say, snapshot};

/// How far apart the guest's and the host's clocks may be, give or take the time that a question
/// takes. A restore costs the guest the time in which its vCPUs are made, under emulation up to a
/// second; a clock that stood still in the pause is off by more.
const MAX_ERROR_NS: i128 = 2_000_000_000;
const PAUSE: Duration = Duration::from_secs(5);

pub(super) fn run() {
    for series in ["6.1", "6.12"] {
        clocks(series);
    }
}

/// A guest's clocks, with the host's wall clock and monotonic clock right before and after.
struct Reading {
    guest_realtime_ns: i128,
    guest_monotonic_ns: i128,
    realtime_ns: [i128; 2],
    instants: [Instant; 2],
}

fn realtime_ns() -> i128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos() as i128
}

fn read(snapshot: &Path, mode: &str) -> Reading {
    let vm = Vm::restore(snapshot, mode, &[]);
    let mut client = vm.connect();
    let before = (realtime_ns(), Instant::now());
    let clock = client.ask(&Request::Clock {}).unwrap();
    let after = (realtime_ns(), Instant::now());
    let slept = client.ask(&Request::Sleep { ms: 200 }).unwrap();
    assert!(
        slept["slept_ns"].as_u64().unwrap() >= 200_000_000,
        "{slept}"
    );
    vm.check_kernel_log();
    let ns = |name: &str| i128::from(clock[name].as_i64().unwrap());
    Reading {
        guest_realtime_ns: ns("realtime_ns"),
        guest_monotonic_ns: ns("monotonic_ns"),
        realtime_ns: [before.0, after.0],
        instants: [before.1, after.1],
    }
}

fn clocks(series: &str) {
    let snapshot = snapshot::create(series, &["--vcpus", "2"], &Request::Clock {});
    let mut readings = Vec::new();
    for mode in ["ondemand", "file"] {
        std::thread::sleep(PAUSE);
        let reading = read(&snapshot, mode);
        let error = reading.guest_realtime_ns - reading.realtime_ns[0];
        say(&format!(
            "{series}, {mode}: the wall clock differs by {} ms",
            error / 1_000_000
        ));
        assert!(
            reading.guest_realtime_ns >= reading.realtime_ns[0] - MAX_ERROR_NS
                && reading.guest_realtime_ns <= reading.realtime_ns[1] + MAX_ERROR_NS,
            "{series}, {mode}: the guest says {}, the host {:?}",
            reading.guest_realtime_ns,
            reading.realtime_ns
        );
        readings.push(reading);
    }
    // Both go on from the moment of the snapshot: they are as far apart as the readings.
    let passed = readings[1].guest_monotonic_ns - readings[0].guest_monotonic_ns;
    let least = (readings[1].instants[0] - readings[0].instants[1]).as_nanos() as i128;
    let most = (readings[1].instants[1] - readings[0].instants[0]).as_nanos() as i128;
    assert!(
        passed >= least - MAX_ERROR_NS && passed <= most + MAX_ERROR_NS,
        "{series}: {passed} ns on the monotonic clock for {least} to {most} ns"
    );
}
