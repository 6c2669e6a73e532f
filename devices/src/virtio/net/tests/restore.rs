//! Saved and restored devices.

use super::limits::ops;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS};

use super::*;
use crate::test_driver::{EVENT_IDX, evt};
use crate::virtio::{
    MacAddress, MmioTransport, RestoreDeviceError, TransportError, VirtioDeviceState,
};

fn mac_of(driver: &mut Driver) -> [u8; 6] {
    use crate::bus::BusDevice;
    let mut bytes = [0; 6];
    driver.transport.read(0x100, &mut bytes);
    bytes
}

/// Saves the device and restores it with another configuration on another network.
fn restored(driver: &Driver, config: NetConfig) -> (Driver, OwnedFd) {
    let state = driver.transport.save().unwrap();
    let (net, network) = net(config);
    let irq = evt();
    let irq_copy = irq.try_clone().unwrap();
    let transport =
        MmioTransport::restore(driver.mem.clone(), Box::new(net), irq_copy, &state).unwrap();
    let mut new = Driver::over(driver.mem.clone(), transport, irq);
    new.rings = driver.rings.clone();
    (new, network)
}

#[test]
fn a_restored_device_has_its_address_unless_it_is_given_another() {
    let (mut driver, _network) = booted(config(), 0);
    let mac = mac_of(&mut driver);
    let (mut same, _network) = restored(&driver, config());
    assert_eq!(mac_of(&mut same), mac);
    let other: MacAddress = "02:00:00:00:00:07".parse().unwrap();
    let mut config = config();
    config.mac = Some(other);
    let (mut clone, _network) = restored(&driver, config);
    assert_eq!(mac_of(&mut clone), other.bytes());
}

#[test]
fn frames_go_on_by_the_new_tap() {
    let (mut driver, old) = booted(config(), MERGEABLE);
    offer_rx(&mut driver, 1526);
    driver.run();
    let (mut driver, new) = restored(&driver, config());
    let (sent, got) = (frame(70, 1), frame(80, 2));
    transmit(&mut driver, &sent, &[82]);
    send(&new, &got);
    driver.run();
    assert_eq!(receive(&new), Some(sent));
    assert_eq!(take_rx(&mut driver), Some(received(got, 1)));
    assert_eq!(receive(&old), None);
}

#[test]
fn frames_that_were_handed_over_and_not_yet_sent_are_sent_and_given_back() {
    for features in [0, EVENT_IDX] {
        let (mut driver, old) = booted(config(), features);
        for seed in 0..3 {
            transmit(&mut driver, &frame(50, seed), &[62]);
        }
        driver.transport.prepare_save().unwrap();
        let (mut driver, new) = restored(&driver, config());
        assert_eq!(driver.take_used(TX_QUEUE), None);
        assert!(driver.irq.read().is_err(), "there is nothing to tell yet");
        driver.run();
        assert_eq!(receive(&old), None);
        for seed in 0..3 {
            assert_eq!(receive(&new), Some(frame(50, seed)));
            assert_eq!(driver.take_used(TX_QUEUE), Some((seed.into(), 0)));
        }
        assert_eq!(driver.take_used(TX_QUEUE), None);
        assert!(driver.irq.read().is_ok(), "the driver hears of it");
    }
}

#[test]
fn a_driver_that_had_not_heard_of_its_frames_hears_of_them() {
    for features in [0, EVENT_IDX] {
        let (mut driver, network) = booted(config(), features);
        transmit(&mut driver, &frame(50, 1), &[62]);
        driver.run();
        assert_eq!(receive(&network), Some(frame(50, 1)));
        driver.transport.prepare_save().unwrap();
        let (mut driver, new) = restored(&driver, config());
        assert!(driver.irq.read().is_ok(), "before any event");
        assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
        assert_eq!(driver.take_used(TX_QUEUE), Some((0, 0)));
        driver.write(VIRTIO_MMIO_INTERRUPT_ACK, 1);
        driver.run();
        assert_eq!(receive(&new), None, "it is not sent again");
        // And the queue goes on, with an interrupt for the next frame.
        transmit(&mut driver, &frame(60, 2), &[72]);
        driver.run();
        assert_eq!(receive(&new), Some(frame(60, 2)));
        assert!(driver.irq.read().is_ok());
    }
}

#[test]
fn frames_that_waited_for_the_limiter_go_on() {
    let mut limited = config();
    limited.tx_rate_limiter = ops(1, 3_600_000);
    let (mut driver, network) = booted(limited.clone(), 0);
    for seed in 0..3 {
        transmit(&mut driver, &frame(50, seed), &[62]);
    }
    driver.run();
    assert_eq!(receive(&network), Some(frame(50, 0)));
    assert_eq!(receive(&network), None);
    let (mut same, network) = restored(&driver, limited);
    same.run();
    assert_eq!(receive(&network), None, "the tokens are spent");
    let (mut unlimited, network) = restored(&driver, config());
    unlimited.run();
    assert_eq!(receive(&network), Some(frame(50, 1)));
    assert_eq!(receive(&network), Some(frame(50, 2)));
}

#[test]
fn a_state_of_another_device_is_refused() {
    let (driver, _network) = booted(config(), 0);
    let state = driver.transport.save().unwrap();
    let mut other = config();
    other.id = "eth1".to_owned();
    let refused = |config: NetConfig, state| {
        let (net, _network) = net(config);
        let mem = driver.mem.clone();
        match MmioTransport::restore(mem, Box::new(net), evt(), &state) {
            Err(TransportError::Device(err)) => err,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(
        refused(other, state.clone()),
        RestoreDeviceError::Invalid { device: "net", .. }
    ));
    let mut rng = state.clone();
    rng.device = VirtioDeviceState::Rng(Default::default());
    assert!(matches!(
        refused(config(), rng),
        RestoreDeviceError::OtherDevice { expected: "net" }
    ));
    let VirtioDeviceState::Net(net_state) = &state.device else {
        panic!("{state:?}");
    };
    let mut dead = state.clone();
    let mut dead_limiter = net_state.clone();
    dead_limiter.rx_rate_limiter.ops = Some(crate::rate_limiter::TokenBucketState {
        budget: i64::MIN,
        burst: 0,
    });
    dead.device = VirtioDeviceState::Net(dead_limiter);
    let mut limited = config();
    limited.rx_rate_limiter = ops(1, 100);
    assert!(matches!(
        refused(limited, dead),
        RestoreDeviceError::Invalid { device: "net", .. }
    ));
}
