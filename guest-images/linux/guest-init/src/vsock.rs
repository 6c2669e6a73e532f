//! Listening on a vsock port (vsock(7)); the standard library has no such socket.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A listening vsock socket.
pub(crate) struct Listener(OwnedFd);

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

impl Listener {
    /// Listens on `port` of every context id of this machine.
    pub(crate) fn bind(port: u32) -> io::Result<Self> {
        // SAFETY: `socket` takes no pointer.
        let fd = checked(unsafe {
            libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)
        })?;
        // SAFETY: the descriptor is new and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all fields are integers or arrays of them, for which zero is a value.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_port = port;
        address.svm_cid = libc::VMADDR_CID_ANY;
        // SAFETY: the pointer is to a `sockaddr_vm` that lives on, with its true length.
        checked(unsafe {
            libc::bind(
                socket.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        })?;
        // SAFETY: `listen` takes no pointer.
        checked(unsafe { libc::listen(socket.as_raw_fd(), 16) })?;
        Ok(Self(socket))
    }

    /// The next connection: a file, since a vsock stream is read and written like one.
    pub(crate) fn accept(&self) -> io::Result<File> {
        // SAFETY: null pointers ask for no address of the peer.
        let fd = checked(unsafe {
            libc::accept4(
                self.0.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC,
            )
        })?;
        // SAFETY: the descriptor is new and belongs to nobody else.
        Ok(unsafe { File::from_raw_fd(fd) })
    }
}
