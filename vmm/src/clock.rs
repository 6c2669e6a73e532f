//! The host's monotonic clock, on which every mark and every trace record stands.

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The monotonic clock starts at boot: neither part is negative.
    (now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64
}
