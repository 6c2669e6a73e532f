//! The network device under a driver: frames, limits and snapshots on a socket pair in the place
//! of a tap, and a real tap.

mod frames;
mod limits;
mod restore;
mod tap;

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vm_memory::{Bytes, GuestAddress};

use super::header::HEADER_BYTES;
use super::{Net, NetConfig, RX_QUEUE, TX_QUEUE};
use crate::rate_limiter::RateLimiterConfig;
use crate::test_driver::{Driver, Piece, buffer_gpa};

const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

fn config() -> NetConfig {
    NetConfig {
        id: "eth0".to_owned(),
        tap: "none".to_owned(),
        mac: None,
        rx_rate_limiter: RateLimiterConfig::default(),
        tx_rate_limiter: RateLimiterConfig::default(),
    }
}

/// A device, and the network that it is on.
fn net(config: NetConfig) -> (Net, OwnedFd) {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    (Net::over(config, theirs).unwrap(), ours)
}

fn booted(config: NetConfig, features: u64) -> (Driver, OwnedFd) {
    let (net, network) = net(config);
    (Driver::booted(Box::new(net), features), network)
}

/// A frame of `len` bytes that tells itself from others, with a header that asks for nothing.
fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend((0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)));
    frame
}

fn send(network: &OwnedFd, bytes: &[u8]) {
    assert_eq!(rustix::io::write(network, bytes), Ok(bytes.len()));
}

fn receive(network: &OwnedFd) -> Option<Vec<u8>> {
    let mut buf = vec![0; 70_000];
    let len = rustix::io::read(network, &mut buf).ok()?;
    buf.truncate(len);
    Some(buf)
}

/// Has the guest send these bytes, cut into pieces of these lengths.
fn transmit(driver: &mut Driver, bytes: &[u8], lens: &[usize]) -> u16 {
    let mut gpa = buffer_gpa(TX_QUEUE, driver.rings[TX_QUEUE].avail_idx % 16);
    let mut pieces = Vec::new();
    let mut rest = bytes;
    for &len in lens {
        let (head, tail) = rest.split_at(len);
        driver.mem.write_slice(head, GuestAddress(gpa)).unwrap();
        pieces.push(Piece {
            gpa,
            len: len as u32,
            writable: false,
        });
        gpa += len as u64;
        rest = tail;
    }
    assert!(rest.is_empty());
    let chain = driver.offer(TX_QUEUE, &pieces);
    driver.kick(TX_QUEUE);
    chain
}

/// Gives the device a buffer of `len` bytes to receive into.
fn offer_rx(driver: &mut Driver, len: u32) -> u16 {
    let gpa = buffer_gpa(RX_QUEUE, driver.rings[RX_QUEUE].avail_idx % 16);
    let piece = Piece {
        gpa,
        len,
        writable: true,
    };
    driver.offer(RX_QUEUE, &[piece])
}

/// The bytes of the next used receive buffer.
fn take_rx(driver: &mut Driver) -> Option<Vec<u8>> {
    let (chain, len) = driver.take_used(RX_QUEUE)?;
    Some(driver.bytes(buffer_gpa(RX_QUEUE, chain), len as usize))
}

/// What the guest should find of a frame that is in `num_buffers` buffers.
fn received(mut frame: Vec<u8>, num_buffers: u16) -> Vec<u8> {
    frame[10..12].copy_from_slice(&num_buffers.to_le_bytes());
    frame
}
