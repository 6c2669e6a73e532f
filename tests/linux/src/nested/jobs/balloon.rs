//! A virtio-balloon device.

use std::time::{Duration, Instant};

use reapvm_guest_init::protocol::Request;
use serde_json::Value;

use crate::nested::vm::{Image, Vm};
use crate::nested::{PATIENCE, say, snapshot};

const BALLOON_KIB: u64 = 64 << 10;
/// Where the guest's own accounts may differ from one boot to the next.
const TOLERANCE_KIB: u64 = 2048;

fn total_kib(memory: &Value) -> u64 {
    memory["MemTotal"].as_u64().unwrap()
}

/// A balloon takes what it is asked to take; returns what is left of the guest's memory.
pub(super) fn inflated(series: &str) -> u64 {
    let without = total_kib(&Vm::boot(series, Image::Vmlinux, &[]).ask(&Request::Memory {}));
    let vm = Vm::boot(series, Image::Vmlinux, &["--balloon", "64M"]);
    // Each page that the guest gives to the balloon leaves its total.
    let wanted = without - BALLOON_KIB;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let total = total_kib(&vm.ask(&Request::Memory {}));
        if total.abs_diff(wanted) < TOLERANCE_KIB {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{total} KiB of {without} KiB are left"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    vm.check_kernel_log();
    say(&format!(
        "{series}: the balloon takes 64 MiB of {without} KiB"
    ));
    wanted
}

/// The balloon stays as it is, whatever mode memory comes back by, and memory is usable.
pub(super) fn restored(series: &str) {
    let wanted = inflated(series);
    let wait = Request::MemoryShrunk {
        total_kib: wanted + TOLERANCE_KIB / 2,
    };
    let snapshot = snapshot::create(series, &["--balloon", "64M"], &wait);
    for mode in snapshot::MODES {
        let report = snapshot::invoke(&snapshot, mode, &Request::Memory {});
        let total = total_kib(&report["response"]["result"]);
        assert!(
            total.abs_diff(wanted) < TOLERANCE_KIB,
            "{mode}: {total} KiB, not {wanted}"
        );
        say(&format!("{mode}: {total} KiB in the guest"));
    }
    let vm = Vm::restore(&snapshot, "ondemand", &[]);
    let answer = vm.ask(&Request::MemoryDigest {
        pages: 8192,
        seed: 1,
    });
    assert_eq!(answer["was_kept"], false);
    vm.check_kernel_log();
}
