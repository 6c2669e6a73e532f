//! `reapvm bench` with a Linux guest.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use crate::nested::vm::{Image, kernel, scratch};
use crate::nested::{JOB_FOLDER, ROOTFS_DEVICE, reapvm, say};

const SERIES: &str = "6.12";

pub(super) fn run(function: &str) {
    // A folder as `make linux-images` makes it, as far as it is needed.
    let images = scratch("images");
    fs::create_dir(&images).unwrap();
    symlink(ROOTFS_DEVICE, images.join("rootfs.ext4")).unwrap();
    let results = scratch("results.json");
    let initrd = Path::new(JOB_FOLDER).join(SERIES).join("initrd-root");
    let mut arguments: Vec<OsString> = ["bench", "--image", "linux"].map(Into::into).into();
    for (option, value) in [
        ("--image-dir", images.as_path()),
        ("--kernel", &kernel(SERIES, Image::Vmlinux)),
        ("--initrd", &initrd),
        ("--functions", Path::new(function)),
        ("--runs", Path::new("2")),
        ("--dir", &scratch("bench")),
        ("--json", &results),
    ] {
        arguments.extend([option.into(), value.into()]);
    }
    let table = reapvm::run(arguments).success();
    for line in table.lines() {
        say(&format!("| {line}"));
    }
    let report: Value = serde_json::from_slice(&fs::read(results).unwrap()).unwrap();
    assert_eq!(report["image"], "linux", "{report}");
    let results = report["results"].as_array().unwrap();
    say(&serde_json::to_string(&results).unwrap());
}
