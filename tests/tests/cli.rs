//! The program says what is wrong, ends with an exit code that tells, and leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use reapvm_tests::guest::{self, Image};
use reapvm_tests::launcher::{self, Ended};
use reapvm_tests::namespace;
use reapvm_tests::scratch;
use reapvm_tests::snapshots;
use reapvm_tests::watchdog::guarded;
use serde_json::Value;

/// `reapvm run --kernel KERNEL ARGUMENTS`.
fn run_kernel(kernel: &Path, arguments: &[&str]) -> Ended {
    let mut command = launcher::command(["run", "--timeout", "60", "--kernel"]);
    command.arg(kernel).args(arguments);
    launcher::finish(launcher::start(&mut command))
}

/// Runs `code` as a kernel for at most `seconds`.
fn run_code(code: &[u8], seconds: &str) -> Ended {
    let scratch = scratch::dir();
    let kernel = scratch.path().join("kernel");
    Image::long_mode(code).write(&kernel);
    let mut command = launcher::command(["run", "--timeout", seconds, "--kernel"]);
    command.arg(&kernel);
    launcher::finish(launcher::start(&mut command))
}

#[test]
fn kernels_that_cannot_be_loaded() {
    guarded(|| {
        let scratch = scratch::dir();
        let kernel = scratch.path().join("kernel");
        let name = kernel.to_str().unwrap();
        run_kernel(&kernel, &[]).failure(&[name, "kernel"]);
        for bytes in [
            Vec::new(),
            b"#!/bin/sh\n".repeat(1000),
            b"\x7fELF".to_vec(),
            Image::long_mode(guest::SPIN).bytes()[..100].to_vec(),
            vec![0xff; 1 << 16],
        ] {
            fs::write(&kernel, bytes).unwrap();
            run_kernel(&kernel, &[]).failure(&[name, "ELF"]);
        }
        // Each header field made wild: a refusal or a guest that fails, never a panic.
        let good = Image::long_mode(guest::TRIPLE_FAULT).bytes();
        for at in (16..120).step_by(4) {
            let mut bytes = good.clone();
            bytes[at..at + 4].fill(0xff);
            fs::write(&kernel, bytes).unwrap();
            run_kernel(&kernel, &["--timeout", "1"]).failure(&[]);
        }
        run_kernel(scratch.path(), &[]).failure(&[scratch.path().to_str().unwrap()]);
        run_kernel(Path::new("/dev/zero"), &[]).failure(&["/dev/zero"]);
        assert_eq!(scratch::names_in(scratch.path()), ["kernel"]);
    });
}

#[test]
fn kernels_that_do_not_fit() {
    guarded(|| {
        let scratch = scratch::dir();
        let kernel = scratch.path().join("kernel");
        let in_64_mib = |image: Image| {
            image.write(&kernel);
            run_kernel(&kernel, &["--mem", "64M"])
        };
        let mut bss = Image::long_mode(guest::SPIN);
        bss.memory_bytes = 1 << 30;
        in_64_mib(bss).failure(&["does not fit", "--mem"]);
        let mut long = Image::long_mode(guest::SPIN);
        long.code.resize(80 << 20, 0x90);
        long.memory_bytes = long.code.len() as u64;
        in_64_mib(long).failure(&["does not fit", "--mem"]);
        for gpa in [200 << 20, 0xd000_0000, u64::MAX - 0xfff] {
            let mut far = Image::long_mode(guest::SPIN);
            far.gpa = gpa;
            in_64_mib(far).failure(&["kernel"]);
        }
        launcher::run(["run", "--function", "helloworld", "--mem", "16M"]).failure(&["--mem"]);
        let initrd = scratch.path().join("initrd");
        fs::File::create(&initrd).unwrap().set_len(1 << 30).unwrap();
        Image::long_mode(guest::SPIN).write(&kernel);
        run_kernel(&kernel, &["--initrd", initrd.to_str().unwrap()]).failure(&["initrd", "--mem"]);
        run_kernel(&kernel, &["--initrd", "/nonexistent/initrd"]).failure(&["/nonexistent/initrd"]);
    });
}

#[test]
fn machines_that_cannot_be() {
    guarded(|| {
        let refused = |arguments: &[&str], needle: &str| {
            let base = ["run", "--function", "helloworld", "--timeout", "2"];
            launcher::run(base.iter().chain(arguments)).failure(&[needle]);
        };
        refused(&["--mem", "0"], "--mem");
        refused(&["--mem", "15M"], "--mem");
        refused(&["--mem", "1000K"], "1000K");
        refused(&["--mem", "17.5M"], "17.5M");
        refused(&["--mem", "lots"], "lots");
        refused(&["--mem=-1"], "-1");
        refused(&["--mem", "16777216G"], "--mem");
        refused(&["--mem", "17592186044416G"], "mem");
        refused(&["--mem", "99999999999999999999999"], "mem");
        refused(&["--vcpus", "0"], "--vcpus");
        refused(&["--vcpus", "200"], "--vcpus");
        refused(&["--vcpus", "300"], "--vcpus");
        launcher::run(["run", "--function", "helloworld", "--timeout", "0"])
            .failure(&["--timeout"]);
        refused(&["--kernel", "x"], "--kernel");
        refused(&["--cmdline", "x"], "--cmdline");
        refused(&["--initrd", "x"], "--initrd");
        for cid in ["0", "2", "4294967295", "4294967296"] {
            refused(&["--vsock-uds", "unused.sock", "--vsock-cid", cid], cid);
        }
        let long = "a".repeat(4000);
        let scratch = scratch::dir();
        let kernel = scratch.path().join("kernel");
        Image::long_mode(guest::SPIN).write(&kernel);
        run_kernel(&kernel, &["--cmdline", &long]).failure(&["command line"]);
        run_kernel(&kernel, &["--cmdline", "caf\u{e9}"]).failure(&["command line"]);
    });
}

#[test]
fn commands_that_name_nothing() {
    guarded(|| {
        for arguments in [
            &["run"][..],
            &[],
            &["fly"],
            &["snapshot"],
            &["snapshot", "create"],
        ] {
            let ended = launcher::run(arguments);
            assert_eq!(ended.code, Some(2), "{ended:?}");
            assert!(ended.stderr.contains("Usage"), "{ended:?}");
        }
        let scratch = scratch::dir();
        let out = scratch.path().join("snap");
        let out = out.to_str().unwrap();
        launcher::run(["run", "--function", "teleport"]).failure(&["teleport", "helloworld"]);
        launcher::run(["snapshot", "create", "--function", "teleport", "-o", out])
            .failure(&["teleport", "helloworld"]);
        launcher::run(["bench", "--functions", "teleport", "--dir", out])
            .failure(&["teleport", "helloworld"]);
        launcher::run(["bench", "--modes", "teleport", "--dir", out])
            .failure(&["teleport", "prefetch"]);
        launcher::run(["invoke", out, "--memory", "teleport"]).failure(&["teleport", "prefetch"]);
        launcher::run(["invoke", out, "--input", "{seed}"]).failure(&["JSON"]);
        launcher::run(["invoke", out]).failure(&[out]);
        launcher::run(["invoke", out, "--cold"]).failure(&[out]);
        launcher::run(["snapshot", "verify", out]).failure(&[out]);
        launcher::run(["image", "export", "-o", "/nonexistent/image"]).failure(&["/nonexistent/"]);
        assert!(scratch::names_in(scratch.path()).is_empty());
    });
}

#[test]
fn a_guest_that_triple_faults() {
    guarded(|| {
        // KVM on AMD has reset the vCPU by then.
        let place = match Path::new("/sys/module/kvm_amd").exists() {
            true => "does not say where",
            false => "0x1000000",
        };
        run_code(guest::TRIPLE_FAULT, "60").failure(&["triple fault", place]);
    });
}

#[test]
fn a_guest_that_hangs_or_sleeps_for_ever() {
    guarded(|| {
        run_code(guest::SPIN, "0.5").failure(&["--timeout"]);
        run_code(guest::HALT, "0.5").failure(&["--timeout"]);
    });
}

#[test]
fn a_path_that_is_taken_is_no_place_for_a_socket() {
    guarded(|| {
        let scratch = scratch::dir();
        let path = scratch.path().join("v.sock");
        let name = path.to_str().unwrap();
        fs::write(&path, "precious").unwrap();
        let run =
            |path: &str| launcher::run(["run", "--function", "helloworld", "--vsock-uds", path]);
        run(name).failure(&[name]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        run("/nonexistent/v.sock").failure(&["/nonexistent/v.sock"]);
        let long = scratch.path().join("x".repeat(150));
        run(long.to_str().unwrap()).failure(&["vsock path"]);
        assert_eq!(scratch::names_in(scratch.path()), ["v.sock"]);
    });
}

#[test]
fn a_signal_ends_a_machine_and_removes_its_socket() {
    guarded(|| {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            let scratch = scratch::dir();
            let socket = scratch.path().join("v.sock");
            let mut command = launcher::command(["run", "--function", "helloworld"]);
            command.arg("--vsock-uds").arg(&socket);
            let child = launcher::start(&mut command);
            let deadline = Instant::now() + Duration::from_secs(60);
            while !socket.exists() {
                assert!(Instant::now() < deadline);
                thread::sleep(Duration::from_millis(5));
            }
            // A client that stays connected does not hold the machine.
            let (_client, _) = reapvm_tests::socket::Client::connect(&socket, 5000);
            // SAFETY: the child has not been waited for, so that the id is still its own.
            assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
            let ended = launcher::finish(child);
            assert_eq!(ended.code, Some(128 + signal), "{ended:?}");
            assert!(!ended.stderr.contains("panicked"), "{ended:?}");
            assert!(scratch::names_in(scratch.path()).is_empty());
        }
    });
}

#[test]
fn a_function_that_refuses_its_input() {
    guarded(|| {
        let dir = snapshots::shared("helloworld");
        let before = scratch::names_in(&dir);
        for (input, needle) in [
            (r#"{"seed":1,"colour":1}"#, "colour"),
            (r#"{"greetings":1000000000}"#, "greetings"),
            ("[]", "function failed"),
        ] {
            for mode in ["copy", "ondemand", "record"] {
                let mut command = launcher::command(["invoke", "--memory", mode, "--input", input]);
                let ended = launcher::finish(launcher::start(command.arg(&dir)));
                ended.failure(&["the function failed", needle]);
                assert!(ended.stdout.is_empty(), "{ended:?}");
            }
        }
        // A recording that failed has left no working set.
        assert_eq!(scratch::names_in(&dir), before);
        let scratch = scratch::dir();
        let out = scratch.path().join("snap");
        let mut command = launcher::command(["snapshot", "create", "--function", "helloworld"]);
        command
            .args(["--warm-up", "{\"colour\":1}", "-o"])
            .arg(&out);
        launcher::finish(launcher::start(&mut command)).failure(&["warm-up", "colour"]);
        assert!(scratch::names_in(scratch.path()).is_empty());
        // Input that is too long for a request line.
        let long = format!("{{\"seed\":1,\"x\":\"{}\"}}", "a".repeat(100_000));
        let mut command = launcher::command(["invoke", "--input", &long]);
        launcher::finish(launcher::start(command.arg(&dir))).failure(&[]);
    });
}

const RUN: [&str; 5] = ["run", "--function", "helloworld", "--timeout", "5"];

#[test]
fn without_dev_kvm_the_remedy_is_named() {
    guarded(|| {
        let missing = namespace::run("mount -t tmpfs tmpfs /dev", 0, &RUN);
        missing.failure(&["/dev/kvm", "kvm_intel"]);
        let null = namespace::run("mount --bind /dev/null /dev/kvm", 0, &RUN);
        null.failure(&["/dev/kvm"]);
        let file = namespace::run("mount -t tmpfs tmpfs /dev; touch /dev/kvm", 0, &RUN);
        file.failure(&["/dev/kvm", "not a device"]);
        let private = "mount -t tmpfs tmpfs /dev; mknod -m 600 /dev/kvm c 10 232";
        let denied = namespace::run(private, 65534, &RUN);
        denied.failure(&["/dev/kvm", "group kvm", "root"]);
    });
}

#[test]
fn without_userfaultfd_the_remedy_is_named_and_file_and_copy_still_run() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        snapshots::copy(&snapshots::shared("helloworld"), &dir);
        let invoke = |devices: &str, uid: u32, mode: &str| {
            let prepare = format!(
                "cp -r --sparse=always {} /mnt/snap; chmod -R a+rX /mnt/snap; \
                 mount -t tmpfs tmpfs /dev; mknod -m 666 /dev/kvm c 10 232; {devices}",
                dir.display()
            );
            let input = ["--input", "{\"seed\":1}"];
            let arguments = ["invoke", "/mnt/snap", "--memory", mode];
            namespace::run(&prepare, uid, &[&arguments[..], &input].concat())
        };
        let nobody = 65534;
        let private = "mknod -m 600 /dev/userfaultfd c 10 257";
        for mode in ["ondemand", "record"] {
            invoke(private, nobody, mode).failure(&["/dev/userfaultfd", "setfacl"]);
        }
        for mode in ["copy", "file"] {
            invoke(private, nobody, mode).success();
        }
        // Without the device there is the system call, unless that is forbidden too.
        let forbidden = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd")
            .is_ok_and(|value| value.trim() == "0");
        let absent = invoke("true", nobody, "ondemand");
        if forbidden {
            absent.failure(&[
                "/dev/userfaultfd",
                "CAP_SYS_PTRACE",
                "vm.unprivileged_userfaultfd",
            ]);
        } else {
            absent.success();
        }
    });
}

#[test]
fn the_image_and_its_functions_are_listed_and_exported() {
    guarded(|| {
        let scratch = scratch::dir();
        let file = scratch.path().join("guest.elf");
        launcher::run(["image", "export", "-o", file.to_str().unwrap()]).success();
        assert_eq!(fs::read(&file).unwrap(), reapvm_guest_images::image());
        assert_eq!(scratch::names_in(scratch.path()), ["guest.elf"]);
        let list = launcher::run(["image", "list"]).success();
        let all = reapvm_guest_images::FUNCTIONS.iter();
        for function in all.chain(&reapvm_guest_images::EXTRA_FUNCTIONS) {
            assert!(list.contains(function.name), "{list}");
        }
    });
}

#[test]
fn snapshot_info_tells_what_there_is() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        let name = dir.to_str().unwrap();
        snapshots::copy(&snapshots::shared("helloworld"), &dir);
        let info = || launcher::run(["snapshot", "info", "--json", name]).json();
        let before = info();
        assert_eq!(before["working_set"]["status"], "absent");
        assert_eq!(before["trace"]["status"], "absent");
        assert_eq!(before["id"], snapshots::open(&dir).id().to_string());
        let pages = before["memory"]["zero_pages"].as_u64().unwrap()
            + before["memory"]["data_pages"].as_u64().unwrap();
        assert_eq!(
            pages * 4096,
            before["vm"]["machine-config"]["mem_size_mib"]
                .as_u64()
                .unwrap()
                << 20
        );
        let on_disk = before["memory_on_disk_bytes"].as_u64().unwrap();
        assert!(on_disk > 0 && on_disk <= pages * 4096, "{before}");
        launcher::run(["invoke", name, "--memory", "record", "--input", "{}"]).success();
        let after = info();
        assert_eq!(after["working_set"]["status"], "valid");
        assert!(after["working_set"]["pages"].as_u64().unwrap() > 50);
        assert!(after["trace"]["records"].as_u64() >= after["working_set"]["pages"].as_u64());
        fs::write(dir.join("working-set"), "rubbish").unwrap();
        assert_eq!(info()["working_set"]["status"], "unusable");
        let text = launcher::run(["snapshot", "info", name]).success();
        assert!(
            text.contains("helloworld") && text.contains("NOT USABLE"),
            "{text}"
        );
    });
}

#[test]
fn cold_and_repeated_invocations_report_each_start() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        snapshots::copy(&snapshots::shared("helloworld"), &dir);
        let mut command = launcher::command(["invoke", "--memory", "file", "--cold", "--json"]);
        command
            .args(["--repeat", "2", "--input", "{\"seed\":4}"])
            .arg(&dir);
        let output = launcher::finish(launcher::start(&mut command)).success();
        let reports: Vec<Value> = output
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(reports.len(), 2);
        assert_eq!(reports[0]["response"], reports[1]["response"]);
        for report in reports {
            assert_eq!(report["mode"], "file");
            // It did come from the disk.
            assert!(
                report["faults"]["kernel_major"].as_u64().unwrap() > 0,
                "{report}"
            );
            let marks = ["process_start", "state_loaded", "memory_ready", "first_run"]
                .map(|mark| report["marks_ms"][mark].as_f64().unwrap());
            assert!(marks.is_sorted() && marks[0] > 0.0, "{report}");
            let rest = ["first_run", "connected", "first_byte", "response"]
                .map(|mark| report["marks_ms"][mark].as_f64().unwrap());
            assert!(rest.is_sorted(), "{report}");
        }
    });
}

#[test]
fn a_small_benchmark_writes_the_documented_json() {
    guarded(|| {
        let scratch = scratch::dir();
        let file = scratch.path().join("r.json");
        let mut command = launcher::command(["bench", "--functions", "helloworld", "--runs", "1"]);
        command.arg("--json").arg(&file);
        command.arg("--dir").arg(scratch.path().join("snapshots"));
        let table = launcher::finish(launcher::start(&mut command)).success();
        assert!(table.contains("helloworld"), "{table}");
        let report: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let number = |value: &Value, path: &str| {
            let found = path.split('.').fold(value, |value, key| &value[key]);
            found
                .as_f64()
                .unwrap_or_else(|| panic!("no number {path} in {value}"))
        };
        for key in ["cpu_model", "kernel", "reapvm"] {
            assert!(report["host"][key].is_string(), "{key}");
        }
        assert!(number(&report, "disk.seq_read_mib_s") > 0.0);
        assert!(number(&report, "disk.rand_read_4k_us") > 0.0);
        let results = report["results"].as_array().unwrap();
        let modes: Vec<&str> = results
            .iter()
            .map(|r| r["mode"].as_str().unwrap())
            .collect();
        assert_eq!(modes, ["warm", "file", "ondemand", "record", "prefetch"]);
        for result in results {
            assert_eq!(result["function"], "helloworld");
            assert_eq!(number(result, "runs"), 1.0);
            for key in ["p50", "p99", "min", "max"] {
                assert!(number(result, &format!("total_ms.{key}")) > 0.0);
            }
            assert!(number(result, "booted_resident_mib") > 0.0);
            if result["mode"] == "warm" {
                continue;
            }
            for key in [
                "faults.uffd",
                "faults.kernel_major",
                "faults.kernel_minor",
                "faults.prefetched_pages",
                "faults.missed_pages",
                "vmm_overhead_kib",
                "marks_ms.first_run",
                "marks_ms.response",
            ] {
                assert!(number(result, key) >= 0.0);
            }
        }
        let prefetch = &results[4];
        assert!(number(prefetch, "install_ms") > 0.0);
        assert!(number(prefetch, "working_set_pages") > 50.0);
        for key in [
            "speedup_vs_file_geomean",
            "speedup_vs_file_mean",
            "uffd_faults_eliminated_pct",
        ] {
            assert!(number(&report, &format!("summary.{key}")) > 0.0);
        }
        assert!(number(&report, "summary.uffd_faults_eliminated_pct") <= 100.0);
    });
}
