//! Counts, distributions and curves of one trace.

use std::collections::HashMap;
use std::io::{Read, Seek};

use reapvm_reap::Phase;
use reapvm_reap::trace::{Access, Outcome, TraceError, TraceReader, TraceRecord};
use serde::Serialize;

use crate::PAGE_BYTES;
use crate::histogram::Histogram;
use crate::page_set::PageSet;
use crate::space::AddressMap;

/// Points that a curve keeps at most. When it has more, every second one goes.
const MAX_CURVE_POINTS: usize = 2048;
/// Instructions that are counted apart; a guest has few that touch new memory.
const MAX_RIPS: usize = 1 << 16;

/// All phases, in their order.
pub(crate) const PHASES: [Phase; 4] = [
    Phase::Restore,
    Phase::Connection,
    Phase::Request,
    Phase::Idle,
];

/// A point of the curve of first touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CurvePoint {
    /// Nanoseconds since the guest resumed.
    pub ns: i64,
    /// Distinct pages that were touched until then, this one included.
    pub pages: u64,
}

/// Touches by what they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PhaseCounts {
    /// All touches.
    pub touches: u64,
    /// Of these, first touches of a page.
    pub first_touches: u64,
    /// Of all, by access: read, write, write-protect, unknown.
    pub by_access: [u64; 4],
    /// Of all, by outcome: miss, zero, hit, unknown.
    pub by_outcome: [u64; 4],
}

/// Touches of one thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThreadCounts {
    /// The thread's name, or what is known of it.
    pub label: String,
    /// Its number.
    pub thread_id: u32,
    /// Touches by phase: restore, connection, request, idle.
    pub by_phase: [u64; 4],
    /// Touches that asked to write.
    pub writes: u64,
}

/// What one pass over a trace finds.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// All touches.
    pub touches: u64,
    /// Distinct pages.
    pub pages: PageSet,
    /// By phase: restore, connection, request, idle.
    pub phases: [PhaseCounts; 4],
    /// By thread, in the order of their first touch.
    pub threads: Vec<ThreadCounts>,
    /// First touches over time.
    pub curve: Vec<CurvePoint>,
    /// Touched parts of guest memory.
    pub map: AddressMap,
    /// Service times, in ns, of faults whose outcome is known.
    pub service_ns: Histogram,
    /// Faults that waited to be served, over faults.
    pub queue_depth: Histogram,
    /// Lengths, in pages, of runs of touched neighbours.
    pub run_pages: Histogram,
    /// Touches by the guest's instruction, where it is known.
    pub by_rip: HashMap<u64, u64>,
    /// Touches whose instruction is known but not in `by_rip`, because there are too many.
    pub other_rips: u64,
    /// First and last moment, in ns since the guest resumed; none without a touch.
    pub span_ns: Option<(i64, i64)>,
    curve_step: u64,
}

impl Statistics {
    /// Reads all records of `reader`.
    ///
    /// # Errors
    /// When the trace cannot be read to its end.
    pub fn of<R: Read + Seek>(reader: &mut TraceReader<R>) -> Result<Self, TraceError> {
        let mut statistics = Self {
            touches: 0,
            pages: PageSet::default(),
            phases: [PhaseCounts::default(); 4],
            threads: Vec::new(),
            curve: Vec::new(),
            map: AddressMap::new(&reader.header().regions),
            service_ns: Histogram::default(),
            queue_depth: Histogram::default(),
            run_pages: Histogram::default(),
            by_rip: HashMap::new(),
            other_rips: 0,
            span_ns: None,
            curve_step: 1,
        };
        let mut place_of = HashMap::new();
        for thread in &reader.summary().threads {
            place_of.insert(thread.thread_id, statistics.threads.len());
            statistics.threads.push(ThreadCounts {
                label: thread.label(),
                thread_id: thread.thread_id,
                by_phase: [0; 4],
                writes: 0,
            });
        }
        while let Some(record) = reader.next_record()? {
            statistics.add(&record);
            // A thread that the summary does not name has no counts of its own.
            if let Some(place) = place_of.get(&record.thread_id) {
                let thread = &mut statistics.threads[*place];
                thread.by_phase[record.phase as usize] += 1;
                thread.writes += u64::from(record.access == Access::Write);
            }
        }
        let Self {
            pages, run_pages, ..
        } = &mut statistics;
        pages.for_each_run(|length| run_pages.add(length));
        Ok(statistics)
    }

    fn add(&mut self, record: &TraceRecord) {
        self.touches += 1;
        let ns = record.ns_since_resume;
        let (first, last) = self.span_ns.unwrap_or((ns, ns));
        self.span_ns = Some((first.min(ns), last.max(ns)));
        // Whatever the record says of it: what a source calls a first touch is its own affair.
        let is_new = self.pages.insert(record.gpa / PAGE_BYTES);
        let phase = &mut self.phases[record.phase as usize];
        phase.touches += 1;
        phase.first_touches += u64::from(is_new);
        phase.by_access[record.access as usize] += 1;
        phase.by_outcome[record.outcome as usize] += 1;
        if record.outcome != Outcome::Unknown {
            self.service_ns.add(record.service_ns);
            self.queue_depth.add(u64::from(record.queue_depth));
        }
        if let Some(rip) = record.rip {
            let has_room = self.by_rip.len() < MAX_RIPS;
            match self.by_rip.get_mut(&rip) {
                Some(count) => *count += 1,
                None if has_room => drop(self.by_rip.insert(rip, 1)),
                None => self.other_rips += 1,
            }
        }
        if is_new {
            self.map.touch(record.gpa);
            self.add_to_curve(ns);
        }
    }

    fn add_to_curve(&mut self, ns: i64) {
        let pages = self.pages.len();
        if !pages.is_multiple_of(self.curve_step) && self.curve_step > 1 {
            return;
        }
        self.curve.push(CurvePoint { ns, pages });
        if self.curve.len() >= MAX_CURVE_POINTS {
            self.curve_step *= 2;
            let step = self.curve_step;
            self.curve
                .retain(|point| point.pages == 1 || point.pages.is_multiple_of(step));
        }
    }

    /// Pages of an average run of touched neighbours.
    #[must_use]
    pub fn pages_a_run(&self) -> f64 {
        self.run_pages.mean()
    }

    /// Touches by access: read, write, write-protect, unknown.
    #[must_use]
    pub fn by_access(&self) -> [u64; 4] {
        self.sum(|phase| phase.by_access)
    }

    /// Touches by outcome: miss, zero, hit, unknown.
    #[must_use]
    pub fn by_outcome(&self) -> [u64; 4] {
        self.sum(|phase| phase.by_outcome)
    }

    fn sum(&self, of: impl Fn(&PhaseCounts) -> [u64; 4]) -> [u64; 4] {
        self.phases.iter().fold([0; 4], |mut sums, phase| {
            for (sum, count) in sums.iter_mut().zip(of(phase)) {
                *sum += count;
            }
            sums
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_traces::{self, Trace};

    #[test]
    fn a_small_trace_is_counted_exactly() {
        let trace = Trace::new(vec![
            test_traces::record(0, 5, Phase::Restore),
            test_traces::record(1, 6, Phase::Request),
            test_traces::record(2, 5, Phase::Request),
            test_traces::record(3, 100, Phase::Idle),
        ]);
        let statistics = Statistics::of(&mut trace.reader()).unwrap();
        assert_eq!(statistics.touches, 4);
        assert_eq!(statistics.pages.len(), 3);
        let touches = statistics.phases.map(|p| (p.touches, p.first_touches));
        assert_eq!(touches, [(1, 1), (0, 0), (2, 1), (1, 1)]);
        assert_eq!(statistics.threads[0].by_phase, [1, 0, 2, 1]);
        assert_eq!(statistics.run_pages.count(), 2);
        assert!((statistics.pages_a_run() - 1.5).abs() < 1e-9);
        let curve: Vec<u64> = statistics.curve.iter().map(|p| p.pages).collect();
        assert_eq!(curve, [1, 2, 3]);
        assert_eq!(statistics.span_ns, Some((0, 3000)));
        let touched: u64 = statistics.map.bins().iter().map(|bin| bin.touched).sum();
        assert_eq!((touched, statistics.map.outside()), (3, 0));
    }

    #[test]
    fn an_empty_trace_has_statistics_too() {
        let statistics = Statistics::of(&mut Trace::new(vec![]).reader()).unwrap();
        assert_eq!(statistics.touches, 0);
        assert!(statistics.curve.is_empty() && statistics.span_ns.is_none());
    }

    #[test]
    fn a_long_curve_is_thinned_and_goes_to_its_end() {
        let pages = 100_000;
        let records = (0..pages).map(|n| test_traces::record(n, n, Phase::Request));
        let trace = Trace::new(records.collect());
        let statistics = Statistics::of(&mut trace.reader()).unwrap();
        let curve = &statistics.curve;
        assert!(curve.len() > MAX_CURVE_POINTS / 4 && curve.len() < MAX_CURVE_POINTS);
        assert!(curve.is_sorted_by_key(|point| point.pages));
        assert!(curve.last().unwrap().pages > pages - 200);
        assert_eq!(statistics.pages.len(), pages);
    }
}
