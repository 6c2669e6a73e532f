//! The network interface `eth0`, and as much HTTP/1.0 (RFC 1945) as a transfer needs.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use reapvm_guest_init::protocol::MAX_WORK_BYTES;
use reapvm_guest_init::{interface, seeded};
use serde_json::{Value, json};

use super::{OperationError, Result, cannot};

const INTERFACE: &str = "eth0";
const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_HEAD_BYTES: u64 = 16 << 10;

pub(super) fn up(address: Ipv4Addr, prefix_bits: u8) -> Result<Value> {
    interface::bring_up(INTERFACE, address, prefix_bits).map_err(cannot("bring up eth0"))?;
    info()
}

pub(super) fn info() -> Result<Value> {
    let read = |name: &str| {
        fs::read_to_string(format!("/sys/class/net/{INTERFACE}/{name}"))
            .map(|text| text.trim().to_owned())
            .map_err(cannot("read about eth0"))
    };
    let count = |name: &str| {
        read(&format!("statistics/{name}")).map(|text| text.parse::<u64>().unwrap_or_default())
    };
    Ok(json!({
        "mac": read("address")?,
        "state": read("operstate")?,
        "mtu": read("mtu")?.parse::<u64>().ok(),
        "rx_packets": count("rx_packets")?,
        "tx_packets": count("tx_packets")?,
        "rx_errors": count("rx_errors")?,
        "tx_errors": count("tx_errors")?,
    }))
}

pub(super) fn get(server: SocketAddrV4, path: &str) -> Result<Value> {
    if !path.starts_with('/') || path.chars().any(|c| c.is_control() || c == ' ') {
        return Err(OperationError::Refused(
            "path must be a path of HTTP".into(),
        ));
    }
    let mut stream = TcpStream::connect_timeout(&server.into(), TIMEOUT)
        .map_err(cannot("connect to the HTTP server"))?;
    stream
        .set_read_timeout(Some(TIMEOUT))
        .map_err(cannot("set a time limit"))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").map_err(cannot("send a request"))?;
    let mut reader = BufReader::new(stream.take(MAX_WORK_BYTES + MAX_HEAD_BYTES));
    let status = skip_head(&mut reader)?;
    let mut body = Vec::new();
    reader
        .read_to_end(&mut body)
        .map_err(cannot("read the HTTP body"))?;
    Ok(json!({
        "status": status,
        "bytes": body.len(),
        "sha256": seeded::sha256_hex(&body),
    }))
}

/// Reads to the empty line and returns the first one.
fn skip_head(reader: &mut impl BufRead) -> Result<String> {
    let mut head = reader.take(MAX_HEAD_BYTES);
    let mut first = None;
    loop {
        let mut line = String::new();
        let length = head
            .read_line(&mut line)
            .map_err(cannot("read the head of an HTTP message"))?;
        let line = line.trim_end();
        if length == 0 || line.is_empty() {
            return first.ok_or_else(|| OperationError::Refused("an HTTP message is empty".into()));
        }
        first.get_or_insert_with(|| line.to_owned());
    }
}

pub(super) fn serve(port: u16, bytes: u64, seed: u64) -> Result<Value> {
    if bytes > MAX_WORK_BYTES {
        return Err(OperationError::Refused(format!(
            "bytes must be at most {MAX_WORK_BYTES}"
        )));
    }
    let mut body = vec![0; bytes as usize];
    seeded::fill(seed, 0, &mut body);
    let sha256 = seeded::sha256_hex(&body);
    let body = Arc::new(body);
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .map_err(cannot("listen on the TCP port"))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let body = Arc::clone(&body);
            thread::spawn(move || {
                // A client that has gone away is no concern of the next one.
                let _ = send(stream, &body);
            });
        }
    });
    Ok(json!({"sha256": sha256}))
}

fn send(mut stream: TcpStream, body: &[u8]) -> Result<()> {
    stream
        .set_read_timeout(Some(TIMEOUT))
        .map_err(cannot("set a time limit"))?;
    skip_head(&mut BufReader::new(&stream))?;
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body))
        .map_err(cannot("send the HTTP body"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_is_what_is_fetched() {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let served = serve(port, 100_000, 3).unwrap();
        let fetched = get(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), "/x").unwrap();
        assert_eq!(fetched["status"], "HTTP/1.0 200 OK");
        assert_eq!(fetched["bytes"], 100_000);
        assert_eq!(fetched["sha256"], served["sha256"]);
    }

    #[test]
    fn a_path_that_would_break_the_request_is_refused() {
        let server = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
        for path in ["", "x", "/a b", "/a\r\nHost: b"] {
            assert!(
                matches!(get(server, path), Err(OperationError::Refused(_))),
                "{path}"
            );
        }
    }
}
