//! ICMP echo requests (RFC 792).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::PATIENCE;

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const IDENTIFIER: u16 = 0x7265;
const PAYLOAD: &[u8] = b"what is sent has to come back";

/// The checksum of RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn message(kind: u8, sequence: u16) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend_from_slice(&IDENTIFIER.to_be_bytes());
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.extend_from_slice(PAYLOAD);
    let sum = checksum(&bytes);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// Sends `count` echo requests to `address`, one after the other, and waits for each reply.
///
/// # Panics
/// If one does not come, with all of its bytes.
pub fn ping(address: Ipv4Addr, count: u16) {
    // SAFETY: `socket` takes no pointer.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP) };
    assert!(fd >= 0, "socket: {}", io::Error::last_os_error());
    // SAFETY: the descriptor is new and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // For sending and receiving a datagram socket with an address is the same to the kernel.
    let socket = std::net::UdpSocket::from(socket);
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    connect(&socket, address);
    for sequence in 0..count {
        let reply = message(ECHO_REPLY, sequence);
        let deadline = Instant::now() + PATIENCE;
        socket.send(&message(ECHO_REQUEST, sequence)).unwrap();
        loop {
            let mut packet = [0; 2048];
            match socket.recv(&mut packet) {
                // Behind the IP header, whose length is in its first byte, in words of 4 bytes.
                Ok(length) if packet[usize::from(packet[0] & 15) * 4..length] == reply => break,
                _ => assert!(Instant::now() < deadline, "no reply of {address} to a ping"),
            }
        }
    }
}

fn connect(socket: &impl AsRawFd, address: Ipv4Addr) {
    let to = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from(address).to_be(),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: the pointer is to a `sockaddr_in` that lives on, with its true length.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            std::ptr::from_ref(&to).cast(),
            size_of_val(&to) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "connect: {}", io::Error::last_os_error());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_over_a_message_with_its_checksum_is_zero() {
        assert_eq!(checksum(&message(ECHO_REQUEST, 1)), 0);
        // The example of RFC 1071, section 3.
        let example = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&example), !0xddf2);
    }
}
