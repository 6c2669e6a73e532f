//! IPv4 addresses of network interfaces, by the ioctls of netdevice(7).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

/// Brings `name` up with `address` in a network of `prefix_bits`.
///
/// # Errors
/// EINVAL for a name or prefix that cannot be, otherwise what the system says.
pub fn bring_up(name: &str, address: Ipv4Addr, prefix_bits: u8) -> io::Result<()> {
    let mask = match prefix_bits {
        0 => 0,
        1..=32 => u32::MAX << (32 - prefix_bits),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .or_else(|_| std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_addr = socket_address(address);
    call(&socket, libc::SIOCSIFADDR, &mut request)?;
    request.ifr_ifru.ifru_netmask = socket_address(mask.into());
    call(&socket, libc::SIOCSIFNETMASK, &mut request)?;
    call(&socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has just filled in this field of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    call(&socket, libc::SIOCSIFFLAGS, &mut request)
}

/// An empty request about the interface `name`.
///
/// # Errors
/// EINVAL if the name is empty, too long or holds a zero.
pub fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all fields are integers, arrays of them, or a pointer, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays as the terminating zero.
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = byte as libc::c_char;
    }
    Ok(request)
}

fn call(socket: &impl AsRawFd, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the descriptor is open for the borrow, and each ioctl that this file names reads and
    // writes one `ifreq`, which is borrowed for the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), number, std::ptr::from_mut(request)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    // Port, then address, both in network order: `struct sockaddr_in` of ip(7).
    for (to, byte) in data[2..6].iter_mut().zip(address.octets()) {
        *to = byte as libc::c_char;
    }
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_prefixes_that_cannot_be_are_refused() {
        for name in ["", "a\0b", "0123456789abcdef"] {
            assert!(request(name).is_err(), "{name:?}");
        }
        assert!(bring_up("lo", Ipv4Addr::LOCALHOST, 33).is_err());
    }
}
