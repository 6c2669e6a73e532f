//! How fast a file can be read in the way in which streams read a working set.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_setfl};

use super::reads::{ReadFailure, Reads};
use crate::PAGE_SIZE_BYTES;
use crate::page_buffer::PageBuffer;
use crate::regular_file;

/// As many threads as install a working set.
const THREADS: usize = 2;

/// Reads the whole file `path` past the page cache, in pieces of `piece_bytes` with `depth` reads
/// under way in each of the two threads of an install, and returns the time that it took. What it
/// reads is thrown away.
///
/// # Errors
/// The file cannot be read so, or the host does not allow io_uring. `piece_bytes` that are no
/// multiple of the page size, or none at all, are refused.
pub fn read_time(path: &Path, piece_bytes: u64, depth: usize) -> io::Result<Duration> {
    if piece_bytes == 0 || !piece_bytes.is_multiple_of(PAGE_SIZE_BYTES) || depth == 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "pieces have to be whole pages, and at least one has to be under way",
        ));
    }
    let (file, len_bytes) = regular_file::open(path)?;
    fcntl_setfl(&file, OFlags::DIRECT)?;
    // The end of the file, if it is no whole piece, is left out.
    let pieces = len_bytes / piece_bytes;
    let next = AtomicU64::new(0);
    let started = Instant::now();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..THREADS)
            .map(|_| scope.spawn(|| read_pieces(&file, &next, pieces, piece_bytes, depth)))
            .collect();
        readers.into_iter().try_for_each(|reader| {
            reader
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a reader panicked")))
        })
    })?;
    Ok(started.elapsed())
}

fn read_pieces(
    file: &File,
    next: &AtomicU64,
    pieces: u64,
    piece_bytes: u64,
    depth: usize,
) -> io::Result<()> {
    // Before the reads: these are over when the buffers go.
    let mut buffers = (0..depth)
        .map(|_| PageBuffer::new(piece_bytes))
        .collect::<io::Result<Vec<_>>>()?;
    let mut reads = Reads::by_io_uring(file, depth)?;
    let mut free: Vec<usize> = (0..depth).collect();
    loop {
        while let Some(&slot) = free.last() {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                break;
            }
            free.pop();
            let bytes = buffers[slot].as_mut_slice();
            let iovec = libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: bytes.len(),
            };
            // SAFETY: the slot is free, and its buffer is not used until the slot comes back.
            // `reads` is dropped before `buffers`.
            unsafe { reads.push(slot, piece * piece_bytes, std::iter::once(iovec)) };
        }
        reads.submit_ready()?;
        let Some((slot, outcome)) = reads.next_done()? else {
            return Ok(());
        };
        outcome.map_err(|failure| match failure {
            ReadFailure::Truncated => io::ErrorKind::UnexpectedEof.into(),
            ReadFailure::Io(error) => error,
        })?;
        free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn whole_pieces_are_read_and_nonsense_is_refused() {
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all(&vec![7; (1 << 20) + 100]).unwrap();
        file.as_file().sync_all().unwrap();
        for (piece_bytes, depth) in [(4096, 1), (128 << 10, 16), (4 << 20, 3)] {
            assert!(read_time(file.path(), piece_bytes, depth).is_ok());
        }
        for (piece_bytes, depth) in [(0, 1), (100, 1), (4096, 0)] {
            assert!(read_time(file.path(), piece_bytes, depth).is_err());
        }
        assert!(read_time(Path::new("/dev/null"), 4096, 1).is_err());
    }
}
