//! The first touch of each page, in order.

use crate::page_bitmap::PageBitmap;
use crate::phase::Phase;
use crate::trace::TraceRecord;

/// Room for so many records is made at once, so that recording seldom stops to make more. It
/// takes memory only as records come: the allocator maps it without touching it. Less than 2 MiB,
/// so that the kernel makes no huge page of it.
const FIRST_RECORDS: u64 = 16 * 1024;

/// What a pager has recorded: one record a distinct page, in the order of first touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// The records; record `n` has sequence `n`.
    pub records: Vec<TraceRecord>,
}

impl Recording {
    /// Guest-physical addresses of the pages, in the order of first touch.
    #[must_use]
    pub fn pages(&self) -> Vec<u64> {
        self.records.iter().map(|record| record.gpa).collect()
    }

    /// As [`pages`](Self::pages), without those that were touched only after the response: what
    /// the guest does when it is idle is no part of the invocation's working set.
    #[must_use]
    pub fn pages_until_idle(&self) -> Vec<u64> {
        self.records
            .iter()
            .filter(|record| record.phase != Phase::Idle)
            .map(|record| record.gpa)
            .collect()
    }

    /// How many pages were touched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether none was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// Keeps the first touch of each page. One record a page bounds what a guest can make it hold.
#[derive(Debug)]
pub(crate) struct Recorder {
    seen: PageBitmap,
    records: Vec<TraceRecord>,
}

impl Recorder {
    /// A recorder for guest memory of `page_count` pages.
    pub(crate) fn new(page_count: u64) -> Self {
        Self {
            seen: PageBitmap::new(page_count),
            records: Vec::with_capacity(page_count.min(FIRST_RECORDS) as usize),
        }
    }

    /// Keeps `record` if it is the first of the page with number `page_index`, and numbers it.
    pub(crate) fn first_touch(&mut self, page_index: u64, record: TraceRecord) {
        if self.seen.insert(page_index) {
            let sequence = self.records.len() as u64;
            self.records.push(TraceRecord {
                sequence,
                is_first_touch: true,
                ..record
            });
        }
    }

    /// What has been recorded, with times that count from `resumed_ns` after the recorder's own
    /// zero.
    pub(crate) fn recording(&self, resumed_ns: i64) -> Recording {
        Recording {
            records: self
                .records
                .iter()
                .map(|record| TraceRecord {
                    ns_since_resume: record.ns_since_resume.saturating_sub(resumed_ns),
                    ..*record
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(gpa: u64, ns: i64, phase: Phase) -> TraceRecord {
        TraceRecord {
            ns_since_resume: ns,
            gpa,
            thread_id: 1,
            phase,
            service_ns: 1,
            ..TraceRecord::default()
        }
    }

    #[test]
    fn keeps_the_first_touch_of_each_page_in_order() {
        let mut recorder = Recorder::new(10);
        recorder.first_touch(7, record(0x7000, 100, Phase::Restore));
        recorder.first_touch(2, record(0x2000, 250, Phase::Request));
        recorder.first_touch(7, record(0x7000, 300, Phase::Request));
        recorder.first_touch(3, record(0x3000, 400, Phase::Idle));

        let recording = recorder.recording(200);
        assert_eq!(recording.pages(), [0x7000, 0x2000, 0x3000]);
        assert_eq!(recording.pages_until_idle(), [0x7000, 0x2000]);
        let times: Vec<(u64, i64)> = recording
            .records
            .iter()
            .map(|record| (record.sequence, record.ns_since_resume))
            .collect();
        assert_eq!(times, [(0, -100), (1, 50), (2, 200)]);
    }
}
