//! Connections as the guest sees them: states, credit, ends, violations.

use super::*;

#[test]
fn an_injected_stream_needs_two_interrupts_to_bring_its_request() {
    let mut guest = Guest::boot(None);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    // The request is there before the guest has accepted.
    ours.write_all(b"{\"seed\":1}\n").unwrap();
    guest.handle.connect(PORT, theirs).unwrap();
    assert_eq!(guest.handle.connection_count(), 1);
    let (request, _) = guest.recv_one();
    assert_eq!(guest.driver.interrupts(), 1);
    assert_eq!(guest.handle.last_accepted_ns(), None);
    guest.answer(&request, op::RESPONSE, 0, &[]);
    assert!(guest.handle.last_accepted_ns().is_some());
    let (data, payload) = guest.recv_one();
    assert_eq!((data.op, &payload[..]), (op::RW, &b"{\"seed\":1}\n"[..]));
    assert_eq!(guest.driver.interrupts(), 1);
    guest.answer(&request, op::RW, 0, b"{\"ok\":true}\n");
    ours.set_nonblocking(true).unwrap();
    assert_eq!(read_now(&mut ours), b"{\"ok\":true}\n");
    assert_eq!(guest.driver.interrupts(), 0);
    drop(ours);
    let (shutdown, _) = guest.recv_one();
    assert_eq!((shutdown.op, shutdown.flags), (op::SHUTDOWN, SHUTDOWN_BOTH));
    assert_eq!(guest.handle.connection_count(), 1);
    guest.answer(&request, op::RST, 0, &[]);
    assert_eq!(guest.handle.connection_count(), 0);
    assert!(guest.recv().is_empty());
}

#[test]
fn a_half_close_of_the_host_leaves_the_other_direction() {
    let mut guest = Guest::boot(None);
    let (mut ours, request) = guest.connected();
    ours.write_all(b"all").unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    let packets = guest.recv();
    assert_eq!(packets.len(), 2);
    assert_eq!(packets[0].1, b"all");
    let shutdown = &packets[1].0;
    assert_eq!((shutdown.op, shutdown.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    guest.answer(&request, op::RW, 0, b"answer");
    assert_eq!(read_now(&mut ours), b"answer");
    guest.answer(&request, op::SHUTDOWN, SHUTDOWN_BOTH, &[]);
    assert_eq!(guest.recv_one().0.op, op::RST);
    assert!(is_at_end(&mut ours));
}

#[test]
fn a_half_close_of_the_guest_leaves_the_other_direction() {
    let mut guest = Guest::boot(None);
    let (mut ours, request) = guest.connected();
    guest.answer(&request, op::RW, 0, b"last");
    guest.answer(&request, op::SHUTDOWN, SHUTDOWN_SEND, &[]);
    let mut last = [0; 4];
    ours.read_exact(&mut last).unwrap();
    assert!(is_at_end(&mut ours));
    ours.write_all(b"more").unwrap();
    assert_eq!(guest.recv_one().1, b"more");
    // Data after the end of sending is a violation.
    guest.answer(&request, op::RW, 0, b"x");
    assert_eq!(guest.recv_one().0.op, op::RST);
    assert_eq!(guest.handle.connection_count(), 0);
}

#[test]
fn a_client_that_leaves_before_the_answer_is_reset() {
    let mut guest = Guest::boot(None);
    let (ours, theirs) = UnixStream::pair().unwrap();
    guest.handle.connect(PORT, theirs).unwrap();
    assert_eq!(guest.recv_ops(), [op::REQUEST]);
    drop(ours);
    assert_eq!(guest.recv_ops(), [op::RST]);
    assert_eq!(guest.handle.connection_count(), 0);
}

#[test]
fn the_host_sends_no_more_than_the_guest_has_room_for() {
    let mut guest = Guest::boot(None);
    guest.buf_alloc = 1000;
    let (mut ours, request) = guest.connected();
    ours.write_all(&[7; 1500]).unwrap();
    let packets = guest.recv();
    assert_eq!(packets[0].1.len(), 1000);
    // Then it asks, once.
    assert_eq!(packets[1].0.op, op::CREDIT_REQUEST);
    assert_eq!(packets.len(), 2);
    ours.write_all(&[7; 100]).unwrap();
    assert!(guest.recv().is_empty());
    guest.fwd_cnt = 400;
    guest.answer(&request, op::CREDIT_UPDATE, 0, &[]);
    let packets = guest.recv();
    assert_eq!(packets[0].1.len(), 400);
    guest.fwd_cnt = 1400;
    guest.answer(&request, op::CREDIT_UPDATE, 0, &[]);
    assert_eq!(guest.recv_one().1.len(), 200);
    // A guest that claims to have taken what it never got has no room.
    guest.fwd_cnt = 1_000_000;
    guest.answer(&request, op::CREDIT_UPDATE, 0, &[]);
    ours.write_all(&[7; 10]).unwrap();
    assert_eq!(guest.recv_ops(), [op::CREDIT_REQUEST]);
}

#[test]
fn the_guest_gets_credit_as_the_host_takes_what_it_sent() {
    let mut guest = Guest::boot(None);
    let (mut ours, request) = guest.connected();
    assert_eq!(request.buf_alloc, BUF_ALLOC_BYTES);
    let chunk = vec![5; 8192];
    let mut sent = 0u32;
    let mut told = 0u32;
    let mut taken = 0;
    for _ in 0..100 {
        while sent.wrapping_sub(told) + 8192 <= BUF_ALLOC_BYTES {
            guest.answer(&request, op::RW, 0, &chunk);
            sent += 8192;
        }
        taken += read_now(&mut ours).len();
        for (header, _) in guest.recv() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            told = header.fwd_cnt;
        }
    }
    assert!(taken > 10 * BUF_ALLOC_BYTES as usize);
    assert!(taken <= sent as usize);
    guest.answer(&request, op::CREDIT_REQUEST, 0, &[]);
    let (update, _) = guest.recv_one();
    assert_eq!(
        (update.op, update.fwd_cnt),
        (op::CREDIT_UPDATE, taken as u32)
    );
}

#[test]
fn a_guest_that_overruns_its_credit_is_reset() {
    let mut guest = Guest::boot(None);
    let (ours, request) = guest.connected();
    // Nobody reads: the socket's own buffer takes some, then the device's fills.
    let mut resets = Vec::new();
    for _ in 0..200 {
        guest.answer(&request, op::RW, 0, &[1; 8192]);
        resets = guest.recv_ops();
        resets.retain(|&op| op == op::RST);
        if !resets.is_empty() {
            break;
        }
    }
    assert_eq!(resets, [op::RST]);
    assert_eq!(guest.handle.connection_count(), 0);
    drop(ours);
}

#[test]
fn hostile_packets_are_dropped_or_reset() {
    let mut guest = Guest::boot(None);
    let base = Header {
        op: op::RW,
        ..guest_request(9)
    };
    // For or of somebody else.
    for (src_cid, dst_cid) in [(4, HOST_CID), (3, 1), (HOST_CID, 3), (u64::MAX, HOST_CID)] {
        guest.send(
            &Header {
                src_cid,
                dst_cid,
                ..base
            },
            &[],
        );
        assert!(guest.recv().is_empty());
    }
    // Of no connection, of no type, of no operation.
    for (type_, op) in [
        (1, op::RW),
        (1, op::RESPONSE),
        (2, op::RW),
        (9, 0),
        (1, 0xffff),
    ] {
        guest.send(&Header { type_, op, ..base }, &[]);
        assert_eq!(guest.recv_ops(), [op::RST]);
        guest.send(
            &Header {
                type_,
                op: op::RST,
                ..base
            },
            &[],
        );
        assert!(guest.recv().is_empty());
    }
    // Too short for a header; longer than it is; longer than is allowed.
    guest.send_raw(&base, &[], &[43]);
    assert!(guest.recv().is_empty());
    for len in [1, 4096, u32::MAX] {
        let (mut ours, request) = guest.connected();
        let header = Header {
            src_port: PORT,
            dst_port: request.src_port,
            len,
            ..base
        };
        guest.send_raw(&header, &[], &[44]);
        assert_eq!(guest.recv_ops(), [op::RST]);
        assert!(is_at_end(&mut ours));
    }
    // Operations out of order.
    for op in [op::REQUEST, op::RESPONSE, 0, 8] {
        let (mut ours, request) = guest.connected();
        guest.answer(&request, op, 0, &[]);
        assert_eq!(guest.recv_ops(), [op::RST]);
        assert!(is_at_end(&mut ours));
    }
    // A giant buffer is no reason to allocate one.
    guest.buf_alloc = u32::MAX;
    let (mut ours, _) = guest.connected();
    ours.write_all(b"fine").unwrap();
    assert_eq!(guest.recv_one().1, b"fine");
}

#[test]
fn a_packet_may_be_spread_over_descriptors() {
    let mut guest = Guest::boot(None);
    let (mut ours, request) = guest.connected();
    let payload: Vec<u8> = (0..100).collect();
    let header = Header {
        src_cid: 3,
        dst_cid: HOST_CID,
        src_port: PORT,
        dst_port: request.src_port,
        len: 100,
        type_: TYPE_STREAM,
        op: op::RW,
        buf_alloc: 1 << 16,
        ..Header::default()
    };
    for pieces in [
        &[144][..],
        &[44, 100],
        &[44, 30, 70],
        &[10, 34, 99, 1],
        &[60, 84],
    ] {
        guest.send_raw(&header, &payload, pieces);
        assert_eq!(read_now(&mut ours), payload, "{pieces:?}");
    }
}

#[test]
fn receive_buffers_that_hold_nothing_are_given_back() {
    let vsock = Vsock::new(VsockConfig::default()).unwrap();
    let handle = vsock.handle();
    let mut driver = Driver::booted(Box::new(vsock), EVENT_IDX);
    let piece = |len, writable| Piece {
        gpa: buffer_gpa(RX_QUEUE, 0),
        len,
        writable,
    };
    driver.offer(RX_QUEUE, &[piece(10, true)]);
    driver.offer(RX_QUEUE, &[piece(44, true)]);
    driver.offer(RX_QUEUE, &[piece(100, false)]);
    driver.offer(RX_QUEUE, &[piece(100, true)]);
    let (_ours, theirs) = UnixStream::pair().unwrap();
    handle.connect(PORT, theirs).unwrap();
    driver.run();
    let used: Vec<u32> = std::iter::from_fn(|| driver.take_used(RX_QUEUE))
        .map(|used| used.1)
        .collect();
    assert_eq!(used, [0, 0, 0, HEADER_BYTES]);
}

#[test]
fn packets_wait_for_receive_buffers() {
    let vsock = Vsock::new(VsockConfig::default()).unwrap();
    let handle = vsock.handle();
    let mut guest = Guest {
        driver: Driver::booted(Box::new(vsock), EVENT_IDX),
        handle,
        buf_alloc: 1 << 16,
        fwd_cnt: 0,
    };
    let (_ours, theirs) = UnixStream::pair().unwrap();
    guest.handle.connect(PORT, theirs).unwrap();
    assert!(guest.recv().is_empty());
    guest.post_rx();
    guest.driver.kick(RX_QUEUE);
    assert_eq!(guest.recv_ops(), [op::REQUEST]);
}

#[test]
fn a_reset_closes_what_is_open() {
    let mut guest = Guest::boot(None);
    let (mut ours, request) = guest.connected();
    guest.driver.boot(EVENT_IDX);
    assert!(is_at_end(&mut ours));
    assert_eq!(guest.handle.connection_count(), 0);
    for _ in 0..8 {
        guest.post_rx();
    }
    guest.answer(&request, op::RW, 0, b"?");
    assert_eq!(guest.recv_ops(), [op::RST]);
    guest.connected();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn bytes_arrive_in_order_both_ways(
        to_guest in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..3000), 0..12),
        to_host in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..3000), 0..12),
        buf_alloc in 1u32..5000,
    ) {
        let mut guest = Guest::boot(None);
        guest.buf_alloc = buf_alloc;
        let (mut ours, request) = guest.connected();
        let (mut at_guest, mut at_host) = (Vec::new(), Vec::new());
        for payload in &to_host {
            guest.answer(&request, op::RW, 0, payload);
            at_host.extend(read_now(&mut ours));
        }
        for payload in &to_guest {
            ours.write_all(payload).unwrap();
        }
        let expected: Vec<u8> = to_guest.concat();
        for _ in 0..expected.len() + 1 {
            for (header, payload) in guest.recv() {
                if header.op == op::RW {
                    prop_assert!(payload.len() <= buf_alloc as usize);
                    guest.fwd_cnt = guest.fwd_cnt.wrapping_add(payload.len() as u32);
                    at_guest.extend(payload);
                }
            }
            if at_guest.len() >= expected.len() {
                break;
            }
            guest.answer(&request, op::CREDIT_UPDATE, 0, &[]);
        }
        prop_assert!(at_guest == expected);
        prop_assert!(at_host == to_host.concat());
    }
}
