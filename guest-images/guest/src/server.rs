//! The vsock server: connections on one port, newline-delimited requests in, reply lines out.
//!
//! It is a state machine between packets and requests that touches no device: packets that
//! arrived go in by [`Server::receive`], the ones to send come out of [`Server::next_packet`], and
//! between them [`Server::next_request`] and [`Server::reply`] do the work. The peers are not
//! trusted: each connection's buffers are bounded, and so is the number of connections.

use crate::packet::{
    Address, HEADER_BYTES, Header, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::mem;

/// The most that a connection may have sent ahead of what was served, in bytes: a whole request
/// line of the longest kind, and as much again.
pub const RECEIVE_BUFFER_BYTES: u32 = 128 * 1024;
/// The connections held at one time. One more takes the place of the one silent for longest: its
/// peer may have gone without a word, as peers do when the machine was restored from a snapshot.
pub const MAX_CONNECTIONS: usize = 16;
/// Refusals waiting to be sent; packets are not taken while so many wait.
const MAX_REFUSALS: usize = 16;

/// Which connection a request came from, to send the reply to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId(u64);

/// The server's connections.
pub struct Server {
    port: u32,
    max_line_bytes: usize,
    /// By last activity, the most recent last.
    connections: Vec<Connection>,
    refusals: VecDeque<Header>,
    next_id: u64,
}

struct Connection {
    id: ConnectionId,
    peer: Address,
    local: Address,
    /// What arrived and was not served yet.
    input: Vec<u8>,
    /// The first bytes of `input`, known to hold no newline.
    searched_bytes: usize,
    /// A request was taken and its reply is not there yet.
    in_service: bool,
    /// The reply being sent, and how much of it was.
    output: Vec<u8>,
    output_sent_bytes: usize,
    credit: Credit,
    state: State,
    owes_response: bool,
    owes_credit_update: bool,
    owes_shutdown: bool,
    owes_credit_request: bool,
}

/// Both directions' flow control (virtio 1.2, section 5.10.6.3). All counters wrap.
#[derive(Default)]
struct Credit {
    peer_buffer_bytes: u32,
    peer_consumed_bytes: u32,
    sent_bytes: u32,
    received_bytes: u32,
    consumed_bytes: u32,
    /// The `consumed_bytes` that the peer was told last.
    told_bytes: u32,
    /// The peer was asked for more and has not answered.
    asked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// No more requests are taken; when the output is sent, the connection is shut down.
    Finishing,
    /// Shut down by us: nothing is left but the peer's reset.
    ShutDown,
}

impl Server {
    /// A server on `port` with no connections, for request lines of up to `max_line_bytes` (not
    /// counting the newline; at most [`RECEIVE_BUFFER_BYTES`] minus one).
    pub fn new(port: u32, max_line_bytes: usize) -> Self {
        Self {
            port,
            max_line_bytes: max_line_bytes.min(RECEIVE_BUFFER_BYTES as usize - 1),
            connections: Vec::new(),
            refusals: VecDeque::new(),
            next_id: 0,
        }
    }

    /// Whether a packet may be taken now: its refusal might have to wait.
    pub fn can_receive(&self) -> bool {
        self.refusals.len() < MAX_REFUSALS
    }

    /// Takes one packet as it came from the device.
    pub fn receive(&mut self, packet: &[u8]) {
        let Some((header, data)) = Header::parse(packet) else {
            return;
        };
        let Ok(operation) = Operation::try_from(header.operation) else {
            return self.refuse(&header);
        };
        if header.socket_type != TYPE_STREAM {
            return self.refuse(&header);
        }
        let found = self
            .connections
            .iter()
            .position(|held| held.peer == header.source && held.local == header.destination);
        if operation == Operation::Request {
            if let Some(index) = found {
                // The peer knows nothing of the old one: it was restarted, or we were restored.
                self.connections.remove(index);
            }
            return self.accept(&header);
        }
        let Some(index) = found else {
            if operation != Operation::Reset {
                self.refuse(&header);
            }
            return;
        };
        // Most recent last; the order decides only which connection is given up.
        self.connections[index..].rotate_left(1);
        let index = self.connections.len() - 1;
        let connection = &mut self.connections[index];
        connection.credit.told(&header);
        let keep = match operation {
            Operation::ReadWrite => connection.take_data(data),
            Operation::CreditRequest => {
                connection.owes_credit_update = true;
                true
            }
            Operation::CreditUpdate => true,
            Operation::Shutdown => connection.take_shutdown(header.flags),
            Operation::Reset => {
                self.connections.remove(index);
                return;
            }
            // We ask for no connections, and a second request was handled above.
            Operation::Response | Operation::Request => false,
        };
        if !keep {
            self.connections.remove(index);
            self.refuse(&header);
        }
    }

    /// Forgets all connections: the device says that its transport was reset.
    pub fn reset(&mut self) {
        self.connections.clear();
        self.refusals.clear();
    }

    /// The next request line to serve, without its newline, if a whole one is there. A connection's
    /// next line is given out only when the reply to the one before has been sent.
    ///
    /// A line longer than the limit is given out as soon as that is plain, as far as it arrived
    /// (which is more than the limit): the reply to it is the connection's last.
    pub fn next_request(&mut self) -> Option<(ConnectionId, Vec<u8>)> {
        let max_line_bytes = self.max_line_bytes;
        self.connections.iter_mut().find_map(|connection| {
            let request = connection.next_request(max_line_bytes)?;
            Some((connection.id, request))
        })
    }

    /// Sends `reply` (a line with its newline) on a connection; without effect if it is gone.
    pub fn reply(&mut self, to: ConnectionId, reply: Vec<u8>) {
        if let Some(connection) = self.connections.iter_mut().find(|held| held.id == to) {
            connection.output = reply;
            connection.output_sent_bytes = 0;
            connection.in_service = false;
        }
    }

    /// Writes the next packet to send into `buffer` (at least [`HEADER_BYTES`] long) and returns
    /// its length; `None` when there is none that may be sent now.
    pub fn next_packet(&mut self, buffer: &mut [u8]) -> Option<usize> {
        if let Some(refusal) = self.refusals.pop_front() {
            return write_packet(buffer, &refusal, &[]);
        }
        self.connections
            .iter_mut()
            .find_map(|connection| connection.next_packet(buffer))
    }

    fn accept(&mut self, header: &Header) {
        if header.destination.port != self.port {
            return self.refuse(header);
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            let given_up = self.connections.remove(0);
            self.refusals.push_back(given_up.header(Operation::Reset));
        }
        let mut connection = Connection {
            id: ConnectionId(self.next_id),
            peer: header.source,
            local: header.destination,
            input: Vec::new(),
            searched_bytes: 0,
            in_service: false,
            output: Vec::new(),
            output_sent_bytes: 0,
            credit: Credit::default(),
            state: State::Open,
            owes_response: true,
            owes_credit_update: false,
            owes_shutdown: false,
            owes_credit_request: false,
        };
        connection.credit.told(header);
        self.next_id += 1;
        self.connections.push(connection);
    }

    fn refuse(&mut self, header: &Header) {
        if header.operation == Operation::Reset as u16 {
            return;
        }
        self.refusals.push_back(Header {
            source: header.destination,
            destination: header.source,
            length_bytes: 0,
            socket_type: header.socket_type,
            operation: Operation::Reset as u16,
            flags: 0,
            buffer_bytes: 0,
            consumed_bytes: 0,
        });
    }
}

impl Connection {
    /// False if the peer sent more than it was allowed to.
    fn take_data(&mut self, data: &[u8]) -> bool {
        let held = self
            .credit
            .received_bytes
            .wrapping_sub(self.credit.consumed_bytes) as usize;
        if held + data.len() > RECEIVE_BUFFER_BYTES as usize {
            return false;
        }
        self.credit.received_bytes = self.credit.received_bytes.wrapping_add(data.len() as u32);
        if self.state == State::Open {
            self.input.extend_from_slice(data);
        } else {
            self.consume(data.len());
        }
        true
    }

    /// False if the connection is over at once.
    fn take_shutdown(&mut self, flags: u32) -> bool {
        if flags & SHUTDOWN_RECEIVE != 0 || self.state == State::ShutDown {
            return false;
        }
        if flags & SHUTDOWN_SEND != 0 && self.state == State::Open {
            // What has arrived in whole lines is still served; see `next_request`.
            self.state = State::Finishing;
        }
        true
    }

    fn next_request(&mut self, max_line_bytes: usize) -> Option<Vec<u8>> {
        if self.in_service || !self.output.is_empty() || self.state == State::ShutDown {
            return None;
        }
        let unsearched = self.input.get(self.searched_bytes..)?;
        let newline = unsearched.iter().position(|byte| *byte == b'\n');
        let line_bytes = newline.map(|at| self.searched_bytes + at);
        let request = match line_bytes {
            Some(bytes) if bytes <= max_line_bytes => {
                let mut line: Vec<u8> = self.input.drain(..=bytes).collect();
                line.pop();
                self.consume(bytes + 1);
                line
            }
            None if self.input.len() <= max_line_bytes => {
                self.searched_bytes = self.input.len();
                if self.state == State::Finishing {
                    self.finish();
                }
                return None;
            }
            _ => {
                let line = mem::take(&mut self.input);
                self.consume(line.len());
                self.state = State::Finishing;
                line
            }
        };
        self.searched_bytes = 0;
        self.in_service = true;
        Some(request)
    }

    /// Drops what is left of the input, and shuts the connection down.
    fn finish(&mut self) {
        let bytes = self.input.len();
        self.input = Vec::new();
        self.searched_bytes = 0;
        self.consume(bytes);
        self.state = State::ShutDown;
        self.owes_shutdown = true;
    }

    fn consume(&mut self, bytes: usize) {
        let credit = &mut self.credit;
        credit.consumed_bytes = credit.consumed_bytes.wrapping_add(bytes as u32);
        // Replies tell it too; alone it is told only when the peer could soon be held up.
        if credit.consumed_bytes.wrapping_sub(credit.told_bytes) > RECEIVE_BUFFER_BYTES / 2 {
            self.owes_credit_update = true;
        }
    }

    fn next_packet(&mut self, buffer: &mut [u8]) -> Option<usize> {
        if self.owes_response {
            self.owes_response = false;
            return self.send(buffer, Operation::Response, 0);
        }
        if self.output_sent_bytes < self.output.len() {
            let room =
                (self.credit.peer_room() as usize).min(buffer.len().saturating_sub(HEADER_BYTES));
            let left = self.output.len() - self.output_sent_bytes;
            let bytes = left.min(room);
            if bytes > 0 {
                return self.send_output(buffer, bytes);
            }
            if !self.credit.asked {
                self.credit.asked = true;
                self.owes_credit_request = true;
            }
        }
        if self.owes_credit_request {
            self.owes_credit_request = false;
            return self.send(buffer, Operation::CreditRequest, 0);
        }
        if self.owes_credit_update {
            return self.send(buffer, Operation::CreditUpdate, 0);
        }
        if self.owes_shutdown {
            self.owes_shutdown = false;
            return self.send(
                buffer,
                Operation::Shutdown,
                SHUTDOWN_RECEIVE | SHUTDOWN_SEND,
            );
        }
        None
    }

    fn send(&mut self, buffer: &mut [u8], operation: Operation, flags: u32) -> Option<usize> {
        let header = Header {
            flags,
            ..self.header(operation)
        };
        self.tell();
        write_packet(buffer, &header, &[])
    }

    fn send_output(&mut self, buffer: &mut [u8], bytes: usize) -> Option<usize> {
        let header = Header {
            length_bytes: bytes as u32,
            ..self.header(Operation::ReadWrite)
        };
        let end = self.output_sent_bytes + bytes;
        let length = write_packet(buffer, &header, &self.output[self.output_sent_bytes..end]);
        self.tell();
        self.credit.sent_bytes = self.credit.sent_bytes.wrapping_add(bytes as u32);
        self.output_sent_bytes = end;
        if end == self.output.len() {
            self.output = Vec::new();
            self.output_sent_bytes = 0;
        }
        length
    }

    /// Notes that the peer is being told how much was consumed: every header says so.
    fn tell(&mut self) {
        self.credit.told_bytes = self.credit.consumed_bytes;
        self.owes_credit_update = false;
    }

    fn header(&self, operation: Operation) -> Header {
        Header {
            source: self.local,
            destination: self.peer,
            length_bytes: 0,
            socket_type: TYPE_STREAM,
            operation: operation as u16,
            flags: 0,
            buffer_bytes: RECEIVE_BUFFER_BYTES,
            consumed_bytes: self.credit.consumed_bytes,
        }
    }
}

impl Credit {
    /// Every packet of the peer's says how much it can hold and how much it has consumed.
    fn told(&mut self, header: &Header) {
        self.peer_buffer_bytes = header.buffer_bytes;
        self.peer_consumed_bytes = header.consumed_bytes;
        // An answer without room is not asked again: the next word is the peer's, when it has some.
        if self.peer_room() > 0 {
            self.asked = false;
        }
    }

    fn peer_room(&self) -> u32 {
        let on_the_way = self.sent_bytes.wrapping_sub(self.peer_consumed_bytes);
        self.peer_buffer_bytes.saturating_sub(on_the_way)
    }
}

fn write_packet(buffer: &mut [u8], header: &Header, data: &[u8]) -> Option<usize> {
    let length = HEADER_BYTES + data.len();
    let out = buffer.get_mut(..length)?;
    out[..HEADER_BYTES].copy_from_slice(&header.encode());
    out[HEADER_BYTES..].copy_from_slice(data);
    Some(length)
}

#[cfg(test)]
mod tests;
