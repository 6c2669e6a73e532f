//! Memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use reapvm_guest_init::protocol::MAX_WORK_BYTES;
use reapvm_guest_init::seeded;
use serde_json::{Value, json};

use super::{OperationError, Result, cannot};

const PAGE_BYTES: u64 = 4096;
/// How long memory is waited for.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Bytes that were made for a seed.
struct Buffer {
    pages: u64,
    seed: u64,
    bytes: Vec<u8>,
}

/// The buffer of the last request.
#[derive(Default)]
pub(super) struct Kept(Mutex<Option<Buffer>>);

impl Kept {
    /// SHA-256 of `pages` pages of seeded bytes, which are kept and read again next time.
    pub(super) fn digest(&self, pages: u64, seed: u64) -> Result<Value> {
        if pages == 0 || pages > MAX_WORK_BYTES / PAGE_BYTES {
            return Err(OperationError::Refused(format!(
                "pages must be 1 to {}",
                MAX_WORK_BYTES / PAGE_BYTES
            )));
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let was_kept = kept
            .as_ref()
            .is_some_and(|buffer| (buffer.pages, buffer.seed) == (pages, seed));
        if !was_kept {
            // Freed before the next one is made, so that memory is never held twice.
            *kept = None;
            let mut bytes = vec![0; (pages * PAGE_BYTES) as usize];
            seeded::fill(seed, 0, &mut bytes);
            *kept = Some(Buffer { pages, seed, bytes });
        }
        let digest = kept
            .as_ref()
            .map(|buffer| seeded::sha256_hex(&buffer.bytes));
        let highest_gpa = kept.as_ref().and_then(|buffer| highest_gpa(&buffer.bytes));
        Ok(json!({"sha256": digest, "was_kept": was_kept, "highest_gpa": highest_gpa}))
    }
}

/// The guest-physical address of the highest page that `bytes` begin or lie in, as
/// `/proc/self/pagemap` says (Documentation/admin-guide/mm/pagemap.rst): bit 63 for a page that is
/// present, its frame's number in bits 0 to 54.
fn highest_gpa(bytes: &[u8]) -> Option<u64> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let pagemap = File::open("/proc/self/pagemap").ok()?;
    let first = bytes.as_ptr() as u64 / PAGE_BYTES;
    let mut entries = vec![0; bytes.len().div_ceil(PAGE_BYTES as usize) * 8];
    pagemap.read_exact_at(&mut entries, first * 8).ok()?;
    let (entries, _) = entries.as_chunks();
    entries
        .iter()
        .map(|entry| u64::from_le_bytes(*entry))
        // Without the right to know them, the numbers are zero.
        .filter(|entry| entry & PRESENT != 0 && entry & FRAME != 0)
        .map(|entry| (entry & FRAME) * PAGE_BYTES)
        .max()
}

/// Waits until there are at most `total_kib` in all.
pub(super) fn shrunk(total_kib: u64) -> Result<Value> {
    let deadline = Instant::now() + MAX_WAIT;
    loop {
        let numbers = meminfo()?;
        let total = numbers.get("MemTotal").copied().unwrap_or(u64::MAX);
        if total <= total_kib {
            return Ok(json!(numbers));
        }
        if Instant::now() > deadline {
            return Err(OperationError::Refused(format!(
                "there are still {total} KiB, more than {total_kib}"
            )));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// `/proc/meminfo`, in KiB.
pub(super) fn info() -> Result<Value> {
    Ok(json!(meminfo()?))
}

fn meminfo() -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string("/proc/meminfo").map_err(cannot("read /proc/meminfo"))?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            Some((
                name.to_owned(),
                rest.split_whitespace().next()?.parse().ok()?,
            ))
        })
        .collect())
}
