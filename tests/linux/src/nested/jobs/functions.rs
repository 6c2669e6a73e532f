//! The Python functions: what of the REAP paper's findings does not depend on time.
//!
//! The rows that these jobs say are those of the README's table; `make linux-figures` collects the
//! lines of JSON.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use reapvm_reap::trace;
use reapvm_snapshot::Snapshot;
use serde_json::{Value, json};

use crate::nested::vm::{CMDLINE, Image, Vm, kernel, scratch};
use crate::nested::{JOB_FOLDER, PATIENCE, ROOTFS_DEVICE, reapvm, say};

/// Debian's kernel that runs them.
const SERIES: &str = "6.12";
const WARM_UP_SEED: u64 = 0;
const RECORDED_SEED: u64 = 1;
const OTHER_SEED: u64 = 2;
/// The share of the faults, in percent, that a working set of another input has to spare.
const SPARED_PERCENT: u64 = 95;

fn input(seed: u64) -> Value {
    json!({ "seed": seed })
}

/// The options of the machine that serves `function`.
fn machine(function: &str) -> Vec<OsString> {
    let initrd = Path::new(JOB_FOLDER).join(SERIES).join("initrd-root");
    let mut options: Vec<OsString> = vec!["--kernel".into(), kernel(SERIES, Image::Vmlinux).into()];
    options.extend(["--initrd".into(), initrd.into()]);
    let cmdline = format!("{CMDLINE} function={function}");
    let drive = format!("path={ROOTFS_DEVICE},id=rootfs,readonly=on,root=on");
    for (option, value) in [
        ("--cmdline", cmdline.as_str()),
        ("--drive", &drive),
        ("--mem", "512M"),
    ] {
        options.extend([option.into(), value.into()]);
    }
    options
}

/// The options of `reapvm bench` and `reapvm study` for these functions.
pub(super) fn image() -> Vec<OsString> {
    // A folder as `make linux-images` makes it, as far as it is needed.
    let images = scratch("images");
    fs::create_dir(&images).unwrap();
    symlink(ROOTFS_DEVICE, images.join("rootfs.ext4")).unwrap();
    let initrd = Path::new(JOB_FOLDER).join(SERIES).join("initrd-root");
    let mut options: Vec<OsString> = ["--image", "linux"].map(Into::into).into();
    for (option, value) in [
        ("--image-dir", images),
        ("--kernel", kernel(SERIES, Image::Vmlinux)),
        ("--initrd", initrd),
    ] {
        options.extend([option.into(), value.into()]);
    }
    options
}

/// What a machine that is never interrupted answers to each seed, after the warm-up.
fn uninterrupted(function: &str, seeds: &[u64]) -> Vec<Value> {
    let mut command = reapvm::command();
    command.arg("run").args(machine(function));
    let vm = Vm::spawn(command);
    let mut client = vm.connect();
    client.exchange_json(&input(WARM_UP_SEED)).unwrap();
    seeds
        .iter()
        .map(|&seed| client.exchange_json(&input(seed)).unwrap())
        .collect()
}

fn create(function: &str) -> PathBuf {
    let folder = scratch("snapshot");
    let mut arguments: Vec<OsString> = ["snapshot", "create"].map(Into::into).into();
    arguments.extend(machine(function));
    let warm_up = input(WARM_UP_SEED).to_string();
    for (option, value) in [
        ("--vsock-cid", "3"),
        ("--wait-for", "vsock:5000"),
        ("--warm-up", &warm_up),
        ("--timeout", &PATIENCE.as_secs().to_string()),
    ] {
        arguments.extend([option.into(), value.into()]);
    }
    arguments.extend(["--output".into(), folder.clone().into()]);
    reapvm::run(arguments).success();
    folder
}

fn invoke(snapshot: &Path, mode: &str, seed: u64) -> Value {
    let mut arguments: Vec<OsString> = vec!["invoke".into(), snapshot.into()];
    let input = input(seed).to_string();
    let timeout = PATIENCE.as_secs().to_string();
    let texts = [
        "--memory",
        mode,
        "--input",
        &input,
        "--timeout",
        &timeout,
        "--json",
    ];
    arguments.extend(texts.map(Into::into));
    let report = reapvm::run(arguments).json();
    assert_eq!(report["mode"], mode, "{report}");
    assert_eq!(report["response"]["ok"], true, "{report}");
    report
}

/// The pages that the last recording touched, and in how many runs of neighbours they lie.
fn recorded(folder: &Path) -> (BTreeSet<u64>, u64) {
    let snapshot = Snapshot::open(folder).unwrap();
    let records = trace::read(&snapshot.trace_path(), &snapshot.id()).unwrap();
    let pages: BTreeSet<u64> = records.iter().map(|record| record.gpa / 4096).collect();
    let runs = pages
        .iter()
        .filter(|page| **page == 0 || !pages.contains(&(**page - 1)))
        .count();
    (pages, runs as u64)
}

pub(super) fn run(function: &str) {
    let folder = create(function);
    let booted = Snapshot::open(&folder)
        .unwrap()
        .manifest()
        .memory
        .booted_resident_bytes;

    let answers = uninterrupted(function, &[RECORDED_SEED, OTHER_SEED]);
    let (expected_recorded, expected_other) = (&answers[0], &answers[1]);
    assert_ne!(
        expected_recorded, expected_other,
        "the input does not matter"
    );
    for mode in ["copy", "file"] {
        assert_eq!(
            &invoke(&folder, mode, OTHER_SEED)["response"],
            expected_other
        );
    }

    let other = invoke(&folder, "record", OTHER_SEED);
    assert_eq!(&other["response"], expected_other);
    let (other_pages, _) = recorded(&folder);
    let record = invoke(&folder, "record", RECORDED_SEED);
    assert_eq!(&record["response"], expected_recorded);
    let (pages, runs) = recorded(&folder);
    let same = pages.intersection(&other_pages).count();

    let ondemand = invoke(&folder, "ondemand", OTHER_SEED);
    assert_eq!(&ondemand["response"], expected_other);
    let prefetch = invoke(&folder, "prefetch", OTHER_SEED);
    assert_eq!(&prefetch["response"], expected_other);
    let faults = ondemand["faults"]["uffd"].as_u64().unwrap();
    let missed = prefetch["faults"]["missed_pages"].as_u64().unwrap();

    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    say(&format!(
        "| {function} | {:.0} | {:.1} | {:.1} % | {:.1} % | {:.1} | {faults} | {missed} | {:.1} % |",
        mib(booted),
        mib(pages.len() as u64 * 4096),
        100.0 * same as f64 / pages.len() as f64,
        100.0 * (pages.len() - same) as f64 / pages.len() as f64,
        pages.len() as f64 / runs as f64,
        100.0 * (1.0 - missed as f64 / faults as f64),
    ));
    // What `reapvm study --linux-figures` reads.
    let figures = json!({
        "function": function,
        "booted_bytes": booted,
        "pages": pages.len(),
        "runs": runs,
        "same_pages": same,
        "faults": faults,
        "missed": missed,
    });
    say(&format!("figures {figures}"));
    assert!(
        missed * 100 <= faults * (100 - SPARED_PERCENT),
        "{missed} of {faults} faults were not spared"
    );
}
