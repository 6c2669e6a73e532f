//! The first touch of each page, in order.

use crate::page_bitmap::PageBitmap;
use crate::phase::Phase;
use crate::trace::TraceRecord;

/// Room for so many records is made at once, so that recording seldom stops to make more. It
/// takes memory only as records come: the allocator maps it without touching it. Less than 2 MiB,
/// so that the kernel makes no huge page of it.
const FIRST_RECORDS: u64 = 16 * 1024;

/// How long the touch of a page takes a guest at the least although the page is there, in
/// nanoseconds: the fault by which KVM maps it (0.5 us with nested paging).
const LEAST_TOUCH_NS: u64 = 500;

/// The first touch of a page, by the guest's own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstTouch {
    /// Guest-physical address of the page.
    pub gpa: u64,
    /// How long the guest had run, in nanoseconds since its first instruction, without the time in
    /// which it waited for pages.
    pub own_ns: u64,
}

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

    /// As [`pages_until_idle`](Self::pages_until_idle), with the guest's own time at each touch.
    ///
    /// From the end of one service to the next fault the guest runs, but for `fault_ns`, which a
    /// fault takes besides its service and which a page that is there spares: see
    /// [`measure_fault_ns`](crate::measure_fault_ns). What touching a page that is there takes is the
    /// guest's own, and no touch counts as less than 500 ns.
    #[must_use]
    pub fn first_touches_until_idle(&self, fault_ns: u64) -> Vec<FirstTouch> {
        let mut own_ns = 0_u64;
        let touched = self
            .records
            .iter()
            .zip(self.gaps())
            .map(|(record, gap_ns)| {
                if record.ns_since_resume > 0 {
                    let touch_ns = gap_ns.saturating_sub(fault_ns).max(LEAST_TOUCH_NS);
                    own_ns = own_ns.saturating_add(touch_ns);
                }
                FirstTouch {
                    gpa: record.gpa,
                    own_ns,
                }
            });
        touched
            .zip(&self.records)
            .filter(|(_, record)| record.phase != Phase::Idle)
            .map(|(touch, _)| touch)
            .collect()
    }

    /// Before each touch, for how many nanoseconds no fault was being served since the guest
    /// resumed.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = u64> {
        let mut served_until = 0_i64;
        self.records.iter().map(move |record| {
            let gap = record.ns_since_resume.saturating_sub(served_until);
            let service_ns = i64::try_from(record.service_ns).unwrap_or(i64::MAX);
            served_until = served_until.max(record.ns_since_resume.saturating_add(service_ns));
            u64::try_from(gap).unwrap_or(0)
        })
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
    fn the_guest_s_own_time_is_what_is_between_services() {
        let served = |gpa, ns, service_ns, phase| TraceRecord {
            service_ns,
            ..record(gpa, ns, phase)
        };
        let recording = Recording {
            records: vec![
                // Before the first instruction, and served until 2 us after it.
                served(0x1000, -5000, 7000, Phase::Restore),
                served(0x2000, 10_000, 4000, Phase::Connection),
                // While that is being served: of another thread.
                served(0x3000, 12_000, 9000, Phase::Request),
                served(0x4000, 1_021_000, 1000, Phase::Request),
                served(0x5000, 1_023_000, 1000, Phase::Idle),
            ],
        };
        let own = |fault_ns| -> Vec<(u64, u64)> {
            let touches = recording.first_touches_until_idle(fault_ns);
            touches
                .iter()
                .map(|touch| (touch.gpa, touch.own_ns))
                .collect()
        };
        let nothing = [
            (0x1000, 0),
            (0x2000, 8000),
            (0x3000, 8500),
            (0x4000, 1_008_500),
        ];
        assert_eq!(own(0), nothing);
        let some = [
            (0x1000, 0),
            (0x2000, 5000),
            (0x3000, 5500),
            (0x4000, 1_002_500),
        ];
        assert_eq!(own(3000), some);
        let all = [(0x1000, 0), (0x2000, 500), (0x3000, 1000), (0x4000, 1500)];
        assert_eq!(own(u64::MAX), all);
    }

    #[test]
    fn times_beyond_any_clock_do_not_overflow() {
        let records = [
            (0, i64::MIN),
            (1, 7),
            (2, i64::MAX),
            (3, i64::MAX),
            (4, i64::MIN),
        ]
        .map(|(gpa, ns)| TraceRecord {
            service_ns: u64::MAX,
            ..record(gpa, ns, Phase::Request)
        });
        let recording = Recording {
            records: records.to_vec(),
        };
        assert_eq!(recording.first_touches_until_idle(0).len(), 5);
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
