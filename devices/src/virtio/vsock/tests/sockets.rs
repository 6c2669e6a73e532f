//! The Unix sockets, the handshake and the handle.

use std::sync::{Arc, Mutex};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};

use super::*;

#[test]
fn the_handshake_of_a_client() {
    let (_dir, path) = socket_dir();
    let mut guest = Guest::boot(Some(&path));
    let mut client = UnixStream::connect(&path).unwrap();
    guest.driver.run();
    // In pieces, and with the first data right behind.
    for piece in ["CONN", "ECT 50", "00\nhel"] {
        assert!(guest.recv().is_empty());
        client.write_all(piece.as_bytes()).unwrap();
    }
    let (request, _) = guest.recv_one();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, PORT));
    client.set_nonblocking(true).unwrap();
    assert!(read_now(&mut client).is_empty());
    guest.answer(&request, op::RESPONSE, 0, &[]);
    let ok = format!("OK {}\n", request.src_port);
    assert_eq!(read_now(&mut client), ok.as_bytes());
    assert_eq!(guest.recv_one().1, b"hel");
    client.write_all(b"lo").unwrap();
    assert_eq!(guest.recv_one().1, b"lo");
    guest.answer(&request, op::RW, 0, b"world");
    assert_eq!(read_now(&mut client), b"world");
}

#[test]
fn a_guest_that_refuses_closes_the_client() {
    let (_dir, path) = socket_dir();
    let mut guest = Guest::boot(Some(&path));
    let mut client = client(&path, "CONNECT 1\n");
    let (request, _) = guest.recv_one();
    guest.answer(&request, op::RST, 0, &[]);
    assert!(is_at_end(&mut client));
    assert!(guest.recv().is_empty());
}

#[test]
fn lines_that_are_no_handshake_close_the_client() {
    let (_dir, path) = socket_dir();
    let mut guest = Guest::boot(Some(&path));
    for line in ["HELLO\n", "CONNECT x\n", &"C".repeat(4096)] {
        let mut client = client(&path, line);
        assert!(guest.recv().is_empty());
        assert!(is_at_end(&mut client), "{line}");
    }
    assert_eq!(guest.handle.connection_count(), 0);
}

#[test]
fn handshakes_that_never_end_stop_nobody() {
    let (_dir, path) = socket_dir();
    let mut guest = Guest::boot(Some(&path));
    let mut slow = Vec::new();
    for _ in 0..MAX_HANDSHAKES + 10 {
        slow.push(client(&path, "CONNECT 50"));
        guest.driver.run();
    }
    let _client = client(&path, "CONNECT 5000\n");
    assert_eq!(guest.recv_one().0.op, op::REQUEST);
    // The oldest made room.
    assert!(is_at_end(&mut slow[0]));
    assert!(!is_at_end(&mut slow[20]));
}

#[test]
fn the_socket_path_must_be_free_and_is_freed() {
    let (_dir, path) = socket_dir();
    std::fs::write(&path, b"mine").unwrap();
    assert!(matches!(
        Vsock::new(config(Some(&path))),
        Err(VsockError::PathExists { .. })
    ));
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    std::fs::remove_file(&path).unwrap();
    let vsock = Vsock::new(config(Some(&path))).unwrap();
    assert!(matches!(
        Vsock::new(config(Some(&path))),
        Err(VsockError::PathExists { .. })
    ));
    assert!(path.exists());
    drop(vsock);
    assert!(!path.exists());
    // What somebody else put there stays.
    let vsock = Vsock::new(config(Some(&path))).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"other").unwrap();
    drop(vsock);
    assert!(path.exists());
    let missing = path.with_file_name("no/such/dir");
    assert!(matches!(
        Vsock::new(config(Some(&missing))),
        Err(VsockError::Listen { .. })
    ));
    for guest_cid in [0, 1, 2, u32::MAX] {
        let reserved = VsockConfig {
            guest_cid,
            uds_path: None,
        };
        assert!(matches!(
            Vsock::new(reserved),
            Err(VsockError::ReservedCid(_))
        ));
    }
}

#[test]
fn the_guest_connects_to_a_server_of_the_host() {
    let (_dir, path) = socket_dir();
    let mut guest = Guest::boot(Some(&path));
    let server = UnixListener::bind(format!("{}_{}", path.display(), 1234)).unwrap();
    guest.send(&guest_request(1234), &[]);
    let (response, _) = guest.recv_one();
    assert_eq!((response.op, response.src_port), (op::RESPONSE, 1234));
    let (mut stream, _) = server.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    guest.answer(&response, op::RW, 0, b"hi");
    assert_eq!(read_now(&mut stream), b"hi");
    stream.write_all(b"ho").unwrap();
    assert_eq!(guest.recv_one().1, b"ho");
    // The guest is done.
    guest.answer(&response, op::SHUTDOWN, SHUTDOWN_BOTH, &[]);
    assert_eq!(guest.recv_one().0.op, op::RST);
    assert!(is_at_end(&mut stream));
    assert_eq!(guest.handle.connection_count(), 0);
}

#[test]
fn a_guest_that_finds_no_server_gets_a_reset() {
    let (_dir, path) = socket_dir();
    let mut guest = Guest::boot(Some(&path));
    guest.send(&guest_request(1), &[]);
    assert_eq!(guest.recv_one().0.op, op::RST);
    let mut guest = Guest::boot(None);
    guest.send(&guest_request(1), &[]);
    let (reset, _) = guest.recv_one();
    assert_eq!((reset.op, reset.src_port, reset.dst_port), (op::RST, 1, 77));
}

#[test]
fn connections_are_bounded() {
    // Each connection needs two descriptors here.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = 2 * MAX_CONNECTIONS as u64 + 200;
    if limit.current.is_some_and(|current| current < wanted) {
        let mut raised = limit;
        raised.current = limit
            .maximum
            .map_or(Some(wanted), |max| Some(max.min(wanted)));
        rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    }
    let mut guest = Guest::boot(None);
    let mut streams = Vec::new();
    for _ in 0..MAX_CONNECTIONS + 1 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        guest.handle.connect(PORT, theirs).unwrap();
        assert_eq!(
            guest.recv_ops().len(),
            usize::from(streams.len() < MAX_CONNECTIONS)
        );
        streams.push(ours);
    }
    assert_eq!(guest.handle.connection_count(), MAX_CONNECTIONS);
    assert!(is_at_end(&mut streams[MAX_CONNECTIONS]));
    assert!(!is_at_end(&mut streams[MAX_CONNECTIONS - 1]));
}

/// In a process of its own: the limit is that of the process.
#[test]
#[ignore = "run by the test after this one"]
fn child_without_descriptors() {
    let (_dir, path) = socket_dir();
    let mut guest = Guest::boot(Some(&path));
    let mut waiting = client(&path, "");
    // One descriptor for the client's end, none for the device's.
    let highest = {
        use std::os::fd::AsRawFd;
        std::fs::File::open("/dev/null").unwrap().as_raw_fd()
    };
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = Some(highest as u64);
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    guest.driver.run();
    assert!(is_at_end(&mut waiting));

    limit.current = Some(highest as u64 + 64);
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let mut after = client(&path, "CONNECT 5000\n");
    let (request, _) = guest.recv_one();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, PORT));
    assert!(!is_at_end(&mut after));
    println!("sent away");
}

#[test]
fn a_client_for_whom_no_descriptor_is_left_is_sent_away() {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--nocapture", "child_without_descriptors"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(
        child.status.success() && said.contains("sent away"),
        "{said}{}",
        String::from_utf8_lossy(&child.stderr)
    );
}

#[test]
fn a_device_without_a_driver_sends_everyone_away() {
    let (_dir, path) = socket_dir();
    let vsock = Vsock::new(config(Some(&path))).unwrap();
    let handle = vsock.handle();
    let mut driver = Driver::new(Box::new(vsock));
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    handle.connect(PORT, theirs).unwrap();
    let mut client = client(&path, "");
    driver.run();
    assert!(is_at_end(&mut ours));
    assert!(is_at_end(&mut client));
    assert_eq!(handle.connection_count(), 0);
}

#[test]
fn the_handle_says_when_there_is_nobody_to_hand_to() {
    let vsock = Vsock::new(VsockConfig::default()).unwrap();
    let handle = vsock.handle();
    let mut kept = Vec::new();
    let busy = loop {
        let (ours, theirs) = UnixStream::pair().unwrap();
        kept.push(ours);
        if let Err(err) = handle.connect(PORT, theirs) {
            break err;
        }
    };
    assert!(matches!(busy, VsockConnectError::Busy));
    assert_eq!(handle.connection_count(), kept.len() - 1);
    drop(vsock);
    let (_ours, theirs) = UnixStream::pair().unwrap();
    assert!(matches!(
        handle.connect(PORT, theirs),
        Err(VsockConnectError::Gone)
    ));
}

#[test]
fn the_event_loop_sees_streams_listener_and_handle() {
    let (_dir, path) = socket_dir();
    let guest = Guest::boot(Some(&path));
    let irq = guest.driver.irq.try_clone().unwrap();
    let (mem, handle) = (guest.driver.mem.clone(), guest.handle.clone());
    let transport = Arc::new(Mutex::new(guest.driver.transport));
    let mut events = EventManager::<Arc<Mutex<dyn MutEventSubscriber + Send>>>::new().unwrap();
    events.add_subscriber(transport.clone());
    let mut until_interrupt = || {
        // Bounded by events, not by time: each turn is one that something caused.
        for _ in 0..10 {
            if irq.read().is_ok() {
                return true;
            }
            events.run_with_timeout(1000).unwrap();
        }
        irq.read().is_ok()
    };
    let (_ours, theirs) = UnixStream::pair().unwrap();
    handle.connect(1, theirs).unwrap();
    assert!(until_interrupt());
    let client = client(&path, "CONNECT 2\n");
    // A driver that asks for an interrupt for the next packet.
    let used_event_gpa = avail_gpa(RX_QUEUE) + 4 + u64::from(QUEUE_SIZE) * 2;
    mem.write_obj(1u16, GuestAddress(used_event_gpa)).unwrap();
    assert!(until_interrupt());
    let request: u32 = mem
        .read_obj(GuestAddress(buffer_gpa(RX_QUEUE, 1) + 20))
        .unwrap();
    assert_eq!(request, 2);
    // The client leaves: the guest is told.
    mem.write_obj(2u16, GuestAddress(used_event_gpa)).unwrap();
    drop(client);
    assert!(until_interrupt());
    let op: u16 = mem
        .read_obj(GuestAddress(buffer_gpa(RX_QUEUE, 2) + 30))
        .unwrap();
    assert_eq!(op, op::RST);
    // Nothing that is left keeps the loop awake.
    for _ in 0..4 {
        events.run_with_timeout(0).unwrap();
    }
    assert_eq!(events.run_with_timeout(0).unwrap(), 0);
}
