//! Lines over a socket that does not block.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// What one turn reads at most, so that one peer that sends much does not hold the others.
const READ_BYTES: usize = 64 << 10;

/// A line is longer than it may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// A socket over which lines come and go, with bounds on what is kept of either.
#[derive(Debug)]
pub(super) struct LineStream {
    stream: UnixStream,
    input: Vec<u8>,
    /// So many bytes of `input` have no line end in them.
    searched: usize,
    max_line_bytes: usize,
    output: Vec<u8>,
    /// So many bytes of `output` are sent.
    sent: usize,
    has_ended: bool,
}

impl LineStream {
    /// Takes `stream` and makes it non-blocking.
    pub(super) fn new(stream: UnixStream, max_line_bytes: usize) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            searched: 0,
            max_line_bytes,
            output: Vec::new(),
            sent: 0,
            has_ended: false,
        })
    }

    /// Reads some of what is there. An error means that the peer has gone, as does the end.
    pub(super) fn fill(&mut self) {
        let mut buffer = [0_u8; READ_BYTES];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.has_ended = true,
            Ok(length) => self.input.extend_from_slice(&buffer[..length]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => self.has_ended = true,
        }
    }

    /// The next whole line, without its end.
    pub(super) fn next_line(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let found = self.input[self.searched..]
            .iter()
            .position(|&byte| byte == b'\n')
            .map(|at| self.searched + at);
        match found {
            Some(end) if end <= self.max_line_bytes => {
                let rest = self.input.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.input, rest);
                line.truncate(end);
                self.searched = 0;
                Ok(Some(line))
            }
            None if self.input.len() <= self.max_line_bytes => {
                self.searched = self.input.len();
                Ok(None)
            }
            _ => Err(TooLong),
        }
    }

    /// Whether the peer will send no more.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether bytes have come that are no whole line.
    pub(super) fn has_partial_line(&self) -> bool {
        !self.input.is_empty()
    }

    /// Queues a line and sends what can be sent of it.
    pub(super) fn send(&mut self, line: &str) -> io::Result<()> {
        self.output.extend_from_slice(line.as_bytes());
        self.output.push(b'\n');
        self.flush()
    }

    /// Sends what can be sent.
    ///
    /// # Errors
    /// The peer has gone.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // The memory too: one large answer should not stay.
        self.output = Vec::new();
        self.sent = 0;
        Ok(())
    }

    /// Bytes that wait to be sent.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.output.len() - self.sent
    }
}

impl AsFd for LineStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(max: usize) -> (UnixStream, LineStream) {
        let (peer, ours) = UnixStream::pair().unwrap();
        (peer, LineStream::new(ours, max).unwrap())
    }

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let (mut peer, mut lines) = pair(10);
        for (piece, expected) in [
            (&b"ab"[..], &[][..]),
            (b"c\nde\nf", &[&b"abc"[..], b"de"]),
            (b"\n\n", &[b"f", b""]),
        ] {
            peer.write_all(piece).unwrap();
            lines.fill();
            for line in expected {
                assert_eq!(lines.next_line().unwrap().as_deref(), Some(*line));
            }
            assert_eq!(lines.next_line(), Ok(None));
        }
        peer.write_all(b"half").unwrap();
        drop(peer);
        lines.fill();
        lines.fill();
        assert!(lines.has_ended() && lines.has_partial_line());
    }

    #[test]
    fn a_line_that_is_too_long_is_refused_with_and_without_its_end() {
        for bytes in [&b"0123456789a"[..], b"0123456789a\n"] {
            let (mut peer, mut lines) = pair(10);
            peer.write_all(bytes).unwrap();
            lines.fill();
            assert_eq!(lines.next_line(), Err(TooLong));
        }
        let (mut peer, mut lines) = pair(10);
        peer.write_all(b"0123456789\n").unwrap();
        lines.fill();
        assert_eq!(
            lines.next_line().unwrap().as_deref(),
            Some(&b"0123456789"[..])
        );
    }

    #[test]
    fn what_the_peer_does_not_read_waits() {
        let (mut peer, mut lines) = pair(10);
        let long = "x".repeat(4 << 20);
        lines.send(&long).unwrap();
        assert!(lines.unsent_bytes() > 0);
        let mut read = vec![0; long.len() + 1];
        let mut at = 0;
        while at < read.len() {
            at += peer.read(&mut read[at..]).unwrap();
            lines.flush().unwrap();
        }
        assert_eq!(lines.unsent_bytes(), 0);
        assert_eq!(read.last(), Some(&b'\n'));
    }
}
