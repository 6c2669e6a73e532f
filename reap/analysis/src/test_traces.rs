//! Traces for tests.

use std::io::Cursor;
use std::path::Path;

use reapvm_reap::trace::{
    Clock, ThreadKind, TraceHeader, TraceReader, TraceRecord, TraceRegion, TraceSource,
    TraceSummary, TraceThread, TraceWriter,
};
use reapvm_reap::{MemoryRestoreMode, Phase};
use reapvm_snapshot::SnapshotId;

pub(crate) const MEMORY_BYTES: u64 = 1 << 30;
pub(crate) const HVA: u64 = 0x7f00_0000_0000;

/// A trace in memory.
pub(crate) struct Trace(Vec<u8>);

impl Trace {
    pub(crate) fn new(records: Vec<TraceRecord>) -> Self {
        Self::with_header(&header(), records)
    }

    pub(crate) fn with_header(header: &TraceHeader, records: Vec<TraceRecord>) -> Self {
        let mut writer = TraceWriter::new(Vec::new(), header).unwrap();
        for record in &records {
            writer.push(record).unwrap();
        }
        Self(writer.finish(summary()).unwrap())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn reader(&self) -> TraceReader<Cursor<&[u8]>> {
        TraceReader::new(Cursor::new(self.0.as_slice()), Path::new("test"), None).unwrap()
    }
}

pub(crate) fn header() -> TraceHeader {
    let (source, mode) = (TraceSource::UffdPager, MemoryRestoreMode::OnDemand);
    TraceHeader {
        snapshot: SnapshotId::from_bytes([7; 16]),
        source,
        limits: source.limits(mode),
        mode,
        clock: Clock {
            zero_monotonic_ns: 1_000_000_000,
            zero_unix_ms: 1_700_000_000_000,
        },
        function: Some("<hello> & \"world\"".to_owned()),
        input: Some("{\"seed\":1}".to_owned()),
        regions: vec![TraceRegion {
            gpa: 0,
            hva: HVA,
            size_bytes: MEMORY_BYTES,
        }],
        creator: "test".to_owned(),
    }
}

fn summary() -> TraceSummary {
    TraceSummary {
        dropped: 2,
        threads: vec![TraceThread {
            thread_id: 42,
            kind: ThreadKind::Vcpu,
            vcpu: Some(0),
            name: Some("vcpu-0, \"the first\"".to_owned()),
        }],
        notes: vec!["a <note>".to_owned()],
        ..TraceSummary::default()
    }
}

pub(crate) fn record(sequence: u64, page: u64, phase: Phase) -> TraceRecord {
    TraceRecord {
        sequence,
        ns_since_resume: sequence as i64 * 1000,
        gpa: page << 12,
        hva: HVA + (page << 12),
        service_ns: 20_000 + sequence % 1000 * 50,
        thread_id: 42,
        queue_depth: 1,
        phase,
        is_first_touch: true,
        ..TraceRecord::default()
    }
}
