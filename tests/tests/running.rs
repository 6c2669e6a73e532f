//! The launcher while its machine runs: how it ends, what it tells meanwhile, and how it saves a
//! machine that it has restored.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use reapvm_tests::guest::{self, Image};
use reapvm_tests::launcher::{self, Ended};
use reapvm_tests::watchdog::guarded;
use reapvm_tests::{disk_guest, scratch, snapshots};
use serde_json::Value;

/// Exit code when the guest's kernel has panicked.
const PANICKED: i32 = 3;

/// The guest that works a disk, under the program, and its console.
struct Running(Child);

impl Running {
    /// `dir` has the kernel.
    fn start(dir: &Path, arguments: &[&str]) -> Self {
        let kernel = dir.join("kernel");
        disk_guest::image().write(&kernel);
        let mut command = launcher::command(["run", "--timeout", "100", "--mem", "32M"]);
        command.arg("--kernel").arg(kernel).args(arguments);
        Self::of(command)
    }

    fn of(mut command: Command) -> Self {
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped());
        command.stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn hear<const N: usize>(&mut self) -> [u8; N] {
        let mut answer = [0; N];
        let stdout = self.0.stdout.as_mut().unwrap();
        stdout.read_exact(&mut answer).unwrap();
        answer
    }

    fn ask<const N: usize>(&mut self, what: u8) -> [u8; N] {
        self.0.stdin.as_mut().unwrap().write_all(&[what]).unwrap();
        self.hear()
    }

    fn finish(self) -> Ended {
        launcher::finish(self.0)
    }
}

#[test]
fn a_panic_has_an_exit_code_of_its_own() {
    guarded(|| {
        let scratch = scratch::dir();
        let disk = scratch.path().join("disk");
        fs::write(&disk, [b'x'; 512]).unwrap();
        let drive = format!("path={}", disk.display());
        let mut guest = Running::start(scratch.path(), &["--drive", &drive]);
        assert_eq!(guest.hear(), [disk_guest::READY]);
        let [] = guest.ask(disk_guest::CRASH_LOADED);
        assert_eq!(guest.ask(disk_guest::READ), *b"0x");
        let [] = guest.ask(disk_guest::PANIC);
        let ended = guest.finish();
        assert_eq!(ended.code, Some(PANICKED), "{ended:?}");
        assert!(ended.stderr.contains("crash kernel"), "{ended:?}");
        let error = "error: the guest failed: its kernel panicked";
        assert!(ended.stderr.lines().any(|line| line == error), "{ended:?}");
    });
}

#[test]
fn a_disk_that_shrinks_is_named_and_its_machine_lives() {
    guarded(|| {
        let scratch = scratch::dir();
        let disk = scratch.path().join("disk");
        fs::write(&disk, [b'x'; 1024]).unwrap();
        let drive = format!("path={}", disk.display());
        let mut guest = Running::start(scratch.path(), &["--drive", &drive]);
        assert_eq!(guest.hear(), [disk_guest::READY]);
        assert_eq!(guest.ask(disk_guest::READ), *b"0x");
        let file = fs::File::options().write(true).open(&disk).unwrap();
        file.set_len(0).unwrap();
        assert_eq!(guest.ask::<2>(disk_guest::READ)[0], b'1');
        assert_eq!(guest.ask(disk_guest::CAPACITY), *b"2");
        // The file is whole again, and so is the disk.
        fs::write(&disk, [b'y'; 1024]).unwrap();
        assert_eq!(guest.ask(disk_guest::READ), *b"0y");
        let [] = guest.ask(disk_guest::PANIC);
        let ended = guest.finish();
        let told: Vec<&str> = ended
            .stderr
            .lines()
            .filter(|line| line.contains(disk.to_str().unwrap()))
            .collect();
        assert_eq!(told.len(), 1, "{ended:?}");
        assert!(told[0].contains("shorter"), "{ended:?}");
    });
}

#[test]
fn a_signal_that_comes_before_the_machine_runs_counts() {
    guarded(|| {
        let dir = snapshots::shared("helloworld");
        let dir = dir.to_str().unwrap();
        let run = ["run", "--function", "helloworld", "--timeout", "60"];
        let restore = ["restore", dir, "--timeout", "60"];
        let scratch = scratch::dir();
        let saved = scratch.path().join("saved");
        let save = [
            "restore",
            dir,
            "--save-to",
            saved.to_str().unwrap(),
            "--wait-for",
            "what is never said",
        ];
        let create = [
            "snapshot",
            "create",
            "--function",
            "helloworld",
            "-o",
            saved.to_str().unwrap(),
        ];
        let socket = scratch.path().join("v.sock");
        let invoke = ["invoke", dir, "--vsock-uds", socket.to_str().unwrap()];
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            for arguments in [&run[..], &restore, &save, &create, &invoke] {
                let mut command = launcher::command(arguments);
                // SAFETY: the functions that are called between fork and exec are
                // async-signal-safe, and the set is initialised before it is used.
                unsafe {
                    command.pre_exec(move || {
                        // A blocked signal that is pending stays so through exec: it is there
                        // from the program's first instruction, and seen when it is looked for.
                        let mut set = std::mem::zeroed();
                        libc::sigemptyset(&raw mut set);
                        libc::sigaddset(&raw mut set, signal);
                        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
                        // To the process: any of its threads may take it.
                        libc::kill(libc::getpid(), signal);
                        Ok(())
                    });
                }
                let ended = launcher::finish(launcher::start(&mut command));
                assert_eq!(ended.code, Some(128 + signal), "{arguments:?} {ended:?}");
                assert!(ended.stderr.is_empty(), "{ended:?}");
            }
        }
        assert!(scratch::names_in(scratch.path()).is_empty());
    });
}

#[test]
fn a_signal_while_a_guest_is_waited_for_leaves_nothing() {
    guarded(|| {
        let scratch = scratch::dir();
        let path = |name: &str| scratch.path().join(name);
        fs::write(path("disk"), [b'x'; 512]).unwrap();
        disk_guest::image().write(&path("kernel"));
        let mut create = launcher::command(["snapshot", "create", "--wait-for", "never"]);
        create.arg("--kernel").arg(path("kernel"));
        create
            .arg("--drive")
            .arg(format!("path={}", path("disk").display()));
        create.arg("--vsock-uds").arg(path("v.sock"));
        let child = launcher::start(create.arg("-o").arg(path("snap")));
        let deadline = Instant::now() + Duration::from_secs(60);
        while !path("v.sock").exists() {
            assert!(Instant::now() < deadline, "the machine is not made");
            thread::sleep(Duration::from_millis(5));
        }
        // SAFETY: the child has not been waited for, so that the id is still its own.
        assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
        let ended = launcher::finish(child);
        assert_eq!(ended.code, Some(128 + libc::SIGINT), "{ended:?}");
        assert_eq!(scratch::names_in(scratch.path()), ["disk", "kernel"]);
    });
}

#[test]
fn a_signal_ends_an_invocation_and_removes_its_socket() {
    guarded(|| {
        let scratch = scratch::dir();
        let path = |name: &str| scratch.path().join(name);
        fs::write(path("disk"), [b'x'; 512]).unwrap();
        disk_guest::image().write(&path("kernel"));
        let ready = char::from(disk_guest::READY).to_string();
        let mut create = launcher::command(["snapshot", "create", "--wait-for", &ready]);
        create.arg("--kernel").arg(path("kernel"));
        create
            .arg("--drive")
            .arg(format!("path={}", path("disk").display()));
        create.args(["--vsock-cid", "3", "-o"]).arg(path("snap"));
        launcher::finish(launcher::start(&mut create)).success();
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            // A guest without a driver for the device never takes the connection.
            let mut invoke = launcher::command(["invoke", "--timeout", "300", "--vsock-uds"]);
            let child = launcher::start(invoke.arg(path("v.sock")).arg(path("snap")));
            let deadline = Instant::now() + Duration::from_secs(60);
            while !path("v.sock").exists() {
                assert!(Instant::now() < deadline, "the machine is not made");
                thread::sleep(Duration::from_millis(5));
            }
            // SAFETY: the child has not been waited for, so that the id is still its own.
            assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
            let ended = launcher::finish(child);
            assert_eq!(ended.code, Some(128 + signal), "{ended:?}");
            assert!(ended.stderr.is_empty(), "{ended:?}");
            assert_eq!(
                scratch::names_in(scratch.path()),
                ["disk", "kernel", "snap"]
            );
        }
    });
}

/// `reapvm restore SNAPSHOT ARGUMENTS`.
fn restore(snapshot: &Path, arguments: &[&str]) -> Ended {
    let mut command = launcher::command(["restore", "--serial", "none"]);
    command.arg(snapshot).args(arguments);
    launcher::finish(launcher::start(&mut command))
}

fn info(snapshot: &Path) -> Value {
    let mut command = launcher::command(["snapshot", "info", "--json"]);
    launcher::finish(launcher::start(command.arg(snapshot))).json()
}

#[test]
fn a_restored_machine_is_saved_as_a_diff_or_in_full() {
    guarded(|| {
        let scratch = scratch::dir();
        let path = |name: &str| scratch.path().join(name);
        let text = |name: &str| path(name).to_str().unwrap().to_owned();
        let base = snapshots::shared("helloworld");
        let warm_up = ["--warm-up", r#"{"seed":5}"#];

        let said = restore(
            &base,
            &[&["--save-to", &text("d1"), "--diff"], &warm_up[..]].concat(),
        );
        let base_id = info(&base)["id"].clone();
        assert!(said.success().contains(base_id.as_str().unwrap()));
        let diff = info(&path("d1"));
        assert_eq!(diff["memory"]["base"], base_id);
        let pages = |info: &Value| info["memory"]["data_pages"].as_u64().unwrap();
        assert!(pages(&diff) > 0 && pages(&diff) < pages(&info(&base)) / 2);
        let mut merge = launcher::command(["snapshot", "merge", "--base"]);
        merge.arg(&base).arg("--diff").arg(path("d1"));
        merge.arg("-o").arg(path("merged"));
        launcher::finish(launcher::start(&mut merge)).success();

        let wait = ["--wait-for", "vsock:5000", "--memory", "copy"];
        restore(
            &base,
            &[&["--save-to", &text("full")], &wait[..], &warm_up].concat(),
        )
        .success();
        assert_eq!(info(&path("full"))["memory"]["base"], Value::Null);
        let responses = [&base, &path("merged"), &path("full")].map(|dir| {
            let mut command = launcher::command(["invoke", "--json", "--input", "{\"seed\":8}"]);
            launcher::finish(launcher::start(command.arg(dir))).json()["response"].clone()
        });
        assert_eq!(responses[1], responses[0]);
        assert_eq!(responses[2], responses[0]);

        // What cannot be leaves nothing, and what is there stays.
        let before = scratch::names_in(scratch.path());
        let out = text("out");
        restore(&base, &["--save-to", &out]).failure(&["--wait-for"]);
        restore(&base, &["--diff"]).failure(&["--save-to"]);
        restore(&base, &["--wait-for", "hi"]).failure(&["--save-to"]);
        restore(&path("d1"), &["--save-to", &out, "--warm-up", "{}"]).failure(&["merge"]);
        let late = ["--save-to", &out, "--wait-for", "never", "--timeout", "0.3"];
        restore(&base, &late).failure(&["not ready within 0.3 s"]);
        let wrong = ["--save-to", &out, "--warm-up", r#"{"colour":1}"#];
        restore(&base, &wrong).failure(&["warm-up", "colour"]);
        snapshots::copy(&path("full"), &path("own"));
        let own = text("own");
        restore(
            &path("own"),
            &["--save-to", &own, "--diff", "--warm-up", "{}"],
        )
        .failure(&["against it"]);
        assert_eq!(info(&path("own"))["id"], info(&path("full"))["id"]);
        fs::remove_dir_all(path("own")).unwrap();
        assert_eq!(scratch::names_in(scratch.path()), before);
    });
}

#[test]
fn a_guest_that_ends_before_it_is_ready_is_not_saved() {
    guarded(|| {
        let scratch = scratch::dir();
        let path = |name: &str| scratch.path().join(name);
        fs::write(path("disk"), [b'x'; 512]).unwrap();
        disk_guest::image().write(&path("kernel"));
        let mut create =
            launcher::command(["snapshot", "create", "--mem", "32M", "--wait-for", "+"]);
        create.arg("--kernel").arg(path("kernel"));
        create
            .arg("--drive")
            .arg(format!("path={}", path("disk").display()));
        launcher::finish(launcher::start(create.arg("-o").arg(path("snap")))).success();

        let saving = |wait_for: &str| {
            let mut command = launcher::command(["restore", "--diff", "--wait-for", wait_for]);
            command.arg(path("snap")).arg("--save-to").arg(path("diff"));
            Running::of(command)
        };
        let mut guest = saving("never");
        let [] = guest.ask(disk_guest::PANIC);
        let ended = guest.finish();
        assert_eq!(ended.code, Some(PANICKED), "{ended:?}");
        assert_eq!(
            scratch::names_in(scratch.path()),
            ["disk", "kernel", "snap"]
        );

        // By its console, which is handed on.
        let mut guest = saving("0x");
        assert_eq!(guest.ask(disk_guest::READ), *b"0x");
        let said = guest.finish().success();
        assert!(said.contains("a diff against"), "{said}");
        assert_eq!(
            info(&path("diff"))["memory"]["base"],
            info(&path("snap"))["id"]
        );
    });
}

#[test]
fn a_file_is_the_guests_input_to_its_end() {
    guarded(|| {
        let scratch = scratch::dir();
        let path = |name: &str| scratch.path().join(name);
        fs::write(path("disk"), [b'x'; 512]).unwrap();
        disk_guest::image().write(&path("kernel"));
        // More than the serial port takes at once.
        let mut input = [disk_guest::CAPACITY].repeat(300);
        input.push(disk_guest::PANIC);
        fs::write(path("input"), input).unwrap();
        let mut command = launcher::command(["run", "--timeout", "60", "--mem", "32M", "--kernel"]);
        command.arg(path("kernel"));
        command
            .arg("--drive")
            .arg(format!("path={}", path("disk").display()));
        command.stdin(fs::File::open(path("input")).unwrap());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let ended = launcher::finish(command.spawn().unwrap());
        assert_eq!(ended.code, Some(PANICKED), "{ended:?}");
        assert_eq!(ended.stdout, format!("+{}", "1".repeat(300)));
    });
}

#[test]
fn a_guest_that_resets_is_a_success_with_warnings_on_or_off() {
    guarded(|| {
        let scratch = scratch::dir();
        let kernel = scratch.path().join("kernel");
        Image::long_mode(guest::SAY_HI).write(&kernel);
        for log in ["off", "warn", "debug"] {
            let mut command = launcher::command(["run", "--timeout", "60", "--log", log]);
            command.arg("--kernel").arg(&kernel);
            let ended = launcher::finish(launcher::start(&mut command));
            assert_eq!(ended.stderr.is_empty(), log != "debug", "{ended:?}");
            assert_eq!(ended.success(), "hi\n");
        }
    });
}
