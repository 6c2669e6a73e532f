//! Memory.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, PoisonError};

use reapvm_guest_init::protocol::MAX_WORK_BYTES;
use reapvm_guest_init::seeded;
use serde_json::{Value, json};

use super::{OperationError, Result, cannot};

const PAGE_BYTES: u64 = 4096;

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
        Ok(json!({"sha256": digest, "was_kept": was_kept}))
    }
}

/// `/proc/meminfo`, in KiB.
pub(super) fn info() -> Result<Value> {
    let text = fs::read_to_string("/proc/meminfo").map_err(cannot("read /proc/meminfo"))?;
    let numbers: BTreeMap<&str, u64> = text
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            Some((name, rest.split_whitespace().next()?.parse().ok()?))
        })
        .collect();
    Ok(json!(numbers))
}
