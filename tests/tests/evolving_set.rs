//! Working sets that evolve: from start to start they become right, whatever they were, and stay
//! valid whoever dies while they are written.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use reapvm_reap::{SnapshotPageSource, WorkingSet, WorkingSetError, WorkingSetState};
use reapvm_snapshot::Snapshot;
use reapvm_tests::launcher;
use reapvm_tests::reports::{count, invoke};
use reapvm_tests::scratch;
use reapvm_tests::server::Server;
use reapvm_tests::snapshots;
use reapvm_tests::watchdog::guarded;
use serde_json::{Value, json};

const EVOLVE: [&str; 2] = ["--working-set-policy", "evolve"];

fn memory_bytes(snapshot: &Snapshot) -> u64 {
    snapshot.manifest().memory.page_count() * 4096
}

fn set_of(snapshot: &Snapshot) -> Result<WorkingSet, WorkingSetError> {
    let path = snapshot.working_set_path();
    WorkingSet::verify(&path, &snapshot.id(), memory_bytes(snapshot))
}

fn state_of(snapshot: &Snapshot) -> Option<WorkingSetState> {
    let path = snapshot.working_set_state_path();
    WorkingSetState::read(&path, &snapshot.id(), memory_bytes(snapshot)).unwrap()
}

/// Replaces the set by one of these pages, as one recording would have made it.
fn write_set(snapshot: &std::sync::Arc<Snapshot>, gpas: &[u64]) {
    let mut source = SnapshotPageSource::new(snapshot.clone()).unwrap();
    let path = snapshot.working_set_path();
    WorkingSet::write(&path, &snapshot.id(), gpas, &mut source).unwrap();
}

/// Starts until one prefetches and has no reason for another recording; returns what was done.
fn settle(dir: &Path, input: &Value) -> Vec<(String, Value)> {
    let mut starts = Vec::new();
    for _ in 0..8 {
        let report = invoke(dir, input, &EVOLVE);
        let mode = report["mode"].as_str().unwrap().to_owned();
        let evolution = report["evolution"].clone();
        assert_eq!(evolution["policy"], "evolve");
        assert!(
            evolution["state_reset"].is_null() || starts.len() < 2,
            "{evolution}"
        );
        let is_settled = mode == "prefetch" && evolution["record_next"].is_null();
        starts.push((mode, evolution));
        if is_settled {
            return starts;
        }
    }
    panic!("it did not settle: {starts:?}");
}

/// Checks that the set fits `input`, of which a start on demand takes `faults` faults.
fn check_that_it_fits(dir: &Path, input: &Value, least_pct: f64) {
    let ondemand = invoke(dir, input, &["--memory", "ondemand"]);
    let report = invoke(dir, input, &["--memory", "prefetch", "--measure-unused"]);
    assert_eq!(report["response"], ondemand["response"]);
    let missed = count(&report["faults"]["missed_pages"]);
    let faults = count(&ondemand["faults"]["uffd"]);
    let eliminated = 100.0 * (1.0 - missed as f64 / faults as f64);
    assert!(eliminated >= least_pct, "{missed} of {faults}");
    let set_use = &report["working_set_use"];
    assert_eq!(set_use["source"], "page-tables", "{set_use}");
    assert!(
        count(&set_use["unused_pages"]) * 10 <= count(&set_use["set_pages"]),
        "{set_use}"
    );
}

#[test]
fn a_set_of_another_functions_pages_becomes_right() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        let other = scratch.path().join("other");
        snapshots::copy(&snapshots::shared("helloworld"), &dir);
        snapshots::copy(&snapshots::shared("json_serdes"), &other);
        let snapshot = snapshots::open(&dir);
        invoke(&other, &snapshots::input(1), &["--memory", "record"]);
        let foreign = set_of(&snapshots::open(&other)).unwrap();
        let gpas: Vec<u64> = foreign
            .touch_counts()
            .pages()
            .iter()
            .map(|page| page.gpa)
            .collect();
        write_set(&snapshot, &gpas);
        let input = snapshots::input(1);
        let starts = settle(&dir, &input);
        // It prefetched what is nearly all that it touches, and recorded until what it does not
        // touch had left.
        let modes: Vec<&str> = starts.iter().map(|start| &start.0[..]).collect();
        assert_eq!(
            modes,
            ["prefetch", "record", "record", "record", "prefetch"]
        );
        let reasons = starts[1..4].iter().map(|start| &start.1["recorded"]);
        assert!(
            reasons.skip(1).all(|reason| reason == "unused"),
            "{starts:?}"
        );
        let left: u64 = starts
            .iter()
            .map(|start| count(&start.1["left_pages"]))
            .sum();
        assert!(left > 0, "{starts:?}");
        check_that_it_fits(&dir, &input, 99.5);
        check_that_it_fits(&dir, &snapshots::input(2), 97.0);
        // What every recording touched counts in each of them.
        let set = set_of(&snapshot).unwrap();
        let counts = set.touch_counts();
        let always = counts
            .pages()
            .iter()
            .filter(|page| page.recordings == set.recordings())
            .count();
        assert!(always as u64 * 100 > set.page_count() * 90);
    });
}

#[test]
fn an_empty_set_and_one_for_smaller_inputs_become_right() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        snapshots::create("json_serdes", &dir, &[]);
        let snapshot = snapshots::open(&dir);
        let small = json!({ "seed": 1, "orders": 60 });
        let large = json!({ "seed": 2, "orders": 900 });
        write_set(&snapshot, &[]);
        let starts = settle(&dir, &small);
        assert_eq!(starts[0].0, "prefetch");
        assert_eq!(starts[0].1["record_next"], "misses");
        check_that_it_fits(&dir, &small, 99.5);
        let before = set_of(&snapshot).unwrap().page_count();
        let starts = settle(&dir, &large);
        assert_eq!(starts[0].1["record_next"], "misses", "{starts:?}");
        assert!(set_of(&snapshot).unwrap().page_count() > before);
        check_that_it_fits(&dir, &large, 99.5);
        let third = json!({ "seed": 3, "orders": 850 });
        check_that_it_fits(&dir, &third, 97.0);
    });
}

#[test]
fn policies_do_what_they_say() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        snapshots::copy(&snapshots::shared("helloworld"), &dir);
        let snapshot = snapshots::open(&dir);
        let input = snapshots::input(1);
        let first = invoke(&dir, &input, &EVOLVE);
        assert_eq!(first["mode"], "record");
        assert_eq!(first["evolution"]["recorded"], "no-set");
        let second = invoke(&dir, &input, &EVOLVE);
        assert_eq!(second["mode"], "prefetch");
        assert_eq!(second["response"], first["response"]);
        assert!(second["evolution"]["recorded"].is_null());
        for recordings in 2..4 {
            let report = invoke(&dir, &input, &["--working-set-policy", "record"]);
            assert_eq!(report["mode"], "record");
            assert_eq!(report["evolution"]["recorded"], "always");
            assert_eq!(set_of(&snapshot).unwrap().recordings(), recordings);
        }
        // A fixed set stays as it is, unless its recording is asked for.
        let before = fs::read(snapshot.working_set_path()).unwrap();
        let report = invoke(&dir, &input, &["--memory", "prefetch"]);
        assert!(report["evolution"].is_null());
        assert_eq!(fs::read(snapshot.working_set_path()).unwrap(), before);
        // Whoever says how memory comes back cannot leave it to a policy too.
        let name = dir.to_str().unwrap();
        launcher::run([&["invoke", name, "--memory", "prefetch"], &EVOLVE[..]].concat())
            .failure(&["--memory"]);
        launcher::run(["invoke", name, "--working-set-policy", "grow"]).failure(&["evolve"]);
        launcher::run(["invoke", name, "--miss-threshold", "101"]).failure(&["percentage"]);
        // A measured prefetch has its word too.
        let mut gpas: Vec<u64> = (0..memory_bytes(&snapshot)).step_by(8 * 4096).collect();
        let counts = set_of(&snapshot).unwrap().touch_counts();
        let used: BTreeSet<u64> = counts.pages().iter().map(|page| page.gpa).collect();
        gpas.retain(|gpa| !used.contains(gpa));
        gpas.extend(used);
        write_set(&snapshot, &gpas);
        let report = invoke(&dir, &input, &[&EVOLVE[..], &["--measure-unused"]].concat());
        assert_eq!(report["evolution"]["record_next"], "unused", "{report}");
        assert_eq!(
            invoke(&dir, &input, &EVOLVE)["evolution"]["recorded"],
            "unused"
        );
    });
}

#[test]
fn a_state_that_cannot_be_used_is_an_error_or_reset_by_name() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        snapshots::copy(&snapshots::shared("helloworld"), &dir);
        let input = snapshots::input(1);
        invoke(&dir, &input, &EVOLVE);
        let path = dir.join("working-set-state");
        let good = fs::read(&path).unwrap();
        let changed = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] ^= value;
            bytes
        };
        let cases = [
            (good[..good.len() / 2].to_vec(), "truncated"),
            (Vec::new(), "truncated"),
            (changed(8, 3), "version 2"),
            (changed(20, 1), "belongs to snapshot"),
            (changed(60, 1), "damaged"),
            (b"something else entirely".to_vec(), "damaged"),
        ];
        let name = dir.to_str().unwrap();
        for (bytes, message) in cases {
            fs::write(&path, &bytes).unwrap();
            launcher::run([&["invoke", name], &EVOLVE[..]].concat())
                .failure(&[message, "--reset-working-set-state"]);
            assert_eq!(fs::read(&path).unwrap(), bytes, "nothing has changed it");
        }
        // A fixed set does not ask the state.
        invoke(&dir, &input, &["--memory", "prefetch"]);
        let reset = [&EVOLVE[..], &["--reset-working-set-state"]].concat();
        let report = invoke(&dir, &input, &reset);
        assert_eq!(report["mode"], "prefetch");
        let reason = report["evolution"]["state_reset"].as_str().unwrap();
        assert!(reason.contains("damaged"), "{reason}");
        let report = invoke(&dir, &input, &EVOLVE);
        assert!(report["evolution"]["state_reset"].is_null());
        // What is no file is no state that could be begun anew.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        launcher::run([&["invoke", name], &reset[..]].concat()).failure(&["cannot read", name]);
    });
}

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

#[test]
fn set_and_state_are_valid_whoever_is_killed() {
    guarded(|| {
        const LAUNCHERS: usize = 8;
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        snapshots::copy(&snapshots::shared("helloworld"), &dir);
        let snapshot = snapshots::open(&dir);
        write_set(&snapshot, &[]);
        let mut numbers = Numbers(7);
        let mut start = |seed: u64| -> Child {
            // Every start has something to write: it records, or it is told that any miss is one
            // too many.
            let policy = ["record", "evolve"][numbers.below(2) as usize];
            let mut command = launcher::command(["invoke", "--json", "--miss-threshold", "0"]);
            command
                .arg(&dir)
                .args(["--working-set-policy", policy, "--timeout", "120"])
                .args(["--input", &snapshots::input(seed).to_string()]);
            launcher::start(&mut command)
        };
        let mut ends = Numbers(11);
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut looks = 0_u64;
                while !is_over.load(Ordering::Relaxed) || looks == 0 {
                    set_of(&snapshot).unwrap();
                    state_of(&snapshot);
                    looks += 1;
                    thread::sleep(Duration::from_millis(5));
                }
                looks
            });
            for round in 0..3 {
                let children: Vec<Child> = (0..LAUNCHERS as u64)
                    .map(|launcher| start(round * 100 + launcher))
                    .collect();
                for mut child in children {
                    // Some are done by then, some are writing, some have hardly begun.
                    thread::sleep(Duration::from_millis(ends.below(900)));
                    child.kill().unwrap();
                    child.wait().unwrap();
                }
            }
            // And some that nobody kills.
            let survivors: Vec<Child> = (0..LAUNCHERS as u64).map(&mut start).collect();
            for child in survivors {
                launcher::finish(child).success();
            }
            is_over.store(true, Ordering::Relaxed);
            assert!(watcher.join().unwrap() > 0);
        });
        let set = set_of(&snapshot).unwrap();
        assert!(set.page_count() > 0 && set.recordings() > 1);
        if let Some(state) = state_of(&snapshot)
            && state.fingerprint == set.fingerprint()
        {
            assert_eq!(state.untouched_in_a_row.len() as u64, set.page_count());
        }
        settle(&dir, &snapshots::input(1));
        check_that_it_fits(&dir, &snapshots::input(1), 99.5);
        launcher::run(["snapshot", "verify", dir.to_str().unwrap()]).success();
    });
}

#[test]
fn a_servers_machines_let_their_snapshots_set_evolve() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("hello");
        let expected = snapshots::create("helloworld", &dir, &[1, 2, 3]);
        let mut arguments = EVOLVE.map(String::from).to_vec();
        arguments.extend(["--ready", "3", "--max-running", "3"].map(String::from));
        arguments.push(dir.to_str().unwrap().to_owned());
        let server = Server::start(&scratch.path().join("s"), arguments);
        let request = |seed: u64| {
            json!({"id": seed, "op": "invoke", "template": "hello", "timeout_s": 120,
                   "input": snapshots::input(seed)})
        };
        let check = |answer: &Value| {
            let seed = answer["id"].as_u64().unwrap();
            let report = &answer["result"]["report"];
            assert_eq!(report["response"], expected[seed as usize - 1], "{answer}");
            report.clone()
        };
        let first = check(&server.ask(&request(1)));
        assert_eq!(first["mode"], "record");
        assert_eq!(first["evolution"]["recorded"], "no-set");
        let second = check(&server.ask(&request(1)));
        assert_eq!(second["mode"], "prefetch");
        assert_eq!(count(&second["evolution"]["added_pages"]), 0);

        // Several at once, whatever each of them does to the set.
        let mut client = server.client();
        for round in 0..4 {
            for seed in 1..=3 {
                client.send(&request(seed));
            }
            for _ in 1..=3 {
                let report = check(&client.receive());
                assert_eq!(report["evolution"]["policy"], "evolve", "round {round}");
            }
        }
        let before = fs::read(dir.join("working-set")).unwrap();
        let mut asked = request(3);
        asked["mode"] = json!("ondemand");
        let report = check(&server.ask(&asked));
        assert_eq!(report["mode"], "ondemand");
        assert!(report["evolution"].is_null(), "{report}");
        assert_eq!(fs::read(dir.join("working-set")).unwrap(), before);

        let mut asked = request(1);
        asked["keep_recording"] = json!(false);
        let answer = server.ask(&asked);
        assert_eq!(answer["error"]["kind"], "bad-request", "{answer}");
        drop(server);
        for seed in 1..=3 {
            check_that_it_fits(&dir, &snapshots::input(seed), 99.0);
        }
        launcher::run(["snapshot", "verify", dir.to_str().unwrap()]).success();
    });
}

#[test]
fn a_policy_that_decides_the_mode_is_refused_with_another_mode() {
    let scratch = scratch::dir();
    let socket = scratch.path().join("s");
    let dir = snapshots::shared("helloworld");
    let mut arguments = vec!["serve", "--socket", socket.to_str().unwrap()];
    arguments.extend(["--memory", "ondemand"]);
    arguments.extend(EVOLVE);
    arguments.push(dir.to_str().unwrap());
    launcher::run(arguments).failure(&["evolve", "--memory"]);
    assert!(!socket.exists());
}
