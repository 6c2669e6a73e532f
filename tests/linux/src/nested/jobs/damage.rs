//! A damaged snapshot of a Linux guest ends in an error, also where KVM is the first to touch the
//! damage: it reads the page of the guest's clock while vCPUs are restored.

use std::fs::File;
use std::os::unix::fs::FileExt;

use reapvm_guest_init::protocol::Request;

use crate::nested::{PATIENCE, reapvm, say, snapshot};

const PAGE_BYTES: usize = 4096;

pub(super) fn run(series: &str) {
    let request = Request::Random {};
    let snapshot = snapshot::create(series, &[], &request);
    snapshot::invoke(&snapshot, "record", &request);
    let memory = File::options()
        .read(true)
        .write(true)
        .open(snapshot.join("memory"))
        .unwrap();
    let pages = memory.metadata().unwrap().len() / PAGE_BYTES as u64;
    let mut damaged = 0;
    for offset in (0..pages).map(|page| page * PAGE_BYTES as u64) {
        let mut page = [0; PAGE_BYTES];
        memory.read_exact_at(&mut page, offset).unwrap();
        // Pages of zeroes are holes, and are not read.
        if page != [0; PAGE_BYTES] {
            memory.write_all_at(&[!page[0]], offset).unwrap();
            damaged += 1;
        }
    }
    say(&format!("{damaged} pages are damaged"));
    for mode in ["copy", "ondemand", "record"] {
        let dir = snapshot.to_str().unwrap();
        let input = serde_json::to_string(&request).unwrap();
        let timeout = PATIENCE.as_secs().to_string();
        let ended = reapvm::run([
            "invoke",
            dir,
            "--memory",
            mode,
            "--input",
            &input,
            "--timeout",
            &timeout,
        ]);
        assert_eq!(ended.code, Some(1), "{mode}: {ended:?}");
        assert!(ended.stderr.starts_with("error: "), "{mode}: {ended:?}");
        assert!(ended.stderr.contains("damaged"), "{mode}: {ended:?}");
        say(&format!("{mode}: {}", ended.stderr.trim_end()));
    }
}
