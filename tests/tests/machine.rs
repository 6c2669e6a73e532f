//! Whole machines from options and files: what cannot be is refused, what two machines cannot
//! share is refused to the second, and disks and snapshots stay as they were.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use reapvm_tests::guest::{self, Image};
use reapvm_tests::launcher::{self, Ended};
use reapvm_tests::scratch;
use reapvm_tests::snapshots;
use reapvm_tests::socket::Client;
use reapvm_tests::watchdog::guarded;

const FUNCTION: [&str; 5] = ["run", "--function", "helloworld", "--timeout", "30"];

fn run(more: &[&str]) -> Ended {
    launcher::run(FUNCTION.iter().chain(more))
}

/// Runs a machine until `path` is there, its vsock socket: all its devices are then made.
fn running(more: &[&str], socket: &Path) -> Child {
    let mut command = launcher::command(FUNCTION.iter().chain(more));
    command.arg("--vsock-uds").arg(socket);
    let child = launcher::start(&mut command);
    let mut client = Client::connected(socket, 5000);
    assert_eq!(client.call(&serde_json::json!({"seed": 1}))["ok"], true);
    child
}

fn stop(child: Child) {
    // SAFETY: the child has not been waited for, so that the id is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    assert_eq!(launcher::finish(child).code, Some(128 + libc::SIGTERM));
}

#[test]
fn configuration_files_that_are_none() {
    guarded(|| {
        let scratch = scratch::dir();
        let file = scratch.path().join("vm.json");
        let name = file.to_str().unwrap();
        let with = |text: &str| {
            fs::write(&file, text).unwrap();
            launcher::run(["run", "--timeout", "30", "--config", name])
        };
        for (text, named) in [
            ("", "line 1"),
            ("{", "line 1"),
            ("\u{0}\u{1}", "line 1"),
            (r#"{"function": "helloworld", "drive": []}"#, "drive"),
            (r#"{"function": 5}"#, "5"),
            (r#"{"function": "nonesuch"}"#, "helloworld"),
            (r#"{"machine-config": {"vcpu_count": -1}}"#, "-1"),
            (r#"{}"#, "kernel"),
            (
                r#"{"boot-source": {"kernel_image_path": "/nonexistent/vmlinux"}}"#,
                "/nonexistent/vmlinux",
            ),
            (
                r#"{"function": "helloworld", "machine-config": {"vcpu_count": 33}}"#,
                "33",
            ),
            (
                r#"{"function": "helloworld",
                    "drives": [{"drive_id": "a", "path_on_host": "/nonexistent/disk"}]}"#,
                "/nonexistent/disk",
            ),
        ] {
            with(text).failure(&[named]);
        }
        launcher::run(["run", "--config", "/nonexistent"]).failure(&["/nonexistent"]);
        launcher::run(["run", "--config", name, "--function", "helloworld"]).failure(&["--config"]);
        with(r#"{"function": "helloworld"}"#).failure(&["--timeout"]);
    });
}

#[test]
fn disks_that_cannot_be() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().to_str().unwrap();
        let drive = |path: &str, more: &str| run(&["--drive", &format!("path={path}{more}")]);
        drive("/nonexistent/disk", "").failure(&["/nonexistent/disk"]);
        drive(dir, "").failure(&[dir]);
        drive("/dev/null", "").failure(&["/dev/null"]);
        let odd = scratch.path().join("odd.raw");
        let name = odd.to_str().unwrap();
        for size_bytes in [0, 511, 513] {
            fs::write(&odd, vec![7; size_bytes]).unwrap();
            drive(name, "").failure(&[name, "512"]);
        }
        fs::write(&odd, vec![7; 1024]).unwrap();
        drive(name, ",readonly=yes").failure(&["readonly", "yes"]);
        run(&[
            "--drive",
            &format!("path={name},id=a"),
            "--drive",
            "path=b,id=a",
        ])
        .failure(&["'a'"]);
        assert_eq!(fs::read(&odd).unwrap(), vec![7; 1024]);
    });
}

#[test]
fn a_disk_is_written_by_one_machine_or_read_by_many() {
    guarded(|| {
        let scratch = scratch::dir();
        let disk = scratch.path().join("disk.raw");
        fs::write(&disk, vec![1; 4096]).unwrap();
        let writable = format!("path={}", disk.display());
        let readable = format!("{writable},readonly=on");
        let socket = |name: &str| scratch.path().join(name);

        let writer = running(&["--drive", &writable], &socket("a.sock"));
        for drive in [&writable, &readable] {
            run(&["--drive", drive]).failure(&["disk.raw", "in use"]);
        }
        stop(writer);

        let reader = running(&["--drive", &readable], &socket("b.sock"));
        let other = running(&["--drive", &readable], &socket("c.sock"));
        run(&["--drive", &writable]).failure(&["disk.raw", "in use"]);
        stop(reader);
        stop(other);
        assert_eq!(fs::read(&disk).unwrap(), vec![1; 4096]);
    });
}

#[test]
fn taps_that_cannot_be() {
    guarded(|| {
        for (tap, named) in [
            ("averyverylongname", "averyverylongname"),
            ("lo", "'lo'"),
            ("a/b", "a/b"),
        ] {
            run(&["--net", &format!("tap={tap}")]).failure(&[named]);
        }
        run(&["--net", "tap=t0,mac=01:00:00:00:00:00"]).failure(&["01:00:00:00:00:00"]);
        run(&["--net", "tap=t0,mac=zz"]).failure(&["zz"]);
        run(&["--net", "mac=06:00:00:00:00:01"]).failure(&["tap=NAME"]);
    });
}

#[test]
fn two_machines_do_not_share_a_tap_or_a_socket() {
    guarded(|| {
        let scratch = scratch::dir();
        let tap = format!("tap=rvmt{}", std::process::id() % 100_000);
        let socket = scratch.path().join("v.sock");
        let first = running(&["--net", &tap], &socket);
        run(&["--net", &tap]).failure(&["in use"]);
        run(&["--vsock-uds", socket.to_str().unwrap()]).failure(&["v.sock"]);
        // The first one is still there, and still served.
        let mut client = Client::connected(&socket, 5000);
        assert_eq!(client.call(&serde_json::json!({"seed": 2}))["ok"], true);
        stop(first);
    });
}

#[test]
fn a_function_serves_from_a_machine_with_all_devices() {
    guarded(|| {
        let scratch = scratch::dir();
        let disk = scratch.path().join("disk.raw");
        fs::write(&disk, vec![1; 1 << 20]).unwrap();
        let drive = format!("path={},id=data", disk.display());
        let tap = format!("tap=rvmd{}", std::process::id() % 100_000);
        let dir = scratch.path().join("snap");
        let mut create = launcher::command(["snapshot", "create", "--function", "helloworld"]);
        create
            .args([
                "--drive",
                &drive,
                "--net",
                &tap,
                "--balloon",
                "0M",
                "--rng",
                "-o",
            ])
            .arg(&dir);
        launcher::finish(launcher::start(&mut create)).success();

        let invoke = |more: &[&str]| {
            let mut command = launcher::command(["invoke", "--json", "--input", "{\"seed\":3}"]);
            command.arg(&dir).args(more);
            launcher::finish(launcher::start(&mut command))
        };
        let expected = invoke(&[]).json()["response"].clone();
        invoke(&["--memory", "record"]).json();
        for mode in ["copy", "file", "prefetch"] {
            assert_eq!(invoke(&["--memory", mode]).json()["response"], expected);
        }

        // A clone beside a machine that has the disk and the tap.
        let holder = running(
            &["--drive", &drive, "--net", &tap],
            &scratch.path().join("h"),
        );
        invoke(&[]).failure(&["disk.raw", "in use"]);
        let copy = scratch.path().join("copy.raw");
        fs::copy(&disk, &copy).unwrap();
        let other_disk = format!("id=data,path={}", copy.display());
        invoke(&["--drive", &other_disk]).failure(&["in use"]);
        let other_tap = format!("id=eth0,{}", tap.replace("rvmd", "rvme"));
        let clone = ["--drive", &other_disk, "--net", &other_tap];
        assert_eq!(invoke(&clone).json()["response"], expected);
        assert_eq!(
            invoke(&[&clone[..], &["--cold"]].concat()).json()["response"],
            expected
        );
        stop(holder);

        // What the snapshot does not have cannot be replaced, and no other disk is taken for it.
        invoke(&["--drive", "path=x"]).failure(&["id=ID"]);
        invoke(&["--drive", "id=root,path=x"]).failure(&["root", "data"]);
        invoke(&["--net", "id=eth7,tap=x"]).failure(&["eth7", "eth0"]);
        fs::write(&copy, vec![1; 512]).unwrap();
        invoke(&["--drive", &other_disk]).failure(&["2048 sectors", "copy.raw", "has 1"]);
        fs::remove_file(&disk).unwrap();
        invoke(&[]).failure(&["disk.raw"]);
    });
}

#[test]
fn a_kernel_is_saved_when_its_console_says_so_and_restored() {
    guarded(|| {
        let scratch = scratch::dir();
        let kernel = scratch.path().join("kernel");
        Image::long_mode(guest::SAY_HI_AND_HALT).write(&kernel);
        let dir = scratch.path().join("snap");
        let create = |more: &[&str]| {
            let mut command = launcher::command(["snapshot", "create", "--timeout", "2"]);
            command
                .arg("--kernel")
                .arg(&kernel)
                .arg("-o")
                .arg(&dir)
                .args(more);
            launcher::finish(launcher::start(&mut command))
        };
        create(&[]).failure(&["--wait-for"]);
        create(&["--wait-for", "ho"]).failure(&["not ready", "hi"]);
        create(&["--wait-for", "vsock:x"]).failure(&["'x'"]);
        create(&["--wait-for", "vsock:5000"]).failure(&["no vsock device"]);
        create(&["--wait-for", "vsock:5000", "--vsock-cid", "9"]).failure(&["not ready"]);
        assert_eq!(scratch::names_in(scratch.path()), ["kernel"]);
        create(&["--wait-for", "h"]).success();

        let restore = |more: &[&str]| {
            let mut command = launcher::command(["restore", "--timeout", "0.3"]);
            command.arg(&dir).args(more);
            launcher::finish(launcher::start(&mut command))
        };
        for mode in ["copy", "file", "ondemand"] {
            restore(&["--memory", mode]).failure(&["--timeout"]);
        }
        restore(&["--memory", "prefetch"]).failure(&["working set"]);
        restore(&["--vsock-uds", "x"]).failure(&["no vsock device"]);
    });
}

#[test]
fn a_restored_machine_runs_and_serves_on_a_socket_of_its_own() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = snapshots::shared("helloworld");
        let sockets = ["a.sock", "b.sock"].map(|name| scratch.path().join(name));
        let children = sockets.each_ref().map(|socket| {
            let mut command = launcher::command(["restore", "--serial", "none"]);
            command.arg(&dir).arg("--vsock-uds").arg(socket);
            launcher::start(&mut command)
        });
        let answers = sockets.each_ref().map(|socket| {
            let mut client = Client::connected(socket, 5000);
            client.call(&serde_json::json!({"seed": 4}))
        });
        assert_eq!(answers[0]["ok"], true);
        assert_eq!(answers[0], answers[1]);
        children.into_iter().for_each(stop);
        let deadline = Instant::now() + Duration::from_secs(300);
        while !scratch::names_in(scratch.path()).is_empty() {
            assert!(Instant::now() < deadline, "a socket was left behind");
            thread::sleep(Duration::from_millis(5));
        }
    });
}
