//! Traces of real guests: in every mode with a pager, and what is refused.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use reapvm_reap::Phase;
use reapvm_reap::trace::{self, ThreadKind, TraceReader};
use reapvm_tests::launcher::{self, Ended};
use reapvm_tests::scratch;
use reapvm_tests::snapshots;
use reapvm_tests::watchdog::guarded;
use serde_json::Value;

const INPUT: &str = "{\"seed\":3}";

/// A copy of a snapshot with a working set.
fn recorded(dir: &Path) {
    snapshots::copy(&snapshots::shared("helloworld"), dir);
    let name = dir.to_str().unwrap();
    launcher::run(["invoke", name, "--memory", "record", "--input", INPUT]).success();
}

/// Without a cold page cache, which other tests on the same snapshot would warm.
fn record(dir: &Path, out: &Path, arguments: &[&str]) -> Ended {
    record_cold(dir, out, &[arguments, &["--warm-page-cache"]].concat())
}

fn record_cold(dir: &Path, out: &Path, arguments: &[&str]) -> Ended {
    let mut command = launcher::command(["trace", "record", "--input", INPUT]);
    command.arg(dir).arg("--out").arg(out).args(arguments);
    launcher::finish(launcher::start(&mut command))
}

fn info(file: &Path) -> Value {
    launcher::run(["trace", "info", "--json", file.to_str().unwrap()]).json()
}

#[test]
fn every_mode_with_a_pager_is_traced_whole() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        recorded(&dir);
        let id = snapshots::open(&dir).id();
        let before = std::fs::read(dir.join("working-set")).unwrap();
        let mut first_touches = Vec::new();
        for mode in ["ondemand", "record", "prefetch"] {
            let out = scratch.path().join(format!("{mode}.trace"));
            let report = record_cold(&dir, &out, &["--mode", mode, "--json"]).json();
            let records = trace::read(&out, &id).unwrap();
            // The guest may go on after the report of the faults until the response.
            let served = report["faults"]["uffd"].as_u64().unwrap();
            assert!(records.len() as u64 >= served, "{mode}: {report}");
            assert_eq!(report["trace"]["records"], records.len());
            assert_eq!(report["trace"]["dropped"], 0);

            let reader = TraceReader::open(&out, Some(&id)).unwrap();
            let header = reader.header();
            assert_eq!(header.mode.as_str(), mode);
            assert_eq!(header.function.as_deref(), Some("helloworld"));
            assert_eq!(header.input.as_deref(), Some(INPUT));
            let region = header.regions[0];
            for record in &records {
                assert_eq!(record.gpa - region.gpa, record.hva - region.hva);
            }
            let threads = &reader.summary().threads;
            if mode != "prefetch" {
                assert!(threads.iter().any(|t| t.kind == ThreadKind::Device));
                assert!(records.iter().any(|r| r.phase == Phase::Request));
            }
            first_touches.push(records.iter().filter(|r| r.is_first_touch).count());
            let told = info(&out);
            assert_eq!(told["version"], 2);
            assert_eq!(told["summary"]["records"], records.len());
            assert_eq!(told["header"]["snapshot"], id.to_string());
        }
        assert!(first_touches[0] > 50, "{first_touches:?}");
        assert!(first_touches[2] < first_touches[0] / 2, "{first_touches:?}");
        // Tracing leaves the working set as it is.
        assert_eq!(std::fs::read(dir.join("working-set")).unwrap(), before);
    });
}

#[test]
fn a_full_trace_says_how_much_is_missing_and_a_label_is_kept() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = snapshots::shared("helloworld");
        let out = scratch.path().join("short.trace");
        let arguments = ["--records", "10", "--function", "my label"];
        let text = record(&dir, &out, &arguments).success();
        assert!(text.contains("first 10 records"), "{text}");
        let told = info(&out);
        assert_eq!(told["summary"]["records"], 10);
        assert!(told["summary"]["dropped"].as_u64().unwrap() > 20, "{told}");
        assert_eq!(told["header"]["function"], "my label");
        let text = launcher::run(["trace", "info", out.to_str().unwrap()]).success();
        for needle in ["uffd-pager", "did not fit", "cannot see", "vcpu-0"] {
            assert!(text.contains(needle), "no {needle} in {text}");
        }
    });
}

#[test]
fn invoke_writes_a_trace_too() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = snapshots::shared("helloworld");
        let out = scratch.path().join("t");
        let mut command = launcher::command(["invoke", "--input", INPUT, "--trace"]);
        command.arg(&out).arg(&dir);
        let text = launcher::finish(launcher::start(&mut command)).success();
        assert!(text.contains("trace: "), "{text}");
        let id = snapshots::open(&dir).id();
        assert!(trace::read(&out, &id).unwrap().len() > 50);
        let mut repeated = launcher::command(["invoke", "--repeat", "2", "--trace"]);
        repeated.arg(&out).arg(&dir);
        launcher::finish(launcher::start(&mut repeated)).failure(&["--repeat"]);
    });
}

#[test]
fn what_cannot_be_traced_or_read_is_an_error() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = snapshots::shared("helloworld");
        let out = scratch.path().join("t");
        record(&dir, &scratch.path().join("no/such/dir/t"), &[]).failure(&["no/such/dir"]);
        record(&dir, &out, &["--mode", "prefetch"]).failure(&["working set"]);
        assert!(!out.exists());

        let refused = |needles: &[&str]| {
            launcher::run(["trace", "info", out.to_str().unwrap()]).failure(needles);
        };
        refused(&["there is no trace"]);
        record(&dir, &out, &[]).success();
        let whole = std::fs::read(&out).unwrap();
        std::fs::write(&out, &whole[..whole.len() - 1]).unwrap();
        refused(&["truncated"]);
        snapshots::flip_bit(&out, whole.len() as u64 / 2);
        refused(&["truncated"]);
        std::fs::write(&out, &whole).unwrap();
        snapshots::flip_bit(&out, whole.len() as u64 / 2);
        refused(&["damaged"]);
        std::fs::write(&out, "rubbish").unwrap();
        refused(&["truncated"]);
        std::fs::write(&out, "rubbish, and more of it").unwrap();
        refused(&["damaged"]);
    });
}

#[test]
fn a_trace_is_exported_compared_and_reported() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = snapshots::shared("helloworld");
        let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
        let (first, second) = (path("first.trace"), path("second.trace"));
        record(&dir, Path::new(&first), &[]).success();
        record(&dir, Path::new(&second), &[]).success();
        let count = info(Path::new(&first))["summary"]["records"]
            .as_u64()
            .unwrap();

        let csv = launcher::run(["trace", "export", &first, "--format", "csv"]).success();
        assert_eq!(csv.lines().count() as u64, count + 1);
        for format in ["csv", "jsonl", "parquet", "chrome"] {
            let out = path(format);
            let export = ["trace", "export", &first, "--format", format, "-o", &out];
            let said = launcher::run(export).success();
            assert!(said.contains(&format!("{count} records")), "{said}");
            assert!(std::fs::metadata(&out).unwrap().len() > count);
        }
        launcher::run(["trace", "export", &first, "--format", "xlsx"])
            .failure(&["csv", "jsonl", "parquet", "chrome"]);

        let diff = launcher::run(["trace", "diff", "--json", &first, &second]).json();
        assert_eq!(diff["same_snapshot"], true);
        assert!(diff["jaccard"].as_f64().unwrap() > 0.9, "{diff}");
        let text = launcher::run(["trace", "diff", &first, &first]).success();
        assert!(text.contains("100.0 %") && text.contains("1.000"), "{text}");

        let html = path("report.html");
        launcher::run(["trace", "report", &first, "-o", &html]).success();
        let page = std::fs::read_to_string(&html).unwrap();
        assert!(page.contains("Page faults of helloworld, memory mode ondemand"));
        assert!(page.contains(&format!("reapvm trace report {first} -o {html}")));

        // The pager sees no instructions, and says so instead of an empty table.
        let map = path("System.map");
        std::fs::write(&map, "ffffffff81000000 T start\n").unwrap();
        let symbols = ["trace", "symbols", &first, "--system-map", &map, "--json"];
        let found = launcher::run(symbols).json();
        assert_eq!(found["without_instruction"], count);
        assert_eq!(found["symbols"].as_array().unwrap().len(), 0);
        launcher::run(["trace", "symbols", &first, "--elf", &map]).failure(&["no ELF file"]);
        std::fs::write(&map, "no map\n").unwrap();
        launcher::run(["trace", "symbols", &first, "--system-map", &map]).failure(&["line 1"]);

        // A damaged trace leaves no half of an export, and the report of before.
        let whole = std::fs::read(&first).unwrap();
        snapshots::flip_bit(Path::new(&first), whole.len() as u64 * 3 / 4);
        let out = path("none");
        let export = ["trace", "export", &first, "--format", "csv", "-o", &out];
        launcher::run(export).failure(&["damaged"]);
        assert!(!Path::new(&out).exists());
        launcher::run(["trace", "report", &first, "-o", &html]).failure(&["damaged"]);
        assert_eq!(std::fs::read_to_string(&html).unwrap(), page);
    });
}

#[test]
fn modes_without_a_pager_are_traced_by_the_kernel_and_say_so() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = snapshots::shared("helloworld");
        let snapshot = snapshots::open(&dir);
        let out = scratch.path().join("t");
        let pager = scratch.path().join("pager");
        record(&dir, &pager, &["--mode", "ondemand"]).success();
        let touched = trace::read(&pager, &snapshot.id()).unwrap();
        for mode in ["file", "copy"] {
            record(&dir, &out, &["--mode", mode, "--source", "page-tables"]).success();
            let reader = TraceReader::open(&out, Some(&snapshot.id())).unwrap();
            assert_eq!(reader.header().source.as_str(), "page-tables");
            assert!(reader.header().limits.contains(&trace::Limit::OrderByPhase));
            let notes = &reader.summary().notes;
            assert_eq!(notes.is_empty(), mode == "file", "{notes:?}");
            let pages: std::collections::HashSet<u64> =
                reader.map(|record| record.unwrap().gpa).collect();
            // What the pager has seen the guest touch is there, but for what another run did
            // otherwise: a queue's buffer, a time.
            let found = touched.iter().filter(|r| pages.contains(&r.gpa)).count();
            assert!(
                found * 20 > touched.len() * 19,
                "{found} of {}",
                touched.len()
            );
        }
        record(&dir, &out, &["--mode", "file", "--source", "pager"]).failure(&["page-tables"]);

        // From whichever source there is, and never silently from another one.
        record(&dir, &out, &["--mode", "file"]).success();
        let told = info(&out);
        let notes = told["summary"]["notes"].to_string();
        let forced = record(&dir, &out, &["--mode", "file", "--source", "tracepoints"]);
        if told["header"]["source"] == "kvm-tracepoints" {
            forced.success();
        } else {
            assert!(notes.contains("from page tables, because"), "{notes}");
            forced.failure(&[]);
            assert!(
                ["tracefs", "CAP_PERFMON", "nested paging", "kvm_page_fault"]
                    .iter()
                    .any(|remedy| forced.stderr.contains(remedy)),
                "{forced:?}"
            );
        }
    });
}
