//! Reports of studies with synthetic traces.

use std::path::Path;

use reapvm_reap::Phase;
use reapvm_reap::study::{StartKind, Study, TRACES_FOLDER};
use reapvm_reap::trace::TraceRecord;

use super::*;
use crate::test_studies::make;
use crate::test_traces::{self, Trace, record};

const COMMAND: &str = "reapvm study --report-only --output 'a<b'";

fn report(dir: &Path) -> Result<StudyOutcome, StudyError> {
    write_report(dir, &StudyOptions::default(), COMMAND)
}

fn page_of(outcome: &StudyOutcome) -> String {
    std::fs::read_to_string(&outcome.report).unwrap()
}

/// What the claim that begins so has become.
fn claim<'a>(outcome: &'a StudyOutcome, words: &str) -> &'a str {
    let found = outcome.claims.iter().find(|claim| claim.contains(words));
    found.unwrap_or_else(|| panic!("no claim '{words}' in {:?}", outcome.claims))
}

#[test]
fn a_whole_study_has_a_page_with_all_figures_and_their_data() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), &["helloworld", "json_serdes"]);
    let outcome = report(dir.path()).unwrap();
    assert!(outcome.missing.is_empty(), "{:?}", outcome.missing);
    let page = page_of(&outcome);
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    for forbidden in ["<script", "http://", "https://", "@import", "url(", "src="] {
        let found = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!found.contains(forbidden), "{forbidden}");
    }
    let svg = &page[page.find("<svg ").unwrap()..];
    for color in svg.split("=\"#").skip(1).map(|part| &part[..6]) {
        let is_role = color.chars().step_by(2).all(|c| c == '0')
            && color[..2] == color[2..4]
            && color[..2] == color[4..];
        assert!(is_role, "#{color} stays the same in a dark page");
    }
    // Seven of all functions, for no instruction is known, and four of each.
    assert_eq!(page.matches("<svg ").count(), 7 + 2 * 4);
    assert_eq!(
        page.matches("<summary>Numbers</summary>").count(),
        8 + 2 * 4
    );
    assert!(!page.contains("<b>\"") && page.contains("&lt;b&gt;"));
    assert!(
        page.contains("--output &#39;a&lt;b&#39;"),
        "both commands are shown"
    );
    for text in [
        "resident guest memory (MiB)",
        "from exec to the whole response, median (ms)",
        "first touches (%)",
        "pages a run",
        "Not known here: the source uffd-pager does not know",
    ] {
        assert!(page.contains(text), "{text}");
    }
    let text = std::fs::read_to_string(dir.path().join(CLAIMS_FILE)).unwrap();
    assert!(text.contains("| **same** |") && text.contains("2 of 2 functions"));
    assert!(!text.contains("not whole"));
    for name in [
        "claims",
        "starts",
        "footprint",
        "latency",
        "runs",
        "contiguity",
        "reuse",
        "map",
        "curve",
        "touches",
        "readahead",
        "readahead_mean",
        "sets",
        "symbols",
    ] {
        let csv = dir.path().join(format!("data/{name}.csv"));
        let rows = csv::Reader::from_path(&csv).unwrap().into_records().count();
        assert_eq!(rows == 0, name == "symbols", "{name}");
        assert!(dir.path().join(format!("data/{name}.parquet")).exists());
    }
}

#[test]
fn claims_are_computed_from_what_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    let mut study = make(dir.path(), &["helloworld"]);
    let outcome = report(dir.path()).unwrap();
    assert_eq!(outcome.claims.len(), 7);
    let is = |words: &str, verdict: &str, figure: &str| {
        let claim = claim(&outcome, words);
        assert!(
            claim.starts_with(verdict) && claim.contains(figure),
            "{claim}"
        );
    };
    is("footprint", "same", "90.0 %");
    // 240 ms from the first instruction on, of which 4 ms are the call.
    is("one after the other", "same", "5900 %");
    is("same pages", "same", "99.0 %");
    // 49 runs of two, and the last two pages apart.
    is("short runs", "same", "2.0 pages a run");
    // One page that is missing, one that came too late.
    is("eliminates", "same", "98.0 %");
    is("become faster", "same", "3.0 times");
    is("Recording", "different", "100 %");

    for start in &mut study.functions[0].starts {
        start.pager_faults += start.missed_pages * 40;
        if start.kind == StartKind::File {
            start.total_ms = 130.0;
        }
    }
    study.write(dir.path()).unwrap();
    let outcome = report(dir.path()).unwrap();
    assert!(claim(&outcome, "eliminates").starts_with("different"));
    assert!(claim(&outcome, "become faster").starts_with("different"));
}

#[test]
fn what_is_missing_is_named_and_not_counted_as_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut study = make(dir.path(), &["helloworld", "json_serdes"]);
    study.functions.truncate(1);
    study.functions[0]
        .starts
        .retain(|start| start.kind != StartKind::PrefetchOne);
    study.write(dir.path()).unwrap();
    let outcome = report(dir.path()).unwrap();
    assert_eq!(outcome.missing.len(), 2, "{:?}", outcome.missing);
    let page = page_of(&outcome);
    assert!(page.contains("This study is not whole"));
    assert!(page.contains("1 of 2 functions"));
    assert!(page.contains("json_serdes: nothing of it was measured"));
    assert!(claim(&outcome, "become faster").starts_with("not measured"));
    assert!(
        !page.contains("NaN") && !page.contains("inf "),
        "numbers are numbers"
    );

    study.functions.clear();
    study.write(dir.path()).unwrap();
    let before = page_of(&outcome);
    assert!(matches!(report(dir.path()), Err(StudyError::Empty { .. })));
    assert_eq!(
        page_of(&outcome),
        before,
        "a report is not replaced by none"
    );
}

#[test]
fn foreign_cut_and_missing_files_are_errors_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), &["helloworld"]);
    let trace = dir.path().join(TRACES_FOLDER).join("helloworld.1.traced");
    let whole = std::fs::read(&trace).unwrap();
    let refused = |needles: &[&str]| {
        let error = report(dir.path()).unwrap_err().to_string();
        for needle in needles {
            assert!(error.contains(needle), "no '{needle}' in {error}");
        }
        assert!(!dir.path().join(REPORT_FILE).exists());
        assert!(!dir.path().join(DATA_FOLDER).exists());
    };
    std::fs::write(&trace, &whole[..whole.len() / 2]).unwrap();
    refused(&["helloworld.1.traced", "truncated"]);
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    std::fs::write(&trace, flipped).unwrap();
    refused(&["helloworld.1.traced", "damaged"]);
    std::fs::remove_file(&trace).unwrap();
    refused(&["helloworld.1.traced", "there is no trace"]);
    std::fs::write(&trace, &whole).unwrap();

    let mut study = Study::read(dir.path()).unwrap();
    study.functions[0].snapshot = reapvm_snapshot::SnapshotId::from_bytes([9; 16]).to_string();
    study.write(dir.path()).unwrap();
    refused(&["belongs to snapshot"]);
    std::fs::write(dir.path().join("measurements.json"), "{\"results\": []}").unwrap();
    refused(&["no measurements of a study"]);
}

#[test]
fn instructions_are_counted_by_the_symbols_of_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), &["helloworld"]);
    let name = format!("helloworld.0.{}", StartKind::Instructions.as_str());
    let mut header = test_traces::header();
    header.limits.clear();
    let trace = Trace::with_header(
        &header,
        vec![
            TraceRecord {
                rip: Some(0xffff_ffff_8100_0010),
                ..record(0, 1, Phase::Request)
            },
            record(1, 2, Phase::Request),
        ],
    );
    std::fs::write(dir.path().join(TRACES_FOLDER).join(name), trace.bytes()).unwrap();
    let map = dir.path().join("System.map");
    let report = |symbols: &Path| {
        let options = StudyOptions {
            symbols: Some(symbols),
            ..StudyOptions::default()
        };
        write_report(dir.path(), &options, COMMAND)
    };
    std::fs::write(&map, "ffffffff81000000 T clear_page\n").unwrap();
    let page = page_of(&report(&map).unwrap());
    assert!(page.contains("clear_page") && page.contains("1 without an instruction"));

    std::fs::write(&map, "ffffffff81000000 D data\n").unwrap();
    let error = report(&map).unwrap_err().to_string();
    assert!(
        error.contains("System.map") && error.contains("no symbols"),
        "{error}"
    );
    let error = report(Path::new("/no/such/file")).unwrap_err().to_string();
    assert!(error.contains("/no/such/file"), "{error}");
    // Nobody asked for the image's own symbols by name: the report says that there are none.
    std::fs::write(dir.path().join(reapvm_reap::study::IMAGE_FILE), "\x7fELF").unwrap();
    let page = page_of(&super::tests::report(dir.path()).unwrap());
    assert!(page.contains("Not known here: the guest&#39;s image: it is no ELF file"));
}

#[test]
fn figures_of_linux_guests_stand_beside() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), &["helloworld"]);
    let file = dir.path().join("linux.jsonl");
    let options = StudyOptions {
        linux_figures: Some(&file),
        ..StudyOptions::default()
    };
    let line = r#"{"function":"helloworld","booted_bytes":409600,"pages":20,"runs":8,"same_pages":15,"faults":50,"missed":5}"#;
    std::fs::write(&file, line).unwrap();
    let page = page_of(&write_report(dir.path(), &options, COMMAND).unwrap());
    let page = page.replace('\u{a0}', " ");
    for figure in [
        "80.0 % less",
        "75.0 %",
        "2.5 pages a run",
        "90.0 %",
        "no times from",
    ] {
        assert!(page.contains(figure), "{figure}");
    }
    assert!(!page_of(&report(dir.path()).unwrap()).contains("80.0\u{a0}% less"));
    std::fs::write(&file, &line[..20]).unwrap();
    let error = write_report(dir.path(), &options, COMMAND).unwrap_err();
    assert!(matches!(error, StudyError::LinuxFigures { .. }), "{error}");
}

#[test]
fn a_folder_that_cannot_be_written_to_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), &["helloworld"]);
    std::fs::write(dir.path().join(DATA_FOLDER), "a file").unwrap();
    let error = report(dir.path()).unwrap_err();
    assert!(matches!(error, StudyError::Folder { .. }), "{error}");
    assert!(!dir.path().join(REPORT_FILE).exists());
}
