//! Frames both ways, and the rings that they come by.

use event_manager::{EventManager, SubscriberOps};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_DEVICE_ID};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_STATUS};
use virtio_bindings::virtio_net::VIRTIO_NET_F_GUEST_CSUM;

use super::*;
use crate::bus::BusDevice;
use crate::test_driver::{EVENT_IDX, MEMORY_BYTES, QUEUE_SIZE, evt, memory, used_gpa};
use crate::virtio::net::MAX_FRAME_BYTES;
use crate::virtio::{MmioTransport, Rng};

#[test]
fn the_configuration_is_the_mac_address_and_cannot_be_written() {
    let mut config = config();
    config.mac = Some("06:00:ac:10:00:02".parse().unwrap());
    let (mut driver, _network) = booted(config, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 1);
    driver.write(VIRTIO_MMIO_CONFIG, 0xffff_ffff);
    let mut bytes = [0xff; 8];
    driver.transport.read(VIRTIO_MMIO_CONFIG.into(), &mut bytes);
    assert_eq!(bytes, [6, 0, 0xac, 0x10, 0, 2, 0, 0]);
}

#[test]
fn a_frame_of_the_guest_arrives_whole_from_any_pieces() {
    let (mut driver, network) = booted(config(), 0);
    let sent = frame(1000, 1);
    for lens in [&[1012][..], &[12, 1000], &[5, 7, 1, 999], &[0, 12, 0, 1000]] {
        let chain = transmit(&mut driver, &sent, lens);
        driver.run();
        assert_eq!(receive(&network), Some(sent.clone()), "{lens:?}");
        assert_eq!(driver.take_used(TX_QUEUE), Some((chain, 0)));
        assert!(driver.interrupts() > 0);
    }
}

#[test]
fn what_is_no_frame_is_dropped_and_the_next_one_is_not() {
    let (mut driver, network) = booted(config(), 0);
    let readable = |gpa, len| Piece {
        gpa,
        len,
        writable: false,
    };
    let writable = Piece {
        gpa: 0x1000,
        len: 1000,
        writable: true,
    };
    let end = MEMORY_BYTES as u64;
    let chains: [&[Piece]; 7] = [
        &[readable(0x1000, 0)],
        &[readable(0x1000, 12)],
        &[readable(0x1000, (12 + MAX_FRAME_BYTES) as u32 + 1)],
        &[readable(0x1000, u32::MAX), readable(0x1000, u32::MAX)],
        &[readable(0x1000, 12), readable(end - 4, 100)],
        &[readable(u64::MAX - 10, 100)],
        &[writable],
    ];
    for pieces in chains {
        driver.offer(TX_QUEUE, pieces);
    }
    let longest = [readable(0x8_0000, (12 + MAX_FRAME_BYTES) as u32)];
    driver.offer(TX_QUEUE, &longest);
    driver.kick(TX_QUEUE);
    driver.run();
    for _ in 0..=chains.len() {
        assert!(driver.take_used(TX_QUEUE).is_some());
    }
    assert_eq!(
        receive(&network).map(|f| f.len()),
        Some(12 + MAX_FRAME_BYTES)
    );
    assert_eq!(receive(&network), None);
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0xf);
}

#[test]
fn a_frame_for_the_guest_fills_one_buffer() {
    let (mut driver, network) = booted(config(), 0);
    for _ in 0..2 {
        offer_rx(&mut driver, 1526);
    }
    let frames = [frame(60, 1), frame(1514, 2)];
    for frame in &frames {
        send(&network, frame);
    }
    driver.run();
    for frame in frames {
        assert_eq!(take_rx(&mut driver), Some(received(frame, 1)));
    }
    assert_eq!(take_rx(&mut driver), None);
    assert!(driver.interrupts() > 0);
}

#[test]
fn a_long_frame_is_spread_over_mergeable_buffers() {
    let (mut driver, network) = booted(config(), MERGEABLE);
    for len in [1000, 500, 0, 4000] {
        offer_rx(&mut driver, len);
    }
    let sent = frame(2000, 3);
    send(&network, &sent);
    driver.run();
    let mut got = Vec::new();
    let mut lens = Vec::new();
    while let Some(bytes) = take_rx(&mut driver) {
        lens.push(bytes.len());
        got.extend(bytes);
    }
    assert_eq!(lens, [1000, 500, 0, 512]);
    assert_eq!(got, received(sent, 4));
}

#[test]
fn a_frame_that_fits_no_buffer_is_dropped_and_the_buffer_is_kept() {
    let (mut driver, network) = booted(config(), 0);
    offer_rx(&mut driver, 1526);
    send(&network, &frame(1515, 1));
    let short = frame(1514, 2);
    send(&network, &short);
    driver.run();
    assert_eq!(take_rx(&mut driver), Some(received(short, 1)));
    assert_eq!(take_rx(&mut driver), None);
}

#[test]
fn receive_buffers_outside_of_memory_get_nothing() {
    let (mut driver, network) = booted(config(), 0);
    let bad = Piece {
        gpa: MEMORY_BYTES as u64 - 100,
        len: 2000,
        writable: true,
    };
    driver.offer(RX_QUEUE, &[bad]);
    send(&network, &frame(1000, 1));
    driver.run();
    assert_eq!(driver.take_used(RX_QUEUE), None);
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0xf);
}

#[test]
fn a_frame_that_asks_for_an_offload_that_was_not_negotiated_is_dropped() {
    let mut unfinished = frame(100, 1);
    unfinished[0] = 1;
    for (features, taken) in [(0, false), (1 << VIRTIO_NET_F_GUEST_CSUM, true)] {
        let (mut driver, network) = booted(config(), features);
        offer_rx(&mut driver, 1526);
        send(&network, &unfinished);
        driver.run();
        assert_eq!(take_rx(&mut driver).is_some(), taken);
    }
}

#[test]
fn without_enough_mergeable_buffers_the_guest_is_asked_for_more() {
    let (mut driver, network) = booted(config(), MERGEABLE | EVENT_IDX);
    let sent = frame(1500, 4);
    offer_rx(&mut driver, 1000);
    send(&network, &sent);
    driver.run();
    assert_eq!(take_rx(&mut driver), None);
    // The buffer that is there is none that it has to be told of.
    let avail_event = used_gpa(RX_QUEUE) + 4 + u64::from(QUEUE_SIZE) * 8;
    assert_eq!(driver.get_u16(avail_event), 1);
    let state = driver.transport.save().unwrap();
    assert!(!state.queues[RX_QUEUE].kick_pending);
    assert_eq!(state.queues[RX_QUEUE].next_avail, 0);
    offer_rx(&mut driver, 1000);
    driver.kick(RX_QUEUE);
    driver.run();
    let mut got = take_rx(&mut driver).unwrap();
    got.extend(take_rx(&mut driver).unwrap());
    assert_eq!(got, received(sent, 2));
}

#[test]
fn the_event_loop_rests_while_the_guest_has_no_buffers() {
    let (mut driver, network) = booted(config(), 0);
    driver.run();
    let rng = MmioTransport::new(memory(), Box::new(Rng::new()), evt()).unwrap();
    let transport = std::mem::replace(&mut driver.transport, rng);
    let mut manager = EventManager::new().unwrap();
    let id = manager.add_subscriber(transport);
    let (first, second) = (frame(100, 1), frame(200, 2));
    send(&network, &first);
    send(&network, &second);
    let mut events = 0;
    while manager.run_with_timeout(0).unwrap() > 0 {
        events += 1;
        assert!(events < 10, "an event comes again and again");
    }
    assert!(events > 0);
    for _ in 0..2 {
        offer_rx(&mut driver, 1526);
    }
    let notify = u64::from(VIRTIO_MMIO_QUEUE_NOTIFY);
    let transport = manager.subscriber_mut(id).unwrap();
    transport.write(notify, &0u32.to_le_bytes());
    while manager.run_with_timeout(0).unwrap() > 0 {}
    assert_eq!(take_rx(&mut driver), Some(received(first, 1)));
    assert_eq!(take_rx(&mut driver), Some(received(second, 1)));
    // And it wakes up for the next one.
    offer_rx(&mut driver, 1526);
    let third = frame(300, 3);
    send(&network, &third);
    while manager.run_with_timeout(0).unwrap() > 0 {}
    assert_eq!(take_rx(&mut driver), Some(received(third, 1)));
}

#[test]
fn a_driver_that_comes_later_gets_no_frame_of_the_one_before() {
    let (mut driver, network) = booted(config(), 0);
    send(&network, &frame(100, 1));
    driver.run();
    driver.boot(0);
    offer_rx(&mut driver, 1526);
    let second = frame(200, 2);
    send(&network, &second);
    driver.kick(RX_QUEUE);
    driver.run();
    assert_eq!(take_rx(&mut driver), Some(received(second, 1)));
}
