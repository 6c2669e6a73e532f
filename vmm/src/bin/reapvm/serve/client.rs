//! A client's connection.

use std::io;
use std::os::unix::net::UnixStream;

use super::lines::LineStream;
use super::protocol::MAX_REQUEST_BYTES;

/// Requests of one connection that may be under way; further ones are not read until then.
const MAX_PENDING: usize = 1024;
/// Answers that a client may leave unread, in bytes; beyond that it is cut off.
const MAX_UNSENT_BYTES: usize = 128 << 20;

/// A client's connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) lines: LineStream,
    /// Invocations that are under way.
    pub(super) pending: usize,
    /// It is closed when everything is sent.
    pub(super) is_closing: bool,
    /// It is closed at once.
    pub(super) is_gone: bool,
}

impl Client {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        Ok(Self {
            lines: LineStream::new(stream, MAX_REQUEST_BYTES)?,
            pending: 0,
            is_closing: false,
            is_gone: false,
        })
    }

    /// Whether its requests are read now.
    pub(super) fn is_read(&self) -> bool {
        !self.is_closing && !self.lines.has_ended() && self.pending < MAX_PENDING
    }

    /// Sends an answer.
    pub(super) fn send(&mut self, line: &str) {
        if self.lines.send(line).is_err() || self.lines.unsent_bytes() > MAX_UNSENT_BYTES {
            self.is_gone = true;
        }
    }

    /// Whether nothing is left to be done for it.
    pub(super) fn is_done(&self) -> bool {
        let will_ask_no_more = self.is_closing || self.lines.has_ended();
        self.is_gone || (will_ask_no_more && self.pending == 0 && self.lines.unsent_bytes() == 0)
    }
}
