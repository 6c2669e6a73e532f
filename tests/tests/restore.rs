//! A restored machine answers as the one that was saved, whichever way its memory comes back.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::thread;

use reapvm::config::{EntropySettings, VmConfig};
use reapvm::function_vm::{self, FunctionVm, ReadyWhen};
use reapvm::machine::{Lifecycle, Machine, MachineError, RestoreOptions, SaveError, can_pre_fault};
use reapvm_reap::{InstallMethod, MemoryRestoreMode};
use reapvm_tests::launcher;
use reapvm_tests::reports;
use reapvm_tests::scratch;
use reapvm_tests::snapshots::{self, TIMEOUT, call, input};
use reapvm_tests::watchdog::guarded;
use serde_json::Value;

/// A cold start by the program, with its report.
fn invoke(dir: &Path, mode: MemoryRestoreMode, seed: u64) -> Value {
    let report = reports::invoke(dir, &input(seed), &["--memory", mode.as_str()]);
    assert_eq!(report["mode"], mode.as_str());
    report
}

fn count(report: &Value, name: &str) -> u64 {
    reports::count(&report["faults"][name])
}

/// What tells that the mode that was asked for is the one that ran.
fn check_that_it_ran(mode: MemoryRestoreMode, report: &Value) {
    let uffd = count(report, "uffd");
    let prefetched = count(report, "prefetched_pages");
    match mode {
        MemoryRestoreMode::Copy | MemoryRestoreMode::File => {
            assert_eq!((uffd, prefetched), (0, 0), "{report}");
            assert!(report["working_set_pages"].is_null(), "{report}");
        }
        MemoryRestoreMode::OnDemand => {
            assert!(uffd > 50 && prefetched == 0, "{report}");
            assert!(report["working_set_pages"].is_null(), "{report}");
        }
        MemoryRestoreMode::Record => {
            assert!(uffd > 50 && prefetched == 0, "{report}");
            let recorded = report["working_set_pages"].as_u64().unwrap();
            assert!(recorded > 50 && recorded <= uffd, "{report}");
        }
        MemoryRestoreMode::Prefetch => {
            assert!(prefetched > 50, "{report}");
            assert_eq!(report["working_set_pages"], prefetched, "{report}");
            let (missed, early) = (count(report, "missed_pages"), count(report, "early_pages"));
            assert_eq!(uffd, missed + early, "{report}");
            let install = |field: &str| report["install_ms"][field].as_u64().unwrap();
            let with_data = prefetched - install("zero_pages");
            // Its tables, too; but of the zero pages nothing else.
            let tables = install("bytes_read") - with_data * 4096;
            assert!(tables > 0 && tables < prefetched * 100 + 4096, "{report}");
        }
    }
}

/// All modes give the responses of the machine that was never interrupted, and a prefetch with an
/// input that was not recorded misses few pages.
fn every_mode_answers_alike(function: &'static str) {
    guarded(move || {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        let seeds = [11, 12];
        let expected = snapshots::create(function, &dir, &seeds);
        assert_ne!(expected[0], expected[1], "the inputs must tell");
        for mode in MemoryRestoreMode::ALL {
            let reports: Vec<Value> = seeds.iter().map(|&seed| invoke(&dir, mode, seed)).collect();
            for (report, expected) in reports.iter().zip(&expected) {
                assert_eq!(&report["response"], expected, "{mode}");
                assert_eq!(report["function"], function);
                check_that_it_ran(mode, report);
            }
        }
        // Recorded with the second input, so the first one is new to the working set.
        let report = invoke(&dir, MemoryRestoreMode::Prefetch, seeds[0]);
        let recorded = report["working_set_pages"].as_u64().unwrap();
        let missed = count(&report, "missed_pages");
        assert!(
            missed * 100 < recorded * 3,
            "{missed} missed of {recorded} recorded"
        );
    });
}

/// Every way to install the working set gives the same response, runs as it was asked to, and says
/// so.
#[test]
fn every_install_method_answers_alike() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        let expected = snapshots::create("helloworld", &dir, &[21, 22]);
        invoke(&dir, MemoryRestoreMode::Record, 21);
        for method in InstallMethod::ALL {
            let report = prefetch(&dir, &["--install", method.as_str()], 22).json();
            assert_eq!(report["response"], expected[1], "{method}");
            check_that_it_ran(MemoryRestoreMode::Prefetch, &report);
            let ran = report["install_ms"]["method"].as_str().unwrap();
            match method {
                InstallMethod::Auto => assert!(["overlapped", "streamed"].contains(&ran)),
                method => assert_eq!(ran, method.as_str()),
            }
            let missed = count(&report, "missed_pages");
            assert!(missed * 100 < count(&report, "prefetched_pages") * 3);
        }
    });
}

/// A cold start by prefetch, with `options`.
fn prefetch(dir: &Path, options: &[&str], seed: u64) -> launcher::Ended {
    let mut command = launcher::command(["invoke", "--json", "--memory", "prefetch"]);
    command.arg(dir).args(options);
    command.arg("--input").arg(input(seed).to_string());
    launcher::finish(launcher::start(&mut command))
}

#[test]
fn reads_are_as_the_disk_was_tuned_and_a_disk_that_was_not_is_refused() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        let cache = scratch.path().join("cache");
        let expected = snapshots::create("helloworld", &dir, &[41, 42]);
        invoke(&dir, MemoryRestoreMode::Record, 41);
        let start = || {
            let mut command = launcher::command(["invoke", "--json", "--memory", "prefetch"]);
            command.arg(&dir).arg("--install-tuned");
            command.arg("--input").arg(input(42).to_string());
            command.env("XDG_CACHE_HOME", &cache);
            launcher::finish(launcher::start(&mut command))
        };
        start().failure(&["was not measured", "reapvm tune"]);
        let mut tune = launcher::command(["tune", "--json"]);
        tune.arg(&dir).env("XDG_CACHE_HOME", &cache);
        let tuning = launcher::finish(launcher::start(&mut tune)).json();
        assert!(tuning["mib_s"].as_f64().unwrap() > 0.0, "{tuning}");
        assert_eq!(start().json()["response"], expected[1]);
        std::fs::write(cache.join("reapvm/tunings.json"), "{").unwrap();
        start().failure(&["make no sense"]);
    });
}

#[test]
fn pages_are_entered_ahead_where_kvm_can_and_where_it_cannot_that_is_an_error() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        let expected = snapshots::create("helloworld", &dir, &[41, 42]);
        invoke(&dir, MemoryRestoreMode::Record, 41);
        let can = can_pre_fault().unwrap();
        for method in ["streamed", "overlapped", "direct"] {
            let ended = prefetch(&dir, &["--install", method, "--pre-fault"], 42);
            if can {
                let report = ended.json();
                assert_eq!(report["response"], expected[1], "{method}");
                let entered = report["pre_fault_ms"]["pages"].as_u64().unwrap();
                let first = report["install_ms"]["lead_pages"].as_u64().unwrap();
                assert!(entered > 0 && entered >= first, "{method}: {report}");
            } else {
                ended.failure(&["KVM_PRE_FAULT_MEMORY", "leave out --pre-fault"]);
            }
        }
        // What KVM has entered by itself says nothing of what the guest touches.
        prefetch(&dir, &["--pre-fault", "--measure-unused"], 42)
            .failure(&["--pre-fault", "--measure-unused"]);
        // Whoever does not ask for it gets the same everywhere.
        let report = prefetch(&dir, &[], 42).json();
        assert_eq!(report["response"], expected[1]);
        assert_eq!(report["pre_fault_ms"], Value::Null, "{report}");
    });
}

#[test]
fn a_damaged_working_set_ends_the_start_or_is_made_good_where_that_is_allowed() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        let expected = snapshots::create("helloworld", &dir, &[31, 32]);
        invoke(&dir, MemoryRestoreMode::Record, 31);
        let set = dir.join("working-set");
        let whole = std::fs::read(&set).unwrap();
        // A page's checksum, the end of the file, the beginning, and no file at all.
        let mut bad_page = whole.clone();
        let at = whole.len() - 100;
        bad_page[at] ^= 4;
        let mut bad_header = whole.clone();
        bad_header[20] ^= 1;
        let damaged = [
            Some(bad_page),
            Some(whole[..whole.len() - 5000].to_vec()),
            Some(bad_header),
            None,
        ];
        for damage in damaged {
            match &damage {
                Some(bytes) => std::fs::write(&set, bytes).unwrap(),
                None => std::fs::remove_file(&set).unwrap(),
            }
            for method in ["streamed", "overlapped", "direct", "one-read"] {
                prefetch(&dir, &["--install", method], 32).failure(&["working set"]);

                let options = ["--install", method, "--install-fallback"];
                let report = prefetch(&dir, &options, 32).json();
                assert_eq!(report["response"], expected[1], "{method}");
                let reason = report["install_ms"]["fell_back"].as_str().unwrap();
                assert!(reason.contains("working set"), "{method}: {reason}");
            }
        }
    });
}

#[test]
fn helloworld_in_every_mode() {
    every_mode_answers_alike("helloworld");
}

#[test]
fn json_serdes_in_every_mode() {
    every_mode_answers_alike("json_serdes");
}

#[test]
fn lr_serving_in_every_mode() {
    every_mode_answers_alike("lr_serving");
}

#[test]
fn image_rotate_in_every_mode() {
    every_mode_answers_alike("image_rotate");
}

#[test]
fn one_snapshot_is_restored_by_several_machines_at_once() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        let expected = snapshots::create("helloworld", &dir, &[1]).remove(0);
        invoke(&dir, MemoryRestoreMode::Record, 1);
        // All are alive until the last has answered, in one process and with all modes mixed.
        let machines: Vec<Machine> = [
            MemoryRestoreMode::OnDemand,
            MemoryRestoreMode::OnDemand,
            MemoryRestoreMode::File,
            MemoryRestoreMode::File,
            MemoryRestoreMode::Prefetch,
            MemoryRestoreMode::Copy,
        ]
        .map(|mode| snapshots::restore(&dir, mode))
        .into();
        thread::scope(|scope| {
            let running: Vec<_> = machines
                .into_iter()
                .map(|machine| {
                    let expected = &expected;
                    scope.spawn(move || {
                        assert_eq!(&call(&machine, 1), expected);
                        // It goes on after the first response.
                        call(&machine, 2);
                        assert_eq!(&call(&machine, 1), expected);
                        machine
                    })
                })
                .collect();
            // Dropped only now.
            for machine in running {
                drop(machine.join().unwrap());
            }
        });
        launcher::run(["snapshot", "verify", dir.to_str().unwrap()]).success();
    });
}

#[test]
fn a_restored_machine_can_be_saved_and_restored_again() {
    guarded(|| {
        let scratch = scratch::dir();
        let first = scratch.path().join("first");
        let expected = snapshots::create("json_serdes", &first, &[5, 6]);
        for mode in [MemoryRestoreMode::OnDemand, MemoryRestoreMode::File] {
            let second = scratch.path().join(format!("second-{mode}"));
            let mut machine = snapshots::restore(&first, mode);
            assert_eq!(call(&machine, 5), expected[0]);
            wait_until_settled(&machine);
            machine.pause().unwrap();
            // Most pages have never been touched by it: saving has to fetch them.
            machine.save(&second).unwrap();
            machine.resume().unwrap();
            assert_eq!(call(&machine, 6), expected[1], "it goes on after the save");
            drop(machine);
            launcher::run(["snapshot", "verify", second.to_str().unwrap()]).success();
            for mode in [MemoryRestoreMode::OnDemand, MemoryRestoreMode::Copy] {
                let again = snapshots::restore(&second, mode);
                assert_eq!(call(&again, 5), expected[0]);
                assert_eq!(call(&again, 6), expected[1]);
            }
        }
    });
}

fn wait_until_settled(machine: &Machine) {
    let vsock = machine.vsock().unwrap();
    let deadline = std::time::Instant::now() + TIMEOUT;
    while vsock.connection_count() > 0 {
        assert!(std::time::Instant::now() < deadline);
        thread::yield_now();
    }
}

#[test]
fn a_machine_of_two_vcpus_with_an_rng_device_is_restored() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        let mut config = VmConfig::for_function("helloworld").unwrap();
        config.machine_config.vcpu_count = 2;
        config.entropy = Some(EntropySettings::default());
        let mut vm = FunctionVm::boot(config, TIMEOUT).unwrap();
        vm.invoke(&input(0), TIMEOUT).unwrap();
        vm.save(&dir).unwrap();
        vm.machine.resume().unwrap();
        let expected = vm.invoke(&input(1), TIMEOUT).unwrap();
        for mode in [
            MemoryRestoreMode::Copy,
            MemoryRestoreMode::File,
            MemoryRestoreMode::OnDemand,
        ] {
            let machine = snapshots::restore(&dir, mode);
            assert_eq!(machine.config().machine_config.vcpu_count, 2);
            assert_eq!(call(&machine, 1), expected, "{mode}");
        }
    });
}

#[test]
fn a_restored_machine_listens_on_a_socket_of_its_own() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = snapshots::shared("helloworld");
        let paths = [scratch.path().join("a.sock"), scratch.path().join("b.sock")];
        let machines: Vec<Machine> = paths
            .iter()
            .map(|path| {
                let mut options = RestoreOptions::new(MemoryRestoreMode::OnDemand);
                options.overrides.vsock_uds_path = Some(path.clone());
                let mut machine = Machine::restore(&snapshots::open(&dir), options).unwrap();
                machine.resume().unwrap();
                machine
            })
            .collect();
        let [a, b] = paths.each_ref().map(|path| {
            let mut client = reapvm_tests::socket::Client::connected(path, 5000);
            client.call(&input(9))
        });
        assert_eq!(a, b);
        assert_eq!(a["ok"], true);
        drop(machines);
        assert!(paths.iter().all(|path| !path.exists()));
    });
}

#[test]
fn transitions_that_do_not_exist_are_errors_and_change_nothing() {
    guarded(|| {
        let scratch = scratch::dir();
        let source = snapshots::shared("helloworld");
        let dir = scratch.path().join("snap");
        let mut machine = Machine::restore(
            &snapshots::open(&source),
            RestoreOptions::new(MemoryRestoreMode::OnDemand),
        )
        .unwrap();
        let refused = |error: MachineError| {
            assert!(matches!(error, MachineError::Transition { .. }), "{error}");
        };
        assert_eq!(machine.state(), Lifecycle::Paused);
        refused(machine.pause().unwrap_err());
        machine.resume().unwrap();
        refused(machine.resume().unwrap_err());
        match machine.save(&dir).unwrap_err() {
            SaveError::Machine(error) => refused(error),
            other => panic!("{other}"),
        }
        assert!(scratch::names_in(scratch.path()).is_empty());
        machine.pause().unwrap();
        refused(machine.pause().unwrap_err());
        machine.save(&dir).unwrap();
        // Twice over itself: the second replaces the first.
        machine.save(&dir).unwrap();
        assert_eq!(scratch::names_in(scratch.path()), ["snap"]);
        machine.resume().unwrap();
        call(&machine, 1);
    });
}

#[test]
fn a_new_snapshot_replaces_an_old_one_with_its_working_set() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        snapshots::copy(&snapshots::shared("helloworld"), &dir);
        invoke(&dir, MemoryRestoreMode::Record, 1);
        let before = snapshots::open(&dir).id();
        let config = VmConfig::for_function("helloworld").unwrap();
        function_vm::create_snapshot(
            config,
            &ReadyWhen::default(),
            Some(&input(0)),
            &dir,
            TIMEOUT,
        )
        .unwrap();
        let snapshot = snapshots::open(&dir);
        assert_ne!(snapshot.id(), before);
        assert!(!snapshot.working_set_path().exists());
        assert_eq!(scratch::names_in(scratch.path()), ["snap"]);
        invoke(&dir, MemoryRestoreMode::Copy, 1);
    });
}
