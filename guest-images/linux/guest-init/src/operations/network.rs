//! The network interface `eth0`.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

use reapvm_guest_init::protocol::MAX_WORK_BYTES;
use reapvm_guest_init::{http, interface, seeded};
use serde_json::{Value, json};

use super::{OperationError, Result, cannot};

const INTERFACE: &str = "eth0";

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
    let response = http::get(server, path).map_err(cannot("fetch by HTTP"))?;
    Ok(json!({
        "status": response.status,
        "bytes": response.body.len(),
        "sha256": seeded::sha256_hex(&response.body),
    }))
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
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .map_err(cannot("listen on the TCP port"))?;
    http::serve(listener, body);
    Ok(json!({"sha256": sha256}))
}
