//! What a guest's kernel log says, with the times that stand before its lines: since boot, by a clock
//! that a restore sets ahead as it does the others.

use std::time::Duration;

/// How `dev_watchdog` reports a queue, and what stands before and behind the time. virtio_net, which it
/// then calls, says a time too, but looks anew: another processor may have sent a frame by then.
const WATCHDOG: &str = ": NETDEV WATCHDOG: ";
const TIMED_OUT: &str = " timed out ";
const MS: &str = " ms";

/// A report of the network watchdog: a queue stood still.
#[derive(Debug, PartialEq, Eq)]
pub struct TxTimeout {
    /// When that was said.
    pub said: Duration,
    /// When the last frame was given to the device, as far as the kernel knew the time then: before
    /// the first tick behind a jump of the clock, it does not know of the jump.
    pub handed_over: Duration,
}

/// The time in front of a line: `<3>[   12.345678] text`, whose first part may be missing.
fn time(line: &str) -> Option<Duration> {
    let (_, rest) = line.split_once('[')?;
    let (time, _) = rest.split_once(']')?;
    let (seconds, micros) = time.trim().split_once('.')?;
    Some(Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?))
}

/// When the log first said `what`.
pub fn time_of(log: &str, what: &str) -> Option<Duration> {
    log.lines().find(|line| line.contains(what)).and_then(time)
}

/// What the watchdog has said.
///
/// # Panics
/// If a line of it cannot be read.
pub fn tx_timeouts(log: &str) -> Vec<TxTimeout> {
    log.lines()
        .filter(|line| line.contains(WATCHDOG))
        .map(|line| {
            let ago = line.split_once(TIMED_OUT).and_then(|(_, behind)| {
                let millis = behind.trim_end().strip_suffix(MS)?;
                Some(Duration::from_millis(millis.parse().ok()?))
            });
            match (time(line), ago) {
                (Some(said), Some(ago)) => TxTimeout {
                    said,
                    handed_over: said.saturating_sub(ago),
                },
                _ => panic!("this is not as the watchdog says it: {line}"),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_the_watchdog_are_found_with_their_times() {
        let log = "<5>[    0.000000] Linux version 6.12\n\
            <12>[    2.500000] guest-init: eth0 is up\n\
            <2>[   21.140010] virtio_net virtio1 eth0: NETDEV WATCHDOG: CPU: 0: transmit queue 0 timed out 18600 ms\n\
            <3>[   21.140020] virtio_net virtio1 eth0: TX timeout on queue: 0, sq: output.0, vq: 0x1, name: output.0, 32000 usecs ago\n";
        assert_eq!(
            time_of(log, "eth0 is up"),
            Some(Duration::from_millis(2500))
        );
        assert_eq!(time_of(log, "eth1 is up"), None);
        assert_eq!(
            tx_timeouts(log),
            [TxTimeout {
                said: Duration::from_micros(21_140_010),
                handed_over: Duration::from_micros(2_540_010),
            }]
        );
    }
}
