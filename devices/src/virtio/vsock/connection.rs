//! One connection between a port of the guest and a stream of the host: its states, its credit
//! (5.10.6.3) and its end (5.10.6.5).

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use event_manager::EventSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};

use super::HOST_CID;
use super::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};

/// Bytes that the guest may send before the host's stream has taken them. They are held here.
pub(super) const BUF_ALLOC_BYTES: u32 = 64 * 1024;

/// The two ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ConnectionKey {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

/// Who asked for the connection, and how it is told that it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A client of the Unix socket, or whoever asks for the same: it gets an `OK` line.
    Client,
    /// This process: it gets nothing.
    Injected,
    /// The guest: it gets a RESPONSE.
    Guest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The guest has not answered the REQUEST.
    Requesting,
    /// Data flows.
    Established,
    /// Both directions are shut down, the stream is closed, and the guest has to say RST.
    Closing,
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Verdict {
    /// It goes on.
    Keep,
    /// It is over, and the guest knows.
    Remove,
    /// It is over, and the guest is to be told by a RST.
    Reset,
}

/// A packet of the connection, or why there is none.
#[derive(Debug)]
pub(super) enum Next {
    /// A header; the payload of its `len` bytes is in the caller's buffer.
    Packet(Header),
    /// Nothing is to be sent now.
    Nothing,
    /// The connection broke.
    Reset,
}

/// Control packets that wait for a buffer of the guest, of each kind at most one.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    request: bool,
    response: bool,
    credit_update: bool,
    shutdown: bool,
}

#[derive(Debug)]
pub(super) struct Connection {
    key: ConnectionKey,
    guest_cid: u64,
    origin: Origin,
    state: State,
    /// `None` once the connection is closing.
    stream: Option<UnixStream>,
    pending: Pending,
    /// Whether the muxer has this connection in its queue.
    pub(super) queued: bool,
    /// The stream may have bytes, or its end, to be read.
    readable: bool,
    /// The stream has ended: the host sends no more.
    at_end: bool,
    /// The other end of the stream is closed for both directions.
    hung_up: bool,
    /// SHUTDOWN flags of the host, sent or to be sent.
    host_shutdown: u32,
    /// SHUTDOWN flags of the guest.
    guest_shutdown: u32,
    /// Bytes of the guest that the stream did not take yet; at most `BUF_ALLOC_BYTES`.
    outgoing: VecDeque<u8>,
    /// The guest's buffer space.
    peer_buf_alloc: u32,
    /// Bytes that the guest has taken out of its buffer.
    peer_fwd_cnt: u32,
    /// Bytes sent to the guest. This and the counters below wrap.
    sent_bytes: u32,
    /// Bytes received from the guest.
    received_bytes: u32,
    /// Of them, those that the stream took.
    forwarded_bytes: u32,
    /// What the guest was told last of `forwarded_bytes`.
    told_forwarded_bytes: u32,
    /// The guest was asked for credit and did not answer.
    credit_requested: bool,
}

impl Connection {
    /// A connection that the host asks for. `stream` is non-blocking.
    pub(super) fn to_guest(
        key: ConnectionKey,
        guest_cid: u64,
        origin: Origin,
        stream: UnixStream,
    ) -> Self {
        let pending = Pending {
            request: true,
            ..Pending::default()
        };
        Self::new(key, guest_cid, origin, State::Requesting, stream, pending)
    }

    /// A connection that the guest asked for by `request`. `stream` is non-blocking.
    pub(super) fn from_guest(
        key: ConnectionKey,
        guest_cid: u64,
        stream: UnixStream,
        request: &Header,
    ) -> Self {
        let pending = Pending {
            response: true,
            ..Pending::default()
        };
        let state = State::Established;
        let mut new = Self::new(key, guest_cid, Origin::Guest, state, stream, pending);
        new.peer_buf_alloc = request.buf_alloc;
        new.peer_fwd_cnt = request.fwd_cnt;
        new
    }

    fn new(
        key: ConnectionKey,
        guest_cid: u64,
        origin: Origin,
        state: State,
        stream: UnixStream,
        pending: Pending,
    ) -> Self {
        Self {
            key,
            guest_cid,
            origin,
            state,
            stream: Some(stream),
            pending,
            queued: false,
            readable: true,
            at_end: false,
            hung_up: false,
            host_shutdown: 0,
            guest_shutdown: 0,
            outgoing: VecDeque::new(),
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            sent_bytes: 0,
            received_bytes: 0,
            forwarded_bytes: 0,
            told_forwarded_bytes: 0,
            credit_requested: false,
        }
    }

    pub(super) fn stream(&self) -> Option<&UnixStream> {
        self.stream.as_ref()
    }

    /// Whether the host is done with it.
    pub(super) fn is_closing(&self) -> bool {
        self.state == State::Closing
    }

    /// Whether the guest believes in the connection and was not told that it ends.
    pub(super) fn is_known_to_guest(&self) -> bool {
        match self.state {
            State::Requesting => !self.pending.request,
            State::Established => true,
            State::Closing => self.pending.shutdown,
        }
    }

    /// Bytes that the guest has room for. A guest that counts wrong gets none.
    fn peer_credit_bytes(&self) -> u32 {
        let in_flight = self.sent_bytes.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(in_flight)
    }

    fn may_read_stream(&self) -> bool {
        self.state == State::Established
            && self.readable
            && !self.at_end
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// Whether [`next_packet`](Self::next_packet) may have something.
    pub(super) fn has_packet(&self) -> bool {
        let Pending {
            request,
            response,
            credit_update,
            shutdown,
        } = self.pending;
        request
            || response
            || credit_update
            || shutdown
            || (self.may_read_stream() && (self.peer_credit_bytes() > 0 || !self.credit_requested))
    }

    fn packet(&mut self, op: u16) -> Next {
        // Every packet carries the counters, so it is a credit update as well.
        self.told_forwarded_bytes = self.forwarded_bytes;
        self.pending.credit_update = false;
        Next::Packet(Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len: 0,
            type_: TYPE_STREAM,
            op,
            flags: 0,
            buf_alloc: BUF_ALLOC_BYTES,
            fwd_cnt: self.forwarded_bytes,
        })
    }

    /// The next packet for the guest; `buf`, which is not empty, gets its payload.
    pub(super) fn next_packet(&mut self, buf: &mut [u8]) -> Next {
        if std::mem::take(&mut self.pending.request) {
            return self.packet(op::REQUEST);
        }
        if std::mem::take(&mut self.pending.response) {
            return self.packet(op::RESPONSE);
        }
        if self.may_read_stream() {
            match self.next_data(buf) {
                Next::Nothing => {}
                other => return other,
            }
        }
        if std::mem::take(&mut self.pending.shutdown) {
            let Next::Packet(mut header) = self.packet(op::SHUTDOWN) else {
                return Next::Nothing;
            };
            header.flags = self.host_shutdown;
            if self.host_shutdown == SHUTDOWN_BOTH {
                self.close();
            }
            return Next::Packet(header);
        }
        if self.pending.credit_update {
            return self.packet(op::CREDIT_UPDATE);
        }
        Next::Nothing
    }

    fn next_data(&mut self, buf: &mut [u8]) -> Next {
        let credit = self.peer_credit_bytes() as usize;
        if credit == 0 {
            if self.credit_requested {
                return Next::Nothing;
            }
            self.credit_requested = true;
            return self.packet(op::CREDIT_REQUEST);
        }
        let room = buf.len().min(credit);
        let Some(mut stream) = self.stream.as_ref() else {
            return Next::Nothing;
        };
        loop {
            match stream.read(&mut buf[..room]) {
                Ok(0) => {
                    self.at_end = true;
                    // One SHUTDOWN rather than two if the other end closed, and did not only
                    // stop sending.
                    self.hung_up |= has_hung_up(stream);
                    self.shut_down_host_side();
                    return Next::Nothing;
                }
                Ok(len) => {
                    let len = len as u32;
                    self.sent_bytes = self.sent_bytes.wrapping_add(len);
                    return match self.packet(op::RW) {
                        Next::Packet(header) => Next::Packet(Header { len, ..header }),
                        other => other,
                    };
                }
                Err(err) if err.kind() == ErrorKind::Interrupted => {}
                Err(err) if err.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Next::Nothing;
                }
                Err(_) => return Next::Reset,
            }
        }
    }

    /// Works out what the host has shut down, and lets the guest know if that is news.
    fn shut_down_host_side(&mut self) {
        let mut flags = self.host_shutdown;
        if self.at_end {
            flags |= SHUTDOWN_SEND;
        }
        if self.hung_up && (self.at_end || self.guest_shutdown & SHUTDOWN_RECEIVE != 0) {
            flags = SHUTDOWN_BOTH;
        }
        if flags != self.host_shutdown && self.state == State::Established {
            self.host_shutdown = flags;
            self.pending.shutdown = true;
        }
    }

    fn close(&mut self) {
        self.state = State::Closing;
        self.stream = None;
        self.outgoing = VecDeque::new();
    }

    /// The stream changed. Events are edge-triggered: what is not used up now is remembered.
    pub(super) fn stream_event(&mut self, events: EventSet) -> Verdict {
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP) {
            self.readable = true;
        }
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.hung_up = true;
            if self.state == State::Requesting && !self.has_unread_bytes() {
                // Nobody waits for the answer any more.
                return self.give_up();
            }
            self.shut_down_host_side();
        }
        if events.contains(EventSet::OUT) {
            return self.flush();
        }
        Verdict::Keep
    }

    /// The verdict for a connection that the host drops.
    fn give_up(&self) -> Verdict {
        if self.is_known_to_guest() {
            Verdict::Reset
        } else {
            Verdict::Remove
        }
    }

    fn has_unread_bytes(&self) -> bool {
        let Some(stream) = self.stream.as_ref() else {
            return false;
        };
        let mut byte = [0u8];
        matches!(
            recv(stream, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT),
            Ok((_, 1..))
        )
    }

    /// A packet of the guest, with its payload.
    pub(super) fn packet_from_guest(&mut self, header: &Header, payload: &[u8]) -> Verdict {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
        if self.peer_credit_bytes() > 0 {
            self.credit_requested = false;
        }
        match (self.state, header.op) {
            (_, op::RST) => Verdict::Remove,
            (State::Requesting, op::RESPONSE) if !self.pending.request => self.established(),
            (State::Established, op::RW) => self.data_from_guest(payload),
            (State::Established, op::SHUTDOWN) => self.shutdown_from_guest(header.flags),
            // The end of the guest's side crossed with ours: it waits for no answer to data.
            (State::Closing, op::SHUTDOWN) if header.flags & SHUTDOWN_BOTH == SHUTDOWN_BOTH => {
                Verdict::Reset
            }
            (State::Closing, op::SHUTDOWN) => Verdict::Keep,
            (State::Established | State::Closing, op::CREDIT_UPDATE) => Verdict::Keep,
            (State::Established, op::CREDIT_REQUEST) => {
                self.pending.credit_update = true;
                Verdict::Keep
            }
            (State::Closing, op::CREDIT_REQUEST) => Verdict::Keep,
            // Out of order, data for a closed stream, or no operation at all.
            _ => Verdict::Reset,
        }
    }

    fn established(&mut self) -> Verdict {
        self.state = State::Established;
        if self.origin == Origin::Client
            && let Some(mut stream) = self.stream.as_ref()
        {
            let line = format!("OK {}\n", self.key.host_port);
            // Nothing was written before, so there is room, or nobody there.
            match stream.write(line.as_bytes()) {
                Ok(len) if len == line.len() => {}
                _ => return Verdict::Reset,
            }
        }
        if self.hung_up {
            self.readable = true;
        }
        Verdict::Keep
    }

    fn data_from_guest(&mut self, payload: &[u8]) -> Verdict {
        let held = self.received_bytes.wrapping_sub(self.forwarded_bytes);
        let room = BUF_ALLOC_BYTES.saturating_sub(held) as usize;
        if payload.len() > room || self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return Verdict::Reset;
        }
        self.received_bytes = self.received_bytes.wrapping_add(payload.len() as u32);
        let written = if self.outgoing.is_empty() {
            match self.write_stream(payload) {
                Ok(written) => written,
                Err(_) => return Verdict::Reset,
            }
        } else {
            0
        };
        self.outgoing.extend(&payload[written..]);
        self.update_credit();
        Verdict::Keep
    }

    /// Writes what the stream takes of `bytes` and returns how much that was.
    fn write_stream(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(mut stream) = self.stream.as_ref() else {
            return Ok(0);
        };
        let mut written = 0;
        while written < bytes.len() {
            match stream.write(&bytes[written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => written += len,
                Err(err) if err.kind() == ErrorKind::Interrupted => {}
                Err(err) if err.kind() == ErrorKind::WouldBlock => break,
                Err(err) => return Err(err),
            }
        }
        self.forwarded_bytes = self.forwarded_bytes.wrapping_add(written as u32);
        Ok(written)
    }

    /// Writes what waits for the stream, and ends what waited for that.
    fn flush(&mut self) -> Verdict {
        while !self.outgoing.is_empty() {
            let mut outgoing = std::mem::take(&mut self.outgoing);
            let chunk_bytes = outgoing.as_slices().0.len();
            let written = self.write_stream(outgoing.as_slices().0);
            if let Ok(written) = written {
                outgoing.drain(..written);
            }
            self.outgoing = outgoing;
            match written {
                Ok(written) if written == chunk_bytes => {}
                Ok(_) => break,
                Err(_) => return Verdict::Reset,
            }
        }
        self.update_credit();
        if self.outgoing.is_empty() && self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return self.guest_side_drained();
        }
        Verdict::Keep
    }

    /// Tells the guest of its credit when, as far as it knows, less than half is left: each time
    /// would be a packet and an interrupt for every packet.
    fn update_credit(&mut self) {
        let unknown = self.received_bytes.wrapping_sub(self.told_forwarded_bytes);
        if unknown > BUF_ALLOC_BYTES / 2 && self.forwarded_bytes != self.told_forwarded_bytes {
            self.pending.credit_update = true;
        }
    }

    fn shutdown_from_guest(&mut self, flags: u32) -> Verdict {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if flags & SHUTDOWN_RECEIVE != 0
            && let Some(stream) = &self.stream
        {
            // What the host writes from now on would be lost: it is told by an error.
            let _ = stream.shutdown(Shutdown::Read);
        }
        self.shut_down_host_side();
        if self.outgoing.is_empty() && self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return self.guest_side_drained();
        }
        Verdict::Keep
    }

    /// The guest sends no more, and the stream has all that it sent.
    fn guest_side_drained(&mut self) -> Verdict {
        if self.guest_shutdown == SHUTDOWN_BOTH {
            return Verdict::Reset;
        }
        if let Some(stream) = &self.stream {
            // An error means that the other end is gone, which an event tells as well.
            let _ = stream.shutdown(Shutdown::Write);
        }
        Verdict::Keep
    }
}

/// Whether the other end of the stream is closed, and not only shut down for sending.
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}
