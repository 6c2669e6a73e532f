//! A machine's devices are changed while it lives: the guest sees it, and a snapshot has it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use reapvm::config::{
    BalloonSettings, BalloonStatsUpdate, BalloonUpdate, DriveUpdate, NetworkSettings,
    NetworkUpdate, VmConfig,
};
use reapvm::machine::{Lifecycle, Machine, MachineError, RestoreOptions, UpdateError};
use reapvm_devices::rate_limiter::{RateLimiterConfig, TokenBucketConfig};
use reapvm_reap::MemoryRestoreMode;
use reapvm_snapshot::Snapshot;
use reapvm_tests::disk_guest::{self, Talk};
use reapvm_tests::scratch;
use reapvm_tests::watchdog::guarded;

/// A disk of `sectors` sectors of `byte`.
fn write_disk(path: &Path, sectors: usize, byte: u8) {
    fs::write(path, vec![byte; sectors * 512]).unwrap();
}

fn new_file(path: &Path) -> DriveUpdate {
    DriveUpdate {
        drive_id: "disk".into(),
        path_on_host: Some(path.to_owned()),
        rate_limiter: None,
    }
}

fn ops(size: u64) -> Option<RateLimiterConfig> {
    Some(RateLimiterConfig {
        bandwidth: None,
        ops: Some(TokenBucketConfig {
            size,
            one_time_burst: None,
            refill_time_ms: 3_600_000,
        }),
    })
}

/// A machine whose guest works the disk `a` of four sectors in `dir`, running.
fn boot(dir: &Path, change: impl FnOnce(&mut VmConfig)) -> (Machine, Talk) {
    let kernel = dir.join("kernel");
    disk_guest::image().write(&kernel);
    write_disk(&dir.join("a"), 4, b'a');
    let mut config = disk_guest::config(&kernel, &dir.join("a"));
    change(&mut config);
    let (console, mut talk) = Talk::console();
    let mut machine = Machine::boot(config, console).unwrap();
    machine.resume().unwrap();
    assert_eq!(talk.hear(), disk_guest::READY);
    (machine, talk)
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[test]
fn a_running_guest_gets_another_file_and_a_snapshot_has_it() {
    guarded(|| {
        let scratch = scratch::dir();
        let file = |name: &str| scratch.path().join(name);
        write_disk(&file("b"), 8, b'b');
        let (mut machine, mut talk) = boot(scratch.path(), |_| {});
        assert_eq!(talk.ask(disk_guest::READ), *b"0a");
        assert_eq!(talk.ask(disk_guest::CAPACITY), *b"4");
        assert_eq!(talk.ask(disk_guest::INTERRUPTS), *b"1");

        machine.update_drive(&new_file(&file("b"))).unwrap();
        assert_eq!(talk.ask(disk_guest::INTERRUPTS), *b"2");
        assert_eq!(talk.ask(disk_guest::CAPACITY), *b"8");
        assert_eq!(talk.ask(disk_guest::READ), *b"0b");

        // What does not fit changes nothing.
        fs::write(file("odd"), [0; 100]).unwrap();
        for (name, named) in [("odd", "100 bytes"), ("none", "no such file")] {
            let error = machine.update_drive(&new_file(&file(name))).unwrap_err();
            let error = chain(&error);
            assert!(error.contains("drive 'disk'"), "{error}");
            assert!(error.contains(named), "{error}");
            assert!(error.contains(file(name).to_str().unwrap()), "{error}");
        }
        assert_eq!(talk.ask(disk_guest::INTERRUPTS), *b"1");
        assert_eq!(talk.ask(disk_guest::READ), *b"0b");

        // A paused one is changed as well: the guest finds it when it goes on.
        machine.pause().unwrap();
        write_disk(&file("c"), 6, b'c');
        machine.update_drive(&new_file(&file("c"))).unwrap();
        machine
            .update_drive(&DriveUpdate {
                rate_limiter: ops(1000),
                ..new_file(&file("c"))
            })
            .unwrap();
        machine.save(&file("snap")).unwrap();
        machine.resume().unwrap();
        assert_eq!(talk.ask(disk_guest::CAPACITY), *b"6");
        assert_eq!(talk.ask(disk_guest::READ), *b"0c");
        drop(machine);

        let snapshot = Arc::new(Snapshot::open(&file("snap")).unwrap());
        for mode in [MemoryRestoreMode::Copy, MemoryRestoreMode::OnDemand] {
            let (console, mut talk) = Talk::console();
            let options = RestoreOptions {
                console,
                ..RestoreOptions::new(mode)
            };
            let mut machine = Machine::restore(&snapshot, options).unwrap();
            let drive = &machine.config().drives[0];
            assert_eq!(drive.path_on_host, file("c"));
            assert_eq!(drive.rate_limiter, ops(1000));
            // Before its first instruction, too.
            machine.update_drive(&new_file(&file("b"))).unwrap();
            machine.resume().unwrap();
            assert_eq!(talk.ask(disk_guest::CAPACITY), *b"8");
            assert_eq!(talk.ask(disk_guest::READ), *b"0b");
        }
    });
}

#[test]
fn limits_and_the_balloon_are_changed_and_saved() {
    guarded(|| {
        let scratch = scratch::dir();
        let tap = format!("rvmc{}", std::process::id() % 100_000);
        let (mut machine, mut talk) = boot(scratch.path(), |config| {
            config.network_interfaces = vec![NetworkSettings::new("eth0".into(), tap)];
            config.vsock = Some(Default::default());
            config.balloon = Some(BalloonSettings {
                stats_polling_interval_s: 5,
                ..BalloonSettings::default()
            });
        });
        // One request an hour; then, as many as it likes.
        let limit = |size| DriveUpdate {
            drive_id: "disk".into(),
            path_on_host: None,
            rate_limiter: ops(size),
        };
        machine.update_drive(&limit(1)).unwrap();
        assert_eq!(machine.config().drives[0].rate_limiter, ops(1));
        assert_eq!(talk.ask(disk_guest::READ), *b"0a");
        // Refused: no bucket can be so large. The limit stays.
        let error = machine.update_drive(&limit(u64::MAX)).unwrap_err();
        assert!(chain(&error).contains("too large"), "{error:?}");
        assert_eq!(machine.config().drives[0].rate_limiter, ops(1));
        machine.update_drive(&limit(0)).unwrap();
        assert_eq!(machine.config().drives[0].rate_limiter, None);
        assert_eq!(talk.ask(disk_guest::READ), *b"0a");
        machine.update_drive(&limit(500)).unwrap();

        machine
            .update_network_interface(&NetworkUpdate {
                iface_id: "eth0".into(),
                rx_rate_limiter: ops(7),
                tx_rate_limiter: None,
            })
            .unwrap();
        machine
            .update_balloon(BalloonUpdate { amount_mib: 3 })
            .unwrap();
        let stats = BalloonStatsUpdate {
            stats_polling_interval_s: 9,
        };
        machine.update_balloon_stats(stats).unwrap();
        assert_eq!(machine.balloon().unwrap().stats().target_mib, 3);

        for (error, named) in [
            (
                machine
                    .update_drive(&DriveUpdate {
                        drive_id: "root".into(),
                        ..limit(1)
                    })
                    .unwrap_err(),
                &["no drive 'root'", "disk"],
            ),
            (
                machine
                    .update_network_interface(&NetworkUpdate {
                        iface_id: "eth7".into(),
                        ..NetworkUpdate::default()
                    })
                    .unwrap_err(),
                &["no network interface 'eth7'", "eth0"],
            ),
            (
                machine
                    .update_balloon(BalloonUpdate { amount_mib: 33 })
                    .unwrap_err(),
                &["33 MiB", "32 MiB"],
            ),
            (
                machine
                    .update_balloon_stats(BalloonStatsUpdate {
                        stats_polling_interval_s: 0,
                    })
                    .unwrap_err(),
                &["statistics", "turned on or off"],
            ),
        ] {
            let error = chain(&error);
            assert!(named.iter().all(|part| error.contains(part)), "{error}");
        }

        machine.pause().unwrap();
        // The handle's way shows too.
        machine.balloon().unwrap().set_target_mib(4).unwrap();
        machine.save(&scratch.path().join("snap")).unwrap();
        drop(machine);
        let snapshot = Arc::new(Snapshot::open(&scratch.path().join("snap")).unwrap());
        let options = RestoreOptions::new(MemoryRestoreMode::OnDemand);
        let machine = Machine::restore(&snapshot, options).unwrap();
        let config = machine.config();
        assert_eq!(config.drives[0].rate_limiter, ops(500));
        assert_eq!(config.network_interfaces[0].rx_rate_limiter, ops(7));
        assert_eq!(config.network_interfaces[0].tx_rate_limiter, None);
        let balloon = config.balloon.unwrap();
        assert_eq!(
            (balloon.amount_mib, balloon.stats_polling_interval_s),
            (4, 9)
        );
        assert_eq!(machine.balloon().unwrap().stats().target_mib, 4);
    });
}

#[test]
fn a_machine_without_the_device_or_whose_guest_has_ended_says_so() {
    guarded(|| {
        let scratch = scratch::dir();
        let (mut machine, mut talk) = boot(scratch.path(), |_| {});
        let balloon = BalloonUpdate { amount_mib: 0 };
        let stats = BalloonStatsUpdate {
            stats_polling_interval_s: 1,
        };
        assert!(matches!(
            machine.update_balloon(balloon),
            Err(UpdateError::NoBalloon)
        ));
        assert!(matches!(
            machine.update_balloon_stats(stats),
            Err(UpdateError::NoBalloon)
        ));
        let net = NetworkUpdate::default();
        let error = machine.update_network_interface(&net).unwrap_err();
        assert!(error.to_string().contains("it has: none"), "{error}");

        let [] = talk.ask(disk_guest::PANIC);
        machine
            .wait(Some(std::time::Duration::from_secs(60)))
            .unwrap();
        assert_eq!(machine.state(), Lifecycle::Ended);
        let file = new_file(&scratch.path().join("a"));
        for error in [
            machine.update_drive(&file).unwrap_err(),
            machine.update_network_interface(&net).unwrap_err(),
            machine.update_balloon(balloon).unwrap_err(),
            machine.update_balloon_stats(stats).unwrap_err(),
        ] {
            assert!(error.to_string().ends_with("that is ended"), "{error}");
            assert!(matches!(
                error,
                UpdateError::Machine(MachineError::Transition {
                    state: Lifecycle::Ended,
                    ..
                })
            ));
        }
    });
}

#[test]
fn a_panic_is_how_the_guest_ended_and_not_the_reset_after_it() {
    guarded(|| {
        let scratch = scratch::dir();
        let (mut machine, mut talk) = boot(scratch.path(), |_| {});
        // A crash kernel goes on by itself.
        let [] = talk.ask(disk_guest::CRASH_LOADED);
        assert_eq!(talk.ask(disk_guest::READ), *b"0a");
        machine.pause().unwrap();
        machine.save(&scratch.path().join("snap")).unwrap();
        drop(machine);
        let snapshot = Arc::new(Snapshot::open(&scratch.path().join("snap")).unwrap());
        let (console, mut talk) = Talk::console();
        let options = RestoreOptions {
            console,
            ..RestoreOptions::new(MemoryRestoreMode::OnDemand)
        };
        let mut machine = Machine::restore(&snapshot, options).unwrap();
        machine.resume().unwrap();
        let [] = talk.ask(disk_guest::PANIC);
        let exit = machine.wait(Some(std::time::Duration::from_secs(60)));
        assert!(
            matches!(exit, Some(reapvm::vcpu::GuestExit::Panicked)),
            "{exit:?}"
        );
    });
}
