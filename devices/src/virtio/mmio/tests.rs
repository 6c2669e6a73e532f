use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use proptest::prelude::*;
use virtio_bindings::virtio_mmio::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::bus::BusDevice;
use crate::test_driver::{
    Driver, EVENT_IDX, Piece, QUEUE_SIZE, avail_gpa, buffer_gpa, desc_gpa, evt, memory, used_gpa,
};
use crate::virtio::{Rng, Vsock, VsockConfig};

const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;

fn rng() -> Box<dyn VirtioDevice> {
    Box::new(Rng::new())
}

fn vsock() -> Box<dyn VirtioDevice> {
    Box::new(Vsock::new(VsockConfig::default()).unwrap())
}

fn random_buffer(len: u32) -> Piece {
    Piece {
        gpa: buffer_gpa(0, 0),
        len,
        writable: true,
    }
}

#[test]
fn registers_identify_the_device() {
    let mut driver = Driver::new(vsock());
    assert_eq!(
        driver.read(VIRTIO_MMIO_MAGIC_VALUE),
        u32::from_le_bytes(*b"virt")
    );
    assert_eq!(driver.read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 19);
    assert_eq!(driver.read(VIRTIO_MMIO_CONFIG), 3);
    assert_eq!(driver.read(VIRTIO_MMIO_CONFIG + 4), 0);
    assert_eq!(driver.read(VIRTIO_MMIO_CONFIG + 8), 0);
    assert_eq!(driver.read(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES), EVENT_IDX as u32);
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES), 1);
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 2);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 256);
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 3);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    // Other widths than 32 bits are none.
    let mut word = [0xff; 2];
    driver.transport.read(0, &mut word);
    assert_eq!(word, [0, 0]);
}

#[test]
fn features_are_refused_unless_offered_and_with_version_1() {
    for (features, accepted) in [
        (1 << 32, true),
        (1 << 32 | EVENT_IDX, true),
        (EVENT_IDX, false),
        (1 << 32 | 1, false),
        (1 << 32 | 1 << 34, false),
    ] {
        let mut driver = Driver::new(rng());
        driver.negotiate(features);
        assert_eq!(
            driver.read(VIRTIO_MMIO_STATUS) & FEATURES_OK_BIT != 0,
            accepted
        );
    }
}

#[test]
fn a_booted_device_serves_and_interrupts() {
    for features in [0, EVENT_IDX] {
        let mut driver = Driver::booted(rng(), features);
        assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0xf);
        driver.run();
        assert_eq!(driver.interrupts(), 0);
        driver.offer(0, &[random_buffer(512)]);
        driver.kick(0);
        driver.run();
        assert_eq!(driver.take_used(0), Some((0, 512)));
        assert_eq!(driver.interrupts(), 1);
        assert_eq!(
            driver.read(VIRTIO_MMIO_INTERRUPT_STATUS),
            VIRTIO_MMIO_INT_VRING
        );
        driver.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
        assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        assert_ne!(driver.bytes(buffer_gpa(0, 0), 512), vec![0; 512]);
    }
}

#[test]
fn several_buffers_of_a_turn_are_one_interrupt() {
    let mut driver = Driver::booted(rng(), EVENT_IDX);
    for _ in 0..8 {
        driver.offer(0, &[random_buffer(16)]);
    }
    driver.kick(0);
    driver.run();
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(std::iter::from_fn(|| driver.take_used(0)).count(), 8);
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let mut driver = Driver::booted(rng(), 0);
    driver.put_u16(avail_gpa(0), 1);
    driver.offer(0, &[random_buffer(16)]);
    driver.kick(0);
    driver.run();
    assert!(driver.take_used(0).is_some());
    assert_eq!(driver.interrupts(), 0);
}

#[test]
fn random_bytes_go_to_writable_pieces_in_memory_only() {
    let mut driver = Driver::booted(rng(), 0);
    let piece = |gpa, len, writable| Piece { gpa, len, writable };
    let at = buffer_gpa(0, 0);
    driver.offer(0, &[piece(at, 64, false), piece(at + 64, 64, true)]);
    driver.offer(0, &[piece(at, u32::MAX, true)]);
    driver.offer(0, &[piece(u64::MAX - 4, 64, true)]);
    driver.offer(0, &[piece(at + 0x1000, 8, true), piece(1 << 40, 8, true)]);
    driver.kick(0);
    driver.run();
    assert_eq!(driver.bytes(at, 64).len(), 64);
    let lens: Vec<u32> = std::iter::from_fn(|| driver.take_used(0))
        .map(|u| u.1)
        .collect();
    // A buffer that is larger than memory, a wild one, and one with a wild tail.
    assert_eq!(lens, [64, 4096, 0, 8]);
}

#[test]
fn a_bad_queue_needs_a_reset_and_a_reset_helps() {
    let spoil: [fn(&mut Driver); 6] = [
        |d| d.write(VIRTIO_MMIO_QUEUE_NUM, 0),
        |d| d.write(VIRTIO_MMIO_QUEUE_NUM, 3),
        |d| d.write(VIRTIO_MMIO_QUEUE_NUM, 0x1_0040),
        |d| d.write(VIRTIO_MMIO_QUEUE_DESC_LOW, 8),
        |d| d.write(VIRTIO_MMIO_QUEUE_USED_HIGH, 1),
        |d| d.write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0),
    ];
    for spoil in spoil {
        let mut driver = Driver::new(rng());
        driver.negotiate(1 << 32);
        driver.set_up_queue(0);
        // An enabled queue is not changed any more.
        spoil(&mut driver);
        driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
        spoil(&mut driver);
        driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
        driver.write(VIRTIO_MMIO_STATUS, 0xf);
        assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0xf | NEEDS_RESET);
        assert_eq!(
            driver.read(VIRTIO_MMIO_INTERRUPT_STATUS),
            VIRTIO_MMIO_INT_CONFIG
        );
        assert_eq!(driver.interrupts(), 1);
        driver.kick(0);
        driver.run();
        driver.boot(0);
        assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0xf);
        driver.offer(0, &[random_buffer(8)]);
        driver.kick(0);
        driver.run();
        assert_eq!(driver.take_used(0), Some((0, 8)));
    }
}

#[test]
fn an_available_index_that_jumps_needs_a_reset() {
    let mut driver = Driver::booted(rng(), EVENT_IDX);
    driver.put_u16(avail_gpa(0) + 2, QUEUE_SIZE + 1);
    driver.kick(0);
    driver.run();
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0xf | NEEDS_RESET);
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn a_head_beyond_the_queue_needs_a_reset() {
    let mut driver = Driver::booted(rng(), 0);
    driver.put_u16(avail_gpa(0) + 4, 9999);
    driver.put_u16(avail_gpa(0) + 2, 1);
    driver.kick(0);
    driver.run();
    assert_ne!(driver.read(VIRTIO_MMIO_STATUS) & NEEDS_RESET, 0);
}

#[test]
fn a_chain_that_is_a_ring_ends() {
    let mut driver = Driver::booted(rng(), 0);
    driver.offer(0, &[random_buffer(1), random_buffer(1)]);
    // The second descriptor goes on with the first.
    driver.put_u16(desc_gpa(0) + 16 + 12, 3);
    driver.put_u16(desc_gpa(0) + 16 + 14, 0);
    driver.kick(0);
    driver.run();
    assert_eq!(driver.take_used(0), Some((0, QUEUE_SIZE.into())));
}

#[test]
fn a_stopped_queue_reads_back_as_stopped_and_does_nothing() {
    let mut driver = Driver::booted(rng(), 0);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    driver.offer(0, &[random_buffer(8)]);
    driver.kick(0);
    driver.run();
    assert_eq!(driver.take_used(0), None);
    // Not again before a reset.
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn the_ioeventfd_is_a_notification_and_the_event_loop_handles_it() {
    let mut driver = Driver::booted(rng(), EVENT_IDX);
    driver.run();
    driver.offer(0, &[random_buffer(32)]);
    let kick = driver
        .transport
        .queue_event_fd(0)
        .unwrap()
        .try_clone()
        .unwrap();
    assert!(driver.transport.queue_event_fd(1).is_none());
    let irq = driver.irq.try_clone().unwrap();
    let transport = Arc::new(Mutex::new(driver.transport));
    let mut events = EventManager::<Arc<Mutex<dyn MutEventSubscriber + Send>>>::new().unwrap();
    events.add_subscriber(transport.clone());
    assert_eq!(events.run_with_timeout(0).unwrap(), 0);
    kick.write(1).unwrap();
    events.run_with_timeout(10_000).unwrap();
    assert_eq!(irq.read().unwrap(), 1);
    assert_eq!(events.run_with_timeout(0).unwrap(), 0);
}

#[test]
fn a_save_and_restore_goes_on_where_it_was() {
    for features in [0, EVENT_IDX] {
        let mut driver = Driver::booted(rng(), features);
        for _ in 0..3 {
            driver.offer(0, &[random_buffer(8)]);
            driver.kick(0);
            driver.run();
            assert!(driver.take_used(0).is_some());
        }
        driver.interrupts();
        // One notification is pending, one interrupt not acknowledged.
        driver.offer(0, &[random_buffer(24)]);
        driver.kick(0);
        let state = driver.transport.save().unwrap();
        assert_eq!(driver.transport.save().unwrap(), state);
        assert!(state.queues[0].kick_pending);

        let irq = evt();
        let transport =
            MmioTransport::restore(driver.mem.clone(), rng(), irq.try_clone().unwrap(), &state)
                .unwrap();
        assert_eq!(transport.save().unwrap(), state);
        let mut restored = Driver::over(driver.mem.clone(), transport, irq);
        restored.rings.clone_from(&driver.rings);
        assert_eq!(restored.interrupts(), 1);
        restored.run();
        assert_eq!(restored.take_used(0), Some((3, 24)));
        assert_eq!(restored.interrupts(), 1);
    }
}

#[test]
fn a_restore_does_not_touch_guest_memory() {
    let mut driver = Driver::booted(vsock(), EVENT_IDX);
    driver.run();
    let mut state = driver.transport.save().unwrap();
    state.queues[1].kick_pending = true;
    let before = driver.bytes(0, crate::test_driver::MEMORY_BYTES);
    let restored = MmioTransport::restore(driver.mem.clone(), vsock(), evt(), &state).unwrap();
    drop(restored);
    assert!(before == driver.bytes(0, crate::test_driver::MEMORY_BYTES));
    // Nothing is in a fresh memory, not even rings: only their addresses count.
    MmioTransport::restore(memory(), vsock(), evt(), &state).unwrap();
}

#[test]
fn states_that_cannot_be_are_refused() {
    let mut driver = Driver::booted(rng(), EVENT_IDX);
    driver.run();
    let good = driver.transport.save().unwrap();
    MmioTransport::restore(memory(), rng(), evt(), &good).unwrap();
    let vsock_device = Driver::new(vsock()).transport.save().unwrap().device;
    type Spoil = Box<dyn Fn(&mut MmioTransportState)>;
    let spoil: Vec<Spoil> = vec![
        Box::new(|s| s.device_id = 19),
        Box::new(|s| s.queues.clear()),
        Box::new(|s| s.queues.push(s.queues[0])),
        Box::new(|s| s.acked_features |= 1 << 40),
        Box::new(|s| s.acked_features = 0),
        Box::new(|s| s.acked_beyond = true),
        Box::new(|s| s.status = 0x10f),
        Box::new(|s| s.status = 4),
        Box::new(|s| s.status = 0),
        Box::new(|s| s.interrupt_status = 4),
        Box::new(|s| s.queues[0].size = 0),
        Box::new(|s| s.queues[0].size = 63),
        Box::new(|s| s.queues[0].size = 128),
        Box::new(|s| s.queues[0].size = u32::MAX),
        Box::new(|s| s.queues[0].desc_gpa += 1),
        Box::new(|s| s.queues[0].driver_gpa += 1),
        Box::new(|s| s.queues[0].driver_gpa = 0),
        Box::new(|s| s.queues[0].device_gpa = u64::MAX - 3),
        Box::new(|s| s.queues[0].device_gpa = 1 << 40),
        Box::new(|s| s.queues[0].next_used = 6),
        Box::new(|s| s.queues[0].next_avail = 5 + QUEUE_SIZE + 1),
        Box::new(move |s| s.device = vsock_device.clone()),
    ];
    for (i, spoil) in spoil.iter().enumerate() {
        let mut state = good.clone();
        // A position makes a status of 0 impossible.
        state.queues[0].next_avail = 5;
        state.queues[0].next_used = 5;
        spoil(&mut state);
        let restored = MmioTransport::restore(memory(), rng(), evt(), &state);
        assert!(restored.is_err(), "state {i} was taken");
    }
}

#[test]
fn rings_that_do_not_go_with_the_state_need_a_reset() {
    let mut driver = Driver::booted(rng(), EVENT_IDX);
    driver.run();
    let mut state = driver.transport.save().unwrap();
    state.queues[0].next_avail = 1000;
    state.queues[0].next_used = 1000;
    state.queues[0].kick_pending = true;
    let transport = MmioTransport::restore(driver.mem.clone(), rng(), evt(), &state).unwrap();
    let mut restored = Driver::over(driver.mem.clone(), transport, evt());
    restored.run();
    assert_ne!(restored.read(VIRTIO_MMIO_STATUS) & NEEDS_RESET, 0);
}

#[test]
fn a_reset_from_another_thread_while_the_event_loop_runs() {
    let driver = Driver::booted(vsock(), EVENT_IDX);
    let transport = Arc::new(Mutex::new(driver.transport));
    let mut events = EventManager::<Arc<Mutex<dyn MutEventSubscriber + Send>>>::new().unwrap();
    events.add_subscriber(transport.clone());
    let other = std::thread::spawn(move || {
        for _ in 0..200 {
            transport.lock().unwrap().write(0x50, &[1, 0, 0, 0]);
            transport.lock().unwrap().write(0x70, &[0; 4]);
            std::thread::sleep(Duration::from_micros(10));
        }
    });
    while !other.is_finished() {
        events.run_with_timeout(1).unwrap();
    }
    other.join().unwrap();
}

/// A write that is likely to mean something.
fn register_write() -> impl Strategy<Value = (u32, u32)> {
    let registers = prop::sample::select(vec![
        VIRTIO_MMIO_DEVICE_FEATURES_SEL,
        VIRTIO_MMIO_DRIVER_FEATURES,
        VIRTIO_MMIO_DRIVER_FEATURES_SEL,
        VIRTIO_MMIO_QUEUE_SEL,
        VIRTIO_MMIO_QUEUE_NUM,
        VIRTIO_MMIO_QUEUE_READY,
        VIRTIO_MMIO_QUEUE_NOTIFY,
        VIRTIO_MMIO_INTERRUPT_ACK,
        VIRTIO_MMIO_STATUS,
        VIRTIO_MMIO_QUEUE_DESC_LOW,
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
        VIRTIO_MMIO_QUEUE_USED_LOW,
    ]);
    (
        prop_oneof![registers, 0u32..0x1000],
        prop_oneof![0u32..16, any::<u32>()],
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_in_registers_leaves_a_device_that_can_be_saved_and_booted(
        writes in prop::collection::vec(register_write(), 0..60),
        booted in any::<bool>(),
    ) {
        for device in [rng as fn() -> Box<dyn VirtioDevice>, vsock] {
            let mut driver = Driver::new(device());
            if booted {
                driver.boot(EVENT_IDX);
            }
            for &(register, value) in &writes {
                driver.write(register, value);
                driver.read(register & !3);
                driver.transport.write(u64::from(register), &value.to_le_bytes()[..2]);
                driver.transport.process_pending();
            }
            let state = driver.transport.save().unwrap();
            let restored =
                MmioTransport::restore(driver.mem.clone(), device(), evt(), &state).unwrap();
            prop_assert_eq!(restored.save().unwrap(), state);
            driver.boot(0);
            prop_assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0xf);
        }
    }

    #[test]
    fn garbage_in_rings_ends(
        rings in prop::collection::vec(any::<u8>(), 0x400),
        avail_idx in 0u16..100,
        event_idx in any::<bool>(),
    ) {
        for device in [rng as fn() -> Box<dyn VirtioDevice>, vsock] {
            let mut driver = Driver::booted(device(), if event_idx { EVENT_IDX } else { 0 });
            for index in 0..driver.transport.queue_count() {
                for gpa in [desc_gpa(index), avail_gpa(index), used_gpa(index)] {
                    driver.mem.write_slice(&rings, GuestAddress(gpa)).unwrap();
                }
                // Addresses that are in memory now and then.
                for desc in 0..u64::from(QUEUE_SIZE) {
                    let at = GuestAddress(desc_gpa(index) + desc * 16 + 2);
                    driver.mem.write_slice(&[0; 6], at).unwrap();
                }
                driver.put_u16(avail_gpa(index) + 2, avail_idx);
                driver.kick(index);
            }
            for _ in 0..3 {
                driver.transport.process_pending();
            }
            let state = driver.transport.save().unwrap();
            MmioTransport::restore(driver.mem.clone(), device(), evt(), &state).unwrap();
        }
    }
}
