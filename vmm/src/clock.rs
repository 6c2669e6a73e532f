//! **Unstable.** The host's clocks. Every mark and every trace record stands on the monotonic one.

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The monotonic clock starts at boot: neither part is negative.
    (now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64
}

/// CLOCK_REALTIME in nanoseconds since 1970.
pub fn realtime_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    // A clock that is set before 1970 tells nothing.
    u64::try_from(now.tv_sec).map_or(0, |seconds| {
        seconds.saturating_mul(1_000_000_000) + now.tv_nsec as u64
    })
}
