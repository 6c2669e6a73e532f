//! Working sets of several recordings: merged, compared, and measured by what guests touch.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;

use reapvm::machine::{Machine, RestoreOptions};
use reapvm::memory::Observation;
use reapvm_reap::{MemoryRestoreMode, SnapshotPageSource, WorkingSet};
use reapvm_snapshot::Snapshot;
use reapvm_tests::launcher;
use reapvm_tests::reports::{count, invoke};
use reapvm_tests::scratch;
use reapvm_tests::snapshots::{self, call};
use reapvm_tests::watchdog::guarded;
use serde_json::{Value, json};

/// Its number: `linux/capability.h`.
const CAP_SYS_ADMIN: libc::c_ulong = 21;

fn record(dir: &Path, input: &Value, copy: &Path) {
    invoke(dir, input, &["--memory", "record"]);
    fs::copy(dir.join("working-set"), copy).unwrap();
}

/// Faults on demand with `input`, and those that a prefetch leaves of them, with its report.
fn faults_and_misses(dir: &Path, input: &Value) -> (u64, u64, Value) {
    let ondemand = invoke(dir, input, &["--memory", "ondemand"]);
    let report = invoke(dir, input, &["--memory", "prefetch", "--measure-unused"]);
    assert_eq!(report["response"], ondemand["response"]);
    let missed = count(&report["faults"]["missed_pages"]);
    (count(&ondemand["faults"]["uffd"]), missed, report)
}

fn describe(snapshot: &Snapshot, path: &Path) -> WorkingSet {
    let memory_bytes = snapshot.manifest().memory.page_count() * 4096;
    WorkingSet::verify(path, &snapshot.id(), memory_bytes).unwrap()
}

fn pages_of(set: &WorkingSet) -> BTreeSet<u64> {
    set.touch_counts()
        .pages()
        .iter()
        .map(|page| page.gpa)
        .collect()
}

#[test]
fn a_set_of_two_inputs_is_prefetched_for_a_third() {
    guarded(|| {
        let scratch = scratch::dir();
        let at = |name: &str| scratch.path().join(name);
        let text = |name: &str| at(name).to_str().unwrap().to_owned();
        let dir = at("snap");
        snapshots::create("rnn_serving", &dir, &[]);
        let inputs: Vec<Value> = (1..4).map(|seed| json!({ "seed": seed })).collect();
        record(&dir, &inputs[0], &at("a"));
        record(&dir, &inputs[1], &at("b"));
        let merge = |out: &str, rule: &[&str]| {
            let mut command = launcher::command(["working-set", "merge"]);
            command.args([at("a"), at("b")]).args(rule);
            command.arg("--snapshot").arg(&dir);
            command.arg("--out").arg(at(out));
            launcher::finish(launcher::start(&mut command)).success();
        };
        merge("snap", &[]);
        merge("both", &["--intersection"]);
        merge("twice", &["--at-least", "2"]);
        let snapshot = snapshots::open(&dir);
        let set = |name: &str| describe(&snapshot, &at(name));
        let (a, b) = (pages_of(&set("a")), pages_of(&set("b")));
        assert_ne!(a, b, "the inputs must tell");
        let union = describe(&snapshot, &dir.join("working-set"));
        assert_eq!(union.recordings(), 2);
        assert_eq!(pages_of(&union), &a | &b);
        for page in union.touch_counts().pages() {
            let holders = u16::from(a.contains(&page.gpa)) + u16::from(b.contains(&page.gpa));
            assert_eq!(page.recordings, holders);
        }
        assert_eq!(pages_of(&set("both")), &a & &b);
        assert_eq!(pages_of(&set("twice")), &a & &b);

        let diff = launcher::run([
            "working-set",
            "diff",
            &text("a"),
            &text("b"),
            "--json",
            "--snapshot",
            &text("snap"),
        ])
        .json();
        assert_eq!(count(&diff["both"]), (&a & &b).len() as u64);
        assert_eq!(count(&diff["only_first"]), (&a - &b).len() as u64);
        assert_eq!(count(&diff["only_second"]), (&b - &a).len() as u64);
        let jaccard = (&a & &b).len() as f64 / (&a | &b).len() as f64;
        assert!((diff["jaccard"].as_f64().unwrap() - jaccard).abs() < 1e-9);

        for (input, least_pct) in [(&inputs[0], 99.5), (&inputs[2], 97.0)] {
            let (faults, missed, report) = faults_and_misses(&dir, input);
            let eliminated = 100.0 * (1.0 - missed as f64 / faults as f64);
            assert!(eliminated >= least_pct, "{missed} of {faults}");
            let set_use = &report["working_set_use"];
            assert_eq!(set_use["source"], "page-tables", "{set_use}");
            // Others were touched before they were installed.
            assert!(count(&set_use["lacking_pages"]) <= missed);
            assert_eq!(count(&set_use["set_pages"]), union.page_count());
            let unused = count(&set_use["unused_pages"]);
            assert!(unused * 10 <= union.page_count(), "{set_use}");
        }
    });
}

#[test]
fn what_a_set_holds_is_shown() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        snapshots::copy(&snapshots::shared("helloworld"), &dir);
        let name = dir.to_str().unwrap();
        launcher::run(["working-set", "show", name]).failure(&["no working set"]);
        invoke(&dir, &json!({ "seed": 1 }), &["--memory", "record"]);
        let shown = launcher::run(["working-set", "show", "--json", name]).json();
        let set = describe(&snapshots::open(&dir), &dir.join("working-set"));
        let pages = set.page_count();
        assert_eq!(count(&shown["pages"]), pages);
        assert_eq!(count(&shown["bytes"]), pages * 4096);
        assert_eq!(count(&shown["file_bytes"]), set.len_bytes());
        assert_eq!(count(&shown["extents"]), set.extents().len() as u64);
        assert_eq!(
            shown["touched_by"],
            json!([{"recordings": 1, "pages": pages}])
        );
        let sum = |bars: &Value, field: &str| -> u64 {
            let bars = bars.as_array().unwrap();
            bars.iter().map(|bar| count(&bar[field])).sum()
        };
        let blocks = &shown["blocks_2mib"];
        let expected: BTreeSet<u64> = pages_of(&set).iter().map(|gpa| gpa >> 21).collect();
        assert_eq!(count(&blocks["blocks"]), expected.len() as u64);
        assert_eq!(sum(&blocks["density_pct"], "pages"), pages);
        assert_eq!(sum(&shown["run_pages"], "pages"), pages);
        // When a recording came to its pages, by the guest's clock.
        let curve = shown["touch_curve"].as_array().unwrap();
        assert!((2..=64).contains(&curve.len()), "{curve:?}");
        for field in ["page", "own_ns"] {
            assert!(curve.iter().is_sorted_by_key(|point| count(&point[field])));
        }
        let data_pages = pages - count(&shown["zero_pages"]);
        let last = curve.last().unwrap();
        assert!(count(&last["page"]) < data_pages);
        // Each page takes the guest some time to touch, but for those before its first instruction.
        assert!(count(&last["own_ns"]) > 100 * pages, "{last}");
        let text = launcher::run(["working-set", "show", name]).success();
        for needle in [
            &pages.to_string(),
            "covered of a block",
            "touched by recordings",
            "of the guest's own time",
            "needed after ms",
        ] {
            assert!(text.contains(needle), "{text}");
        }
    });
}

#[test]
fn sets_that_do_not_belong_together_are_refused() {
    guarded(|| {
        let scratch = scratch::dir();
        let dirs = ["helloworld", "json_serdes"].map(|function| {
            let dir = scratch.path().join(function);
            snapshots::copy(&snapshots::shared(function), &dir);
            invoke(&dir, &json!({ "seed": 1 }), &["--memory", "record"]);
            dir
        });
        let out = scratch.path().join("out");
        let [first, second, out_text] =
            [&dirs[0], &dirs[1], &out].map(|path| path.to_str().unwrap());
        let merge = |arguments: &[&str]| {
            let command = [&["working-set", "merge", "--out", out_text], arguments].concat();
            launcher::run(command)
        };
        merge(&[first, second]).failure(&["belongs to snapshot", second]);
        launcher::run(["working-set", "diff", first, second]).failure(&["belongs to snapshot"]);
        merge(&[first, "--at-least", "2"]).failure(&["2 recordings", "there are 1"]);
        merge(&[first, "--at-least", "0"]).failure(&["at-least"]);
        merge(&[]).failure(&["SET"]);
        // A set outside a snapshot does not say where its pages are to come from.
        let lone = scratch.path().join("lone");
        fs::copy(dirs[0].join("working-set"), &lone).unwrap();
        merge(&[lone.to_str().unwrap()]).failure(&["--snapshot"]);
        merge(&[lone.to_str().unwrap(), "--snapshot", second]).failure(&["belongs to snapshot"]);
        assert!(!out.exists());
        merge(&[lone.to_str().unwrap(), "--snapshot", first]).success();
        assert_eq!(fs::read(&out).unwrap(), fs::read(&lone).unwrap());

        // The version before this one, by its number, in every command that reads a set.
        let mut bytes = fs::read(&lone).unwrap();
        bytes[8] = 3;
        fs::write(dirs[0].join("working-set"), bytes).unwrap();
        let version = ["version 3", "record again"];
        launcher::run(["working-set", "show", first]).failure(&version);
        launcher::run(["invoke", first, "--memory", "prefetch"]).failure(&version);
        launcher::run(["invoke", first, "--working-set-policy", "evolve"]).failure(&version);
        merge(&[first]).failure(&version);
    });
}

#[test]
fn pages_that_the_guest_does_not_touch_are_told_from_those_that_it_does() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        snapshots::create("helloworld", &dir, &[]);
        let input = snapshots::input(1);
        invoke(&dir, &input, &["--memory", "record"]);
        let snapshot = snapshots::open(&dir);
        let path = dir.join("working-set");
        let used = pages_of(&describe(&snapshot, &path));
        // Next to those that are touched, and some far from them: what is entered by mistake
        // would be among the first.
        let memory_bytes = snapshot.manifest().memory.page_count() * 4096;
        let surplus: BTreeSet<u64> = used
            .iter()
            .flat_map(|gpa| [gpa + 4096, gpa.saturating_sub(4096)])
            .chain((0..memory_bytes).step_by(64 * 4096))
            .filter(|gpa| *gpa < memory_bytes && !used.contains(gpa))
            .collect();
        assert!(surplus.len() > 1000);
        let all: Vec<u64> = used.iter().chain(&surplus).copied().collect();
        let mut source = SnapshotPageSource::new(snapshot.clone()).unwrap();
        WorkingSet::write(&path, &snapshot.id(), &all, &mut source).unwrap();

        let report = invoke(&dir, &input, &["--memory", "prefetch", "--measure-unused"]);
        let set_use = &report["working_set_use"];
        assert_eq!(set_use["source"], "page-tables", "{set_use}");
        let off = count(&set_use["unused_pages"]).abs_diff(surplus.len() as u64);
        assert!(off * 50 <= all.len() as u64, "{off} off: {set_use}");
        // Nobody asked, so nobody knows.
        let report = invoke(&dir, &input, &["--memory", "prefetch"]);
        assert_eq!(report["working_set_use"]["source"], "not-measured");

        // Page by page.
        let options = RestoreOptions {
            observation: Observation {
                touches: true,
                misses: true,
            },
            ..RestoreOptions::new(MemoryRestoreMode::Prefetch)
        };
        let mut machine = Machine::restore(&snapshot, options).unwrap();
        machine.resume().unwrap();
        call(&machine, 1);
        machine.pause().unwrap();
        let touched = machine.memory().touched_pages().unwrap().unwrap();
        let taken_as_used: BTreeSet<u64> = touched.touched.into_iter().collect();
        let taken_as_unused: BTreeSet<u64> = touched.untouched.into_iter().collect();
        let wrong = [
            (&taken_as_used & &surplus, &surplus),
            (&taken_as_unused & &used, &used),
        ];
        for (wrong, of) in wrong {
            assert!(
                wrong.len() * 50 <= of.len(),
                "{} of {}",
                wrong.len(),
                of.len()
            );
        }
        // One record a page, whoever else waited for it too.
        let missed = machine.memory().recording().unwrap();
        assert!(missed.len() as u64 <= machine.memory().pager_stats().faults);
    });
}

#[test]
fn what_cannot_be_measured_is_said_with_its_reason() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        snapshots::copy(&snapshots::shared("helloworld"), &dir);
        invoke(&dir, &snapshots::input(1), &["--memory", "record"]);
        let mut command = launcher::command(["invoke", "--json", "--memory", "prefetch"]);
        command.arg("--measure-unused").arg(&dir);
        // SAFETY: prctl is a system call and nothing else, as the child of a fork needs it.
        unsafe {
            command.pre_exec(|| {
                // Even root has only the capabilities of this set after an exec.
                match libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let report = launcher::finish(launcher::start(&mut command)).json();
        assert_eq!(report["mode"], "prefetch");
        let set_use = &report["working_set_use"];
        assert_eq!(set_use["source"], "not-measured");
        let reason = set_use["reason"].as_str().unwrap();
        assert!(reason.contains("CAP_SYS_ADMIN"), "{reason}");
    });
}

#[test]
fn a_recording_tells_how_well_the_set_before_it_fitted() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        snapshots::create("json_serdes", &dir, &[]);
        let record = |orders: u64| {
            let input = json!({ "seed": 1, "orders": orders });
            invoke(&dir, &input, &["--memory", "record"])
        };
        let set = || pages_of(&describe(&snapshots::open(&dir), &dir.join("working-set")));
        let first = record(600);
        assert!(first["working_set_use"].is_null(), "there was none");
        let before = set();
        let report = record(100);
        let now = set();
        let set_use = &report["working_set_use"];
        assert_eq!(set_use["source"], "recording");
        assert_eq!(count(&set_use["set_pages"]), before.len() as u64);
        assert_eq!(
            count(&set_use["unused_pages"]),
            (&before - &now).len() as u64
        );
        assert_eq!(
            count(&set_use["lacking_pages"]),
            (&now - &before).len() as u64
        );
        assert!(
            (&before - &now).len() > 100,
            "fewer orders touch fewer pages"
        );
    });
}
