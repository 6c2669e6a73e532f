//! The kernel, its clocks and its processors.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use reapvm_guest_init::seeded::hex;
use rustix::system::{RebootCommand, reboot};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::{OperationError, Result, cannot};

const MAX_SLEEP_MS: u64 = 60_000;

pub(super) fn clock() -> Result<Value> {
    let ns = |id| {
        let time = clock_gettime(id);
        time.tv_sec * 1_000_000_000 + time.tv_nsec
    };
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let source = fs::read_to_string(source).map_err(cannot("read the clock source"))?;
    Ok(json!({
        "realtime_ns": ns(ClockId::Realtime),
        "monotonic_ns": ns(ClockId::Monotonic),
        "boottime_ns": ns(ClockId::Boottime),
        "source": source.trim(),
    }))
}

pub(super) fn sleep(ms: u64) -> Result<Value> {
    if ms > MAX_SLEEP_MS {
        return Err(OperationError::Refused(format!(
            "ms must be at most {MAX_SLEEP_MS}"
        )));
    }
    let start = Instant::now();
    thread::sleep(Duration::from_millis(ms));
    Ok(json!({"slept_ns": start.elapsed().as_nanos() as u64}))
}

pub(super) fn random() -> Result<Value> {
    let mut bytes = [0; 16];
    // The kernel's generator itself: a library may keep bytes of its own across a snapshot.
    // SAFETY: the pointer is to as many bytes as the length says.
    let length = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if length != bytes.len() as isize {
        return Err(cannot("draw random bytes")(std::io::Error::last_os_error()));
    }
    let source = fs::read_to_string("/sys/class/misc/hw_random/rng_current").unwrap_or_default();
    Ok(json!({"bytes": hex(&bytes), "hardware": source.trim()}))
}

/// The CPUs that are online, each of which has run a thread.
pub(super) fn cpus() -> Result<Value> {
    let online = fs::read_to_string("/sys/devices/system/cpu/online")
        .map_err(cannot("read the CPUs that are online"))?;
    let mut ran = Vec::new();
    for cpu in cpus_of(online.trim()) {
        let on = thread::spawn(move || -> std::io::Result<usize> {
            let mut set = CpuSet::new();
            set.set(cpu);
            sched_setaffinity(None, &set)?;
            Ok(sched_getcpu())
        });
        let on = on
            .join()
            .map_err(|_| OperationError::Refused("a thread ended early".into()))?
            .map_err(cannot("run a thread on a CPU"))?;
        ran.push(on);
    }
    let (mut packages, mut cores) = (BTreeSet::new(), BTreeSet::new());
    for cpu in &ran {
        let id = |name: &str| {
            fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/{name}"))
                .map(|text| text.trim().to_owned())
                .map_err(cannot("read the topology of a CPU"))
        };
        let package = id("physical_package_id")?;
        cores.insert((package.clone(), id("core_id")?));
        packages.insert(package);
    }
    Ok(json!({
        "online": ran.len(),
        "ran_on": ran,
        "packages": packages.len(),
        "cores": cores.len(),
    }))
}

/// The numbers in a list such as `0-2,5`.
fn cpus_of(list: &str) -> Vec<usize> {
    list.split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(first.parse::<usize>().ok()?..=last.parse().ok()?)
        })
        .flatten()
        .take(CpuSet::MAX_CPU)
        .collect()
}

pub(super) fn dmesg() -> Result<Value> {
    const READ_ALL: libc::c_int = 3;
    let mut text = vec![0_u8; 1 << 20];
    // SAFETY: the pointer is to as many bytes as the length says.
    let length = unsafe {
        libc::klogctl(
            READ_ALL,
            text.as_mut_ptr().cast(),
            text.len() as libc::c_int,
        )
    };
    let length = usize::try_from(length)
        .map_err(|_| cannot("read the kernel's log")(std::io::Error::last_os_error()))?;
    text.truncate(length);
    Ok(json!(String::from_utf8_lossy(&text)))
}

pub(super) fn panic() -> Result<Value> {
    fs::write("/proc/sysrq-trigger", "c").map_err(cannot("make the kernel panic"))?;
    Ok(Value::Null)
}

/// Resets the machine.
pub(crate) fn reset() -> ! {
    loop {
        if let Err(error) = reboot(RebootCommand::Restart) {
            println!("init: cannot reset: {error}");
        }
        thread::sleep(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(cpus_of("0"), [0]);
        assert_eq!(cpus_of("0-3"), [0, 1, 2, 3]);
        assert_eq!(cpus_of("0-1,4"), [0, 1, 4]);
        assert_eq!(cpus_of(""), [0_usize; 0]);
    }
}
