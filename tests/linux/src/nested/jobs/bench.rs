//! `reapvm bench` with a Linux guest.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::functions;
use crate::nested::vm::scratch;
use crate::nested::{reapvm, say};

pub(super) fn run(function: &str) {
    let results = scratch("results.json");
    let mut arguments: Vec<OsString> = vec!["bench".into()];
    arguments.extend(functions::image());
    for (option, value) in [
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
