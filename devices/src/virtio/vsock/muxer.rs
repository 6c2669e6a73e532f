//! All connections of a socket device: which packet belongs to which, and whose turn it is.
//!
//! The streams are in an epoll of the muxer's own, of which the event loop sees one descriptor.
//! So connections come and go on whichever thread holds the device, and an event of a stream that
//! is gone cannot reach anyone.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Connection, ConnectionKey, Next, Origin, Verdict};
use super::handle::{Inbox, VsockHandle};
use super::handshake::{Handshake, HandshakeStep};
use super::listener::Listener;
use super::packet::{Header, TYPE_STREAM, op};
use super::{HOST_CID, MAX_CONNECTIONS, VsockConfig, VsockError};

/// The first port of the host that a connection gets: the ones below are for those who choose.
pub(super) const FIRST_HOST_PORT: u32 = 1 << 30;
/// Handshakes that are not done at most. The oldest goes when another comes.
pub(super) const MAX_HANDSHAKES: usize = 128;
/// RSTs that wait for a buffer of the guest at most. A guest that provokes more and takes none
/// does without.
const MAX_WAITING_RESETS: usize = 2 * MAX_CONNECTIONS;
/// Clients that are accepted in one turn.
const MAX_ACCEPTS_PER_TURN: usize = 16;
const EVENTS_PER_TURN: usize = 64;

const LISTENER_TOKEN: u64 = 0;
const INBOX_TOKEN: u64 = 1;
const FIRST_STREAM_TOKEN: u64 = 2;

#[derive(Debug)]
struct Entry {
    connection: Connection,
    token: u64,
}

#[derive(Debug)]
pub(super) struct Muxer {
    guest_cid: u64,
    epoll: Epoll,
    listener: Option<Listener>,
    inbox: Inbox,
    connections: HashMap<ConnectionKey, Entry>,
    /// Which connection an event is for.
    tokens: HashMap<u64, ConnectionKey>,
    /// By token, so oldest first.
    handshakes: BTreeMap<u64, Handshake>,
    /// Connections that may have a packet for the guest, each once.
    queue: VecDeque<ConnectionKey>,
    /// RSTs for connections that are no more.
    resets: VecDeque<Header>,
    next_token: u64,
    next_host_port: u32,
    /// That clients cannot be accepted is told once: they could fill a log with it.
    told_of_accept: bool,
}

impl Muxer {
    pub(super) fn new(config: &VsockConfig) -> Result<(Self, VsockHandle), VsockError> {
        let epoll = Epoll::new().map_err(VsockError::Events)?;
        let (inbox, handle) = Inbox::new().map_err(VsockError::Events)?;
        let listener = config.uds_path.as_deref().map(Listener::bind).transpose()?;
        let watch = |fd: RawFd, token| {
            epoll
                .ctl(
                    ControlOperation::Add,
                    fd,
                    EpollEvent::new(EventSet::IN, token),
                )
                .map_err(VsockError::Events)
        };
        watch(inbox.evt.as_raw_fd(), INBOX_TOKEN)?;
        if let Some(listener) = &listener {
            watch(listener.socket().as_raw_fd(), LISTENER_TOKEN)?;
        }
        let muxer = Self {
            guest_cid: config.guest_cid.into(),
            epoll,
            listener,
            inbox,
            connections: HashMap::new(),
            tokens: HashMap::new(),
            handshakes: BTreeMap::new(),
            queue: VecDeque::new(),
            resets: VecDeque::new(),
            next_token: FIRST_STREAM_TOKEN,
            next_host_port: FIRST_HOST_PORT,
            told_of_accept: false,
        };
        Ok((muxer, handle))
    }

    /// The descriptor that is readable when [`process_events`](Self::process_events) has to run.
    pub(super) fn event_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    pub(super) fn next_host_port(&self) -> u32 {
        self.next_host_port
    }

    pub(super) fn set_next_host_port(&mut self, port: u32) {
        self.next_host_port = port;
    }

    /// Whether the guest would miss something if all connections were gone.
    pub(super) fn is_missed_by_guest(&self) -> bool {
        !self.resets.is_empty()
            || self
                .connections
                .values()
                .any(|entry| entry.connection.is_known_to_guest())
    }

    /// Drops all connections and handshakes. Clients see their streams closed.
    pub(super) fn reset(&mut self) {
        let keys: Vec<_> = self.connections.keys().copied().collect();
        for key in keys {
            self.remove(key);
        }
        while let Some((_, handshake)) = self.handshakes.pop_first() {
            self.unwatch(handshake.stream());
        }
        self.queue.clear();
        self.resets.clear();
        self.publish_count();
    }

    fn publish_count(&self) {
        let live = self.connections.len() + self.handshakes.len() + self.resets.len();
        self.inbox.counts.live.store(live, Ordering::SeqCst);
    }

    // ---- events of the host ----

    /// Handles the events that are there. Without a driver (`driver_up` is false) whoever comes
    /// is sent away.
    pub(super) fn process_events(&mut self, driver_up: bool) {
        let mut events = [EpollEvent::default(); EVENTS_PER_TURN];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(err) => {
                if err.kind() != ErrorKind::Interrupted {
                    tracing::error!(%err, "vsock: cannot wait for events");
                }
                0
            }
        };
        for event in events.iter().take(count) {
            match event.data() {
                LISTENER_TOKEN => self.accept(driver_up),
                INBOX_TOKEN => self.take_injected(driver_up),
                token => self.stream_event(token, event.event_set()),
            }
        }
        self.publish_count();
    }

    fn accept(&mut self, driver_up: bool) {
        for _ in 0..MAX_ACCEPTS_PER_TURN {
            let Some(listener) = &mut self.listener else {
                return;
            };
            let stream = match listener.accept() {
                Ok(stream) => stream,
                Err(err) if err.kind() == ErrorKind::WouldBlock => return,
                Err(err) => {
                    if !self.told_of_accept {
                        self.told_of_accept = true;
                        tracing::warn!(%err, "vsock: cannot accept a client; further ones are not told");
                    }
                    return;
                }
            };
            if !driver_up {
                continue;
            }
            if self.handshakes.len() >= MAX_HANDSHAKES
                && let Some((_, oldest)) = self.handshakes.pop_first()
            {
                self.unwatch(oldest.stream());
            }
            if let Some(token) = self.watch(&stream) {
                self.handshakes.insert(token, Handshake::new(stream));
            }
        }
    }

    fn take_injected(&mut self, driver_up: bool) {
        // Taken before the streams are: one that comes meanwhile signals anew.
        let _ = self.inbox.evt.read();
        while let Some(request) = self.inbox.next() {
            if driver_up && let Some(token) = self.watch(&request.stream) {
                let origin = if request.is_acknowledged {
                    Origin::Client
                } else {
                    Origin::Injected
                };
                self.open_to_guest(token, request.guest_port, origin, request.stream);
            }
            self.publish_count();
            self.inbox.taken();
        }
    }

    /// Puts a stream under the epoll. `None`: that failed, and the stream is of no use.
    fn watch(&mut self, stream: &UnixStream) -> Option<u64> {
        let token = self.next_token;
        self.next_token += 1;
        // Edge-triggered: a stream that nobody may read for want of credit, or that has hung up,
        // would wake the event loop for ever.
        let events =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        match self.epoll.ctl(
            ControlOperation::Add,
            stream.as_raw_fd(),
            EpollEvent::new(events, token),
        ) {
            Ok(()) => Some(token),
            Err(err) => {
                tracing::warn!(%err, "vsock: cannot watch a stream");
                None
            }
        }
    }

    /// Takes a stream out of the epoll. Closing it would do, if nobody else had a copy of it.
    fn unwatch(&self, stream: &UnixStream) {
        let _ = self.epoll.ctl(
            ControlOperation::Delete,
            stream.as_raw_fd(),
            EpollEvent::default(),
        );
    }

    fn stream_event(&mut self, token: u64, events: EventSet) {
        if let Some(&key) = self.tokens.get(&token) {
            if let Some(entry) = self.connections.get_mut(&key) {
                let verdict = entry.connection.stream_event(events);
                self.carry_out(key, verdict);
            }
            return;
        }
        let Some(mut handshake) = self.handshakes.remove(&token) else {
            return;
        };
        match handshake.advance() {
            HandshakeStep::Incomplete => {
                self.handshakes.insert(token, handshake);
            }
            HandshakeStep::Connect(port) => {
                self.open_to_guest(token, port, Origin::Client, handshake.into_stream());
            }
            HandshakeStep::Refused => self.unwatch(handshake.stream()),
        }
    }

    /// A port of the host that no connection to `guest_port` has.
    fn free_host_port(&mut self, guest_port: u32) -> ConnectionKey {
        // There are more ports than connections, so this ends.
        loop {
            let host_port = self.next_host_port;
            self.next_host_port = match host_port.checked_add(1) {
                // The last one means "any port".
                Some(u32::MAX) | None => FIRST_HOST_PORT,
                Some(next) => next,
            };
            let key = ConnectionKey {
                host_port,
                guest_port,
            };
            if !self.connections.contains_key(&key) {
                return key;
            }
        }
    }

    fn open_to_guest(&mut self, token: u64, guest_port: u32, origin: Origin, stream: UnixStream) {
        if !self.make_room() {
            tracing::warn!("vsock: a client is sent away, {MAX_CONNECTIONS} connections are open");
            self.unwatch(&stream);
            return;
        }
        let key = self.free_host_port(guest_port);
        let connection = Connection::to_guest(key, self.guest_cid, origin, stream);
        self.add(key, token, connection);
    }

    fn add(&mut self, key: ConnectionKey, token: u64, connection: Connection) {
        self.tokens.insert(token, key);
        self.connections.insert(key, Entry { connection, token });
        self.schedule(key);
    }

    /// Whether there is room for a connection. One that only waits for the guest's RST makes room.
    fn make_room(&mut self) -> bool {
        if self.connections.len() < MAX_CONNECTIONS {
            return true;
        }
        let closing = self
            .connections
            .iter()
            .find(|(_, entry)| entry.connection.is_closing())
            .map(|(key, _)| *key);
        closing.is_some_and(|key| {
            self.remove(key);
            true
        })
    }

    // ---- packets of the guest ----

    /// Whether a packet comes from the guest and goes to the host. Others are dropped without a
    /// word (5.10.6.4).
    fn is_addressed_well(&self, header: &Header) -> bool {
        header.src_cid == self.guest_cid && header.dst_cid == HOST_CID
    }

    /// A packet of the guest, with its payload.
    pub(super) fn packet_from_guest(&mut self, header: &Header, payload: &[u8]) {
        if !self.is_addressed_well(header) {
            tracing::debug!(
                ?header,
                "vsock: a packet of or for somebody else is dropped"
            );
            return;
        }
        let key = key_of(header);
        if header.type_ != TYPE_STREAM {
            self.reset_unknown(header);
        } else if header.op == op::REQUEST {
            self.request_from_guest(key, header);
        } else if let Some(entry) = self.connections.get_mut(&key) {
            let verdict = entry.connection.packet_from_guest(header, payload);
            if header.op == op::RESPONSE && matches!(verdict, Verdict::Keep) {
                self.inbox.counts.accepted();
            }
            self.carry_out(key, verdict);
        } else {
            self.reset_unknown(header);
        }
        self.publish_count();
    }

    /// A packet of the guest that promises what it does not hold.
    pub(super) fn bad_packet_from_guest(&mut self, header: &Header) {
        if !self.is_addressed_well(header) {
            return;
        }
        let key = key_of(header);
        if header.type_ == TYPE_STREAM && self.connections.contains_key(&key) {
            self.carry_out(key, Verdict::Reset);
        } else {
            self.reset_unknown(header);
        }
        self.publish_count();
    }

    fn request_from_guest(&mut self, key: ConnectionKey, header: &Header) {
        if let Some(entry) = self.connections.get(&key) {
            // A port may be used again as soon as its old connection only waits for a RST.
            if !entry.connection.is_closing() {
                self.carry_out(key, Verdict::Reset);
                return;
            }
            self.remove(key);
        }
        let has_room = self.make_room();
        let stream = match &self.listener {
            Some(listener) if has_room => listener.connect_to_host_port(key.host_port),
            _ => {
                self.reset_unknown(header);
                return;
            }
        };
        let stream = match stream {
            Ok(stream) => stream,
            Err(err) => {
                let port = key.host_port;
                tracing::debug!(%err, port, "vsock: nobody listens at the host's port");
                self.reset_unknown(header);
                return;
            }
        };
        match self.watch(&stream) {
            Some(token) => {
                let connection = Connection::from_guest(key, self.guest_cid, stream, header);
                self.add(key, token, connection);
            }
            None => self.reset_unknown(header),
        }
    }

    /// Answers a packet that belongs to no connection. A RST is not answered, or two sides would
    /// do nothing else.
    fn reset_unknown(&mut self, header: &Header) {
        if header.op != op::RST {
            self.push_reset(key_of(header), header.type_);
        }
    }

    fn push_reset(&mut self, key: ConnectionKey, type_: u16) {
        if self.resets.len() >= MAX_WAITING_RESETS {
            return;
        }
        self.resets.push_back(Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: key.host_port,
            dst_port: key.guest_port,
            type_,
            op: op::RST,
            ..Header::default()
        });
    }

    fn carry_out(&mut self, key: ConnectionKey, verdict: Verdict) {
        match verdict {
            Verdict::Keep => self.schedule(key),
            Verdict::Remove => self.remove(key),
            Verdict::Reset => {
                self.remove(key);
                self.push_reset(key, TYPE_STREAM);
            }
        }
    }

    fn remove(&mut self, key: ConnectionKey) {
        if let Some(entry) = self.connections.remove(&key) {
            self.tokens.remove(&entry.token);
            if let Some(stream) = entry.connection.stream() {
                self.unwatch(stream);
            }
            if entry.connection.queued {
                self.queue.retain(|queued| *queued != key);
            }
        }
    }

    fn schedule(&mut self, key: ConnectionKey) {
        if let Some(Entry { connection, .. }) = self.connections.get_mut(&key)
            && !connection.queued
            && connection.has_packet()
        {
            connection.queued = true;
            self.queue.push_back(key);
        }
    }

    // ---- packets for the guest ----

    /// Whether [`next_packet`](Self::next_packet) may have something.
    pub(super) fn has_packet(&self) -> bool {
        !self.resets.is_empty() || !self.queue.is_empty()
    }

    /// The next packet for the guest; `buf`, which is not empty, gets its payload. `None`: there
    /// is none, and [`has_packet`](Self::has_packet) is false.
    pub(super) fn next_packet(&mut self, buf: &mut [u8]) -> Option<Header> {
        let header = self.next_packet_uncounted(buf);
        self.publish_count();
        header
    }

    fn next_packet_uncounted(&mut self, buf: &mut [u8]) -> Option<Header> {
        loop {
            if let Some(header) = self.resets.pop_front() {
                return Some(header);
            }
            let key = self.queue.pop_front()?;
            let Some(Entry { connection, .. }) = self.connections.get_mut(&key) else {
                continue;
            };
            connection.queued = false;
            match connection.next_packet(buf) {
                Next::Packet(header) => {
                    // To the end of the queue: each connection gets a turn.
                    self.schedule(key);
                    return Some(header);
                }
                // It is scheduled again by what changes that, or at once if what was tried now
                // brought something else up.
                Next::Nothing => self.schedule(key),
                Next::Reset => self.carry_out(key, Verdict::Reset),
            }
        }
    }
}

/// The connection that a packet of the guest is for.
fn key_of(header: &Header) -> ConnectionKey {
    ConnectionKey {
        host_port: header.dst_port,
        guest_port: header.src_port,
    }
}
