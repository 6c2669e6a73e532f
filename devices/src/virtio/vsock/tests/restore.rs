//! What a restored device does and refuses.

use super::*;

fn post_event_buffer(guest: &mut Guest) {
    let piece = Piece {
        gpa: buffer_gpa(EVENT_QUEUE, 0),
        len: 8,
        writable: true,
    };
    guest
        .driver
        .mem
        .write_slice(&[0xff; 8], GuestAddress(piece.gpa))
        .unwrap();
    guest.driver.offer(EVENT_QUEUE, &[piece]);
    guest.driver.kick(EVENT_QUEUE);
    guest.driver.run();
}

#[test]
fn a_restore_with_connections_resets_the_transport_once() {
    let mut guest = Guest::boot(None);
    post_event_buffer(&mut guest);
    let (_ours, old) = guest.connected();
    let mut guest = guest.restore();
    guest.driver.run();
    assert_eq!(guest.driver.take_used(EVENT_QUEUE), Some((0, 4)));
    assert_eq!(guest.driver.bytes(buffer_gpa(EVENT_QUEUE, 0), 4), [0; 4]);
    assert_eq!(guest.driver.interrupts(), 1);
    // What the guest still says of the old connection is answered.
    guest.answer(&old, op::RW, 0, b"?");
    assert_eq!(guest.recv_ops(), [op::RST]);
    // A new one works, at a port that the guest does not know.
    let (_ours, new) = guest.connected();
    assert_eq!(new.src_port, old.src_port + 1);
    post_event_buffer(&mut guest);
    assert_eq!(guest.driver.take_used(EVENT_QUEUE), None);
}

#[test]
fn a_reset_event_waits_for_a_buffer_even_across_another_save() {
    let mut guest = Guest::boot(None);
    let _connection = guest.connected();
    let mut guest = guest.restore();
    guest.driver.run();
    assert_eq!(guest.driver.take_used(EVENT_QUEUE), None);
    let mut guest = guest.restore();
    post_event_buffer(&mut guest);
    assert_eq!(guest.driver.take_used(EVENT_QUEUE), Some((0, 4)));
}

#[test]
fn a_quiet_restore_sends_nothing() {
    let mut guest = Guest::boot(None);
    post_event_buffer(&mut guest);
    let (ours, request) = guest.connected();
    drop(ours);
    assert_eq!(guest.recv_ops(), [op::SHUTDOWN]);
    guest.answer(&request, op::RST, 0, &[]);
    let mut guest = guest.restore();
    guest.driver.run();
    assert_eq!(guest.driver.take_used(EVENT_QUEUE), None);
    assert_eq!(guest.driver.interrupts(), 0);
    guest.connected();
}

#[test]
fn a_packet_that_was_sent_but_not_handled_is_handled_after_a_restore() {
    let mut guest = Guest::boot(None);
    let header = Header {
        op: op::RW,
        ..guest_request(9)
    };
    let gpa = buffer_gpa(TX_QUEUE, 0);
    guest
        .driver
        .mem
        .write_slice(&header_bytes(&header), GuestAddress(gpa))
        .unwrap();
    let piece = Piece {
        gpa,
        len: HEADER_BYTES,
        writable: false,
    };
    guest.driver.offer(TX_QUEUE, &[piece]);
    guest.driver.kick(TX_QUEUE);
    let mut guest = guest.restore();
    assert_eq!(guest.recv_ops(), [op::RST]);
}

#[test]
fn hostile_states_are_refused() {
    let guest = Guest::boot(None);
    let good = guest.driver.transport.save().unwrap();
    let try_restore = |state: &MmioTransportState| {
        let vsock = Vsock::new(VsockConfig::default()).unwrap();
        MmioTransport::restore(memory(), Box::new(vsock), evt(), state)
    };
    try_restore(&good).unwrap();
    let vsock = |guest_cid, next_host_port| {
        crate::virtio::VirtioDeviceState::Vsock(VsockState {
            guest_cid,
            next_host_port,
            reset_needed: false,
        })
    };
    for device in [
        vsock(4, FIRST_HOST_PORT),
        vsock(3, FIRST_HOST_PORT - 1),
        vsock(3, u32::MAX),
        crate::virtio::VirtioDeviceState::Rng(crate::virtio::rng::RngState {}),
    ] {
        let mut state = good.clone();
        state.device = device;
        assert!(try_restore(&state).is_err());
    }
}

#[test]
fn host_ports_wrap_around_the_ones_in_use() {
    let mut guest = Guest::boot(None);
    let _first = guest.connected();
    let state = guest.driver.transport.save().unwrap();
    let mut state = state;
    let crate::virtio::VirtioDeviceState::Vsock(vsock_state) = &mut state.device else {
        panic!("not a vsock state");
    };
    vsock_state.next_host_port = u32::MAX - 1;
    let vsock = Vsock::new(VsockConfig::default()).unwrap();
    guest.handle = vsock.handle();
    let irq: EventFd = evt();
    let transport = MmioTransport::restore(
        guest.driver.mem.clone(),
        Box::new(vsock),
        irq.try_clone().unwrap(),
        &state,
    )
    .unwrap();
    let rings = guest.driver.rings.clone();
    guest.driver = Driver::over(guest.driver.mem.clone(), transport, irq);
    guest.driver.rings = rings;
    let (_a, last) = guest.connected();
    let (_b, first) = guest.connected();
    assert_eq!(last.src_port, u32::MAX - 1);
    assert_eq!(first.src_port, FIRST_HOST_PORT);
}
