//! Tap devices of the nested host (Documentation/networking/tuntap.rst).

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use reapvm_guest_init::interface;

/// Makes the tap `name`, which stays, and brings it up with `address`.
///
/// # Panics
/// If it cannot be made.
pub fn create(name: &str, address: Ipv4Addr, prefix_bits: u8) {
    let tun = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let mut request = interface::request(name).unwrap();
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which is borrowed for the call.
    let made = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(made, 0, "TUNSETIFF: {}", io::Error::last_os_error());
    // SAFETY: TUNSETPERSIST takes a number.
    let kept = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1_usize) };
    assert_eq!(kept, 0, "TUNSETPERSIST: {}", io::Error::last_os_error());
    interface::bring_up(name, address, prefix_bits).unwrap();
}
