//! A real tap: these tests need the rights to make one, and fail without them.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;

use super::*;
use crate::virtio::NetError;
use crate::virtio::net::header::FEATURES;

/// `struct virtio_net_hdr` without `num_buffers`, as packet sockets have it.
const PACKET_HEADER_BYTES: usize = 10;
const ETHERNET_BYTES: usize = 14;
const TCP_AT: usize = ETHERNET_BYTES + 20;
const PAYLOAD_AT: usize = TCP_AT + 20;
const SEGMENT_BYTES: u16 = 1000;

fn tap_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("rv{}t{next}", std::process::id())
}

fn tap_config(tap: &str) -> NetConfig {
    let mut config = config();
    config.tap = tap.to_owned();
    config
}

fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().unwrap();
    assert!(status.success(), "ip {args:?}");
}

/// Without the host's own frames.
fn up(tap: &str) {
    ip(&["link", "set", tap, "addrgenmode", "none"]);
    ip(&["link", "set", tap, "up"]);
}

/// The host's side of an interface: frames with their offload header.
fn packet_socket(tap: &str) -> OwnedFd {
    let name = CString::new(tap).unwrap();
    // SAFETY: the calls are given pointers to values that live through them, with their sizes, and
    // the descriptor that `from_raw_fd` takes over is new.
    unsafe {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let fd = libc::socket(libc::AF_PACKET, kind, protocol.into());
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        let socket = OwnedFd::from_raw_fd(fd);
        let on: libc::c_int = 1;
        let len = size_of_val(&on) as u32;
        let on = (&raw const on).cast();
        assert_eq!(
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                on,
                len
            ),
            0
        );
        let mut addr: libc::sockaddr_ll = std::mem::zeroed();
        addr.sll_family = libc::AF_PACKET as u16;
        addr.sll_protocol = protocol;
        addr.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        let len = size_of_val(&addr) as u32;
        let addr = (&raw const addr).cast();
        assert_eq!(libc::bind(socket.as_raw_fd(), addr, len), 0);
        socket
    }
}

/// The sum of 16-bit words in one's complement, as Internet checksums are.
fn ones_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for word in part.chunks(2) {
            let low = word.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([word[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Addresses, protocol and length: what a TCP checksum has beside the segment.
fn pseudo_header(frame: &[u8]) -> Vec<u8> {
    let mut pseudo = frame[ETHERNET_BYTES + 12..TCP_AT].to_vec();
    pseudo.extend([0, 6]);
    pseudo.extend(((frame.len() - TCP_AT) as u16).to_be_bytes());
    pseudo
}

/// An unsegmented TCP packet with `payload_bytes`, and the header that asks to segment it.
fn unsegmented(payload_bytes: usize) -> (Vec<u8>, Vec<u8>) {
    let mut header = vec![1, 1];
    for field in [PAYLOAD_AT as u16, SEGMENT_BYTES, TCP_AT as u16, 16] {
        header.extend(field.to_le_bytes());
    }
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    let ip_bytes = (40 + payload_bytes) as u16;
    frame.extend([0x45, 0]);
    frame.extend(ip_bytes.to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = !ones_sum(&[&frame[ETHERNET_BYTES..]]);
    frame[ETHERNET_BYTES + 10..ETHERNET_BYTES + 12].copy_from_slice(&sum.to_be_bytes());
    frame.extend([0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0]);
    frame.extend([0; 4]);
    frame.extend((0..payload_bytes).map(|i| i as u8));
    // Of an unfinished checksum there is the part that the segment does not have.
    let sum = ones_sum(&[&pseudo_header(&frame)]);
    frame[TCP_AT + 16..TCP_AT + 18].copy_from_slice(&sum.to_be_bytes());
    (header, frame)
}

/// Lets the device work until `done` finds what it looks for.
fn wait<T>(driver: &mut Driver, mut done: impl FnMut(&mut Driver) -> Option<T>) -> T {
    for _ in 0..5000 {
        driver.run();
        if let Some(found) = done(driver) {
            return found;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("it does not come");
}

/// The frames for the guest, whole, until their TCP payload is `payload_bytes`.
fn tcp_frames(driver: &mut Driver, payload_bytes: usize) -> Vec<Vec<u8>> {
    let (mut frames, mut got_bytes): (Vec<Vec<u8>>, usize) = (Vec::new(), 0);
    wait(driver, |driver| {
        while let Some(mut bytes) = take_rx(driver) {
            for _ in 1..u16::from_le_bytes([bytes[10], bytes[11]]) {
                bytes.extend(take_rx(driver).unwrap());
            }
            got_bytes += bytes.len() - HEADER_BYTES - PAYLOAD_AT;
            frames.push(bytes);
        }
        (got_bytes >= payload_bytes).then_some(())
    });
    assert_eq!(got_bytes, payload_bytes);
    frames
}

#[test]
fn taps_that_cannot_be_used_are_told_apart() {
    let open = |name: &str| Net::new(tap_config(name)).map(|_| ());
    for name in [
        "",
        "a-name-of-16-byte",
        "0123456789abcdef",
        "a/b",
        "tap%d",
        "a b",
        "..",
        "a\0b",
    ] {
        assert!(
            matches!(open(name), Err(NetError::TapName { .. })),
            "{name}"
        );
    }
    assert!(matches!(open("lo"), Err(NetError::NotATap { name }) if name == "lo"));
    let name = tap_name();
    let first = Net::new(tap_config(&name)).unwrap();
    assert!(matches!(open(&name), Err(NetError::TapBusy { .. })));
    drop(first);
    open(&name).unwrap();
}

#[test]
fn frames_go_both_ways() {
    let name = tap_name();
    let mut driver = Driver::booted(Box::new(Net::new(tap_config(&name)).unwrap()), MERGEABLE);
    // While the interface is down, frames are lost and nothing else is.
    transmit(&mut driver, &frame(100, 0), &[112]);
    driver.run();
    assert!(driver.take_used(TX_QUEUE).is_some());
    up(&name);
    let host = packet_socket(&name);
    // An experimental protocol.
    let mut to_host = frame(500, 1);
    to_host[HEADER_BYTES + 12..HEADER_BYTES + 14].copy_from_slice(&[0x88, 0xb5]);
    transmit(&mut driver, &to_host, &[12, 200, 300]);
    let got = wait(&mut driver, |_| receive(&host));
    assert_eq!(got[PACKET_HEADER_BYTES..], to_host[HEADER_BYTES..]);
    let mut to_guest = to_host.clone();
    to_guest[HEADER_BYTES + 20] ^= 0xff;
    offer_rx(&mut driver, 300);
    offer_rx(&mut driver, 300);
    let mut bytes = vec![0; PACKET_HEADER_BYTES];
    bytes.extend(&to_guest[HEADER_BYTES..]);
    send(&host, &bytes);
    let mut got = wait(&mut driver, take_rx);
    got.extend(take_rx(&mut driver).unwrap());
    assert_eq!(got, received(to_guest, 2));
}

#[test]
fn the_host_segments_for_the_guest_and_the_guest_for_the_host_if_negotiated() {
    let (header, tcp) = unsegmented(3000);
    for offloads in [false, true] {
        let name = tap_name();
        let features = if offloads { FEATURES } else { MERGEABLE };
        let mut driver = Driver::booted(Box::new(Net::new(tap_config(&name)).unwrap()), features);
        up(&name);
        let host = packet_socket(&name);
        for _ in 0..8 {
            offer_rx(&mut driver, 2048);
        }
        send(&host, &[&header[..], &tcp].concat());
        let frames = tcp_frames(&mut driver, 3000);
        if offloads {
            let [frame] = &frames[..] else {
                panic!("{} frames", frames.len());
            };
            assert_eq!(frame[..2], [1, 1]);
            assert_eq!(frame[HEADER_BYTES..], tcp);
        } else {
            assert_eq!(frames.len(), 3);
            for frame in frames {
                assert_eq!(frame[..2], [0, 0]);
                let frame = &frame[HEADER_BYTES..];
                // A finished checksum sums up to all ones.
                let sum = ones_sum(&[&pseudo_header(frame), &frame[TCP_AT..]]);
                assert_eq!(sum, 0xffff);
            }
            continue;
        }
        let sent = [&header[..], &[0, 0], &tcp].concat();
        transmit(&mut driver, &sent, &[sent.len()]);
        // The socket sees what it sent, too: that one has the same bytes.
        let mut seen = 0;
        wait(&mut driver, |_| {
            seen += usize::from(
                receive(&host).is_some_and(|got| got[1] == 1 && got[PACKET_HEADER_BYTES..] == tcp),
            );
            (seen == 1).then_some(())
        });
    }
}

#[test]
fn headers_that_the_host_does_not_take_lose_their_frame() {
    let name = tap_name();
    let mut driver = Driver::booted(Box::new(Net::new(tap_config(&name)).unwrap()), FEATURES);
    up(&name);
    let (_, tcp) = unsegmented(500);
    for header in [[0xff; 12], [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]] {
        let sent = [&header[..], &tcp].concat();
        transmit(&mut driver, &sent, &[sent.len()]);
        driver.run();
        assert!(driver.take_used(TX_QUEUE).is_some());
    }
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0xf);
}

#[test]
fn a_deleted_interface_ends_the_device() {
    let name = tap_name();
    let mut driver = Driver::booted(Box::new(Net::new(tap_config(&name)).unwrap()), 0);
    driver.run();
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0xf);
    ip(&["link", "delete", &name]);
    driver.run();
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0x4f);
}
