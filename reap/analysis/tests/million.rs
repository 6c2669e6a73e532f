//! A million records go to Parquet and into a report without being held in memory.
//!
//! The only test of its program, because it looks at the memory of the whole process.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use reapvm_analysis::export::{Format, export};
use reapvm_analysis::report::report;
use reapvm_reap::trace::{
    Clock, Outcome, TraceHeader, TraceReader, TraceRecord, TraceRegion, TraceSource, TraceSummary,
    TraceWriter,
};
use reapvm_reap::{MemoryRestoreMode, Phase};
use reapvm_snapshot::SnapshotId;

const RECORDS: u64 = 1_000_000;
const MEMORY_BYTES: u64 = 16 << 30;
const MOST_KIB: u64 = 200 << 10;

fn write_trace(path: &Path) {
    let (source, mode) = (TraceSource::UffdPager, MemoryRestoreMode::OnDemand);
    let header = TraceHeader {
        snapshot: SnapshotId::from_bytes([1; 16]),
        source,
        limits: source.limits(mode),
        mode,
        clock: Clock::default(),
        function: None,
        input: None,
        regions: vec![TraceRegion {
            gpa: 0,
            hva: 0,
            size_bytes: MEMORY_BYTES,
        }],
        creator: "test".to_owned(),
    };
    let file = std::io::BufWriter::new(File::create(path).unwrap());
    let mut writer = TraceWriter::new(file, &header).unwrap();
    for sequence in 0..RECORDS {
        // Every page once, in an order that jumps: an odd factor modulo a power of two.
        let page = sequence.wrapping_mul(0x9e37_79b1) % (MEMORY_BYTES >> 12);
        writer
            .push(&TraceRecord {
                sequence,
                ns_since_resume: sequence as i64 * 900,
                gpa: page << 12,
                hva: page << 12,
                service_ns: 10_000 + page % 50_000,
                thread_id: (page % 5) as u32,
                queue_depth: 1,
                phase: Phase::Request,
                outcome: if page.is_multiple_of(9) {
                    Outcome::Zero
                } else {
                    Outcome::Miss
                },
                is_first_touch: true,
                ..TraceRecord::default()
            })
            .unwrap();
    }
    writer.finish(TraceSummary::default()).unwrap();
}

/// The most memory that this process has had resident, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse().unwrap()
}

#[test]
fn a_million_records_take_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    let start = Instant::now();
    write_trace(&path);
    println!("written in {:?}, peak {} KiB", start.elapsed(), peak_kib());

    let start = Instant::now();
    let mut reader = TraceReader::open(&path, None).unwrap();
    let parquet = dir.path().join("trace.parquet");
    let file = File::create(&parquet).unwrap();
    assert_eq!(export(&mut reader, Format::Parquet, file).unwrap(), RECORDS);
    let len = parquet.metadata().unwrap().len();
    println!(
        "{len} bytes of Parquet in {:?}, peak {} KiB",
        start.elapsed(),
        peak_kib()
    );
    assert!(len < RECORDS * 64);

    let start = Instant::now();
    let mut reader = TraceReader::open(&path, None).unwrap();
    let page = report(&mut reader, "reapvm trace report").unwrap();
    println!("reported in {:?}, peak {} KiB", start.elapsed(), peak_kib());
    assert!(page.len() < 1 << 20, "{}", page.len());
    assert!(peak_kib() < MOST_KIB, "{} KiB", peak_kib());
}
