//! As much HTTP/1.0 (RFC 1945) as a transfer needs.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::protocol::MAX_WORK_BYTES;

const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_HEAD_BYTES: u64 = 16 << 10;

/// What a server sent.
pub struct Response {
    /// The first line.
    pub status: String,
    /// What follows the head.
    pub body: Vec<u8>,
}

/// Fetches `path` from `server`.
///
/// # Errors
/// EINVAL for a path that would not be one in a request, otherwise what the system says, after
/// 30 s at most.
pub fn get(server: SocketAddrV4, path: &str) -> io::Result<Response> {
    if !path.starts_with('/') || path.chars().any(|c| c.is_control() || c == ' ') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut stream = TcpStream::connect_timeout(&server.into(), TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut reader = BufReader::new(stream.take(MAX_WORK_BYTES + MAX_HEAD_BYTES));
    let status = skip_head(&mut reader)?;
    let mut body = Vec::new();
    reader.read_to_end(&mut body)?;
    Ok(Response { status, body })
}

/// Reads to the empty line and returns the first one.
fn skip_head(reader: &mut impl BufRead) -> io::Result<String> {
    let mut head = reader.take(MAX_HEAD_BYTES);
    let mut first = None;
    loop {
        let mut line = String::new();
        let length = head.read_line(&mut line)?;
        let line = line.trim_end();
        if length == 0 || line.is_empty() {
            return first.ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
        }
        first.get_or_insert_with(|| line.to_owned());
    }
}

/// Answers every request on `listener` with `body`, on threads of their own, from now on.
pub fn serve(listener: TcpListener, body: Vec<u8>) {
    let body = Arc::new(body);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let body = Arc::clone(&body);
            thread::spawn(move || {
                // A client that has gone away is no concern of the next one.
                let _ = send(stream, &body);
            });
        }
    });
}

fn send(mut stream: TcpStream, body: &[u8]) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    skip_head(&mut BufReader::new(&stream))?;
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn what_is_served_is_what_is_fetched() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let body: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        serve(listener, body.clone());
        let fetched = get(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), "/x").unwrap();
        assert_eq!(fetched.status, "HTTP/1.0 200 OK");
        assert_eq!(fetched.body, body);
    }

    #[test]
    fn a_path_that_would_break_the_request_is_refused() {
        let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
        for path in ["", "x", "/a b", "/a\r\nHost: b"] {
            let error = get(server, path).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
    }
}
