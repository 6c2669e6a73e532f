//! What a fault costs a thread besides its service: that the kernel tells the pager, and wakes the
//! thread when the page is there. Who runs with its pages in place is spared that.

use std::io;
use std::ptr;
use std::sync::Arc;

use reapvm_snapshot::PAGE_SIZE;

use crate::PAGE_SIZE_BYTES;
use crate::hooks::PagerHooks;
use crate::page_buffer::PageBuffer;
use crate::pager::{DEFAULT_SPIN, Pager, PagerConfig, PagerError};
use crate::region::MemoryRegion;
use crate::source::{Page, PageSource, PageSourceError};

/// So many faults say what one costs: about 3 ms.
const TOUCHES: usize = 128;

/// Why it could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum FaultCostError {
    /// There is no memory to touch.
    #[error("no memory to measure what a fault costs")]
    Memory(#[source] io::Error),
    /// There is no pager.
    #[error("cannot measure what a fault costs")]
    Pager(#[from] PagerError),
}

struct Zeroes;

impl PageSource for Zeroes {
    fn read_page(&mut self, _gpa: u64) -> Result<Page<'_>, PageSourceError> {
        Ok(Page::Zero)
    }
}

/// Measures what a fault costs a thread besides its service, in nanoseconds, on this host as it is
/// now: the median time between the faults of a thread that does nothing but touch pages, which a
/// pager as a machine's serves.
///
/// # Errors
/// When there is no memory, or no userfaultfd for it.
pub fn measure_fault_ns() -> Result<u64, FaultCostError> {
    let size_bytes = TOUCHES as u64 * PAGE_SIZE_BYTES;
    let mut memory = PageBuffer::of_small_pages(size_bytes).map_err(FaultCostError::Memory)?;
    let start = memory.as_mut_slice().as_mut_ptr();
    let config = PagerConfig {
        regions: vec![MemoryRegion {
            gpa: 0,
            hva: start as u64,
            size_bytes,
            file_offset: 0,
        }],
        source: Box::new(Zeroes),
        record: true,
        trace_records: None,
        phase: Arc::default(),
        hooks: PagerHooks::default(),
        spin: DEFAULT_SPIN,
        // Who touches goes on with zeroes, and `stop` says what is wrong.
        on_failure: Box::new(drop),
    };
    // SAFETY: the buffer is a private anonymous mapping that nobody else uses, and it is dropped
    // after the pager.
    let mut pager = unsafe { Pager::new(config) }?;
    // Not marked as resumed: if the pager failed, a touch would wait for ever.
    pager.start()?;
    for page in 0..TOUCHES {
        // SAFETY: a byte of the buffer, which nobody else uses.
        unsafe { ptr::read_volatile(start.add(page * PAGE_SIZE)) };
    }
    let recording = pager.stop()?;
    // The first comes when the thread does, not after another.
    let mut gaps: Vec<u64> = recording.gaps().skip(1).collect();
    let middle = gaps.len() / 2;
    gaps.sort_unstable();
    Ok(gaps.get(middle).copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_costs_something_and_all_are_served() {
        let fault_ns = measure_fault_ns().unwrap();
        // A system call and a wake-up take more than this on any processor, and this is generous.
        assert!((100..1_000_000_000).contains(&fault_ns), "{fault_ns}");
    }
}
