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
    // That each response is the uninterrupted machine's, it checks itself.
    let results = report["results"].as_array().unwrap();
    let result_of = |mode: &str| {
        let found = results
            .iter()
            .find(|result| result["function"] == function && result["mode"] == mode);
        found.unwrap_or_else(|| panic!("no {mode} in {report}"))
    };
    for mode in ["warm", "file", "ondemand", "record", "prefetch"] {
        assert_eq!(result_of(mode)["runs"], 2, "{report}");
    }
    let faults = |mode: &str| result_of(mode)["faults"]["uffd"].as_f64().unwrap();
    assert_eq!(faults("file"), 0.0);
    assert!(faults("ondemand") > 100.0, "{report}");
    assert!(faults("prefetch") * 20.0 <= faults("ondemand"), "{report}");
    assert!(
        result_of("prefetch")["working_set_pages"].as_f64().unwrap() > 100.0,
        "{report}"
    );
}
