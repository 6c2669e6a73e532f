//! `reapvm serve`: what it promises to clients, and what it does when machines, clients, snapshots
//! or itself come to harm.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reapvm::machine::can_pre_fault;
use reapvm_reap::MemoryRestoreMode;
use reapvm_tests::launcher;
use reapvm_tests::scratch;
use reapvm_tests::server::{Server, is_alive, signal, try_signal, wait_until};
use reapvm_tests::snapshots::{self, input};
use reapvm_tests::watchdog::guarded;
use serde_json::{Value, json};
use tempfile::TempDir;

fn invoke(template: &str, seed: u64) -> Value {
    json!({"id": seed, "op": "invoke", "template": template, "input": input(seed), "timeout_s": 60})
}

fn error_kind(answer: &Value) -> &str {
    assert_eq!(answer["ok"], false, "{answer}");
    assert!(
        answer["error"]["message"].as_str().unwrap().len() > 5,
        "{answer}"
    );
    answer["error"]["kind"].as_str().unwrap()
}

/// A scratch directory with links to the same snapshot, so that their machines can be told apart.
fn links(names: &[&str]) -> (TempDir, Vec<PathBuf>) {
    let scratch = scratch::dir();
    let target = snapshots::shared("helloworld");
    let links = names
        .iter()
        .map(|name| {
            let link = scratch.path().join(name);
            symlink(&target, &link).unwrap();
            link
        })
        .collect();
    (scratch, links)
}

/// Serves the snapshot `a`, and `b`, which is the same, on demand.
fn serve_two(arguments: &[&str]) -> (TempDir, Server) {
    let (scratch, dirs) = links(&["a.snap", "b.snap"]);
    let mut all = vec!["--memory".to_owned(), "ondemand".to_owned()];
    all.extend(arguments.iter().map(|&argument| argument.to_owned()));
    for (name, dir) in ["a", "b"].iter().zip(&dirs) {
        all.push(format!("{name}={}", dir.display()));
    }
    let server = Server::start(&scratch.path().join("s"), all);
    (scratch, server)
}

/// Stops the one prepared machine of `template`, so that an invocation that gets it takes as long as
/// the test wants.
fn stop_worker(server: &Server, template: &str) -> u32 {
    let pids = server.workers(&format!("{template}.snap"));
    let [pid] = pids[..] else { panic!("{pids:?}") };
    signal(pid, libc::SIGSTOP);
    pid
}

fn wait_for_running(server: &Server, count: u64) {
    wait_until("machines running", || {
        server.status()["workers"]["running"] == count
    });
}

#[test]
fn invocations_are_answered_as_by_the_machine_that_was_saved() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("hello");
        let expected = snapshots::create("helloworld", &dir, &[1, 2, 3, 4, 5]);
        let server = Server::start(&scratch.path().join("s"), [dir.clone()]);
        server.wait_for_ready(1);
        for (index, mode) in ["record", "prefetch", "ondemand", "copy", "file"]
            .iter()
            .enumerate()
        {
            server.wait_for_ready(1);
            let seed = index as u64 + 1;
            let mut request = invoke("hello", seed);
            request["mode"] = json!(mode);
            request["count_resident"] = json!(true);
            let answer = server.ask(&request);
            assert_eq!(answer["id"], seed, "{answer}");
            let result = &answer["result"];
            let report = &result["report"];
            assert_eq!(report["response"], expected[index], "{answer}");
            assert_eq!(report["mode"], *mode);
            // A machine that was prepared for the other modes has no file mapped.
            assert_eq!(result["prepared"], *mode != "file", "{answer}");
            let marks = &report["marks_ms"];
            let steps = [
                "process_start",
                "state_loaded",
                "memory_ready",
                "first_run",
                "response",
            ]
            .map(|step| marks[step].as_f64().unwrap());
            assert!(steps.is_sorted() && steps[0] > 0.0, "{marks}");
            let waited = steps[2] - steps[1];
            let control = result["control_ms"].as_f64().unwrap();
            let turn = result["turn_ms"].as_f64().unwrap();
            assert!(
                (control - (steps[3] - waited - turn)).abs() < 1e-6,
                "{answer}"
            );
            assert!(report["guest_resident_kib"].as_u64().unwrap() > 0);
        }
        let status = server.status();
        assert_eq!(
            status["counts"],
            json!({"served": 5, "failed": 0, "prepared": 4})
        );
        let list = server.ask(&json!({"op": "list"}))["result"]["templates"].clone();
        assert_eq!(list[0]["function"], "helloworld");
        assert_eq!(
            list[0]["snapshot_id"],
            snapshots::open(&dir).id().to_string()
        );

        // Several at once on one connection; answers come as they are there and say whose they are.
        let mut client = server.client();
        for seed in 1..=5 {
            client.send(&invoke("hello", seed));
        }
        let mut seen = Vec::new();
        for _ in 0..5 {
            let answer = client.receive();
            let seed = answer["id"].as_u64().unwrap();
            assert_eq!(
                answer["result"]["report"]["response"],
                expected[seed as usize - 1]
            );
            seen.push(seed);
        }
        seen.sort_unstable();
        assert_eq!(seen, [1, 2, 3, 4, 5]);
    });
}

#[test]
fn the_client_command_asks_and_prints() {
    guarded(|| {
        let (_scratch, server) = serve_two(&[]);
        let ask = |arguments: &[&str]| {
            let socket = server.socket.to_str().unwrap();
            launcher::run(["request", "--socket", socket].iter().chain(arguments))
        };
        let printed =
            ask(&["invoke", "a", "--input", r#"{"seed":1}"#, "--timeout", "60"]).success();
        assert!(
            printed.contains("helloworld") && printed.contains("first KVM_RUN"),
            "{printed}"
        );
        let answer = ask(&[
            "invoke",
            "a",
            "--memory",
            "copy",
            "--json",
            "--timeout",
            "60",
        ])
        .json();
        assert_eq!(answer["report"]["mode"], "copy");
        let id = answer["snapshot_id"].as_str().unwrap();
        ask(&["invoke", "a", "--snapshot-id", id, "--timeout", "60"]).success();
        let other = "0".repeat(32);
        ask(&["invoke", "a", "--snapshot-id", &other]).failure(&["snapshot", id, &other]);
        ask(&["invoke", "c"]).failure(&["no-template", "a, b"]);
        ask(&[
            "invoke",
            "a",
            "--input",
            r#"{"colour":1}"#,
            "--timeout",
            "60",
        ])
        .failure(&["the function failed", "colour"]);
        ask(&["invoke", "a", "--memory", "prefetch"]).failure(&["working", "record"]);
        assert_eq!(
            ask(&["list"]).json()["templates"].as_array().unwrap().len(),
            2
        );
        assert_eq!(ask(&["status"]).json()["pid"], server.pid);
        ask(&["trim", "c"]).failure(&["no-template"]);
        ask(&["trim", "a"]).success();
        assert_eq!(ask(&["shutdown"]).json()["stopping"], true);
        let socket = server.socket.clone();
        assert_eq!(server.finish().code, Some(0));
        let name = socket.to_str().unwrap();
        launcher::run(["request", "--socket", name, "list"]).failure(&[name, "reapvm serve"]);
    });
}

#[test]
fn a_machine_that_dies_takes_no_other_with_it() {
    guarded(|| {
        let (_scratch, server) = serve_two(&[]);
        server.wait_for_ready(2);
        let victim = stop_worker(&server, "a");
        let mut unlucky = server.client();
        unlucky.send(&invoke("a", 1));
        wait_for_running(&server, 1);
        let mut lucky = server.client();
        lucky.send(&invoke("b", 2));
        signal(victim, libc::SIGKILL);
        let answer = unlucky.receive();
        assert_eq!(error_kind(&answer), "crashed", "{answer}");
        assert_eq!(answer["id"], 1);
        assert_eq!(lucky.receive()["ok"], true);
        // A prepared one that dies is replaced.
        server.wait_for_ready(2);
        let idle = server.workers("a.snap")[0];
        signal(idle, libc::SIGKILL);
        wait_until("the dead machine is replaced", || {
            server
                .workers("a.snap")
                .iter()
                .any(|&pid| pid != idle && is_alive(pid))
        });
        assert_eq!(server.ask(&invoke("a", 3))["ok"], true);
    });
}

#[test]
fn what_is_too_much_waits_and_then_is_refused() {
    guarded(|| {
        let (_scratch, server) = serve_two(&["--max-running", "1", "--max-queued", "1"]);
        server.wait_for_ready(2);
        let holder = stop_worker(&server, "a");
        let mut first = server.client();
        first.send(&invoke("a", 1));
        wait_for_running(&server, 1);
        let mut second = server.client();
        second.send(&invoke("b", 2));
        wait_until("the second waits", || server.status()["queued"] == 1);
        let answer = server.ask(&invoke("b", 3));
        assert_eq!(error_kind(&answer), "busy", "{answer}");
        signal(holder, libc::SIGCONT);
        assert_eq!(first.receive()["ok"], true);
        let answer = second.receive();
        assert_eq!(answer["ok"], true, "{answer}");
        assert!(answer["result"]["queued_ms"].as_f64().unwrap() > 0.0);
    });
}

#[test]
fn a_client_that_goes_takes_its_invocations_with_it() {
    guarded(|| {
        let (_scratch, server) = serve_two(&["--max-running", "1"]);
        server.wait_for_ready(2);
        let holder = stop_worker(&server, "a");
        let mut leaving = server.client();
        leaving.send(&invoke("a", 1));
        // One that waits goes too.
        leaving.send(&invoke("a", 2));
        wait_for_running(&server, 1);
        let mut waiting = server.client();
        waiting.send(&invoke("b", 3));
        wait_until("two wait", || server.status()["queued"] == 2);
        drop(leaving);
        let answer = waiting.receive();
        assert_eq!(
            (&answer["ok"], &answer["id"]),
            (&json!(true), &json!(3)),
            "{answer}"
        );
        wait_until("the machine ends", || !is_alive(holder));
        assert_eq!(server.status()["counts"]["failed"], 2);
    });
}

#[test]
fn clients_that_talk_nonsense_harm_nobody() {
    guarded(|| {
        let (_scratch, server) = serve_two(&[]);
        let mut steady = server.client();
        // After a line that is no request, the next one is read.
        let mut client = server.client();
        for garbage in [
            "",
            "{",
            "[]",
            "\u{0}\u{1}",
            r#"{"op":"fly"}"#,
            r#"{"op":"invoke"}"#,
        ] {
            client
                .send_bytes(format!("{garbage}\n").as_bytes())
                .unwrap();
            assert_eq!(error_kind(&client.receive()), "bad-request", "{garbage}");
        }
        client
            .send_bytes(b"\xff\xfe\n{\"id\":\"x\",\"op\":\"list\"}\n")
            .unwrap();
        assert_eq!(error_kind(&client.receive()), "bad-request");
        assert_eq!(client.receive()["id"], "x");
        // Half a line, and its end.
        let mut half = server.client();
        half.send_bytes(b"{\"op\":\"li").unwrap();
        steady.send(&json!({"id": 1, "op": "list"}));
        assert_eq!(steady.receive()["id"], 1);
        half.send_bytes(b"st\"}\n{\"op\"").unwrap();
        assert_eq!(half.receive()["ok"], true);
        half.end_requests();
        assert_eq!(error_kind(&half.receive()), "bad-request");
        assert_eq!(half.next_answer(), None);
        // A line without an end, for as long as the server takes it.
        let mut long = server.client();
        while long.send_bytes(&[b'x'; 64 << 10]).is_ok() {}
        if let Some(answer) = long.next_answer() {
            assert_eq!(error_kind(&answer), "bad-request");
        }
        assert_eq!(long.next_answer(), None);
        // Half a line and gone, and nothing at all.
        server.client().send_bytes(b"{\"op\":").unwrap();
        drop(server.client());
        // One that asks, says that it will ask no more, and waits.
        let mut last = server.client();
        last.send(&invoke("a", 7));
        last.end_requests();
        let answer = last.receive();
        assert_eq!(
            (&answer["id"], &answer["ok"]),
            (&json!(7), &json!(true)),
            "{answer}"
        );
        assert_eq!(last.next_answer(), None);
        steady.send(&json!({"id": 2, "op": "status"}));
        let status = steady.receive();
        assert_eq!(status["id"], 2);
        wait_until("the others are gone", || server.status()["clients"] == 3);
        drop(client);
    });
}

#[test]
fn what_is_prepared_is_given_back() {
    guarded(|| {
        let (_scratch, server) = serve_two(&["--ready", "3"]);
        server.wait_for_ready(6);
        let resident_kib = |status: &Value| status["resident_kib"].as_u64().unwrap();
        let prepared = server.status();
        assert!(prepared["workers_resident_kib"].as_u64().unwrap() > 0);
        // On one connection, so that no other is just being closed.
        let mut observer = server.client();
        let mut descriptors = || {
            wait_until("the other clients are gone", || {
                observer.send(&json!({"op": "status"}));
                observer.receive()["result"]["clients"] == 1
            });
            server.descriptor_count()
        };
        let with_machines = descriptors();
        for round in 0..3 {
            assert_eq!(server.ask(&json!({"op": "trim"}))["result"]["dropped"], 6);
            server.wait_for_ready(0);
            let trimmed = server.status();
            assert_eq!(trimmed["workers_resident_kib"], 0);
            assert!(server.workers("").is_empty());
            // One connection for each machine, and nothing that stays.
            assert_eq!(descriptors(), with_machines - 6);
            assert!(
                resident_kib(&trimmed) < resident_kib(&prepared) + 2048,
                "{trimmed} after {prepared}"
            );
            // They come back when they are asked for, each template's for itself.
            assert_eq!(server.ask(&invoke("a", round))["ok"], true);
            server.wait_for_ready(3);
            assert_eq!(server.ask(&invoke("b", round))["ok"], true);
            server.wait_for_ready(6);
        }
    });
}

#[test]
fn what_nobody_asks_for_is_given_back_by_itself() {
    guarded(|| {
        let (_scratch, server) = serve_two(&["--idle", "1"]);
        server.wait_for_ready(0);
        assert_eq!(server.status()["workers_resident_kib"], 0);
        let list = server.ask(&json!({"op": "list"}));
        assert_eq!(list["result"]["templates"][0]["dormant"], true, "{list}");
        assert_eq!(server.ask(&invoke("a", 1))["ok"], true);
        server.wait_for_ready(0);
    });
}

#[test]
fn a_snapshot_that_is_replaced_is_loaded_anew() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("f");
        snapshots::copy(&snapshots::shared("helloworld"), &dir);
        let server = Server::start(
            &scratch.path().join("s"),
            [
                "--memory".into(),
                "ondemand".into(),
                dir.clone().into_os_string(),
            ],
        );
        server.wait_for_ready(1);
        let answer = server.ask(&invoke("f", 1));
        assert_eq!(
            answer["result"]["report"]["function"], "helloworld",
            "{answer}"
        );
        let old = answer["result"]["snapshot_id"].clone();
        server.wait_for_ready(1);
        snapshots::create("pyaes", &dir, &[]);
        let answer = server.ask(&invoke("f", 2));
        assert_eq!(answer["result"]["report"]["function"], "pyaes", "{answer}");
        assert_ne!(answer["result"]["snapshot_id"], old);
        let mut request = invoke("f", 3);
        request["snapshot_id"] = old;
        let answer = server.ask(&request);
        assert_eq!(error_kind(&answer), "snapshot", "{answer}");
        // The machines that were prepared of the old one are gone, new ones take their place.
        server.wait_for_ready(1);
        let answer = server.ask(&invoke("f", 4));
        assert_eq!(answer["result"]["prepared"], true, "{answer}");
        let list = server.ask(&json!({"op": "list"}));
        assert_eq!(list["result"]["templates"][0]["reloads"], 1);

        // Damaged, gone, and there again.
        server.wait_for_ready(1);
        let manifest = dir.join(reapvm_snapshot::MANIFEST_FILE);
        let good = fs::read(&manifest).unwrap();
        fs::remove_file(&manifest).unwrap();
        fs::write(&manifest, &good[..good.len() / 2]).unwrap();
        let answer = server.ask(&invoke("f", 5));
        assert_eq!(error_kind(&answer), "snapshot", "{answer}");
        let away = scratch.path().join("away");
        fs::rename(&dir, &away).unwrap();
        let answer = server.ask(&invoke("f", 6));
        assert_eq!(error_kind(&answer), "snapshot", "{answer}");
        fs::remove_file(away.join(reapvm_snapshot::MANIFEST_FILE)).unwrap();
        fs::write(away.join(reapvm_snapshot::MANIFEST_FILE), &good).unwrap();
        fs::rename(&away, &dir).unwrap();
        assert_eq!(server.ask(&invoke("f", 7))["ok"], true);
        // A state that is damaged is found when a machine is made of it, not before.
        snapshots::flip_bit(&dir.join("state"), 1000);
        server.ask(&json!({"op": "trim"}));
        let answer = server.ask(&invoke("f", 8));
        assert_eq!(error_kind(&answer), "failed", "{answer}");
        assert!(
            answer["error"]["message"]
                .as_str()
                .unwrap()
                .contains("state"),
            "{answer}"
        );
    });
}

#[test]
fn a_recording_is_what_the_next_prefetch_reads() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("f");
        snapshots::copy(&snapshots::shared("helloworld"), &dir);
        let server = Server::start(&scratch.path().join("s"), [&dir]);
        server.wait_for_ready(1);
        let answer = server.ask(&invoke("f", 1));
        assert_eq!(error_kind(&answer), "failed", "{answer}");
        let mut request = invoke("f", 1);
        request["mode"] = json!(MemoryRestoreMode::Record);
        let answer = server.ask(&request);
        let pages = answer["result"]["report"]["working_set_pages"]
            .as_u64()
            .unwrap();
        let answer = server.ask(&invoke("f", 2));
        let faults = &answer["result"]["report"]["faults"];
        assert_eq!(faults["prefetched_pages"], pages, "{answer}");
    });
}

#[test]
fn a_server_enters_pages_ahead_where_kvm_can_and_does_not_start_where_it_cannot() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("f");
        let expected = snapshots::create("helloworld", &dir, &[3, 4]);
        let socket = scratch.path().join("socket");
        let arguments = ["--pre-fault", dir.to_str().unwrap()];
        if !can_pre_fault().unwrap() {
            let mut command = launcher::command(["serve", "--socket"]);
            command.arg(&socket).args(arguments);
            launcher::finish(launcher::start(&mut command))
                .failure(&["KVM_PRE_FAULT_MEMORY", "leave out --pre-fault"]);
            assert_eq!(scratch::names_in(scratch.path()), ["f"]);
            return;
        }
        let server = Server::start(&socket, arguments);
        let mut record = invoke("f", 3);
        record["mode"] = json!("record");
        let recorded = server.ask(&record);
        assert_eq!(recorded["result"]["report"]["response"], expected[0]);
        // Nothing is installed, so that there is nothing to enter.
        let entered = |answer: &Value| answer["result"]["report"]["pre_fault_ms"]["pages"].as_u64();
        assert_eq!(entered(&recorded), None, "{recorded}");
        let answer = server.ask(&invoke("f", 4));
        assert_eq!(answer["result"]["report"]["response"], expected[1]);
        assert!(entered(&answer).is_some_and(|pages| pages > 0), "{answer}");
    });
}

#[test]
fn a_signal_ends_the_server_in_order() {
    guarded(|| {
        let (_scratch, server) = serve_two(&["--grace", "1"]);
        server.wait_for_ready(2);
        let holder = stop_worker(&server, "a");
        let mut client = server.client();
        client.send(&invoke("a", 1));
        wait_for_running(&server, 1);
        let workers = server.workers("");
        signal(server.pid, libc::SIGTERM);
        wait_until("the socket is gone", || !server.socket.exists());
        // It still serves who is connected, but starts nothing.
        client.send(&invoke("b", 2));
        let answer = client.receive();
        assert_eq!(
            (error_kind(&answer), &answer["id"]),
            ("stopping", &json!(2)),
            "{answer}"
        );
        // What does not end within the grace is ended.
        let answer = client.receive();
        assert_eq!(
            (error_kind(&answer), &answer["id"]),
            ("stopping", &json!(1)),
            "{answer}"
        );
        let ended = server.finish();
        assert_eq!(ended.code, Some(128 + libc::SIGTERM), "{ended:?}");
        for pid in workers.into_iter().chain([holder]) {
            wait_until("the machines are gone", || !is_alive(pid));
        }
    });
}

#[test]
fn a_machine_that_runs_may_end_within_the_grace() {
    guarded(|| {
        let (_scratch, server) = serve_two(&["--grace", "60"]);
        server.wait_for_ready(2);
        let holder = stop_worker(&server, "a");
        let mut client = server.client();
        client.send(&invoke("a", 1));
        wait_for_running(&server, 1);
        client.send(&json!({"op": "shutdown"}));
        assert_eq!(client.receive()["result"]["stopping"], true);
        signal(holder, libc::SIGCONT);
        assert_eq!(client.receive()["ok"], true);
        assert_eq!(server.finish().code, Some(0));
    });
}

#[test]
fn a_killed_servers_socket_is_taken_over_and_a_live_ones_is_not() {
    guarded(|| {
        let (scratch, server) = serve_two(&[]);
        server.wait_for_ready(2);
        let dir = scratch.path().join("a.snap");
        launcher::finish(Server::spawn(&server.socket, [&dir]))
            .failure(&["another server listens"]);
        assert_eq!(server.ask(&invoke("a", 1))["ok"], true);
        let socket = server.socket.clone();
        let workers = server.workers("");
        signal(server.pid, libc::SIGKILL);
        assert_eq!(server.finish().code, None);
        assert!(socket.exists());
        // Nobody told the machines; they see it.
        for pid in workers {
            wait_until("the killed server's machines are gone", || !is_alive(pid));
        }
        let next = Server::start(
            &socket,
            [
                "--memory".into(),
                "ondemand".into(),
                dir.clone().into_os_string(),
            ],
        );
        assert_eq!(next.ask(&invoke("a.snap", 2))["ok"], true);
        drop(next);
        fs::remove_file(&socket).unwrap();
        fs::write(&socket, "precious").unwrap();
        launcher::finish(Server::spawn(&socket, [&dir])).failure(&["no socket"]);
        assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
        let twice = Server::spawn(&scratch.path().join("t"), [&dir, &dir]);
        launcher::finish(twice).failure(&["two snapshots", "a.snap"]);
        let nothing = Path::new("/nonexistent/snapshot");
        launcher::finish(Server::spawn(&scratch.path().join("t"), [nothing]))
            .failure(&["/nonexistent/snapshot"]);
    });
}

#[test]
fn machines_that_are_killed_while_they_wait_for_pages_end() {
    guarded(|| {
        let (_scratch, server) = serve_two(&[]);
        // In the middle of an invocation that is all page faults, at another point each time.
        for round in 0..20_u64 {
            let mut client = server.client();
            client.send(&invoke("a", round));
            wait_until("it runs, or has answered", || {
                let status = server.status();
                status["workers"]["running"] == 1 || status["running"] == 0
            });
            std::thread::sleep(Duration::from_millis(10 * (round % 10)));
            let pids = server.workers("a.snap");
            drop(client);
            for &pid in &pids {
                // One that has just ended cannot be killed any more.
                try_signal(pid, libc::SIGKILL);
            }
            for pid in pids {
                wait_until(&format!("killed machine {pid} ends"), || !is_alive(pid));
            }
        }
        assert_eq!(server.ask(&invoke("a", 99))["ok"], true);
    });
}

#[test]
fn many_starts_at_once_are_measured() {
    guarded(|| {
        let scratch = scratch::dir();
        let json = scratch.path().join("out").join("bench.json");
        let snapshots = scratch.path().join("snapshots");
        let mut command = launcher::command(["bench", "--functions", "helloworld", "--runs", "1"]);
        command
            .args(["--concurrent", "2", "--clones", "3"])
            .args([
                "--concurrent-modes",
                "prefetch,ondemand",
                "--max-reading",
                "1",
                "--json",
            ])
            .arg(&json)
            .arg("--dir")
            .arg(&snapshots);
        let printed = launcher::finish(launcher::start(&mut command)).success();
        assert!(printed.contains("clones of one"), "{printed}");
        let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
        assert!(
            report["bandwidth"]["mib_s"].as_f64().unwrap() > 0.0,
            "{report}"
        );
        let cells = report["results"].as_array().unwrap();
        // Two kinds by two modes by two ways to start.
        assert_eq!(cells.len(), 8);
        for cell in cells {
            let count = if cell["kind"] == "distinct" { 2 } else { 3 };
            assert_eq!(cell["count"], count, "{cell}");
            let bytes = cell["working_set_bytes"].as_u64().unwrap();
            assert_eq!(bytes > 0, cell["mode"] == "prefetch", "{cell}");
            assert_eq!(cell["bound_ms"].is_null(), bytes == 0, "{cell}");
            assert_eq!(
                cell["control_ms"].is_null(),
                cell["start_by"] == "invoke",
                "{cell}"
            );
            assert!(cell["latency_ms"]["p99"].as_f64() >= cell["latency_ms"]["p50"].as_f64());
        }
        // The copies are gone, what they were made of stays.
        assert_eq!(scratch::names_in(&snapshots), ["helloworld"]);
        launcher::run(["bench", "--concurrent", "0"]).failure(&["--concurrent"]);
        launcher::run(["bench", "--concurrent", "2", "--concurrent-modes", "record"])
            .failure(&["recordings"]);
    });
}
