//! Reads that are under way: by io_uring, or one after the other where there is none.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{IoUring, opcode, types};

use crate::PAGE_SIZE_BYTES;

/// How long to wait where the kernel has no memory for a request.
const PAUSE: Duration = Duration::from_millis(1);

/// Why a read did not bring all its bytes.
#[derive(Debug)]
pub(super) enum ReadFailure {
    /// The file ends before them.
    Truncated,
    /// The system's answer.
    Io(io::Error),
}

/// Where the bytes of one request go.
#[derive(Default)]
struct Request {
    offset: u64,
    /// What is still to be filled.
    iovecs: VecDeque<libc::iovec>,
    /// A copy in one piece: the kernel looks at it until the request is done.
    handed_in: Vec<libc::iovec>,
    left_bytes: usize,
}

impl Request {
    /// Forgets the first `bytes`, which have been read.
    fn advance(&mut self, bytes: usize) {
        self.offset += bytes as u64;
        self.left_bytes = self.left_bytes.saturating_sub(bytes);
        let mut bytes = bytes;
        while let Some(first) = self.iovecs.front_mut() {
            if first.iov_len > bytes {
                first.iov_len -= bytes;
                first.iov_base = first.iov_base.wrapping_byte_add(bytes);
                break;
            }
            bytes -= first.iov_len;
            self.iovecs.pop_front();
        }
    }

    fn ready(&mut self) -> (*const libc::iovec, usize) {
        self.handed_in.clear();
        self.handed_in.extend(self.iovecs.iter().copied());
        (self.handed_in.as_ptr(), self.handed_in.len())
    }

    /// What the answer `result` of the kernel means; none: the rest is to be read still.
    fn finish(&mut self, result: i32) -> Option<Result<(), ReadFailure>> {
        match usize::try_from(result) {
            Ok(0) => Some(Err(ReadFailure::Truncated)),
            Ok(bytes) => {
                self.advance(bytes);
                if self.left_bytes == 0 {
                    Some(Ok(()))
                } else if !self.offset.is_multiple_of(PAGE_SIZE_BYTES) {
                    // Only the end of the file cuts a read off within a page.
                    Some(Err(ReadFailure::Truncated))
                } else {
                    None
                }
            }
            Err(_) => {
                let error = io::Error::from_raw_os_error(-result);
                match error.raw_os_error() {
                    Some(libc::EINTR | libc::EAGAIN) => None,
                    _ => Some(Err(ReadFailure::Io(error))),
                }
            }
        }
    }
}

/// The slot of a request that is over, and how it went.
pub(super) type Done = (usize, Result<(), ReadFailure>);

/// Up to `depth` reads of one file, each known by the number of its slot.
pub(super) struct Reads<'a> {
    file: &'a File,
    /// None: each read is done when it is handed in.
    io_uring: Option<IoUring>,
    slots: Vec<Request>,
    done: VecDeque<Done>,
    /// Requests that the kernel has.
    in_kernel: usize,
}

impl<'a> Reads<'a> {
    /// Reads of `file` by an io_uring, up to `depth` at a time.
    pub(super) fn by_io_uring(file: &'a File, depth: usize) -> io::Result<Self> {
        let entries = u32::try_from(depth.max(1)).map_err(io::Error::other)?;
        let io_uring = IoUring::builder().dontfork().build(entries)?;
        Ok(Self::new(file, Some(io_uring), depth))
    }

    /// Reads of `file`, each done when it is handed in.
    pub(super) fn one_by_one(file: &'a File, depth: usize) -> Self {
        Self::new(file, None, depth)
    }

    fn new(file: &'a File, io_uring: Option<IoUring>, depth: usize) -> Self {
        let mut slots = Vec::new();
        slots.resize_with(depth.max(1), Request::default);
        Self {
            file,
            io_uring,
            slots,
            done: VecDeque::new(),
            in_kernel: 0,
        }
    }

    /// Hands in a read from `offset` on into `iovecs`, as the request of `slot`.
    ///
    /// # Safety
    /// Nothing else is in `slot`. The iovecs are memory that may be written to, to which no
    /// reference is used, and which stays mapped until [`next_done`](Self::next_done) has
    /// returned the slot or this object is dropped.
    pub(super) unsafe fn push(
        &mut self,
        slot: usize,
        offset: u64,
        iovecs: impl Iterator<Item = libc::iovec>,
    ) {
        let Some(request) = self.slots.get_mut(slot) else {
            return;
        };
        request.offset = offset;
        request.iovecs.clear();
        request.iovecs.extend(iovecs);
        request.left_bytes = request.iovecs.iter().map(|iovec| iovec.iov_len).sum();
        self.hand_in(slot);
    }

    fn hand_in(&mut self, slot: usize) {
        let Some(request) = self.slots.get_mut(slot) else {
            return;
        };
        let offset = request.offset;
        let (iovecs, count) = request.ready();
        let Some(io_uring) = &mut self.io_uring else {
            let result = self.read_now(slot);
            self.done.push_back((slot, result));
            return;
        };
        let entry = opcode::Readv::new(
            types::Fd(self.file.as_raw_fd()),
            iovecs,
            u32::try_from(count).unwrap_or(u32::MAX),
        )
        .offset(offset)
        .build()
        .user_data(slot as u64);
        // SAFETY: the list of iovecs is in the slot, which is not touched until the completion is
        // seen; the memory they name is the caller's promise; the file is borrowed, so open.
        // `Drop` waits for what is under way.
        let pushed = unsafe { io_uring.submission().push(&entry) };
        match pushed {
            Ok(()) => self.in_kernel += 1,
            // There are as many entries as slots.
            Err(_) => self.done.push_back((
                slot,
                Err(ReadFailure::Io(io::Error::other("the io_uring is full"))),
            )),
        }
    }

    fn read_now(&mut self, slot: usize) -> Result<(), ReadFailure> {
        let Some(request) = self.slots.get_mut(slot) else {
            return Ok(());
        };
        loop {
            let offset = libc::off_t::try_from(request.offset)
                .map_err(|error| ReadFailure::Io(io::Error::other(error)))?;
            let (iovecs, count) = request.ready();
            // SAFETY: the iovecs are the caller's of `push`, who promises that they may be written.
            let read = unsafe {
                libc::preadv(
                    self.file.as_raw_fd(),
                    iovecs,
                    libc::c_int::try_from(count).unwrap_or(libc::c_int::MAX),
                    offset,
                )
            };
            let result = if read < 0 {
                -io::Error::last_os_error()
                    .raw_os_error()
                    .unwrap_or(libc::EIO)
            } else {
                i32::try_from(read).unwrap_or(i32::MAX)
            };
            if let Some(outcome) = request.finish(result) {
                return outcome;
            }
        }
    }

    /// The slot of a read that is done, and how it went; waits for one if none is. None: nothing
    /// is under way.
    pub(super) fn next_done(&mut self) -> io::Result<Option<Done>> {
        loop {
            if let Some(done) = self.done.pop_front() {
                return Ok(Some(done));
            }
            if self.in_kernel == 0 {
                return Ok(None);
            }
            self.submit(1)?;
            self.take_completions();
        }
    }

    /// Hands what is ready to the kernel, without waiting.
    pub(super) fn submit_ready(&mut self) -> io::Result<()> {
        self.submit(0)
    }

    fn submit(&mut self, wait_for: usize) -> io::Result<()> {
        let Some(io_uring) = &mut self.io_uring else {
            return Ok(());
        };
        if wait_for == 0 && io_uring.submission().is_empty() {
            return Ok(());
        }
        match io_uring.submit_and_wait(wait_for) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => Ok(()),
                Some(libc::EAGAIN | libc::EBUSY) => {
                    std::thread::sleep(PAUSE);
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    fn take_completions(&mut self) {
        let mut again = Vec::new();
        if let Some(io_uring) = &mut self.io_uring {
            for completion in io_uring.completion() {
                self.in_kernel -= 1;
                let slot = completion.user_data() as usize;
                let Some(request) = self.slots.get_mut(slot) else {
                    continue;
                };
                match request.finish(completion.result()) {
                    Some(outcome) => self.done.push_back((slot, outcome)),
                    None => again.push(slot),
                }
            }
        }
        for slot in again {
            self.hand_in(slot);
        }
    }
}

impl Drop for Reads<'_> {
    fn drop(&mut self) {
        // What the kernel may still write to must stay: wait for it.
        while self.in_kernel > 0 {
            if let Err(error) = self.submit(1) {
                tracing::error!(%error, "reads are left with the kernel, and their lists too");
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            if let Some(io_uring) = &mut self.io_uring {
                let finished = io_uring.completion().count();
                self.in_kernel = self.in_kernel.saturating_sub(finished);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::page_buffer::PageBuffer;

    fn iovec(bytes: &mut [u8]) -> libc::iovec {
        libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        }
    }

    #[test]
    fn both_ways_scatter_what_is_in_the_file_and_find_its_end() {
        let mut file = tempfile::tempfile().unwrap();
        let pages: Vec<u8> = (0..16_u8).flat_map(|page| [page + 1; 4096]).collect();
        file.write_all(&pages).unwrap();
        for by_io_uring in [false, true] {
            let mut buffer = PageBuffer::new(16 * 4096).unwrap();
            let (first, rest) = buffer.as_mut_slice().split_at_mut(3 * 4096);
            let (second, third) = rest.split_at_mut(5 * 4096);
            let mut reads = if by_io_uring {
                Reads::by_io_uring(&file, 2).unwrap()
            } else {
                Reads::one_by_one(&file, 2)
            };
            // SAFETY: nothing else uses the buffer until the reads are done.
            unsafe {
                reads.push(0, 4096, [iovec(second), iovec(first)].into_iter());
                reads.push(1, 12 * 4096, [iovec(third)].into_iter());
            }
            let mut done = Vec::new();
            while let Some(one) = reads.next_done().unwrap() {
                done.push(one);
            }
            drop(reads);
            done.sort_by_key(|(slot, _)| *slot);
            assert!(matches!(done[0], (0, Ok(()))), "{done:?}");
            assert!(
                matches!(done[1], (1, Err(ReadFailure::Truncated))),
                "{done:?}"
            );
            assert_eq!(second, &pages[4096..6 * 4096]);
            assert_eq!(first, &pages[6 * 4096..9 * 4096]);
            assert_eq!(third[..4 * 4096], pages[12 * 4096..]);
        }
    }
}
