//! What the pager counts.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// What a pager has done up to now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PagerStats {
    /// Faults served: the sum of the next three.
    pub faults: u64,
    /// Faults served with a page of zeroes, without a read.
    pub zero_faults: u64,
    /// Faults served with a page from the source.
    pub data_faults: u64,
    /// Faults whose page somebody else had installed in the meantime: only a wake-up.
    pub already_present: u64,
    /// Those of the faults whose page was in a working set that was being installed: the guest
    /// was there first.
    pub early_faults: u64,
    /// Bytes taken from the source for faults.
    pub bytes_read: u64,
    /// Sum over the faults of the time from reading the kernel's message to the page being there,
    /// in nanoseconds; the waiting behind other faults included.
    pub service_ns: u64,
    /// Pages that were dropped from guest memory (MADV_DONTNEED and its kin); they read as zero.
    pub removed_pages: u64,
    /// Pages that an install put in place.
    pub prefetched_pages: u64,
    /// Pages that a [`FaultPolicy`](crate::FaultPolicy) named and that were put in place: no faults.
    pub policy_pages: u64,
    /// Those of them that are not zero, in bytes: what was taken from the source for the policy.
    pub policy_bytes: u64,
    /// How often a policy named a page of guest memory that was in place already, or was dropped.
    pub policy_present: u64,
}

/// The counters behind [`PagerStats`]: the pager adds, anyone reads.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) zero_faults: AtomicU64,
    pub(crate) data_faults: AtomicU64,
    pub(crate) already_present: AtomicU64,
    pub(crate) early_faults: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) service_ns: AtomicU64,
    pub(crate) removed_pages: AtomicU64,
    pub(crate) prefetched_pages: AtomicU64,
    pub(crate) policy_pages: AtomicU64,
    pub(crate) policy_bytes: AtomicU64,
    pub(crate) policy_present: AtomicU64,
}

/// Adds to a counter. Relaxed, because a counter orders nothing.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn read(&self) -> PagerStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let zero_faults = get(&self.zero_faults);
        let data_faults = get(&self.data_faults);
        let already_present = get(&self.already_present);
        PagerStats {
            faults: zero_faults + data_faults + already_present,
            zero_faults,
            data_faults,
            already_present,
            early_faults: get(&self.early_faults),
            bytes_read: get(&self.bytes_read),
            service_ns: get(&self.service_ns),
            removed_pages: get(&self.removed_pages),
            prefetched_pages: get(&self.prefetched_pages),
            policy_pages: get(&self.policy_pages),
            policy_bytes: get(&self.policy_bytes),
            policy_present: get(&self.policy_present),
        }
    }
}
