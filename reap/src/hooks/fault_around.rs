//! A window of pages around a fault.

use std::num::NonZeroU64;

use super::{FaultInfo, FaultPlan, FaultPolicy};
use crate::PAGE_SIZE_BYTES;

/// Installs the aligned block of so many pages in which a fault lies, as the kernel does where it
/// maps files ("fault-around"): a prefetcher that knows nothing but that neighbours are used together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultAround {
    block_bytes: u64,
}

impl FaultAround {
    /// Blocks of `pages` pages, by guest-physical address. One page is serving on demand.
    #[must_use]
    pub fn new(pages: NonZeroU64) -> Self {
        Self {
            block_bytes: pages.get().saturating_mul(PAGE_SIZE_BYTES),
        }
    }
}

impl FaultPolicy for FaultAround {
    fn on_fault(&mut self, fault: &FaultInfo, plan: &mut FaultPlan<'_>) {
        let start = fault.gpa - fault.gpa % self.block_bytes;
        plan.install(start, self.block_bytes / PAGE_SIZE_BYTES);
    }
}
