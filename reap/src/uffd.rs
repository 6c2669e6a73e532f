//! The userfaultfd: the only user of the `userfaultfd` crate.
//!
//! Source: `userfaultfd(2)`, `ioctl_userfaultfd(2)` and `Documentation/admin-guide/mm/userfaultfd.rst`
//! of the Linux kernel.

mod write_protect;

use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::ioctl;
use userfaultfd::{Event, EventBuffer, FaultKind, FeatureFlags, ReadWrite, UffdBuilder};

use crate::PAGE_SIZE_BYTES;
use crate::region::MemoryRegion;
use crate::trace::Access;

/// The device that gives out userfaultfds.
const DEVICE: &str = "/dev/userfaultfd";

/// Messages that one read takes from the kernel at most.
const EVENTS_PER_READ: usize = 64;

/// Why an operation on the userfaultfd failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UffdError {
    /// The device is there, but this user may not open it.
    #[error(
        "no permission to open /dev/userfaultfd ({errno}): run as root, or give this user access \
         with `setfacl -m u:USER:rw /dev/userfaultfd`"
    )]
    DeviceDenied {
        /// What the system said.
        errno: Errno,
    },
    /// There is no device, and this user may not make the system call.
    #[error(
        "there is no /dev/userfaultfd and no permission for the userfaultfd system call ({errno}): \
         run as root or with CAP_SYS_PTRACE, or set `sysctl vm.unprivileged_userfaultfd=1`"
    )]
    SyscallDenied {
        /// What the system said.
        errno: Errno,
    },
    /// The kernel has no userfaultfd, or not all that is needed of it.
    #[error(
        "this kernel's userfaultfd does not serve ({errno}): Linux 4.14 or later with \
         CONFIG_USERFAULTFD is needed, for the features thread-id and event-remove"
    )]
    Unsupported {
        /// What the system said.
        errno: Errno,
    },
    /// The kernel does not protect pages against writes.
    #[error(
        "this kernel's userfaultfd does not protect pages against writes ({errno}): Linux 5.7 or \
         later with CONFIG_HAVE_ARCH_USERFAULTFD_WP is needed"
    )]
    NoWriteProtect {
        /// What the system said.
        errno: Errno,
    },
    /// Another failure to open it.
    #[error("cannot open a userfaultfd through /dev/userfaultfd or the system call ({errno})")]
    Open {
        /// What the system said.
        errno: Errno,
    },
    /// A region of guest memory was refused.
    #[error(
        "cannot register the memory region at guest address {gpa:#x} ({size_bytes} bytes at host \
         address {hva:#x}) with userfaultfd ({errno}): it must be a private anonymous mapping \
         that no other userfaultfd has"
    )]
    Register {
        /// The region's guest-physical address.
        gpa: u64,
        /// The region's host-virtual address.
        hva: u64,
        /// The region's length.
        size_bytes: u64,
        /// What the system said.
        errno: Errno,
    },
    /// No memory is left for guest pages.
    #[error(
        "the host has no memory left for the page at host address {hva:#x} ({errno}): give the \
         virtual machine's control group more, or run fewer machines"
    )]
    NoMemory {
        /// Host-virtual address of the page.
        hva: u64,
        /// What the system said: ENOMEM or ENOSPC.
        errno: Errno,
    },
    /// The process that owns the memory is exiting.
    #[error("the process that owns the guest memory is exiting")]
    ProcessExiting,
    /// The page is not registered: its memory was unmapped, or never was guest memory.
    #[error("the page at host address {hva:#x} is not registered: was its memory unmapped?")]
    NotRegistered {
        /// Host-virtual address of the page.
        hva: u64,
    },
    /// Another failure of an operation on a page.
    #[error("cannot {operation} at host address {hva:#x} ({errno})")]
    Page {
        /// What was done.
        operation: &'static str,
        /// Host-virtual address of the page.
        hva: u64,
        /// What the system said.
        errno: Errno,
    },
    /// Reading the kernel's messages failed.
    #[error("cannot read the messages of the userfaultfd: {reason}")]
    Read {
        /// What went wrong.
        reason: String,
    },
}

/// A message from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UffdEvent {
    /// A thread waits for a page, or, if it is one that is protected, to write to it.
    Fault {
        hva: u64,
        access: Access,
        thread_id: u32,
    },
    /// A thread is about to drop the pages from `start_hva` to `end_hva` (MADV_DONTNEED and its
    /// kin) and waits for this message to be read.
    Removed { start_hva: u64, end_hva: u64 },
    /// A message that was not asked for.
    Unexpected,
}

/// What one COPY or ZEROPAGE did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Installed {
    /// So many bytes, from the start, are installed: at least one page.
    Bytes(u64),
    /// The first page was there already: somebody else installed it.
    AlreadyPresent,
    /// Nothing was done: a REMOVE is pending. Read the messages, then try again.
    Again,
}

/// `struct uffdio_move`. Source: `ioctl_userfaultfd(2)`, UFFDIO_MOVE (Linux 6.8).
#[repr(C)]
struct MoveRequest {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    moved_bytes: i64,
}

/// `struct uffdio_zeropage`. Source: `ioctl_userfaultfd(2)`, UFFDIO_ZEROPAGE.
#[repr(C)]
struct ZeroRequest {
    start: u64,
    len: u64,
    mode: u64,
    zeroed_bytes: i64,
}

const UFFDIO_ZEROPAGE: ioctl::Opcode = ioctl::opcode::read_write::<ZeroRequest>(0xaa, 4);
const UFFDIO_ZEROPAGE_MODE_DONTWAKE: u64 = 1;
const UFFDIO_MOVE: ioctl::Opcode = ioctl::opcode::read_write::<MoveRequest>(0xaa, 5);
const UFFDIO_MOVE_MODE_DONTWAKE: u64 = 1;

/// An open userfaultfd.
pub(crate) struct Uffd(userfaultfd::Uffd);

/// Room for the kernel's messages, kept from read to read.
pub(crate) struct UffdEvents(EventBuffer);

impl UffdEvents {
    pub(crate) fn new() -> Self {
        Self(EventBuffer::new(EVENTS_PER_READ))
    }
}

impl Uffd {
    /// Opens a userfaultfd through `/dev/userfaultfd` if that is there, by system call if not.
    pub(crate) fn open() -> Result<Self, UffdError> {
        UffdBuilder::new()
            .close_on_exec(true)
            // poll(2) returns POLLERR on a blocking one.
            .non_blocking(true)
            // KVM touches guest memory from the kernel, on behalf of the guest.
            .user_mode_only(false)
            .require_features(FeatureFlags::THREAD_ID | FeatureFlags::EVENT_REMOVE)
            .create()
            .map(Self)
            .map_err(open_error)
    }

    /// Registers `region` for faults on missing pages.
    ///
    /// # Safety
    /// The region's host addresses are a mapping of the caller's own, whose missing pages may be
    /// filled by this object, and which is not unmapped and replaced by another while this object
    /// is open.
    pub(crate) unsafe fn register(&self, region: &MemoryRegion) -> Result<(), UffdError> {
        self.0
            .register(region.hva as *mut c_void, region.size_bytes as usize)
            .map(drop)
            .map_err(|error| UffdError::Register {
                gpa: region.gpa,
                hva: region.hva,
                size_bytes: region.size_bytes,
                errno: errno_of(&error),
            })
    }

    /// Gives `region` back to the kernel: its missing pages are zeroes from now on, and the threads
    /// that wait for one go on.
    pub(crate) fn unregister(&self, region: &MemoryRegion) -> Result<(), UffdError> {
        self.0
            .unregister(region.hva as *mut c_void, region.size_bytes as usize)
            .map_err(|error| UffdError::Page {
                operation: "unregister a region",
                hva: region.hva,
                errno: errno_of(&error),
            })
    }

    /// Reads the messages that wait, hands each to `take`, and returns whether more may wait.
    pub(crate) fn read(
        &self,
        events: &mut UffdEvents,
        mut take: impl FnMut(UffdEvent),
    ) -> Result<bool, UffdError> {
        let unreadable = |error: userfaultfd::Error| UffdError::Read {
            reason: error.to_string(),
        };
        let messages = match self.0.read_events(&mut events.0) {
            Ok(messages) => messages,
            Err(error) if errno_of(&error) == Errno::INTR => return Ok(true),
            Err(error) => return Err(unreadable(error)),
        };
        let mut count = 0;
        for message in messages {
            count += 1;
            take(match message.map_err(unreadable)? {
                Event::Pagefault {
                    kind: FaultKind::WriteProtected,
                    addr,
                    thread_id,
                    ..
                } => UffdEvent::Fault {
                    hva: addr as u64,
                    access: Access::WriteProtect,
                    thread_id: thread_id.as_raw().unsigned_abs(),
                },
                Event::Pagefault {
                    kind: FaultKind::Missing,
                    rw,
                    addr,
                    thread_id,
                } => UffdEvent::Fault {
                    hva: addr as u64,
                    access: match rw {
                        ReadWrite::Read => Access::Read,
                        ReadWrite::Write => Access::Write,
                    },
                    thread_id: thread_id.as_raw().unsigned_abs(),
                },
                Event::Remove { start, end } => UffdEvent::Removed {
                    start_hva: start as u64,
                    end_hva: end as u64,
                },
                _ => UffdEvent::Unexpected,
            });
        }
        Ok(count == EVENTS_PER_READ)
    }

    /// Whether a message waits.
    pub(crate) fn has_message(&self) -> Result<bool, UffdError> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match poll(&mut fds, Some(&at_once)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(true),
            Err(errno) => Err(UffdError::Read {
                reason: errno.to_string(),
            }),
        }
    }

    /// Installs whole pages with the contents `bytes` at `hva`, and wakes who waits for them if
    /// `wake`.
    ///
    /// # Safety
    /// `hva..hva + bytes.len()` lies in a region that is registered with this object.
    pub(crate) unsafe fn copy(
        &self,
        hva: u64,
        bytes: &[u8],
        wake: bool,
    ) -> Result<Installed, UffdError> {
        // SAFETY: the source is a slice, so it is readable for its length; the destination is
        // registered memory by this function's contract, and the kernel only ever fills pages
        // there that are missing, so no reference into it can see its contents change.
        let copied = unsafe {
            self.0
                .copy(bytes.as_ptr().cast(), hva as *mut c_void, bytes.len(), wake)
        };
        match copied {
            Ok(copied_bytes) => Ok(Installed::Bytes(copied_bytes as u64)),
            // The field holds the bytes copied before the interruption, or -EAGAIN if there were
            // none: the crate hands it on as if it were unsigned.
            Err(userfaultfd::Error::PartiallyCopied(copied_bytes)) => {
                Ok(match (copied_bytes as i64).cast_unsigned() {
                    copied_bytes @ 1..=0x7fff_ffff_ffff_ffff => Installed::Bytes(copied_bytes),
                    _ => Installed::Again,
                })
            }
            Err(error) => page_outcome("copy a page", hva, errno_of(&error)),
        }
    }

    /// Installs the whole pages of `staging` at `hva` by moving them, and wakes nobody. What was
    /// moved is zero in `staging` from then on.
    ///
    /// # Safety
    /// `hva..hva + staging.len()` lies in a region that is registered with this object, and
    /// `staging` begins at a page of a private anonymous mapping.
    pub(crate) unsafe fn move_pages(
        &self,
        hva: u64,
        staging: &mut [u8],
    ) -> Result<Installed, UffdError> {
        let mut request = MoveRequest {
            dst: hva,
            src: staging.as_mut_ptr() as u64,
            len: staging.len() as u64,
            mode: UFFDIO_MOVE_MODE_DONTWAKE,
            moved_bytes: 0,
        };
        // SAFETY: the opcode is UFFDIO_MOVE's, whose argument is this structure. The destination
        // is registered memory by this function's contract, where only missing pages are filled;
        // the source is borrowed mutably, and holds zeroes, which are bytes as well, where its
        // pages are taken away.
        let moved =
            unsafe { ioctl::ioctl(&self.0, ioctl::Updater::<UFFDIO_MOVE, _>::new(&mut request)) };
        match moved {
            Ok(()) => Ok(Installed::Bytes(request.moved_bytes.cast_unsigned())),
            Err(Errno::AGAIN) if request.moved_bytes > 0 => {
                Ok(Installed::Bytes(request.moved_bytes.cast_unsigned()))
            }
            Err(errno) => page_outcome("move a page", hva, errno),
        }
    }

    /// Installs `size_bytes` of whole pages of zeroes at `hva`, and wakes who waits for them if
    /// `wake`.
    ///
    /// # Safety
    /// `hva..hva + size_bytes` lies in a region that is registered with this object.
    pub(crate) unsafe fn zero_pages(
        &self,
        hva: u64,
        size_bytes: u64,
        wake: bool,
    ) -> Result<Installed, UffdError> {
        let mut request = ZeroRequest {
            start: hva,
            len: size_bytes,
            mode: if wake {
                0
            } else {
                UFFDIO_ZEROPAGE_MODE_DONTWAKE
            },
            zeroed_bytes: 0,
        };
        // SAFETY: the opcode is UFFDIO_ZEROPAGE's, whose argument is this structure. As in `copy`:
        // registered memory, and only missing pages are filled.
        let zeroed = unsafe {
            ioctl::ioctl(
                &self.0,
                ioctl::Updater::<UFFDIO_ZEROPAGE, _>::new(&mut request),
            )
        };
        match zeroed {
            Ok(()) => Ok(Installed::Bytes(request.zeroed_bytes.cast_unsigned())),
            // The crate would not say how far it came.
            Err(Errno::AGAIN) if request.zeroed_bytes > 0 => {
                Ok(Installed::Bytes(request.zeroed_bytes.cast_unsigned()))
            }
            Err(errno) => page_outcome("install a zero page", hva, errno),
        }
    }

    /// Wakes the threads that wait for the page at `hva`.
    pub(crate) fn wake_page(&self, hva: u64) -> Result<(), UffdError> {
        self.0
            .wake(hva as *mut c_void, PAGE_SIZE_BYTES as usize)
            .map_err(|error| UffdError::Page {
                operation: "wake a thread",
                hva,
                errno: errno_of(&error),
            })
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a failed COPY or ZEROPAGE means. Source: `ioctl_userfaultfd(2)`, UFFDIO_COPY.
fn page_outcome(operation: &'static str, hva: u64, errno: Errno) -> Result<Installed, UffdError> {
    match errno {
        Errno::EXIST => Ok(Installed::AlreadyPresent),
        Errno::AGAIN | Errno::INTR => Ok(Installed::Again),
        Errno::NOMEM | Errno::NOSPC => Err(UffdError::NoMemory { hva, errno }),
        Errno::SRCH => Err(UffdError::ProcessExiting),
        Errno::NOENT => Err(UffdError::NotRegistered { hva }),
        _ => Err(UffdError::Page {
            operation,
            hva,
            errno,
        }),
    }
}

/// The errno that an error of the crate carries, EIO if it carries none.
fn errno_of(error: &userfaultfd::Error) -> Errno {
    use userfaultfd::Error;
    let raw = match error {
        Error::CopyFailed(errno) | Error::SystemError(errno) | Error::ZeropageFailed(errno) => {
            *errno as i32
        }
        Error::OpenDevUserfaultfd(error) => match error.raw_os_error() {
            Some(raw) => raw,
            None => return Errno::IO,
        },
        Error::UnsupportedIoctls(_) => return Errno::NOTSUP,
        _ => return Errno::IO,
    };
    Errno::from_raw_os_error(raw)
}

fn open_error(error: userfaultfd::Error) -> UffdError {
    classify_open_error(errno_of(&error), Path::new(DEVICE).exists())
}

fn classify_open_error(errno: Errno, device_exists: bool) -> UffdError {
    match errno {
        Errno::ACCESS | Errno::PERM if device_exists => UffdError::DeviceDenied { errno },
        Errno::ACCESS | Errno::PERM => UffdError::SyscallDenied { errno },
        Errno::NOSYS | Errno::INVAL | Errno::NOTTY | Errno::NODEV | Errno::NXIO | Errno::NOTSUP => {
            UffdError::Unsupported { errno }
        }
        _ => UffdError::Open { errno },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_open_names_the_device_and_the_remedy() {
        let denied = classify_open_error(Errno::ACCESS, true).to_string();
        assert!(
            denied.contains("/dev/userfaultfd") && denied.contains("root"),
            "{denied}"
        );
        let syscall = classify_open_error(Errno::PERM, false).to_string();
        assert!(
            syscall.contains("/dev/userfaultfd") && syscall.contains("vm.unprivileged_userfaultfd"),
            "{syscall}"
        );
        assert!(matches!(
            classify_open_error(Errno::NOSYS, false),
            UffdError::Unsupported { .. }
        ));
        assert!(matches!(
            classify_open_error(Errno::MFILE, true),
            UffdError::Open { .. }
        ));
    }

    #[test]
    fn outcomes_of_a_page_operation_are_told_apart() {
        let outcome = |errno| page_outcome("copy a page", 0x1000, errno);
        assert_eq!(outcome(Errno::EXIST), Ok(Installed::AlreadyPresent));
        assert_eq!(outcome(Errno::AGAIN), Ok(Installed::Again));
        assert!(matches!(
            outcome(Errno::NOMEM),
            Err(UffdError::NoMemory { hva: 0x1000, .. })
        ));
        assert!(matches!(
            outcome(Errno::NOSPC),
            Err(UffdError::NoMemory { .. })
        ));
        assert_eq!(outcome(Errno::SRCH), Err(UffdError::ProcessExiting));
        assert!(matches!(
            outcome(Errno::NOENT),
            Err(UffdError::NotRegistered { .. })
        ));
        assert!(matches!(outcome(Errno::FAULT), Err(UffdError::Page { .. })));
    }

    #[test]
    fn a_region_that_is_not_mapped_is_refused_with_its_address() {
        let uffd = Uffd::open().unwrap();
        let region = MemoryRegion {
            gpa: 0x2000,
            hva: 0x1000,
            size_bytes: 0x1000,
            file_offset: 0,
        };
        // SAFETY: nothing is mapped at the second page of the address space, so nothing can be
        // registered there.
        let error = unsafe { uffd.register(&region) }.unwrap_err();
        assert!(
            matches!(error, UffdError::Register { gpa: 0x2000, .. }),
            "{error}"
        );
    }
}
