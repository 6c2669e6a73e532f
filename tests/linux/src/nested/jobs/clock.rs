//! Time after a restore.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reapvm_guest_init::protocol::Request;

use crate::nested::vm::Vm;
use crate::nested::{say, snapshot};

/// How far apart the guest's and the host's clocks may be beyond what the restore took: that is what
/// a restore costs the guest, for its clocks are set while its vCPUs are made. What a question takes
/// is counted besides.
const MAX_ERROR_NS: i128 = 2_000_000_000;
/// The least pause before a restore.
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
    /// How far behind the clocks may be.
    max_error_ns: i128,
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
    let start = Instant::now();
    let vm = Vm::restore(snapshot, mode, &[]);
    let mut client = vm.connect();
    let max_error_ns = MAX_ERROR_NS + start.elapsed().as_nanos() as i128;
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
        max_error_ns,
        realtime_ns: [before.0, after.0],
        instants: [before.1, after.1],
    }
}

/// A reading after a pause that a clock which stood still in it would be found out by.
fn read_after_pause(snapshot: &Path, mode: &str) -> Reading {
    let mut pause = PAUSE;
    loop {
        std::thread::sleep(pause);
        let reading = read(snapshot, mode);
        if reading.max_error_ns < pause.as_nanos() as i128 {
            return reading;
        }
        // The machine is slow today.
        pause = Duration::from_nanos(2 * reading.max_error_ns as u64);
    }
}

fn clocks(series: &str) {
    let start = Instant::now();
    let snapshot = snapshot::create(series, &["--vcpus", "2"], &Request::Clock {});
    // While it boots, a kernel counts ticks, some of which a busy host loses: what its wall clock
    // has lost so, it does not find again.
    let boot_ns = start.elapsed().as_nanos() as i128;
    let readings = ["ondemand", "file"].map(|mode| {
        let reading = read_after_pause(&snapshot, mode);
        let error = reading.guest_realtime_ns - reading.realtime_ns[0];
        say(&format!(
            "{series}, {mode}: the wall clock differs by {} ms",
            error / 1_000_000
        ));
        assert!(
            reading.guest_realtime_ns >= reading.realtime_ns[0] - reading.max_error_ns - boot_ns
                && reading.guest_realtime_ns <= reading.realtime_ns[1] + MAX_ERROR_NS,
            "{series}, {mode}: the guest says {}, the host {:?}",
            reading.guest_realtime_ns,
            reading.realtime_ns
        );
        reading
    });
    // Both go on from the moment of the snapshot, and have its error in common: they are as far
    // apart as the readings.
    let [first, second] = &readings;
    let least = (second.instants[0] - first.instants[1]).as_nanos() as i128;
    let most = (second.instants[1] - first.instants[0]).as_nanos() as i128;
    for (clock, passed) in [
        (
            "monotonic",
            second.guest_monotonic_ns - first.guest_monotonic_ns,
        ),
        ("wall", second.guest_realtime_ns - first.guest_realtime_ns),
    ] {
        assert!(
            passed >= least - second.max_error_ns && passed <= most + first.max_error_ns,
            "{series}: {passed} ns on the {clock} clock for {least} to {most} ns"
        );
    }
}
