//! The line by which a client of the Unix socket says which port of the guest it wants.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

/// `CONNECT 4294967295` and a line end, with some room for spaces.
const MAX_LINE_BYTES: usize = 32;

/// A client that has not said yet where it wants to go. It may take as long as it likes: nobody
/// waits for it.
#[derive(Debug)]
pub(super) struct Handshake {
    stream: UnixStream,
    line: Vec<u8>,
}

/// How far a handshake got.
#[derive(Debug)]
pub(super) enum HandshakeStep {
    /// The line is not complete.
    Incomplete,
    /// The client wants this port.
    Connect(u32),
    /// The client is gone, or what it says is not the protocol.
    Refused,
}

impl Handshake {
    /// A handshake over a non-blocking stream.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            line: Vec::new(),
        }
    }

    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Reads what is there of the line.
    pub(super) fn advance(&mut self) -> HandshakeStep {
        loop {
            // A byte at a time: what follows the line belongs to the guest.
            let mut byte = [0u8];
            match self.stream.read(&mut byte) {
                Ok(0) => return HandshakeStep::Refused,
                Ok(_) if byte == *b"\n" => {
                    return parse_line(&self.line)
                        .map_or(HandshakeStep::Refused, HandshakeStep::Connect);
                }
                Ok(_) if self.line.len() == MAX_LINE_BYTES => return HandshakeStep::Refused,
                Ok(_) => self.line.extend_from_slice(&byte),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    return HandshakeStep::Incomplete;
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return HandshakeStep::Refused,
            }
        }
    }
}

/// The port of `CONNECT <port>`.
fn parse_line(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let command = words.next()?;
    let port = words.next()?;
    if !command.eq_ignore_ascii_case("connect") || words.next().is_some() {
        return None;
    }
    // `parse` would take a sign.
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    port.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_firecracker_parses() {
        assert_eq!(parse_line(b"CONNECT 5000"), Some(5000));
        assert_eq!(parse_line(b"connect 4294967295\r"), Some(u32::MAX));
        for bad in [
            &b""[..],
            b"CONNECT",
            b"CONNECT ",
            b"CONNECT -1",
            b"CONNECT +1",
            b"CONNECT 4294967296",
            b"CONNECT 1 2",
            b"GET / HTTP/1.1",
            b"CONNECT \xff",
        ] {
            assert_eq!(parse_line(bad), None, "{bad:?}");
        }
    }
}
