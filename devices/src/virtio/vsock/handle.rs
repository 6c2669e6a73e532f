//! The way for other threads of the process to connect streams to the guest.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Streams that wait for the event loop at most.
const INBOX_STREAMS: usize = 64;

/// Why a stream could not be connected.
#[derive(Debug, Error)]
pub enum VsockConnectError {
    /// The event loop does not keep up, or does not run.
    #[error("{INBOX_STREAMS} connections wait for the vsock device already: try again later")]
    Busy,
    /// The virtual machine is gone.
    #[error("the vsock device is gone")]
    Gone,
    /// The host failed.
    #[error("cannot hand a connection to the vsock device")]
    Io(#[from] std::io::Error),
}

/// Numbers of connections, for those who wait until all are gone, and when the guest took one.
#[derive(Debug, Default)]
pub(super) struct ConnectionCounts {
    /// Handed in and not yet looked at.
    pub(super) waiting: AtomicUsize,
    /// In the device.
    pub(super) live: AtomicUsize,
    /// When the guest accepted the last one, on CLOCK_MONOTONIC in ns; 0 if it accepted none yet.
    pub(super) accepted_ns: AtomicU64,
}

impl ConnectionCounts {
    /// Notes that the guest has accepted a connection just now.
    pub(super) fn accepted(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        // The monotonic clock starts at boot: neither part is negative.
        let ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        self.accepted_ns.store(ns, Ordering::Release);
    }
}

/// A stream on its way to the device.
#[derive(Debug)]
pub(super) struct ConnectRequest {
    pub(super) guest_port: u32,
    pub(super) stream: UnixStream,
    /// Whether the stream is to be told when the guest accepts.
    pub(super) is_acknowledged: bool,
}

/// Connects streams to the guest of one socket device, from any thread.
#[derive(Clone, Debug)]
pub struct VsockHandle {
    sender: SyncSender<ConnectRequest>,
    evt: Arc<EventFd>,
    counts: Arc<ConnectionCounts>,
}

impl VsockHandle {
    /// Connects `stream` to `guest_port`: keep one half of a `UnixStream::pair` and hand in the
    /// other. There is no handshake line in either direction. Bytes may be written at once, and
    /// are delivered when the guest has accepted. If it refuses, or no driver is up, the stream
    /// is closed: the other half reads the end of the stream.
    ///
    /// # Errors
    /// When too many streams wait, the device is gone, or the stream cannot be made non-blocking.
    pub fn connect(&self, guest_port: u32, stream: UnixStream) -> Result<(), VsockConnectError> {
        self.hand_in(guest_port, stream, false)
    }

    /// As [`connect`](Self::connect), but the other half first reads the line `OK <host port>`
    /// when the guest has accepted, as a client of the Unix socket does.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_acknowledged(
        &self,
        guest_port: u32,
        stream: UnixStream,
    ) -> Result<(), VsockConnectError> {
        self.hand_in(guest_port, stream, true)
    }

    fn hand_in(
        &self,
        guest_port: u32,
        stream: UnixStream,
        is_acknowledged: bool,
    ) -> Result<(), VsockConnectError> {
        stream.set_nonblocking(true)?;
        self.counts.waiting.fetch_add(1, Ordering::SeqCst);
        let sent = self.sender.try_send(ConnectRequest {
            guest_port,
            stream,
            is_acknowledged,
        });
        if let Err(err) = sent {
            self.counts.waiting.fetch_sub(1, Ordering::SeqCst);
            return Err(match err {
                TrySendError::Full(_) => VsockConnectError::Busy,
                TrySendError::Disconnected(_) => VsockConnectError::Gone,
            });
        }
        self.evt.write(1)?;
        Ok(())
    }

    /// When the guest last accepted a connection of the host, on CLOCK_MONOTONIC in nanoseconds;
    /// `None` if it has accepted none since the device was made.
    pub fn last_accepted_ns(&self) -> Option<u64> {
        match self.counts.accepted_ns.load(Ordering::Acquire) {
            0 => None,
            ns => Some(ns),
        }
    }

    /// Connections that either side has not let go of. Of 0 it follows that a snapshot taken now
    /// tells the guest of no reset.
    pub fn connection_count(&self) -> usize {
        // In this order: one that moves on meanwhile is counted twice, not missed.
        self.counts.waiting.load(Ordering::SeqCst) + self.counts.live.load(Ordering::SeqCst)
    }
}

/// The device's end.
#[derive(Debug)]
pub(super) struct Inbox {
    receiver: Receiver<ConnectRequest>,
    pub(super) evt: Arc<EventFd>,
    pub(super) counts: Arc<ConnectionCounts>,
}

impl Inbox {
    pub(super) fn new() -> std::io::Result<(Self, VsockHandle)> {
        let (sender, receiver) = sync_channel(INBOX_STREAMS);
        let evt = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let counts = Arc::new(ConnectionCounts::default());
        let handle = VsockHandle {
            sender,
            evt: Arc::clone(&evt),
            counts: Arc::clone(&counts),
        };
        let inbox = Self {
            receiver,
            evt,
            counts,
        };
        Ok((inbox, handle))
    }

    /// The next stream. The caller says [`taken`](Self::taken) once it is in the device's count.
    pub(super) fn next(&self) -> Option<ConnectRequest> {
        self.receiver.try_recv().ok()
    }

    pub(super) fn taken(&self) {
        self.counts.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
