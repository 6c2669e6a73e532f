//! `reapvm study`: measured and reported, interrupted, and where it cannot write.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::time::{Duration, Instant};

use reapvm_reap::study::{MEASUREMENTS_FILE, StartKind, Study};
use reapvm_tests::launcher::{self, Ended};
use reapvm_tests::scratch;
use reapvm_tests::watchdog::guarded;

/// How long a study may take to begin.
const LIMIT: Duration = Duration::from_secs(60);

fn report_only(dir: &Path) -> Ended {
    let mut command = launcher::command(["study", "--report-only", "--output"]);
    launcher::finish(launcher::start(command.arg(dir)))
}

#[test]
fn a_small_study_is_measured_whole_and_reported() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("a study");
        // What an older one has left is no part of it.
        std::fs::create_dir_all(dir.join("data")).unwrap();
        std::fs::write(dir.join("data/old.csv"), "old").unwrap();
        std::fs::write(dir.join("report.html"), "old").unwrap();
        std::fs::write(dir.join("notes.txt"), "somebody's own").unwrap();
        let mut command = launcher::command(["study", "--functions", "helloworld"]);
        command.args(["--inputs", "2", "--repetitions", "1", "--output"]);
        let ended = launcher::finish(launcher::start(command.arg(&dir)));
        let said = ended.success();
        assert!(said.contains("Cold starts become faster"), "{said}");

        let study = Study::read(&dir).unwrap();
        assert!(study.missing().is_empty(), "{:?}", study.missing());
        let helloworld = &study.functions[0];
        for start in &helloworld.starts {
            let parts: f64 = start.phases_ms.parts().iter().sum();
            // What a start waits for beside its parts is next to nothing.
            assert!(
                (parts - start.total_ms).abs() < 0.01 * start.total_ms,
                "{start:?}"
            );
            assert!(start.phases_ms.connection > 0.0, "{start:?}");
            match start.kind {
                StartKind::PrefetchOne => {
                    assert!(start.missed_pages * 5 < start.working_set_pages.unwrap())
                }
                StartKind::OnDemand => assert!(start.pager_faults > 50),
                _ => {}
            }
        }
        let page = std::fs::read_to_string(dir.join("report.html")).unwrap();
        assert!(page.contains("How functions use memory: helloworld of the built-in guest"));
        assert!(!page.contains("This study is not whole"));
        assert!(page.contains("--output &#39;") && page.contains("a study&#39;"));
        let starts = std::fs::read_to_string(dir.join("data/starts.csv")).unwrap();
        assert_eq!(starts.lines().count(), helloworld.starts.len() + 1);
        assert!(!dir.join("data/old.csv").exists() && dir.join("notes.txt").exists());
        assert!(!dir.join("snapshots").exists(), "they are large");

        // Made again, it is the same.
        report_only(&dir).success();
        assert_eq!(
            std::fs::read_to_string(dir.join("report.html")).unwrap(),
            page
        );

        // As after an interruption behind the first of two functions.
        let mut part = study.clone();
        part.plan.functions.push("pyaes".to_owned());
        part.write(&dir).unwrap();
        let ended = report_only(&dir);
        assert!(ended.stderr.contains("missing: pyaes"), "{ended:?}");
        let page = std::fs::read_to_string(dir.join("report.html")).unwrap();
        assert!(
            page.contains("This study is not whole"),
            "the report says so, too"
        );

        // Cut, foreign or without a trace it is no study.
        let whole = std::fs::read(dir.join(MEASUREMENTS_FILE)).unwrap();
        std::fs::write(dir.join(MEASUREMENTS_FILE), &whole[..whole.len() / 2]).unwrap();
        report_only(&dir).failure(&["truncated"]);
        std::fs::write(dir.join(MEASUREMENTS_FILE), "[1, 2]").unwrap();
        report_only(&dir).failure(&["no measurements of a study"]);
        std::fs::write(dir.join(MEASUREMENTS_FILE), &whole).unwrap();
        let trace = helloworld
            .starts
            .iter()
            .find_map(|start| start.trace.clone());
        std::fs::remove_file(dir.join("traces").join(trace.unwrap())).unwrap();
        report_only(&dir).failure(&["there is no trace", "helloworld"]);
    });
}

#[test]
fn a_study_that_is_killed_leaves_no_report() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("study");
        report_only(&dir).failure(&["there is no study", "reapvm study --output"]);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("report.html"), "of an older study").unwrap();
        let mut command = launcher::command(["study", "--functions", "helloworld", "--output"]);
        let mut child = launcher::start(command.arg(&dir));
        let deadline = Instant::now() + LIMIT;
        while !dir.join(MEASUREMENTS_FILE).exists() {
            assert!(Instant::now() < deadline, "it does not begin");
            assert!(child.try_wait().unwrap().is_none(), "it has ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut second = launcher::command(["study", "--output"]);
        launcher::finish(launcher::start(second.arg(&dir))).failure(&["another study"]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            !dir.join("report.html").exists(),
            "an older report is none of this study"
        );
        report_only(&dir).failure(&["ended before its first function"]);
        assert!(!dir.join("report.html").exists());
    });
}

#[test]
fn what_cannot_be_studied_is_an_error_before_anything_is_measured() {
    guarded(|| {
        let scratch = scratch::dir();
        let file = scratch.path().join("file");
        std::fs::write(&file, "a file").unwrap();
        let study = |arguments: &[&str]| {
            let mut command = launcher::command(["study"]);
            launcher::finish(launcher::start(command.args(arguments)))
        };
        let inside = file.join("study");
        study(&["--output", inside.to_str().unwrap()]).failure(&["cannot use", "--output"]);
        study(&["--output", "/proc/study"]).failure(&["cannot use '/proc/study'"]);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "a file");
        let dir = scratch.path().join("study");
        let dir = dir.to_str().unwrap();
        study(&["--functions", "no_such", "--output", dir]).failure(&["no_such"]);
        study(&["--inputs", "1", "--output", dir]).failure(&["--inputs"]);
        study(&["--report-only", "--inputs", "3", "--output", dir]).failure(&["--report-only"]);
        let linux = ["--image", "linux", "--image-dir", dir, "--output", dir];
        study(&linux).failure(&["make linux-images"]);
        assert!(!Path::new(dir).exists());
    });
}
