use super::*;
use proptest::prelude::*;

const PORT: u32 = 5000;
const MAX_LINE: usize = 64 * 1024;
const GUEST: u64 = 3;

/// One peer's view of a connection.
struct Peer {
    port: u32,
    buffer_bytes: u32,
    consumed_bytes: u32,
}

impl Peer {
    fn new(port: u32) -> Self {
        Self {
            port,
            buffer_bytes: 1 << 18,
            consumed_bytes: 0,
        }
    }

    fn packet(&self, operation: Operation, flags: u32, data: &[u8]) -> Vec<u8> {
        let header = Header {
            source: Address {
                cid: 2,
                port: self.port,
            },
            destination: Address {
                cid: GUEST,
                port: PORT,
            },
            length_bytes: data.len() as u32,
            socket_type: TYPE_STREAM,
            operation: operation as u16,
            flags,
            buffer_bytes: self.buffer_bytes,
            consumed_bytes: self.consumed_bytes,
        };
        let mut packet = header.encode().to_vec();
        packet.extend_from_slice(data);
        packet
    }

    fn send(&self, server: &mut Server, operation: Operation) {
        server.receive(&self.packet(operation, 0, &[]));
    }

    fn write(&self, server: &mut Server, data: &[u8]) {
        for part in data.chunks(4000) {
            server.receive(&self.packet(Operation::ReadWrite, 0, part));
        }
    }
}

/// All packets that the server has to send now.
fn outgoing(server: &mut Server) -> Vec<(Header, Vec<u8>)> {
    let mut packets = Vec::new();
    let mut buffer = [0; 4096];
    while let Some(length) = server.next_packet(&mut buffer) {
        let (header, data) = Header::parse(&buffer[..length]).unwrap();
        packets.push((header, data.to_vec()));
        assert!(packets.len() < 10_000, "the server never stops sending");
    }
    packets
}

fn operations(packets: &[(Header, Vec<u8>)]) -> Vec<Operation> {
    packets
        .iter()
        .map(|(header, _)| Operation::try_from(header.operation).unwrap())
        .collect()
}

fn connected(port: u32) -> (Server, Peer) {
    let mut server = Server::new(PORT, MAX_LINE);
    let peer = Peer::new(port);
    peer.send(&mut server, Operation::Request);
    assert_eq!(operations(&outgoing(&mut server)), [Operation::Response]);
    (server, peer)
}

/// Serves what is there, answering each line with itself; returns what each peer port was sent.
fn serve(server: &mut Server) -> Vec<(Header, Vec<u8>)> {
    let mut packets = outgoing(server);
    while let Some((id, request)) = server.next_request() {
        if request.len() > server.max_line_bytes {
            server.reply(id, b"too long\n".to_vec());
        } else {
            server.reply(id, [&request, &b"\n"[..]].concat());
        }
        packets.extend(outgoing(server));
    }
    packets.extend(outgoing(server));
    packets
}

fn text(packets: &[(Header, Vec<u8>)]) -> String {
    let bytes: Vec<u8> = packets.iter().flat_map(|(_, data)| data.clone()).collect();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn requests_are_answered_in_order_and_connections_follow_each_other() {
    let (mut server, peer) = connected(1000);
    peer.write(&mut server, b"one\ntwo\nthr");
    assert_eq!(text(&serve(&mut server)), "one\ntwo\n");
    peer.write(&mut server, b"ee\n");
    assert_eq!(text(&serve(&mut server)), "three\n");
    peer.send(&mut server, Operation::Reset);
    assert!(outgoing(&mut server).is_empty());

    let next = Peer::new(1001);
    next.send(&mut server, Operation::Request);
    next.write(&mut server, b"four\n");
    let packets = serve(&mut server);
    assert_eq!(
        operations(&packets),
        [Operation::Response, Operation::ReadWrite]
    );
    assert_eq!(text(&packets), "four\n");
}

#[test]
fn a_reply_longer_than_the_credit_waits_for_more() {
    let mut server = Server::new(PORT, MAX_LINE);
    let mut peer = Peer::new(7);
    peer.buffer_bytes = 10;
    peer.send(&mut server, Operation::Request);
    peer.write(&mut server, b"abcdefghijklmno\n");
    let packets = serve(&mut server);
    assert_eq!(
        operations(&packets),
        [
            Operation::Response,
            Operation::ReadWrite,
            Operation::CreditRequest
        ]
    );
    assert_eq!(text(&packets), "abcdefghij");
    // An answer without room: the server does not ask again.
    peer.send(&mut server, Operation::CreditUpdate);
    assert!(serve(&mut server).is_empty());
    peer.consumed_bytes = 10;
    peer.send(&mut server, Operation::CreditUpdate);
    assert_eq!(text(&serve(&mut server)), "klmno\n");
}

#[test]
fn a_peer_that_sends_beyond_its_credit_is_reset() {
    let (mut server, peer) = connected(7);
    // Without a newline within the limit, nothing is consumed until the server looks.
    for _ in 0..RECEIVE_BUFFER_BYTES as usize / 4000 {
        peer.write(&mut server, &[b'x'; 4000]);
    }
    assert!(outgoing(&mut server).is_empty());
    peer.write(&mut server, &[b'x'; 4000]);
    assert_eq!(operations(&outgoing(&mut server)), [Operation::Reset]);
    assert!(server.connections.is_empty());
}

#[test]
fn credit_is_returned_before_the_peer_stalls() {
    let (mut server, peer) = connected(7);
    let mut told = 0u32;
    let mut sent = 0u32;
    for round in 0..100 {
        let line = format!("{}\n", "y".repeat(5000 + round));
        assert!(sent.wrapping_sub(told) + line.len() as u32 <= RECEIVE_BUFFER_BYTES);
        peer.write(&mut server, line.as_bytes());
        sent += line.len() as u32;
        while let Some((id, _)) = server.next_request() {
            server.reply(id, b"\n".to_vec());
        }
        for (header, _) in outgoing(&mut server) {
            told = header.consumed_bytes;
        }
    }
}

#[test]
fn a_line_that_is_too_long_gets_its_reply_and_the_end() {
    let (mut server, peer) = connected(7);
    peer.write(&mut server, &[b'x'; MAX_LINE + 1]);
    let packets = serve(&mut server);
    assert_eq!(
        operations(&packets),
        [Operation::ReadWrite, Operation::Shutdown]
    );
    assert_eq!(text(&packets), "too long\n");
    // What follows is dropped, however much of it there is; then the peer closes.
    for _ in 0..100 {
        peer.write(&mut server, &[b'x'; 4000]);
        assert!(server.next_request().is_none());
        outgoing(&mut server);
    }
    peer.send(&mut server, Operation::Reset);
    assert!(server.connections.is_empty());
}

#[test]
fn a_line_of_the_limit_is_served() {
    let (mut server, peer) = connected(7);
    let mut line = vec![b'x'; MAX_LINE];
    line.push(b'\n');
    peer.write(&mut server, &line);
    assert_eq!(text(&serve(&mut server)).as_bytes(), line);
}

#[test]
fn a_peer_that_only_stops_sending_still_gets_its_replies() {
    let (mut server, peer) = connected(7);
    peer.write(&mut server, b"one\ntwo\nhalf");
    server.receive(&peer.packet(Operation::Shutdown, SHUTDOWN_SEND, &[]));
    let packets = serve(&mut server);
    assert_eq!(text(&packets), "one\ntwo\n");
    assert_eq!(operations(&packets).last(), Some(&Operation::Shutdown));
}

#[test]
fn a_peer_that_closes_is_let_go() {
    let (mut server, peer) = connected(7);
    peer.write(&mut server, b"half");
    let both = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;
    server.receive(&peer.packet(Operation::Shutdown, both, &[]));
    assert_eq!(operations(&serve(&mut server)), [Operation::Reset]);
    assert!(server.connections.is_empty());
}

#[test]
fn a_reply_to_a_connection_that_went_is_dropped() {
    let (mut server, peer) = connected(7);
    peer.write(&mut server, b"one\n");
    let (id, _) = server.next_request().unwrap();
    peer.send(&mut server, Operation::Reset);
    // The same peer again: the reply to its old request must not reach the new connection.
    peer.send(&mut server, Operation::Request);
    server.reply(id, b"late\n".to_vec());
    assert_eq!(operations(&outgoing(&mut server)), [Operation::Response]);
}

#[test]
fn a_new_request_from_a_known_peer_replaces_the_connection() {
    let (mut server, peer) = connected(7);
    peer.write(&mut server, b"left over from before the snapsh");
    peer.send(&mut server, Operation::Request);
    peer.write(&mut server, b"fresh\n");
    assert_eq!(text(&serve(&mut server)), "fresh\n");
}

#[test]
fn strangers_are_refused_and_resets_are_not_answered() {
    let mut server = Server::new(PORT, MAX_LINE);
    let peer = Peer::new(7);
    peer.send(&mut server, Operation::Reset);
    assert!(outgoing(&mut server).is_empty());
    peer.send(&mut server, Operation::ReadWrite);
    let mut elsewhere = peer.packet(Operation::Request, 0, &[]);
    elsewhere[20] = 1;
    server.receive(&elsewhere);
    let mut other_type = peer.packet(Operation::Request, 0, &[]);
    other_type[28] = 2;
    server.receive(&other_type);
    let mut unknown = peer.packet(Operation::Request, 0, &[]);
    unknown[30] = 99;
    server.receive(&unknown);
    server.receive(&[0; 10]);
    let packets = outgoing(&mut server);
    assert_eq!(operations(&packets), [Operation::Reset; 4]);
    assert_eq!(packets[0].0.destination.port, 7);
    assert_eq!(packets[0].0.source.cid, GUEST);
}

#[test]
fn one_connection_too_many_takes_the_place_of_the_most_silent() {
    let mut server = Server::new(PORT, MAX_LINE);
    let peers: Vec<Peer> = (0..MAX_CONNECTIONS as u32).map(Peer::new).collect();
    for peer in &peers {
        peer.send(&mut server, Operation::Request);
    }
    outgoing(&mut server);
    // The first speaks, so the second is the most silent one.
    peers[0].write(&mut server, b"here\n");
    assert_eq!(text(&serve(&mut server)), "here\n");
    Peer::new(500).send(&mut server, Operation::Request);
    let packets = outgoing(&mut server);
    assert_eq!(
        operations(&packets),
        [Operation::Reset, Operation::Response]
    );
    assert_eq!(packets[0].0.destination.port, 1);
    assert_eq!(server.connections.len(), MAX_CONNECTIONS);
}

#[test]
fn a_reset_transport_leaves_no_connection() {
    let (mut server, peer) = connected(7);
    peer.write(&mut server, b"one\n");
    server.reset();
    assert!(server.next_request().is_none());
    assert!(outgoing(&mut server).is_empty());
    peer.send(&mut server, Operation::Request);
    peer.write(&mut server, b"two\n");
    assert_eq!(text(&serve(&mut server)), "two\n");
}

proptest! {
    #[test]
    fn no_packets_break_the_server(
        packets in proptest::collection::vec(
            (0u16..9, 0u32..20, 0u32..5, any::<u32>(), any::<u32>(), 0usize..300, 1usize..150),
            0..200,
        )
    ) {
        let mut server = Server::new(PORT, 100);
        for (operation, port, flags, buffer_bytes, consumed_bytes, bytes, newlines) in packets {
            let data: Vec<u8> = (1..=bytes)
                .map(|at| if at % newlines == 0 { b'\n' } else { b'x' })
                .collect();
            let peer = Peer { port, buffer_bytes, consumed_bytes };
            let mut packet = peer.packet(Operation::ReadWrite, flags, &data);
            packet[30] = operation as u8;
            prop_assert!(server.can_receive());
            server.receive(&packet);
            let sent = serve(&mut server);
            prop_assert!(sent.len() < 1000);
            prop_assert!(server.connections.len() <= MAX_CONNECTIONS);
            for connection in &server.connections {
                prop_assert!(connection.input.len() <= RECEIVE_BUFFER_BYTES as usize);
            }
        }
    }

    #[test]
    fn lines_survive_any_packet_boundaries(
        lines in proptest::collection::vec("[a-z]{0,50}", 0..20),
        cut in 1usize..40,
    ) {
        let (mut server, peer) = connected(7);
        let mut all = lines.join("\n");
        if !all.is_empty() {
            all.push('\n');
        }
        let mut got = String::new();
        for part in all.as_bytes().chunks(cut) {
            peer.write(&mut server, part);
            got += &text(&serve(&mut server));
        }
        prop_assert_eq!(got, all);
    }
}
