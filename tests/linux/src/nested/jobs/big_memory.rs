//! More memory than there is room for below the devices' windows.

use reapvm_guest_init::protocol::Request;
use reapvm_guest_init::seeded;

use crate::nested::vm::Vm;
use crate::nested::{say, snapshot};

/// What the kernel keeps for itself, at most: so much, and a part of what there is for its
/// description of each page.
const KERNEL_KIB: u64 = 256 << 10;
const KERNEL_SHARE: u64 = 32;
const PAGES: u64 = 1024;
const SEED: u64 = 5;

pub(super) fn run(series: &str, memory_mib: u64) {
    let mut bytes = vec![0; (PAGES * 4096) as usize];
    seeded::fill(SEED, 0, &mut bytes);
    let expected = seeded::sha256_hex(&bytes);
    let request = Request::MemoryDigest {
        pages: PAGES,
        seed: SEED,
    };
    let memory = format!("{memory_mib}M");
    let snapshot = snapshot::create(series, &["--mem", &memory], &request);

    let vm = Vm::restore(&snapshot, "ondemand", &[]);
    let total_kib = vm.ask(&Request::Memory {})["MemTotal"].as_u64().unwrap();
    let all_kib = memory_mib << 10;
    assert!(
        total_kib > all_kib - all_kib / KERNEL_SHARE - KERNEL_KIB && total_kib <= all_kib,
        "{total_kib} of {all_kib} KiB"
    );
    let answer = vm.ask(&request);
    assert_eq!(answer["was_kept"], true, "{answer}");
    assert_eq!(answer["sha256"], expected, "{answer}");
    let highest_gpa = answer["highest_gpa"].as_u64().unwrap();
    assert!(highest_gpa >= 4 << 30, "{answer}");
    vm.check_kernel_log();
    say(&format!(
        "{series}: {total_kib} KiB, and what was at {highest_gpa:#x} is there after the restore"
    ));
}
