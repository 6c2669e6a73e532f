//! Writes the first file of each fuzz target's corpus, `seed`, from what the program itself writes.
//!
//! `cargo run -p reapvm-tests --example seeds`, after a format has changed.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use reapvm_reap::study::{
    self, FunctionMeasurements, Start, StartKind, StartPhasesMs, Study, StudyHost, StudyPlan,
    WarmCall,
};
use reapvm_reap::trace::{
    Clock, ThreadKind, TraceHeader, TraceRegion, TraceSource, TraceSummary, TraceThread,
};
use reapvm_reap::{
    Access, FirstTouch, MemoryRestoreMode, Page, PageSource, PageSourceError, Phase, RecordReason,
    TouchCounts, TraceRecord, WorkingSet, WorkingSetState, trace,
};
use reapvm_snapshot::{SnapshotId, StateFile};
use reapvm_tests::{fuzzed, scratch, snapshots};

/// Pages that tell where they were, but one that is zero.
struct Numbered([u8; 4096]);

impl PageSource for Numbered {
    fn read_page(&mut self, gpa: u64) -> Result<Page<'_>, PageSourceError> {
        if gpa == 0x6000 {
            return Ok(Page::Zero);
        }
        self.0[..8].copy_from_slice(&gpa.to_le_bytes());
        Ok(Page::Data(&self.0))
    }
}

fn seed_of(target: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    fs::create_dir_all(&dir).unwrap();
    dir.join("seed")
}

/// A guest's boot of its device with these features, then one of each of its actions, twice.
fn device_script(features: u32) -> Vec<u8> {
    let mut script = vec![0];
    script.extend(features.to_le_bytes());
    for action in (1..12).chain(0..12) {
        script.push(action);
        script.extend([1, 3, 0, 1, 0, 0, 0, 0, 2]);
    }
    script
}

/// The memory index of the seed's id for eight pages, the first and the last with data; in a diff,
/// those between are left to the base.
fn memory_index(id: &SnapshotId, is_diff: bool) -> Vec<u8> {
    let mut head = b"RVMINDEX".to_vec();
    head.extend(if is_diff { 2_u32 } else { 1 }.to_le_bytes());
    head.extend(4096_u32.to_le_bytes());
    head.extend(id.as_bytes());
    head.extend(8_u64.to_le_bytes());
    let mut tail = vec![0b1000_0001];
    if is_diff {
        tail.push(0b0111_1110);
    }
    let zero = match is_diff {
        true => 0,
        false => reapvm_snapshot::checksum::crc32c(&[0; 4096]),
    };
    for page in 0..8_u32 {
        let data = page == 0 || page == 7;
        tail.extend(if data { page } else { zero }.to_le_bytes());
    }
    let crc32c = reapvm_snapshot::checksum::crc32c(&[head.clone(), tail.clone()].concat());
    head.extend(crc32c.to_le_bytes());
    head.extend(tail);
    head
}

/// A trace of a few faults, and one of more than a block that says that it is from page tables.
fn write_traces(id: &SnapshotId, pages: &[u64]) {
    let mode = MemoryRestoreMode::OnDemand;
    let header = |source: TraceSource| TraceHeader {
        snapshot: *id,
        source,
        limits: source.limits(mode),
        mode,
        clock: Clock::default(),
        function: Some("helloworld".to_owned()),
        input: Some("{}".to_owned()),
        regions: vec![TraceRegion {
            gpa: 0,
            hva: 0x7f00_0000_0000,
            size_bytes: fuzzed::MEMORY_BYTES,
        }],
        creator: "seeds".to_owned(),
    };
    let record = |sequence: u64, gpa: u64| TraceRecord {
        sequence,
        ns_since_resume: sequence as i64 * 1000 - 500,
        gpa,
        hva: 0x7f00_0000_0000 + gpa,
        access: if gpa == 0x6000 {
            Access::Write
        } else {
            Access::Read
        },
        thread_id: 42,
        queue_depth: 1,
        rip: (gpa == 0x1000).then_some(0xffff_ffff_8100_0000),
        phase: Phase::Request,
        service_ns: 2500,
        is_first_touch: true,
        ..TraceRecord::default()
    };
    let summary = TraceSummary {
        dropped: 1,
        threads: vec![TraceThread {
            thread_id: 42,
            kind: ThreadKind::Vcpu,
            vcpu: Some(0),
            name: Some("vcpu-0".to_owned()),
        }],
        ..TraceSummary::default()
    };
    let few: Vec<TraceRecord> = (0..).zip(pages).map(|(n, gpa)| record(n, *gpa)).collect();
    let path = seed_of("trace");
    trace::write(&path, &header(TraceSource::UffdPager), &few, summary).unwrap();
    let many: Vec<TraceRecord> = (0..1030).map(|n| record(2 * n, n << 12)).collect();
    let path = path.with_file_name("seed-blocks");
    let header = header(TraceSource::PageTables);
    trace::write(&path, &header, &many, TraceSummary::default()).unwrap();
}

/// The measurements of a function that was started once in two ways, of two that were planned.
fn study(id: &SnapshotId) -> Study {
    let plan = StudyPlan {
        image: "builtin".to_owned(),
        functions: vec!["helloworld".to_owned(), "pyaes".to_owned()],
        inputs: (1..3).map(snapshots::input).collect(),
        repetitions: 1,
        command: vec!["study".to_owned()],
        began_unix_ms: 1_700_000_000_000,
    };
    let host = StudyHost {
        cpu_model: "a processor".to_owned(),
        cpus: 2,
        memory_mib: 4096,
        kernel: "6.12".to_owned(),
        reapvm: "0.1.0".to_owned(),
        has_nested_paging: true,
        disk_seq_read_mib_s: 1000.0,
        disk_rand_read_4k_us: 80.0,
    };
    let start = |kind, trace: Option<&str>| Start {
        kind,
        input: 1,
        repetition: 0,
        total_ms: 12.5,
        phases_ms: StartPhasesMs {
            launch: 1.0,
            restore: 2.0,
            working_set: 0.5,
            connection: 1.0,
            processing: 8.0,
        },
        pager_faults: 100,
        missed_pages: 1,
        major_faults: 2,
        minor_faults: 300,
        working_set_pages: Some(99),
        guest_resident_kib: 4096,
        trace: trace.map(str::to_owned),
    };
    let mut study = Study::new(plan, host);
    study.functions.push(FunctionMeasurements {
        function: "helloworld".to_owned(),
        snapshot: id.to_string(),
        memory_bytes: 128 << 20,
        booted_resident_bytes: 64 << 20,
        warm: vec![WarmCall { input: 0, ms: 0.5 }],
        starts: vec![
            start(StartKind::PrefetchOne, None),
            start(StartKind::Traced, Some("helloworld.1.0.trace")),
        ],
    });
    study
}

fn main() {
    let id = SnapshotId::from_bytes(fuzzed::SEED_ID);
    // Of the disk, the network and the balloon, all that they offer.
    let devices = [
        ("rng", 0),
        ("vsock", 0),
        ("block", 0x6244),
        ("net", 0x99a3),
        ("balloon", 6),
    ];
    for (target, features) in devices {
        fs::write(seed_of(target), device_script(features)).unwrap();
    }
    // A machine's own state would be long: a few sections of each shape are as good.
    let mut state = StateFile::new();
    state.push("vcpu", 1, &(1_u64, [7_u8; 20], "text")).unwrap();
    state.push("vcpu", 1, &(2_u64, [8_u8; 20], "text")).unwrap();
    state.push("vsock", 3, &Some(vec![1_u32, 2, 3])).unwrap();
    fs::write(seed_of("state_file"), state.encode().unwrap()).unwrap();
    fs::write(seed_of("memory_index"), memory_index(&id, false)).unwrap();
    let diff = seed_of("memory_index").with_file_name("seed-diff");
    fs::write(diff, memory_index(&id, true)).unwrap();
    let pages = [0x5000, 0x6000, 0x1000, 0x10_0000];
    let touches: Vec<FirstTouch> = (1..)
        .zip(pages)
        .map(|(n, gpa)| FirstTouch {
            gpa,
            own_ns: n * n * 1000,
        })
        .collect();
    let set = WorkingSet::write_counted(
        &seed_of("working_set"),
        &id,
        &TouchCounts::of_first_touches(&touches),
        &mut Numbered([0x5a; 4096]),
    )
    .unwrap();
    WorkingSetState {
        fingerprint: set.fingerprint(),
        record_next: Some(RecordReason::Misses),
        recordings_in_a_row: 2,
        untouched_in_a_row: vec![0, 2, 1, 0],
    }
    .write(&seed_of("working_set_state"), &id)
    .unwrap();
    write_traces(&id, &pages);
    let scratch = scratch::dir();
    study(&id).write(scratch.path()).unwrap();
    let measurements = scratch.path().join(study::MEASUREMENTS_FILE);
    fs::copy(measurements, seed_of("study")).unwrap();
    let dir = scratch.path().join("snap");
    snapshots::create("helloworld", &dir, &[]);
    fs::copy(dir.join("manifest.json"), seed_of("manifest")).unwrap();
}
