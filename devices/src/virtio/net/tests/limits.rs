//! Rate limits, and the work of one turn.

use super::*;
use crate::rate_limiter::TokenBucketConfig;

const HOUR_MS: u64 = 3_600_000;

pub(super) fn ops(size: u64, refill_time_ms: u64) -> RateLimiterConfig {
    RateLimiterConfig {
        bandwidth: None,
        ops: Some(TokenBucketConfig {
            size,
            one_time_burst: None,
            refill_time_ms,
        }),
    }
}

fn bytes(size: u64, refill_time_ms: u64) -> RateLimiterConfig {
    RateLimiterConfig {
        bandwidth: ops(size, refill_time_ms).ops,
        ops: None,
    }
}

#[test]
fn the_guest_sends_no_more_than_its_limit() {
    // Headers do not count.
    for limit in [ops(2, HOUR_MS), bytes(200, HOUR_MS)] {
        let mut config = config();
        config.tx_rate_limiter = limit;
        let (mut driver, network) = booted(config, 0);
        for seed in 0..4 {
            transmit(&mut driver, &frame(100, seed), &[112]);
        }
        driver.run();
        assert_eq!(receive(&network), Some(frame(100, 0)));
        assert_eq!(receive(&network), Some(frame(100, 1)));
        assert_eq!(receive(&network), None);
        let state = driver.transport.save().unwrap();
        // It waits for the timer, not for its turn.
        assert!(!state.queues[TX_QUEUE].kick_pending);
        assert_eq!(state.queues[TX_QUEUE].next_avail, 2);
    }
}

#[test]
fn the_guest_receives_no_more_than_its_limit() {
    for limit in [ops(2, HOUR_MS), bytes(200, HOUR_MS)] {
        let mut config = config();
        config.rx_rate_limiter = limit;
        let (mut driver, network) = booted(config, 0);
        for seed in 0..4 {
            offer_rx(&mut driver, 1526);
            send(&network, &frame(100, seed));
        }
        driver.kick(RX_QUEUE);
        driver.run();
        assert_eq!(take_rx(&mut driver), Some(received(frame(100, 0), 1)));
        assert_eq!(take_rx(&mut driver), Some(received(frame(100, 1), 1)));
        assert_eq!(take_rx(&mut driver), None);
    }
}

#[test]
fn both_directions_go_on_when_their_timers_expire() {
    let mut config = config();
    config.rx_rate_limiter = ops(1, 2);
    config.tx_rate_limiter = bytes(100, 2);
    let (mut driver, network) = booted(config, 0);
    for seed in 0..8 {
        offer_rx(&mut driver, 1526);
        send(&network, &frame(100, seed));
        transmit(&mut driver, &frame(100, seed), &[112]);
    }
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    for _ in 0..10_000 {
        driver.run();
        sent.extend(receive(&network));
        got.extend(take_rx(&mut driver));
        if sent.len() == 8 && got.len() == 8 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let expected: Vec<_> = (0..8).map(|seed| frame(100, seed)).collect();
    assert_eq!(sent, expected);
    let expected: Vec<_> = (0..8).map(|seed| received(frame(100, seed), 1)).collect();
    assert_eq!(got, expected);
}

#[test]
fn a_turn_ends_before_a_full_queue_does() {
    let (mut driver, network) = booted(config(), 0);
    // The same few buffers many times: what counts is that they are available.
    for _ in 0..64 {
        transmit(&mut driver, &frame(20, 0), &[32]);
    }
    driver.transport.process_pending();
    let state = driver.transport.save().unwrap();
    assert!(state.queues[TX_QUEUE].kick_pending);
    driver.run();
    assert!(!driver.transport.save().unwrap().queues[TX_QUEUE].kick_pending);
    assert_eq!(std::iter::from_fn(|| receive(&network)).count(), 64);
}

#[test]
fn frames_that_wait_go_on_under_other_limits() {
    use crate::virtio::{DeviceUpdate, UpdateDeviceError};

    let (mut driver, network) = booted(config(), 0);
    let change = |driver: &mut Driver, rx: RateLimiterConfig, tx: RateLimiterConfig| {
        driver.transport.update(DeviceUpdate::Net {
            rx_rate_limiter: rx,
            tx_rate_limiter: tx,
        })
    };
    // A device that had none gets them.
    change(&mut driver, ops(1, HOUR_MS), bytes(100, HOUR_MS)).unwrap();
    for seed in 0..3 {
        offer_rx(&mut driver, 1526);
        send(&network, &frame(100, seed));
        transmit(&mut driver, &frame(100, seed), &[112]);
    }
    driver.run();
    assert!(take_rx(&mut driver).is_some() && receive(&network).is_some());
    assert!(take_rx(&mut driver).is_none() && receive(&network).is_none());
    // One of the two cannot be: both stay.
    let refused = change(&mut driver, ops(u64::MAX, 1), ops(0, 0));
    assert!(matches!(refused, Err(UpdateDeviceError::RateLimiter(_))));
    driver.run();
    assert!(take_rx(&mut driver).is_none() && receive(&network).is_none());
    change(&mut driver, ops(1, HOUR_MS), bytes(0, 0)).unwrap();
    driver.run();
    assert_eq!(take_rx(&mut driver), Some(received(frame(100, 1), 1)));
    assert_eq!(take_rx(&mut driver), None);
    assert_eq!(receive(&network), Some(frame(100, 1)));
    assert_eq!(receive(&network), Some(frame(100, 2)));
}
