//! The io_uring of a disk: what is handed to the kernel, and what it says of it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemory as _, Permissions};
use vmm_sys_util::eventfd::EventFd;

use super::request::{Segment, Ticket};
use crate::GuestMemory;

/// Requests that are with the kernel at most: beyond that the disk does not get faster.
pub(super) const DEPTH: u16 = 64;
/// Times that a request is handed in again after an interruption that did nothing.
const MAX_RETRIES: u8 = 8;
/// What the kernel takes of pieces (`UIO_MAXIOV`).
const MAX_IOVECS: usize = 1024;
/// The pause before a second try when the kernel has no memory for a request.
const PAUSE: Duration = Duration::from_millis(1);

/// What the kernel is to do with the file. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    /// Into the pieces of guest memory.
    Read { offset: u64 },
    /// From the pieces; `sync`: it is on the disk when it is done.
    Write { offset: u64, sync: bool },
    /// What was written is on the disk when it is done.
    Sync,
    /// A `fallocate` by `mode`; `sync` as above.
    Allocate {
        offset: u64,
        len: u64,
        mode: i32,
        sync: bool,
    },
}

/// A request that the kernel is done with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finished {
    pub(super) ticket: Ticket,
    /// Bytes that were moved, even if it failed.
    pub(super) done_bytes: u32,
    /// `Ok`: all that was asked for was done.
    pub(super) outcome: Result<(), Failure>,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The file ends before the request does.
    EndOfFile,
    /// The file's host has no holes, cannot zero a range, or not this one.
    Unsupported,
    /// The kernel says so.
    Errno(Errno),
}

/// Addresses of guest memory for the kernel.
#[derive(Debug, Default)]
struct IoVecs(Vec<libc::iovec>);

// SAFETY: the pointers are into a mapping of guest memory, which belongs to no thread, and this
// process never follows them.
unsafe impl Send for IoVecs {}

impl IoVecs {
    /// Fills itself with the host's addresses of the pieces. `false`: they are not all there, or
    /// too many.
    fn fill(&mut self, mem: &GuestMemory, segments: &[Segment], access: Permissions) -> bool {
        self.0.clear();
        for segment in segments {
            let Ok(slices) = mem.get_slices(segment.gpa, segment.len as usize, access) else {
                return false;
            };
            for slice in slices {
                let Ok(slice) = slice else {
                    return false;
                };
                if self.0.len() == MAX_IOVECS {
                    return false;
                }
                if matches!(access, Permissions::Write) {
                    // Nothing but the kernel sees these writes. Marked before they are done, which
                    // is early enough for a saved machine only because its disks come to rest
                    // before its marks are read.
                    slice.bitmap().mark_dirty(0, slice.len());
                }
                self.0.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        true
    }

    /// Takes the first `bytes` bytes away, which are done.
    fn advance(&mut self, mut bytes: usize) {
        let mut done = 0;
        for iovec in &mut self.0 {
            if bytes < iovec.iov_len {
                iovec.iov_base = iovec.iov_base.wrapping_byte_add(bytes);
                iovec.iov_len -= bytes;
                break;
            }
            bytes -= iovec.iov_len;
            done += 1;
        }
        self.0.drain(..done);
    }
}

/// A request at the kernel, or room for one.
#[derive(Debug, Default)]
struct Slot {
    /// None: the slot is free.
    work: Option<(Ticket, Operation)>,
    iovecs: IoVecs,
    done_bytes: u32,
    retries: u8,
}

/// What comes of a completion.
enum Next {
    /// To be handed in again, for the rest.
    Again,
    Finished(Result<(), Failure>),
}

impl Slot {
    fn entry(&self, file: &File) -> Option<squeue::Entry> {
        let (_, operation) = self.work?;
        let fd = types::Fd(file.as_raw_fd());
        let (iovecs, count) = (self.iovecs.0.as_ptr(), self.iovecs.0.len() as u32);
        let done = u64::from(self.done_bytes);
        Some(match operation {
            Operation::Read { offset } => opcode::Readv::new(fd, iovecs, count)
                .offset(offset + done)
                .build(),
            Operation::Write { offset, sync } => opcode::Writev::new(fd, iovecs, count)
                .offset(offset + done)
                .rw_flags(if sync { libc::RWF_DSYNC } else { 0 })
                .build(),
            Operation::Sync => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Operation::Allocate {
                offset, len, mode, ..
            } => opcode::Fallocate::new(fd, len)
                .offset(offset)
                .mode(mode)
                .build(),
        })
    }

    /// The kernel said `result`: a count of bytes, or an errno below 0.
    fn complete(&mut self, result: i32) -> Next {
        let Some((ticket, operation)) = self.work else {
            return Next::Finished(Ok(()));
        };
        let Ok(count) = u32::try_from(result) else {
            let errno = Errno::from_raw_os_error(-result);
            if matches!(errno, Errno::INTR | Errno::AGAIN) && self.retries < MAX_RETRIES {
                self.retries += 1;
                return Next::Again;
            }
            let unsupported = match operation {
                // A device has no half blocks, a kernel no such operation: also an EINVAL.
                Operation::Allocate { .. } => {
                    matches!(errno, Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS)
                }
                _ => false,
            };
            return Next::Finished(Err(if unsupported {
                Failure::Unsupported
            } else {
                Failure::Errno(errno)
            }));
        };
        match operation {
            Operation::Read { .. } | Operation::Write { .. } => {
                // Less than asked for is not an error yet: the next try tells what is.
                self.iovecs.advance(count as usize);
                self.done_bytes = self.done_bytes.saturating_add(count);
                match (self.iovecs.0.is_empty(), count) {
                    (true, _) => Next::Finished(Ok(())),
                    (false, 0) => Next::Finished(Err(Failure::EndOfFile)),
                    (false, _) => Next::Again,
                }
            }
            Operation::Allocate { sync: true, .. } => {
                self.work = Some((ticket, Operation::Sync));
                Next::Again
            }
            Operation::Allocate { .. } | Operation::Sync => Next::Finished(Ok(())),
        }
    }
}

/// An io_uring and the requests that are in it.
pub(super) struct Ring {
    io_uring: IoUring,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Guest memory stays mapped as long as the kernel may write to it.
    mem: Option<GuestMemory>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// Whether the host lets this process use io_uring, for the price of a system call.
    pub(super) fn check_available() -> io::Result<()> {
        match IoUring::new(0).map(drop) {
            // A ring without entries is wrong; the permission comes first.
            Err(err) if err.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
    }

    /// A ring that signals completions to `completions`.
    pub(super) fn new(completions: &EventFd) -> io::Result<Self> {
        let io_uring = IoUring::builder().dontfork().build(DEPTH.into())?;
        // Not "async only": a read that waited for the page cache would not be signalled then.
        io_uring
            .submitter()
            .register_eventfd(completions.as_raw_fd())?;
        let mut slots = Vec::new();
        slots.resize_with(DEPTH.into(), Slot::default);
        Ok(Self {
            io_uring,
            slots,
            free: (0..DEPTH).rev().collect(),
            mem: None,
        })
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Readies a request for the next [`submit`](Self::submit). `false`: there is no room, or the
    /// pieces are not in guest memory; nothing is begun.
    pub(super) fn push(
        &mut self,
        file: &File,
        mem: &GuestMemory,
        ticket: Ticket,
        operation: Operation,
        segments: &[Segment],
    ) -> bool {
        let Some(&index) = self.free.last() else {
            return false;
        };
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return false;
        };
        let access = match operation {
            Operation::Read { .. } => Permissions::Write,
            _ => Permissions::Read,
        };
        if !slot.iovecs.fill(mem, segments, access) {
            return false;
        }
        slot.work = Some((ticket, operation));
        slot.done_bytes = 0;
        slot.retries = 0;
        if self.mem.is_none() {
            self.mem = Some(mem.clone());
        }
        if !self.hand_in(index, file) {
            return false;
        }
        self.free.pop();
        true
    }

    fn hand_in(&mut self, index: u16, file: &File) -> bool {
        let slot = self.slots.get(usize::from(index));
        let Some(entry) = slot.and_then(|slot| slot.entry(file)) else {
            return false;
        };
        let entry = entry.user_data(index.into());
        // SAFETY: what the entry points to outlives the request. The list of iovecs is in the
        // slot, which is not touched until the completion is seen; slots are neither moved nor
        // dropped before, for `Drop` waits and `abandon` leaks. The iovecs are ranges of guest
        // memory that `fill` got from its mapping, and `self.mem` keeps that. There are no
        // references into guest memory that the kernel's writes could break. The descriptor is
        // open when the entry is submitted: it is the disk's, which its device drops after the
        // ring.
        unsafe { self.io_uring.submission().push(&entry) }.is_ok()
    }

    /// Hands what was readied to the kernel.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while !self.io_uring.submission().is_empty() {
            match self.io_uring.submit() {
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    /// The next request that the kernel is done with. What it did in part is readied for the rest.
    pub(super) fn next_finished(&mut self, file: &File) -> Option<Finished> {
        loop {
            let completion = self.io_uring.completion().next()?;
            let index = completion.user_data() as u16;
            let Some(slot) = self.slots.get_mut(usize::from(index)) else {
                continue;
            };
            let outcome = match slot.complete(completion.result()) {
                Next::Finished(outcome) => outcome,
                Next::Again => {
                    if self.hand_in(index, file) {
                        continue;
                    }
                    Err(Failure::Errno(Errno::AGAIN))
                }
            };
            let Some(slot) = self.slots.get_mut(usize::from(index)) else {
                continue;
            };
            let done_bytes = slot.done_bytes;
            let Some((ticket, _)) = slot.work.take() else {
                continue;
            };
            self.free.push(index);
            if self.in_flight() == 0 {
                self.mem = None;
            }
            return Some(Finished {
                ticket,
                done_bytes,
                outcome,
            });
        }
    }

    /// Waits until the kernel is done with at least one request.
    fn wait(&mut self) -> io::Result<()> {
        match self.io_uring.submit_and_wait(1) {
            Ok(_) => Ok(()),
            Err(err) => match err.raw_os_error() {
                Some(libc::EINTR) => Ok(()),
                // Requests that were not handed in yet: the kernel has no memory for them now.
                Some(libc::EAGAIN | libc::EBUSY) => {
                    std::thread::sleep(PAUSE);
                    Ok(())
                }
                _ => Err(err),
            },
        }
    }

    /// Waits until the kernel is done with all requests and gives each to `on_finished`.
    ///
    /// On an error the requests are still with the kernel, and the ring is not to be used again.
    pub(super) fn drain(
        &mut self,
        file: &File,
        mut on_finished: impl FnMut(Finished),
    ) -> io::Result<()> {
        loop {
            while let Some(finished) = self.next_finished(file) {
                on_finished(finished);
            }
            if self.in_flight() == 0 {
                return Ok(());
            }
            if let Err(err) = self.wait() {
                self.abandon();
                return Err(err);
            }
        }
    }

    /// Waits until the kernel is done with all requests, and forgets them; one that was done in
    /// part ends so.
    pub(super) fn discard(&mut self) -> io::Result<()> {
        loop {
            while let Some(completion) = self.io_uring.completion().next() {
                let index = completion.user_data() as u16;
                if let Some(slot) = self.slots.get_mut(usize::from(index))
                    && slot.work.take().is_some()
                {
                    self.free.push(index);
                }
            }
            if self.in_flight() == 0 {
                self.mem = None;
                return Ok(());
            }
            if let Err(err) = self.wait() {
                self.abandon();
                return Err(err);
            }
        }
    }

    /// The kernel cannot be waited for: what it may still write to must never be freed.
    fn abandon(&mut self) {
        std::mem::forget(self.mem.take());
        std::mem::forget(std::mem::take(&mut self.slots));
        self.free.clear();
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if let Err(err) = self.discard() {
            tracing::error!(%err, "block: requests are left with the kernel, and their memory too");
        }
    }
}
