//! Guests boot, serve and end, by both boot protocols.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::process::Command;
use std::thread;

use reapvm::config::VmConfig;
use reapvm::function_vm::FunctionVm;
use reapvm::invocation::{FUNCTION_PORT, InvokeError};
use reapvm::machine::Lifecycle;
use reapvm::vcpu::GuestExit;
use reapvm_functions::reference;
use reapvm_tests::guest::{self, Image};
use reapvm_tests::launcher;
use reapvm_tests::scratch;
use reapvm_tests::snapshots::{TIMEOUT, boot, input};
use reapvm_tests::socket::Client;
use reapvm_tests::watchdog::guarded;
use serde_json::{Value, json};

fn check(function: &str, input: &Value, reply: &Value) {
    assert_eq!(reply["ok"], true, "{reply}");
    assert_eq!(reply["function"], function);
    // As text: the crate has a serde_json of its own kind of map.
    let input = serde_json::from_str(&input.to_string()).unwrap();
    let result = serde_json::from_str(&reply["result"].to_string()).unwrap();
    reference::check(function, &input, &result).unwrap_or_else(|wrong| {
        panic!("{function} with {input}: {wrong}");
    });
}

/// Boots `function` and checks what it computes against an independent computation.
fn boots_and_computes(function: &'static str) {
    guarded(move || {
        let vm = boot(function);
        for seed in [1, 77] {
            let input = input(seed);
            check(function, &input, &vm.invoke(&input, TIMEOUT).unwrap());
        }
        assert_eq!(vm.machine.state(), Lifecycle::Running);
    });
}

#[test]
fn helloworld() {
    boots_and_computes("helloworld");
}

#[test]
fn chameleon() {
    boots_and_computes("chameleon");
}

#[test]
fn pyaes() {
    boots_and_computes("pyaes");
}

#[test]
fn image_rotate() {
    boots_and_computes("image_rotate");
}

#[test]
fn json_serdes() {
    boots_and_computes("json_serdes");
}

#[test]
fn lr_serving() {
    boots_and_computes("lr_serving");
}

#[test]
fn cnn_serving() {
    boots_and_computes("cnn_serving");
}

#[test]
fn rnn_serving() {
    boots_and_computes("rnn_serving");
}

#[test]
fn lr_training() {
    boots_and_computes("lr_training");
}

#[test]
fn video_processing() {
    boots_and_computes("video_processing");
}

#[test]
fn memory_touch() {
    boots_and_computes("memory_touch_8");
    boots_and_computes("memory_touch_96");
}

#[test]
fn the_tests_above_are_all_functions() {
    assert_eq!(reapvm_guest_images::FUNCTIONS.len(), 10);
    assert_eq!(reapvm_guest_images::EXTRA_FUNCTIONS.len(), 2);
}

#[test]
fn a_function_refuses_an_input_and_goes_on_serving() {
    guarded(|| {
        let vm = boot("helloworld");
        let error = vm
            .invoke(&json!({ "seed": 1, "colour": "red" }), TIMEOUT)
            .unwrap_err();
        assert!(matches!(error, InvokeError::Function(_)), "{error}");
        assert!(error.to_string().contains("colour"), "{error}");
        check(
            "helloworld",
            &input(2),
            &vm.invoke(&input(2), TIMEOUT).unwrap(),
        );
    });
}

#[test]
fn several_requests_on_one_connection_and_connections_at_the_same_time() {
    guarded(|| {
        let vm = boot("helloworld");
        let vsock = vm.machine.vsock().unwrap();
        thread::scope(|scope| {
            for number in 0..4_u64 {
                let vsock = &vsock;
                scope.spawn(move || {
                    let mut client = Client::inside(vsock);
                    for seed in number * 10..number * 10 + 5 {
                        check("helloworld", &input(seed), &client.call(&input(seed)));
                    }
                });
            }
        });
    });
}

#[test]
fn pausing_and_resuming_while_requests_run_changes_no_answer() {
    guarded(|| {
        let mut vm = boot("json_serdes");
        let handle = vm.machine.vsock().unwrap();
        let client = thread::spawn(move || {
            let mut client = Client::inside(&handle);
            for seed in 0..20_u64 {
                let request = json!({ "seed": seed, "orders": 200 });
                check("json_serdes", &request, &client.call(&request));
            }
        });
        let mut pauses = 0;
        while !client.is_finished() || pauses < 20 {
            vm.machine.pause().unwrap();
            assert_eq!(vm.machine.state(), Lifecycle::Paused);
            vm.machine.resume().unwrap();
            pauses += 1;
            // Lets the guest get on between two pauses.
            thread::sleep(std::time::Duration::from_millis(1));
        }
        client.join().unwrap();
    });
}

#[test]
fn two_vcpus_and_an_rng_device_do_not_disturb_a_function() {
    guarded(|| {
        let mut config = VmConfig::for_function("helloworld").unwrap();
        config.machine_config.vcpu_count = 2;
        config.entropy = Some(reapvm::config::EntropySettings::default());
        let vm = FunctionVm::boot(config, TIMEOUT).unwrap();
        check(
            "helloworld",
            &input(5),
            &vm.invoke(&input(5), TIMEOUT).unwrap(),
        );
    });
}

/// `reapvm run` with a kernel file and a socket; asks it twice, over two connections.
fn serves_as_a_kernel_file(image: &[u8]) {
    let scratch = scratch::dir();
    let kernel = scratch.path().join("vmlinux");
    std::fs::write(&kernel, image).unwrap();
    let socket = scratch.path().join("v.sock");
    let mut command = launcher::command(["run", "--cmdline", "console=ttyS0 function=helloworld"]);
    command.arg("--kernel").arg(&kernel);
    command.arg("--vsock-uds").arg(&socket);
    command.args(["--timeout", "60"]);
    let mut child = launcher::start(&mut command);
    let served = std::panic::catch_unwind(|| {
        for seed in [3, 4] {
            let mut client = Client::connected(&socket, FUNCTION_PORT);
            check("helloworld", &input(seed), &client.call(&input(seed)));
        }
        // A port on which nobody listens: the connection ends without an OK.
        assert_eq!(Client::connect(&socket, 4999).1, "");
    });
    child.kill().unwrap();
    let ended = launcher::finish(child);
    if let Err(panic) = served {
        eprintln!("{ended:?}");
        std::panic::resume_unwind(panic);
    }
    assert!(
        ended.stdout.lines().any(|line| line == "ready"),
        "{ended:?}"
    );
}

#[test]
fn the_exported_image_boots_by_pvh_and_serves_on_a_socket() {
    guarded(|| {
        let scratch = scratch::dir();
        let file = scratch.path().join("guest.elf");
        launcher::run(["image", "export", "-o", file.to_str().unwrap()]).success();
        let image = std::fs::read(&file).unwrap();
        assert_eq!(image, reapvm_guest_images::image());
        serves_as_a_kernel_file(&image);
    });
}

#[test]
fn without_its_pvh_note_the_image_boots_by_the_linux_protocol() {
    guarded(|| serves_as_a_kernel_file(&guest::builtin_without_pvh()));
}

/// Runs a guest of a few instructions to its end; its console.
fn console_of(image: &Image, arguments: &[&str]) -> String {
    let scratch = scratch::dir();
    let kernel = scratch.path().join("kernel");
    image.write(&kernel);
    let mut command: Command = launcher::command(["run", "--timeout", "60", "--kernel"]);
    command.arg(&kernel).args(arguments);
    launcher::finish(launcher::start(&mut command)).success()
}

#[test]
fn a_guest_writes_to_the_console_and_ends_by_a_reset() {
    guarded(|| {
        assert_eq!(console_of(&Image::long_mode(guest::SAY_HI), &[]), "hi\n");
        assert_eq!(console_of(&Image::pvh(guest::SAY_HI), &[]), "hi\n");
    });
}

#[test]
fn a_pvh_guest_finds_its_command_line_and_its_initrd() {
    guarded(|| {
        let scratch = scratch::dir();
        let initrd = scratch.path().join("initrd");
        std::fs::write(&initrd, b"Xyz").unwrap();
        let console = console_of(
            &Image::pvh(guest::SAY_BOOT),
            &[
                "--cmdline",
                "one two=3",
                "--initrd",
                initrd.to_str().unwrap(),
            ],
        );
        assert_eq!(console, "one two=3|X\n");
    });
}

#[test]
fn the_guest_finds_the_devices_that_were_asked_for() {
    guarded(|| {
        let character = |id: u8| char::from(b'0' + id);
        let (vsock, entropy) = (character(19), character(4));
        let image = Image::pvh(guest::SAY_DEVICES);
        let rng = console_of(&image, &["--rng"]);
        assert!(rng.starts_with(entropy), "{rng:?}");
        assert!(!rng.contains(vsock), "{rng:?}");
        let scratch = scratch::dir();
        let socket = scratch.path().join("v.sock");
        let both = console_of(&image, &["--rng", "--vsock-uds", socket.to_str().unwrap()]);
        assert!(both.contains(entropy) && both.contains(vsock), "{both:?}");
        assert!(!socket.exists(), "the socket is removed at the end");
    });
}

#[test]
fn the_end_of_a_guest_is_known_and_final() {
    guarded(|| {
        let scratch = scratch::dir();
        let kernel = scratch.path().join("kernel");
        Image::long_mode(guest::TRIPLE_FAULT).write(&kernel);
        let config = VmConfig::for_kernel(kernel);
        let mut machine =
            reapvm::machine::Machine::boot(config, reapvm::machine::Console::none()).unwrap();
        machine.resume().unwrap();
        let exit = machine.wait(Some(TIMEOUT));
        assert!(
            matches!(exit, Some(GuestExit::TripleFault { .. })),
            "{exit:?}"
        );
        assert_eq!(machine.state(), Lifecycle::Ended);
        assert!(machine.resume().is_err());
        assert!(machine.pause().is_err());
    });
}

#[test]
fn a_guest_that_is_never_ready_is_given_up() {
    guarded(|| {
        let scratch = scratch::dir();
        let kernel = scratch.path().join("kernel");
        for code in [guest::HALT, guest::SPIN, guest::SAY_HI] {
            Image::long_mode(code).write(&kernel);
            let config = VmConfig::for_kernel(kernel.clone());
            let limit = std::time::Duration::from_millis(500);
            let Err(error) = FunctionVm::boot(config, limit) else {
                panic!("it cannot be ready");
            };
            let text = error.to_string();
            assert!(text.contains("the guest was not ready"), "{text}");
            if code == guest::SAY_HI {
                assert!(text.contains("hi") && text.contains("reset"), "{text}");
            }
        }
    });
}
