//! Traces from the kernel's tracepoint, which tells guest-physical addresses only where there is nested
//! paging.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use reapvm_guest_init::filesystems;
use reapvm_guest_init::protocol::Request;
use reapvm_reap::TraceRecord;
use reapvm_reap::trace::{Access, TraceReader, TraceSource};
use reapvm_snapshot::Snapshot;
use rustix::mount::MountFlags;

use crate::nested::vm::scratch;
use crate::nested::{PATIENCE, reapvm, say, snapshot};

/// Where the kernel's tracing file system is mounted, by its own documentation.
const TRACEFS: &str = "/sys/kernel/tracing";
/// Where a kernel of 64 bits begins (Documentation/arch/x86/x86_64/mm.rst).
const KERNEL_START: u64 = 0xffff_8000_0000_0000;
const USER_END: u64 = 0x0000_8000_0000_0000;
const PAGES: u64 = 1024;
const SEED: u64 = 3;

/// Makes the kernel's tracepoints usable.
pub(super) fn mount() {
    filesystems::mount_at("tracefs", TRACEFS, "tracefs", MountFlags::NOSUID).unwrap();
}

/// What is asked of the guest: it has to read pages that it has kept.
pub(super) fn request() -> Request {
    Request::MemoryDigest {
        pages: PAGES,
        seed: SEED,
    }
}

/// Traces an invocation in `mode`, with `more` arguments, and checks what holds of each record.
pub(super) fn record(folder: &Path, mode: &str, source: &str, more: &[&str]) -> Vec<TraceRecord> {
    let path = trace(folder, mode, source, more);
    let id = Snapshot::open(folder).unwrap().id();
    let mut reader = TraceReader::open(&path, Some(&id)).unwrap();
    let summary = reader.summary().clone();
    assert_eq!(summary.dropped, 0, "{mode}: {summary:?}");
    let header = reader.header().clone();
    let expected = match source {
        "pager" => TraceSource::UffdPager,
        _ => TraceSource::KvmTracepoints,
    };
    assert_eq!(header.source, expected, "{mode}: {summary:?}");
    let mut records = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        let region = header
            .regions
            .iter()
            .find(|region| record.gpa >= region.gpa && record.gpa - region.gpa < region.size_bytes)
            .unwrap_or_else(|| panic!("{mode}: {record:?} is outside of {:?}", header.regions));
        assert_eq!(record.hva - region.hva, record.gpa - region.gpa, "{mode}");
        records.push(record);
    }
    assert!(!records.is_empty(), "{mode}: {summary:?}");
    records
}

fn trace(folder: &Path, mode: &str, source: &str, more: &[&str]) -> PathBuf {
    let path = scratch("trace");
    let mut arguments: Vec<OsString> = ["trace", "record"].map(Into::into).into();
    arguments.extend([folder.into(), "--out".into(), path.clone().into()]);
    let (request, timeout) = (
        serde_json::to_string(&request()).unwrap(),
        PATIENCE.as_secs().to_string(),
    );
    let texts = [
        "--mode",
        mode,
        "--source",
        source,
        "--input",
        &request,
        "--timeout",
        &timeout,
        "--json",
    ];
    arguments.extend(texts.map(Into::into));
    arguments.extend(more.iter().map(Into::into));
    let report = reapvm::run(arguments).json();
    assert_eq!(report["mode"], mode, "{report}");
    // What is traced is right, too.
    assert_eq!(report["response"]["result"]["was_kept"], true, "{report}");
    path
}

pub(super) fn pages(records: &[TraceRecord]) -> BTreeSet<u64> {
    records.iter().map(|record| record.gpa).collect()
}

pub(super) fn run(series: &str) {
    mount();
    let snapshot = snapshot::create(series, &["--vcpus", "2"], &request());
    for mode in ["copy", "file", "ondemand"] {
        let records = record(&snapshot, mode, "tracepoints", &[]);
        let touched = pages(&records);
        let rips = || records.iter().filter_map(|record| record.rip);
        let in_kernel = rips().filter(|rip| *rip >= KERNEL_START).count();
        let in_user = rips().filter(|rip| *rip < USER_END).count();
        // Both run, and there is nothing between the two.
        assert_eq!(in_kernel + in_user, records.len(), "{mode}");
        assert!(in_kernel > 0, "{mode}: none of the guest's kernel");
        // Copied memory may be in huge pages, all of which the kernel may have touched before.
        if mode != "copy" {
            assert!(in_user > 0, "{mode}: none of the guest's program");
        }
        let writes = records.iter().filter(|r| r.access == Access::Write).count();
        assert!(writes > 0, "{mode}: no access is a write");
        let threads: BTreeSet<u32> = records.iter().map(|record| record.thread_id).collect();
        assert!(!threads.contains(&0), "{mode}: {threads:?}");
        let first = records
            .iter()
            .filter(|record| record.is_first_touch)
            .count();
        assert_eq!(first, touched.len(), "{mode}");
        say(&format!(
            "{mode}: {} faults of {} threads on {} pages, {in_kernel} of the kernel, {writes} writes",
            records.len(),
            threads.len(),
            touched.len(),
        ));
        // Kept memory is read page by page, but huge pages may serve many at once.
        if mode == "ondemand" {
            assert!(touched.len() as u64 > PAGES, "{mode}: {}", touched.len());
        }
    }
    // The pager sees the same machine touch the same pages; what else runs in the guest differs.
    let (of_kernel, of_pager) = (
        pages(&record(&snapshot, "ondemand", "tracepoints", &[])),
        pages(&record(&snapshot, "ondemand", "pager", &[])),
    );
    let both = of_kernel.intersection(&of_pager).count();
    say(&format!(
        "the tracepoint saw {} pages, the pager {}, both {both}",
        of_kernel.len(),
        of_pager.len()
    ));
    assert!(both * 10 >= of_kernel.len() * 9, "the two disagree");
}
