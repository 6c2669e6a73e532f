//! `reapvm study` with a Linux guest.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use reapvm_reap::study::{MEASUREMENTS_FILE, StartKind, Study, TRACES_FOLDER};
use reapvm_reap::trace::TraceReader;

use super::functions;
use crate::nested::vm::scratch;
use crate::nested::{PATIENCE, reapvm, say};

/// The fewest that can be compared.
const INPUTS: usize = 2;
/// Claims of which no time is a part: this host can judge them, by what was counted. How it does is
/// not the same each time: with one processor, some pages are touched before they are in place.
const COUNTED: [&str; 4] = ["footprint", "same pages", "short runs", "eliminates"];

pub(super) fn run(function: &str) {
    let dir = scratch("study");
    let mut arguments: Vec<OsString> = vec!["study".into()];
    arguments.extend(functions::image());
    for (option, value) in [
        ("--functions", Path::new(function)),
        ("--inputs", Path::new(&INPUTS.to_string())),
        ("--repetitions", Path::new("1")),
        ("--output", &dir),
    ] {
        arguments.extend([option.into(), value.into()]);
    }
    killed_at_its_beginning(&arguments, &dir);
    let said = reapvm::run(&arguments).success();
    for line in said.lines() {
        say(&format!("| {line}"));
    }
    measured(&dir, function);
    reported(&dir, function, &said);
    interrupted(&dir);
}

/// Nothing that was not measured is reported.
fn killed_at_its_beginning(arguments: &[OsString], dir: &Path) {
    let mut command = reapvm::command();
    command.args(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !dir.join(MEASUREMENTS_FILE).exists() {
        assert!(Instant::now() < deadline, "it does not begin");
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let ended = report_again(dir);
    assert_ne!(ended.code, Some(0), "{ended:#?}");
    assert!(
        ended.stderr.contains("ended before its first function"),
        "{ended:#?}"
    );
    assert!(!dir.join("report.html").exists());
}

fn report_again(dir: &Path) -> reapvm::Ended {
    let mut arguments: Vec<OsString> = ["study", "--report-only", "--output"]
        .map(Into::into)
        .into();
    arguments.push(dir.into());
    reapvm::run(arguments)
}

/// Every start that was planned is there, and counts what its memory mode lets it count.
fn measured(dir: &Path, function: &str) {
    let study = Study::read(dir).unwrap();
    assert_eq!(study.plan.image, "linux");
    assert_eq!(study.missing(), Vec::<String>::new());
    assert!(
        study.host.has_nested_paging,
        "the nested host's KVM uses it"
    );
    let [measured] = study.functions.as_slice() else {
        panic!("{} functions", study.functions.len());
    };
    assert_eq!(measured.function, function);
    let mut of_kind: BTreeMap<StartKind, usize> = BTreeMap::new();
    for start in &measured.starts {
        *of_kind.entry(start.kind).or_default() += 1;
        let parts: f64 = start.phases_ms.parts().iter().sum();
        assert!(
            (parts - start.total_ms).abs() < 0.01 * start.total_ms,
            "{start:?}"
        );
        match start.kind {
            StartKind::File | StartKind::Instructions => assert_eq!(start.pager_faults, 0),
            StartKind::PrefetchOne => {
                let pages = start.working_set_pages.unwrap();
                assert!(start.missed_pages * 10 < pages, "{start:?}");
            }
            _ => assert!(start.pager_faults > 100, "{start:?}"),
        }
        if let Some(name) = &start.trace {
            let path = dir.join(TRACES_FOLDER).join(name);
            let reader = TraceReader::open(&path, None).unwrap();
            assert!(reader.summary().records > 100, "{name}");
        }
    }
    for kind in StartKind::ALL {
        let planned = (0..INPUTS).filter(|input| kind.is_with(*input, INPUTS));
        assert_eq!(
            of_kind.get(&kind).copied().unwrap_or_default(),
            planned.count(),
            "{kind:?}"
        );
    }
}

/// The report, its data and its claims are those of these measurements.
fn reported(dir: &Path, function: &str, said: &str) {
    let page = fs::read_to_string(dir.join("report.html")).unwrap();
    assert!(page.contains(&format!(
        "How functions use memory: {function} of the linux guest"
    )));
    assert!(!page.contains("This study is not whole"));
    assert!(!page.contains("NaN"), "numbers are numbers");
    for claim in COUNTED {
        let line = said.lines().find(|line| line.contains(claim));
        let line = line.unwrap_or_else(|| panic!("no claim '{claim}'"));
        assert!(!line.starts_with("not measured"), "{line}");
    }
    let claims = fs::read_to_string(dir.join("claims.md")).unwrap();
    assert!(claims.contains(&format!("1 of 1 functions, inputs: {INPUTS}")));
    for table in ["starts", "latency", "reuse", "curve", "touches"] {
        let rows = fs::read_to_string(dir.join(format!("data/{table}.csv"))).unwrap();
        assert!(rows.lines().count() > 1, "{table}");
        assert!(dir.join(format!("data/{table}.parquet")).exists());
    }
    assert!(!dir.join("snapshots").exists(), "they are large");
    let again = report_again(dir).success();
    assert_eq!(again, said, "made again, it is the same");
    assert_eq!(fs::read_to_string(dir.join("report.html")).unwrap(), page);
}

/// As after an interruption behind the first of two functions.
fn interrupted(dir: &Path) {
    let mut study = Study::read(dir).unwrap();
    study.plan.functions.push("pyaes".to_owned());
    study.write(dir).unwrap();
    let ended = report_again(dir);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.stderr.contains("missing: pyaes"), "{ended:#?}");
    for file in ["report.html", "claims.md"] {
        let text = fs::read_to_string(dir.join(file)).unwrap();
        assert!(text.contains("not whole"), "{file}");
    }
}
