//! The network interface `eth0`.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};

use reapvm_guest_init::protocol::{MAX_DATAGRAMS, MAX_WORK_BYTES, NET_UP_LOG};
use reapvm_guest_init::{http, interface, seeded};
use serde_json::{Value, json};

use super::{OperationError, Result, cannot};

const INTERFACE: &str = "eth0";

pub(super) fn up(address: Ipv4Addr, prefix_bits: u8) -> Result<Value> {
    interface::bring_up(INTERFACE, address, prefix_bits).map_err(cannot("bring up eth0"))?;
    let info = info()?;
    fs::write("/dev/kmsg", NET_UP_LOG).map_err(cannot("write to the kernel's log"))?;
    Ok(info)
}

/// The sum of a number that each transmit queue of the interface has in a file.
fn sum_of_queues(name: &str) -> Result<u64> {
    let folder = format!("/sys/class/net/{INTERFACE}/queues");
    let mut sum = 0;
    for queue in fs::read_dir(folder).map_err(cannot("list the queues of eth0"))? {
        let queue = queue.map_err(cannot("list the queues of eth0"))?;
        if !queue.file_name().to_string_lossy().starts_with("tx-") {
            continue;
        }
        let text = fs::read_to_string(queue.path().join(name))
            .map_err(cannot("read about a queue of eth0"))?;
        sum += text.trim().parse::<u64>().unwrap_or_default();
    }
    Ok(sum)
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
        "tx_timeouts": sum_of_queues("tx_timeout")?,
        "tx_in_flight_bytes": sum_of_queues("byte_queue_limits/inflight")?,
    }))
}

pub(super) fn broadcast(to: SocketAddrV4, datagrams: u32) -> Result<Value> {
    if datagrams > MAX_DATAGRAMS {
        return Err(OperationError::Refused(format!(
            "datagrams must be at most {MAX_DATAGRAMS}"
        )));
    }
    let send = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_broadcast(true)?;
        for number in 0..datagrams {
            socket.send_to(&number.to_be_bytes(), to)?;
        }
        Ok::<_, std::io::Error>(())
    };
    send().map_err(cannot("send datagrams"))?;
    Ok(json!({"datagrams": datagrams}))
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
