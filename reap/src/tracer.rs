//! The bounded buffer of every fault that a pager serves, while a trace is wanted.

use crate::page_bitmap::PageBitmap;
use crate::trace::TraceRecord;

/// Records that one allocation holds: less than 128 KiB, far from the 2 MiB from which the kernel
/// may back an allocation with a huge page, all of which would count as used from its first byte.
const CHUNK_RECORDS: usize = 1024;

/// Records that a trace keeps unless it is told otherwise: those of 4 GiB touched page by page, at
/// most 72 MiB once they are there.
pub const DEFAULT_TRACE_RECORDS: u64 = 1 << 20;

/// The faults that were kept for a trace, in a bounded buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultTrace {
    /// Faults in the order in which they were served.
    pub records: Vec<TraceRecord>,
    /// Faults that found the buffer full. They came after those in `records`.
    pub dropped: u64,
}

/// Keeps a record of each fault until its buffer is full; from then on it counts.
///
/// The buffer grows by small chunks of which the next one is always there before it is needed, so
/// that keeping a record is a copy of 72 bytes. The last records are the ones that are given up: the
/// order of the first touches is what a trace is made for.
#[derive(Debug)]
pub(crate) struct Tracer {
    max_records: u64,
    full_chunks: Vec<Vec<TraceRecord>>,
    chunk: Vec<TraceRecord>,
    /// Pages that were seen.
    seen: PageBitmap,
    next_sequence: u64,
    dropped: u64,
}

impl Tracer {
    /// A tracer for guest memory of `page_count` pages that keeps at most `max_records`.
    pub(crate) fn new(max_records: u64, page_count: u64) -> Self {
        Self {
            max_records,
            full_chunks: Vec::new(),
            chunk: Vec::with_capacity(CHUNK_RECORDS),
            seen: PageBitmap::new(page_count),
            next_sequence: 0,
            dropped: 0,
        }
    }

    /// Keeps `record`, a touch of the page with number `page_index`, numbers it and says whether it
    /// is the page's first.
    pub(crate) fn touch(&mut self, page_index: u64, record: TraceRecord) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        // Dropped touches count as seen: a later record of the page is not its first touch.
        let is_first_touch = self.seen.insert(page_index);
        if sequence - self.dropped >= self.max_records {
            self.dropped += 1;
            return;
        }
        self.chunk.push(TraceRecord {
            sequence,
            is_first_touch,
            ..record
        });
        if self.chunk.len() == CHUNK_RECORDS {
            let full = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_RECORDS));
            self.full_chunks.push(full);
        }
    }

    /// What has been kept, with times that count from `resumed_ns` after the tracer's own zero.
    pub(crate) fn trace(&self, resumed_ns: i64) -> FaultTrace {
        let records = self
            .full_chunks
            .iter()
            .flatten()
            .chain(&self.chunk)
            .map(|record| TraceRecord {
                ns_since_resume: record.ns_since_resume.saturating_sub(resumed_ns),
                ..*record
            })
            .collect();
        FaultTrace {
            records,
            dropped: self.dropped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_every_touch_and_says_which_is_the_first() {
        let mut tracer = Tracer::new(5000, 10);
        for page in [7, 2, 7] {
            tracer.touch(
                page,
                TraceRecord {
                    gpa: page << 12,
                    ns_since_resume: 100,
                    ..TraceRecord::default()
                },
            );
        }
        let trace = tracer.trace(40);
        let kept: Vec<(u64, u64, bool, i64)> = trace
            .records
            .iter()
            .map(|r| (r.sequence, r.gpa, r.is_first_touch, r.ns_since_resume))
            .collect();
        assert_eq!(
            kept,
            [
                (0, 0x7000, true, 60),
                (1, 0x2000, true, 60),
                (2, 0x7000, false, 60)
            ]
        );
        assert_eq!(trace.dropped, 0);
    }

    #[test]
    fn a_full_buffer_counts_what_it_drops() {
        for max_records in [0, 1, 1024, 3000] {
            let mut tracer = Tracer::new(max_records, 1 << 20);
            for page in 0..5000 {
                tracer.touch(page, TraceRecord::default());
            }
            let trace = tracer.trace(0);
            assert_eq!(trace.records.len() as u64, max_records);
            assert_eq!(trace.dropped, 5000 - max_records);
            assert!((0..).zip(&trace.records).all(|(n, r)| r.sequence == n));
        }
    }

    #[test]
    fn an_allocation_is_too_small_for_a_huge_page() {
        assert!(CHUNK_RECORDS * size_of::<TraceRecord>() < 128 << 10);
    }
}
