//! A tap interface of the host: each read and write is one frame with its virtio header.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use vm_memory::volatile_memory::PtrGuard;
use vmm_sys_util::ioctl::{ioctl_with_ref, ioctl_with_val};

use super::NetError;
use super::header::{HEADER_BYTES, Offloads};
use crate::GuestSlice;

const TUN_PATH: &str = "/dev/net/tun";
/// Pieces of memory that one frame may come from: more `writev` does not take.
pub(super) const MAX_PIECES: usize = libc::UIO_MAXIOV as usize;

/// Why a frame did not come or go.
#[derive(Debug)]
pub(super) enum TapError {
    /// The interface is not there any more.
    Gone,
    /// This frame failed.
    Frame(Errno),
}

impl From<Errno> for TapError {
    fn from(err: Errno) -> Self {
        match err {
            Errno::BADFD => Self::Gone,
            err => Self::Frame(err),
        }
    }
}

/// A tap interface, open and not blocking.
#[derive(Debug)]
pub(super) struct Tap {
    fd: OwnedFd,
    name: String,
    /// Whether it is one, or something in its place that has no offloads.
    has_offloads: bool,
}

fn check_name(name: &str) -> Result<(), NetError> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() >= libc::IFNAMSIZ {
        "it is longer than 15 bytes"
    } else if matches!(name, "." | "..") {
        "the kernel does not take it"
    } else if name
        .bytes()
        .any(|c| !c.is_ascii_graphic() || matches!(c, b'/' | b':' | b'%'))
    {
        // '%' would let the kernel choose another name.
        "it may have only visible ASCII characters other than '/', ':' and '%'"
    } else {
        return Ok(());
    };
    Err(NetError::TapName {
        name: name.to_owned(),
        reason,
    })
}

impl Tap {
    /// Opens the interface `name`, or makes it.
    pub(super) fn open(name: &str) -> Result<Self, NetError> {
        check_name(name)?;
        let owned_name = || name.to_owned();
        let failed = |operation, source| NetError::Tap {
            name: name.to_owned(),
            operation,
            source,
        };
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(TUN_PATH, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
                return Err(NetError::NoTunDriver { name: owned_name() });
            }
            Err(Errno::ACCESS | Errno::PERM) => {
                return Err(NetError::TunPermission { name: owned_name() });
            }
            Err(err) => return Err(failed("open /dev/net/tun for", err.into())),
        };
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
            },
        };
        // One byte at least is left as the end.
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: TUNSETIFF reads a `struct ifreq` at its argument, and `request` is one that lives
        // through the call, with a name that ends in a NUL.
        if unsafe { ioctl_with_ref(&fd, libc::TUNSETIFF, &request) } < 0 {
            let err = io::Error::last_os_error();
            return Err(match err.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => NetError::TapPermission { name: owned_name() },
                Some(libc::EBUSY) => NetError::TapBusy { name: owned_name() },
                Some(libc::EINVAL) => NetError::NotATap { name: owned_name() },
                _ => failed("attach to", err),
            });
        }
        let header_bytes = HEADER_BYTES as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an `int` at its argument, which lives through the call.
        if unsafe { ioctl_with_ref(&fd, libc::TUNSETVNETHDRSZ, &header_bytes) } < 0 {
            return Err(failed("set the header size of", io::Error::last_os_error()));
        }
        let tap = Self {
            fd,
            name: owned_name(),
            has_offloads: true,
        };
        // A tap that outlives its users keeps what the one before had set.
        tap.set_offloads(Offloads::default())
            .map_err(|err| failed("reset the offloads of", err))?;
        Ok(tap)
    }

    /// Something that takes and gives frames as a tap does, in its place.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn over(fd: OwnedFd) -> Self {
        Self {
            fd,
            name: "none".to_owned(),
            has_offloads: false,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn event_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Tells the host what it may leave to the guest.
    pub(super) fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        if !self.has_offloads {
            return Ok(());
        }
        // SAFETY: TUNSETOFFLOAD takes its argument as a number and accesses no memory.
        let result = unsafe {
            ioctl_with_val(
                &self.fd,
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(offloads.tun_flags()),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Reads a header and its frame; `None` if there is none.
    pub(super) fn read(&self, buf: &mut [u8]) -> Result<Option<usize>, TapError> {
        match rustix::io::read(&self.fd, buf) {
            // A tap has no end, and what is in its place has no frames after it.
            Ok(0) | Err(Errno::AGAIN) => Ok(None),
            Ok(len_bytes) => Ok(Some(len_bytes)),
            Err(err) => Err(err.into()),
        }
    }

    /// Sends a header and its frame, which is in `pieces`, at most [`MAX_PIECES`].
    pub(super) fn write(&self, pieces: &[GuestSlice<'_>]) -> Result<(), TapError> {
        let guards: Vec<PtrGuard> = pieces.iter().map(GuestSlice::ptr_guard).collect();
        let iovecs: Vec<libc::iovec> = guards
            .iter()
            .map(|guard| libc::iovec {
                iov_base: guard.as_ptr().cast_mut().cast(),
                iov_len: guard.len(),
            })
            .collect();
        // SAFETY: each iovec is a piece of guest memory that is mapped as long as its guard lives,
        // which is until the end of this function. The kernel only reads it, and copes with a
        // guest that writes to it meanwhile.
        let result = unsafe {
            libc::writev(
                self.fd.as_raw_fd(),
                iovecs.as_ptr(),
                iovecs.len() as libc::c_int,
            )
        };
        if result < 0 {
            let err = io::Error::last_os_error();
            return Err(Errno::from_io_error(&err).unwrap_or(Errno::IO).into());
        }
        Ok(())
    }
}
