//! The disk `/dev/vda`, past the page cache: what is read comes from the device, what is written
//! has reached it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use reapvm_guest_init::protocol::MAX_WORK_BYTES;
use reapvm_guest_init::seeded;
use serde_json::{Value, json};

use super::{OperationError, Result, cannot};

const DISK: &str = "/dev/vda";
const BLOCK_BYTES: u64 = 4096;
/// What is written or read at once.
const PIECE_BYTES: u64 = 64 << 10;
const POLL: Duration = Duration::from_millis(1);

/// Memory at an address that O_DIRECT takes.
#[repr(align(4096))]
#[derive(Clone)]
struct Piece([u8; PIECE_BYTES as usize]);

impl Piece {
    fn new() -> Box<Self> {
        Box::new(Self([0; PIECE_BYTES as usize]))
    }
}

fn open(write: bool) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_DIRECT)
        .open(DISK)
        .map_err(cannot("open /dev/vda"))
}

fn check(offset: u64, bytes: u64) -> Result<()> {
    if !offset.is_multiple_of(BLOCK_BYTES) || !bytes.is_multiple_of(BLOCK_BYTES) {
        return Err(OperationError::Refused(format!(
            "offset and bytes must be multiples of {BLOCK_BYTES}"
        )));
    }
    if bytes == 0 || bytes > MAX_WORK_BYTES || offset.checked_add(bytes).is_none() {
        return Err(OperationError::Refused(format!(
            "bytes must be 1 to {MAX_WORK_BYTES}"
        )));
    }
    Ok(())
}

/// The pieces of a range: offset and length of each.
fn pieces(offset: u64, bytes: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..bytes.div_ceil(PIECE_BYTES)).map(move |index| {
        let start = index * PIECE_BYTES;
        (offset + start, PIECE_BYTES.min(bytes - start) as usize)
    })
}

pub(super) fn info() -> Result<Value> {
    let read = |name: &str| {
        fs::read_to_string(format!("/sys/block/vda/{name}"))
            .map(|text| text.trim().to_owned())
            .map_err(cannot("read about vda"))
    };
    Ok(json!({
        "sectors": read("size")?.parse::<u64>().ok(),
        "read_only": read("ro")? == "1",
        "discard_max_bytes": read("queue/discard_max_bytes")?.parse::<u64>().ok(),
    }))
}

pub(super) fn digest(offset: u64, bytes: u64) -> Result<Value> {
    check(offset, bytes)?;
    let file = open(false)?;
    let mut piece = Piece::new();
    let mut all = Vec::with_capacity(bytes as usize);
    for (at, length) in pieces(offset, bytes) {
        file.read_exact_at(&mut piece.0[..length], at)
            .map_err(cannot("read /dev/vda"))?;
        all.extend_from_slice(&piece.0[..length]);
    }
    Ok(json!({"sha256": seeded::sha256_hex(&all)}))
}

pub(super) fn write(offset: u64, bytes: u64, seed: u64) -> Result<Value> {
    check(offset, bytes)?;
    write_pieces(&open(true)?, offset, bytes, seed, &AtomicU64::new(0))?;
    Ok(json!({"bytes": bytes}))
}

fn write_pieces(
    file: &File,
    offset: u64,
    bytes: u64,
    seed: u64,
    done_bytes: &AtomicU64,
) -> Result<()> {
    let mut piece = Piece::new();
    for (at, length) in pieces(offset, bytes) {
        seeded::fill(seed, at / 8, &mut piece.0[..length]);
        file.write_all_at(&piece.0[..length], at)
            .map_err(cannot("write /dev/vda"))?;
        done_bytes.fetch_add(length as u64, Ordering::Release);
    }
    file.sync_data().map_err(cannot("flush /dev/vda"))
}

/// A write that goes on while other requests are served.
struct Running {
    done_bytes: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

/// The write that `block_write_start` has begun.
#[derive(Default)]
pub(super) struct Writer(Mutex<Option<Running>>);

impl Writer {
    /// Begins to write and returns when the first piece is on the disk.
    pub(super) fn start(&self, offset: u64, bytes: u64, seed: u64) -> Result<Value> {
        check(offset, bytes)?;
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_some() {
            return Err(OperationError::Refused(
                "a write is running: wait for it with block_write_wait".into(),
            ));
        }
        let file = open(true)?;
        let done_bytes = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&done_bytes);
        let thread = thread::spawn(move || write_pieces(&file, offset, bytes, seed, &counter));
        while done_bytes.load(Ordering::Acquire) == 0 && !thread.is_finished() {
            thread::sleep(POLL);
        }
        let done = done_bytes.load(Ordering::Acquire);
        *running = Some(Running { done_bytes, thread });
        Ok(json!({"done_bytes": done}))
    }

    /// Waits for the end of the write.
    pub(super) fn wait(&self) -> Result<Value> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = slot
            .take()
            .ok_or_else(|| OperationError::Refused("no write is running".into()))?;
        let done_before = running.done_bytes.load(Ordering::Acquire);
        running
            .thread
            .join()
            .map_err(|_| OperationError::Refused("the writing thread ended early".into()))??;
        Ok(json!({
            "done_bytes_before": done_before,
            "done_bytes": running.done_bytes.load(Ordering::Acquire),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_range_once() {
        let all: Vec<_> = pieces(4096, PIECE_BYTES + 4096).collect();
        assert_eq!(
            all,
            [(4096, PIECE_BYTES as usize), (4096 + PIECE_BYTES, 4096)]
        );
    }

    #[test]
    fn ranges_that_cannot_be_are_refused() {
        for (offset, bytes) in [
            (1, 4096),
            (0, 1),
            (0, 0),
            (0, MAX_WORK_BYTES + 4096),
            (u64::MAX - 4095, 4096),
        ] {
            assert!(check(offset, bytes).is_err(), "{offset} {bytes}");
        }
        assert!(check(4096, 8192).is_ok());
    }
}
