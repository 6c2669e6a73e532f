//! One traced invocation.

use std::io::{Read, Seek};
use std::path::Path;

use reapvm_reap::study::{Start, StartPhasesMs, TRACES_FOLDER};
use reapvm_reap::trace::{TraceError, TraceReader};
use reapvm_snapshot::SnapshotId;

use crate::PAGE_BYTES;
use crate::page_set::PageSet;
use crate::statistics::Statistics;

/// Names of the parts of an invocation that touches are told apart by.
pub(super) const PARTS: [&str; 4] = [
    "before the guest runs",
    "connection",
    "processing",
    "after the response",
];

/// What a trace says of one invocation.
#[derive(Debug)]
pub(super) struct Invocation {
    /// Place of its input in the plan.
    pub(super) input: usize,
    /// All that is counted in one pass.
    pub(super) statistics: Statistics,
    /// Places in the memory file, in the order of first touch.
    pub(super) order: Vec<u64>,
    /// First touches by [`PARTS`].
    pub(super) by_part: [u64; 4],
    /// Touches that the trace had no room for.
    pub(super) dropped: u64,
}

impl Invocation {
    /// Reads the trace of `start`, of the snapshot `id`, in the study's folder `dir`; `None` if it has
    /// none.
    pub(super) fn read(
        dir: &Path,
        start: &Start,
        id: &SnapshotId,
    ) -> Result<Option<Self>, TraceError> {
        let Some(name) = &start.trace else {
            return Ok(None);
        };
        let path = dir.join(TRACES_FOLDER).join(name);
        let open = || TraceReader::open(&path, Some(id));
        let found = Self::of(open, start.input, &start.phases_ms)?;
        Ok(Some(found))
    }

    /// What the trace says that `open` opens, twice.
    fn of<R: Read + Seek>(
        open: impl Fn() -> Result<TraceReader<R>, TraceError>,
        input: usize,
        phases: &StartPhasesMs,
    ) -> Result<Self, TraceError> {
        let statistics = Statistics::of(&mut open()?)?;
        let mut reader = open()?;
        let mut seen = PageSet::default();
        let mut order = Vec::new();
        let mut by_part = [0; 4];
        let accepted_ms = phases.connection;
        let answered_ms = accepted_ms + phases.processing;
        while let Some(record) = reader.next_record()? {
            if !seen.insert(record.gpa / PAGE_BYTES) {
                continue;
            }
            order.extend(statistics.map.page_of(record.gpa));
            let ms = record.ns_since_resume as f64 / 1e6;
            let part = match ms {
                _ if ms < 0.0 => 0,
                _ if ms < accepted_ms => 1,
                _ if ms < answered_ms => 2,
                _ => 3,
            };
            by_part[part] += 1;
        }
        Ok(Self {
            input,
            dropped: reader.summary().dropped,
            statistics,
            order,
            by_part,
        })
    }

    /// Distinct pages.
    pub(super) fn pages(&self) -> &PageSet {
        &self.statistics.pages
    }

    /// The share of the faults, in percent, at which no other one waited; `None` if there is none.
    pub(super) fn alone_pct(&self) -> Option<f64> {
        let depths = &self.statistics.queue_depth;
        let alone = depths.buckets().iter().find(|b| b.from == 1)?.count;
        Some(super::numbers::percent(alone, depths.count()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use reapvm_reap::Phase;

    use super::*;
    use crate::test_traces::{Trace, record};

    /// An invocation that touches these pages, 1 µs after each other.
    pub(in crate::study) fn invocation(input: usize, pages: &[u64]) -> Invocation {
        let records = (0..).zip(pages).map(|(n, p)| record(n, *p, Phase::Request));
        let trace = Trace::new(records.collect());
        let phases = StartPhasesMs {
            connection: 0.0015,
            processing: 0.001,
            ..StartPhasesMs::default()
        };
        Invocation::of(|| Ok(trace.reader()), input, &phases).unwrap()
    }

    #[test]
    fn first_touches_are_told_apart_by_time() {
        // At 0, 1, 2 and 3 µs: accepted after 1.5, answered after 2.5; page 7 is touched twice.
        let found = invocation(3, &[7, 9, 7, 2]);
        assert_eq!(found.order, [7, 9, 2]);
        assert_eq!(found.by_part, [0, 2, 0, 1]);
        assert_eq!((found.input, found.dropped, found.pages().len()), (3, 2, 3));
        assert_eq!(found.alone_pct(), Some(100.0));
    }
}
