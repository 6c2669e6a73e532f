//! Differential snapshots of a Linux guest: what was written since a base is saved alone, and is right
//! again when the two are merged.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use reapvm_guest_init::protocol::Request;
use reapvm_guest_init::seeded;
use reapvm_snapshot::{Manifest, Snapshot};

use crate::nested::vm::{Vm, scratch};
use crate::nested::{PATIENCE, reapvm, say, snapshot};

const PAGES: u64 = 1024;
const OLD_SEED: u64 = 11;
const NEW_SEED: u64 = 12;

fn memory(seed: u64) -> Request {
    Request::MemoryDigest { pages: PAGES, seed }
}

fn digest(seed: u64) -> String {
    let mut bytes = vec![0; (PAGES * 4096) as usize];
    seeded::fill(seed, 0, &mut bytes);
    seeded::sha256_hex(&bytes)
}

fn manifest(folder: &Path) -> Manifest {
    Snapshot::open(folder).unwrap().manifest().clone()
}

/// Restores `base`, asks `request`, and saves what was written since.
fn save_diff(base: &Path, mode: &str, request: &Request) -> PathBuf {
    let folder = scratch("diff");
    let mut arguments: Vec<OsString> = vec!["restore".into(), base.into()];
    arguments.extend(["--save-to".into(), folder.clone().into()]);
    let (request, timeout) = (
        serde_json::to_string(request).unwrap(),
        PATIENCE.as_secs().to_string(),
    );
    let texts = [
        "--diff",
        "--memory",
        mode,
        "--serial",
        "none",
        "--warm-up",
        &request,
        "--timeout",
        &timeout,
    ];
    arguments.extend(texts.map(Into::into));
    reapvm::run(arguments).success();
    assert_eq!(manifest(&folder).memory.base, Some(manifest(base).id));
    folder
}

/// A full snapshot of `base` and `diff`.
fn merge(base: &Path, diff: &Path) -> PathBuf {
    let folder = scratch("merged");
    let mut arguments: Vec<OsString> = ["snapshot", "merge"].map(Into::into).into();
    for (option, path) in [("--base", base), ("--diff", diff), ("--output", &folder)] {
        arguments.extend([option.into(), path.into()]);
    }
    reapvm::run(arguments).success();
    reapvm::run(["snapshot".as_ref(), "verify".as_ref(), folder.as_os_str()]).success();
    folder
}

/// Checks that the guest in `folder` has kept the memory of `seed`, in every mode.
fn check(folder: &Path, seed: u64) {
    let expected = digest(seed);
    for mode in snapshot::MODES {
        let report = snapshot::invoke(folder, mode, &memory(seed));
        let result = &report["response"]["result"];
        assert_eq!(result["sha256"], expected, "{mode}: {report}");
        // Else it was made anew, and nothing of it came out of the snapshot.
        assert_eq!(result["was_kept"], true, "{mode}: {report}");
    }
}

pub(super) fn run(series: &str) {
    let base = snapshot::create(series, &[], &memory(OLD_SEED));
    // The pages of the new seed are in the diff, and the rest of the machine in the base.
    let first = save_diff(&base, "ondemand", &memory(NEW_SEED));
    let of_first = manifest(&first).memory;
    assert!(of_first.data_pages >= PAGES, "{of_first:?}");
    let merged = merge(&base, &first);
    check(&merged, NEW_SEED);

    // The other way about: the diff leaves those pages to what it is a diff of.
    let echo = Request::Echo { value: 1.into() };
    let second = save_diff(&merged, "file", &echo);
    let of_second = manifest(&second).memory;
    assert!(
        of_second.data_pages + PAGES <= of_first.data_pages,
        "{of_second:?} is not smaller than {of_first:?} by the {PAGES} pages"
    );
    assert!(of_second.unchanged_pages >= PAGES, "{of_second:?}");
    let last = merge(&merged, &second);
    check(&last, NEW_SEED);
    let vm = Vm::restore(&last, "ondemand", &[]);
    vm.check_kernel_log();
    say(&format!(
        "{series}: diffs of {} and {} pages of {}, right again by every mode",
        of_first.data_pages,
        of_second.data_pages,
        of_first.page_count()
    ));
}
