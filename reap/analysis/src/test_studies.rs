//! Studies for tests.

use std::path::Path;

use reapvm_reap::Phase;
use reapvm_reap::study::{
    FunctionMeasurements, Start, StartKind, StartPhasesMs, Study, StudyHost, StudyPlan,
    TRACES_FOLDER, WarmCall,
};

use crate::test_traces::{self, MEMORY_BYTES, Trace, record};

const INPUTS: usize = 3;

fn start(kind: StartKind, input: usize, total_ms: f64) -> Start {
    let part = total_ms / 10.0;
    Start {
        kind,
        input,
        repetition: 0,
        total_ms,
        phases_ms: StartPhasesMs {
            launch: part,
            restore: part,
            working_set: 0.0,
            connection: 2.0 * part,
            processing: 6.0 * part,
        },
        pager_faults: if kind == StartKind::PrefetchOne {
            2
        } else {
            100
        },
        missed_pages: u64::from(kind == StartKind::PrefetchOne),
        major_faults: 2,
        minor_faults: 30,
        working_set_pages: None,
        guest_resident_kib: 10 << 10,
        trace: None,
    }
}

/// Touches of `input`: 99 pages that all have, and one of its own.
fn touched(input: usize) -> Trace {
    let pages = (0..99_u64)
        .map(|n| n / 2 * 5 + n % 2)
        .chain([1000 + input as u64]);
    let records = (0..)
        .zip(pages)
        .map(|(n, page)| record(n, page, Phase::Request));
    Trace::new(records.collect())
}

/// A whole study in `dir`: file 300 ms, prefetch 100 ms, warm 4 ms.
pub(crate) fn make(dir: &Path, functions: &[&str]) -> Study {
    std::fs::create_dir_all(dir.join(TRACES_FOLDER)).unwrap();
    let plan = StudyPlan {
        image: "builtin".to_owned(),
        functions: functions.iter().map(|name| (*name).to_owned()).collect(),
        inputs: (0..INPUTS)
            .map(|seed| serde_json::json!({ "seed": seed, "text": "<b>" }))
            .collect(),
        repetitions: 1,
        command: vec!["study".to_owned(), "--output".to_owned(), "a<b".to_owned()],
        began_unix_ms: 1,
    };
    let host = StudyHost {
        cpu_model: "a processor".to_owned(),
        cpus: 2,
        memory_mib: 1024,
        kernel: "6.18".to_owned(),
        reapvm: "0.1.0".to_owned(),
        has_nested_paging: false,
        disk_seq_read_mib_s: 1000.0,
        disk_rand_read_4k_us: 80.0,
    };
    let mut study = Study::new(plan, host);
    for function in functions {
        let mut starts = Vec::new();
        for input in 0..INPUTS {
            for kind in StartKind::ALL {
                if !kind.is_with(input, INPUTS) {
                    continue;
                }
                let total_ms = match kind {
                    StartKind::File => 300.0,
                    StartKind::PrefetchOne | StartKind::PrefetchMerged => 100.0,
                    _ => 600.0,
                };
                let mut start = start(kind, input, total_ms);
                if matches!(kind, StartKind::Traced | StartKind::Instructions) {
                    let name = format!("{function}.{input}.{}", kind.as_str());
                    let trace = touched(input);
                    std::fs::write(dir.join(TRACES_FOLDER).join(&name), trace.bytes()).unwrap();
                    start.trace = Some(name);
                }
                starts.push(start);
            }
        }
        study.functions.push(FunctionMeasurements {
            function: (*function).to_owned(),
            snapshot: test_traces::header().snapshot.to_string(),
            memory_bytes: MEMORY_BYTES,
            booted_resident_bytes: 100 << 20,
            warm: (0..INPUTS)
                .map(|input| WarmCall { input, ms: 4.0 })
                .collect(),
            starts,
        });
    }
    study.write(dir).unwrap();
    study
}
