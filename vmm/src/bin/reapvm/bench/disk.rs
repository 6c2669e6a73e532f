//! What the disk under the snapshots can do, measured past the page cache.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use super::stats::median;

const FILE_BYTES: u64 = 256 << 20;
const BLOCK_BYTES: usize = 1 << 20;
/// Reads under way at once: one alone does not reach a disk's bandwidth.
const THREADS: u64 = 4;
const SEQUENTIAL_ROUNDS: usize = 3;
const RANDOM_READS: usize = 200;
const SECTOR_BYTES: usize = 4096;

/// Figures of the disk.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Disk {
    /// Sequential O_DIRECT reads of 1 MiB by four threads, median of three passes, in MiB/s.
    pub(crate) seq_read_mib_s: f64,
    /// Random O_DIRECT reads of 4 KiB, one at a time, median, in microseconds.
    pub(crate) rand_read_4k_us: f64,
}

/// Memory aligned as O_DIRECT asks.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn new(length: usize) -> Self {
        let bytes = vec![0; length + SECTOR_BYTES];
        let start = bytes.as_ptr().align_offset(SECTOR_BYTES);
        Self {
            bytes,
            start,
            length,
        }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

/// Measures with a file of 256 MiB in `dir`, which is removed afterwards.
pub(crate) fn measure(dir: &Path) -> Result<Disk, Box<dyn Error>> {
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    // Not zeros and not one block again and again: some disks keep those elsewhere.
    let mut block = vec![0_u8; BLOCK_BYTES];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..FILE_BYTES / BLOCK_BYTES as u64 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.as_file().sync_all()?;
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(file.path())
        .map_err(|error| {
            format!(
                "cannot read past the page cache in '{}' ({error}): choose a directory on a disk \
                 with --dir",
                dir.display()
            )
        })?;

    let mut rates = Vec::with_capacity(SEQUENTIAL_ROUNDS);
    for _ in 0..SEQUENTIAL_ROUNDS {
        let started = Instant::now();
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let direct = &direct;
                    scope.spawn(move || -> std::io::Result<()> {
                        let mut buffer = Aligned::new(BLOCK_BYTES);
                        let mut offset = thread * BLOCK_BYTES as u64;
                        while offset < FILE_BYTES {
                            direct.read_exact_at(buffer.as_mut(), offset)?;
                            offset += THREADS * BLOCK_BYTES as u64;
                        }
                        Ok(())
                    })
                })
                .collect();
            readers.into_iter().try_for_each(|reader| {
                reader
                    .join()
                    .unwrap_or_else(|_| Err(std::io::Error::other("a reader panicked")))
            })
        })?;
        rates.push((FILE_BYTES >> 20) as f64 / started.elapsed().as_secs_f64());
    }

    let mut buffer = Aligned::new(SECTOR_BYTES);
    let mut times = Vec::with_capacity(RANDOM_READS);
    for _ in 0..RANDOM_READS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let offset = state % (FILE_BYTES / SECTOR_BYTES as u64) * SECTOR_BYTES as u64;
        let started = Instant::now();
        direct.read_exact_at(buffer.as_mut(), offset)?;
        times.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Disk {
        seq_read_mib_s: median(&rates),
        rand_read_4k_us: median(&times),
    })
}
