use super::*;

fn start(kind: StartKind, input: usize, repetition: u32) -> Start {
    Start {
        kind,
        input,
        repetition,
        total_ms: 10.0,
        phases_ms: StartPhasesMs::default(),
        pager_faults: 3,
        missed_pages: 0,
        major_faults: 0,
        minor_faults: 7,
        working_set_pages: None,
        guest_resident_kib: 12,
        trace: (kind == StartKind::Traced).then(|| format!("f.{input}.{repetition}.trace")),
    }
}

/// A whole study of one function with three inputs and two repetitions.
fn study() -> Study {
    let plan = StudyPlan {
        image: "builtin".to_owned(),
        functions: vec!["f".to_owned()],
        inputs: (0..3)
            .map(|seed| serde_json::json!({ "seed": seed }))
            .collect(),
        repetitions: 2,
        command: vec!["study".to_owned()],
        began_unix_ms: 1,
    };
    let host = StudyHost {
        cpu_model: "a processor".to_owned(),
        cpus: 2,
        memory_mib: 1024,
        kernel: "6.18".to_owned(),
        reapvm: "0.1.0".to_owned(),
        has_nested_paging: true,
        disk_seq_read_mib_s: 1000.0,
        disk_rand_read_4k_us: 80.0,
    };
    let mut study = Study::new(plan, host);
    let mut starts = Vec::new();
    for repetition in 0..2 {
        for input in 0..3 {
            for kind in StartKind::ALL {
                let is_once = kind == StartKind::Instructions && repetition > 0;
                if kind.is_with(input, 3) && !is_once {
                    starts.push(start(kind, input, repetition));
                }
            }
        }
    }
    study.functions.push(FunctionMeasurements {
        function: "f".to_owned(),
        snapshot: SnapshotId::from_bytes([7; 16]).to_string(),
        memory_bytes: 1 << 27,
        booted_resident_bytes: 1 << 26,
        warm: vec![WarmCall { input: 2, ms: 0.5 }],
        starts,
    });
    study
}

fn refused(study: &Study) -> String {
    let text = serde_json::to_vec(study).unwrap();
    Study::from_json(&text, Path::new("m"))
        .unwrap_err()
        .to_string()
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Study::read(dir.path()).unwrap_err();
    assert!(
        missing.to_string().contains("reapvm study --output"),
        "{missing}"
    );
    study().write(dir.path()).unwrap();
    assert_eq!(Study::read(dir.path()).unwrap(), study());
    assert!(study().missing().is_empty());
    let error = study()
        .write(&dir.path().join("no/such/folder"))
        .unwrap_err();
    assert!(matches!(error, StudyFileError::Write { .. }));
}

#[test]
fn each_cut_and_other_files_are_refused() {
    let text = serde_json::to_vec(&study()).unwrap();
    let read = |text: &[u8]| Study::from_json(text, Path::new("m"));
    for at in 0..text.len() {
        assert!(read(&text[..at]).is_err(), "cut at {at}");
    }
    let cut = read(&text[..text.len() / 2]).unwrap_err();
    assert!(matches!(cut, StudyFileError::Truncated { .. }), "{cut}");
    for foreign in [
        "[]",
        "{\"results\":[]}",
        "not JSON",
        "{\"format\":\"x\",\"version\":1}",
    ] {
        let error = read(foreign.as_bytes()).unwrap_err();
        assert!(
            matches!(error, StudyFileError::Foreign { .. }),
            "{foreign}: {error}"
        );
    }
    let other = String::from_utf8(text)
        .unwrap()
        .replacen("\"version\":1", "\"version\":9", 1);
    let error = read(other.as_bytes()).unwrap_err();
    assert!(
        matches!(error, StudyFileError::Version { version: 9, .. }),
        "{error}"
    );
}

#[test]
fn what_cannot_be_is_refused() {
    let with = |change: fn(&mut Study)| {
        let mut study = study();
        change(&mut study);
        refused(&study)
    };
    let first = |change: fn(&mut Start)| {
        let mut study = study();
        change(&mut study.functions[0].starts[0]);
        refused(&study)
    };
    assert!(with(|s| s.plan.functions.clear()).contains("not in its plan"));
    assert!(with(|s| s.functions.push(s.functions[0].clone())).contains("twice"));
    assert!(with(|s| s.functions[0].snapshot = "?".to_owned()).contains("snapshot's id"));
    assert!(with(|s| s.functions[0].warm[0].input = 3).contains("warm call"));
    assert!(first(|s| s.input = 3).contains("not in its plan"));
    assert!(first(|s| s.repetition = 2).contains("not in its plan"));
    assert!(first(|s| s.total_ms = -1.0).contains("no time"));
    assert!(first(|s| s.total_ms = 0.0).contains("no time"));
    assert!(with(|s| s.functions[0].warm[0].ms = 0.0).contains("no time"));
    for name in ["../t", "/etc/passwd", ".hidden"] {
        let mut study = study();
        study.functions[0].starts[0].trace = Some(name.to_owned());
        assert!(refused(&study).contains("a name that cannot be"), "{name}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let mut part = study();
    part.plan.functions.push("g".to_owned());
    part.functions[0]
        .starts
        .retain(|start| start.kind != StartKind::File || start.input == 0);
    let missing = part.missing();
    assert_eq!(missing.len(), 2, "{missing:?}");
    assert!(missing[0].contains("2 of 6 starts \"file\""), "{missing:?}");
    assert!(missing[1].contains("g: nothing"), "{missing:?}");
}
