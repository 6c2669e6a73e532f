//! Which pages a guest writes: by protection, by KVM's dirty log, and compared.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::Path;

use reapvm::config::VmConfig;
use reapvm::machine::{Console, Machine};
use reapvm::memory::MemoryError;
use reapvm::vcpu::GuestExit;
use reapvm_reap::trace::{self, Access, TraceReader};
use reapvm_reap::{MemoryRestoreMode, TraceRecord};
use reapvm_tests::guest::Image;
use reapvm_tests::launcher::{self, Ended};
use reapvm_tests::scratch;
use reapvm_tests::snapshots::{self, TIMEOUT};
use reapvm_tests::watchdog::guarded;
use serde_json::Value;

/// Far from the kernel and from what reapvm itself puts in memory.
const DATA_GPA: u32 = 48 << 20;

/// `mov byte ptr [gpa], 1`
fn write(gpa: u32) -> Vec<u8> {
    [&[0xc6, 0x04, 0x25][..], &gpa.to_le_bytes(), &[1]].concat()
}

/// `mov al, [gpa]`
fn read(gpa: u32) -> Vec<u8> {
    [&[0x8a, 0x04, 0x25][..], &gpa.to_le_bytes()].concat()
}

#[test]
fn known_pages_are_seen_in_the_order_in_which_they_are_written() {
    guarded(|| {
        let scratch = scratch::dir();
        let kernel = scratch.path().join("kernel");
        let page = |number: u32| DATA_GPA + number * 4096;
        let written = [5, 1, 9, 3];
        let mut code = Vec::new();
        for number in written {
            code.extend(read(page(number + 20)));
            code.extend(write(page(number)));
        }
        // Once more, elsewhere in the page: no first write.
        code.extend(write(page(1) + 8));
        // mov al, 0xfe; out 0x64, al; hlt; jmp back: a reset
        code.extend([0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd]);
        Image::long_mode(&code).write(&kernel);
        let mut machine = Machine::boot(VmConfig::for_kernel(kernel), Console::none()).unwrap();
        let tracking = machine.memory().track_writes(1000).unwrap();
        machine.resume().unwrap();
        let exit = machine.wait(Some(TIMEOUT));
        assert!(matches!(exit, Some(GuestExit::Reset)), "{exit:?}");
        let trace = tracking.stop(machine.first_run_ns().unwrap()).unwrap();
        assert_eq!(trace.dropped, 0);
        let data: Vec<u64> = trace
            .records
            .iter()
            .inspect(|record| assert_eq!(record.access, Access::WriteProtect))
            .map(|record| record.gpa)
            .filter(|&gpa| gpa >= u64::from(DATA_GPA))
            .collect();
        let expected: Vec<u64> = written.iter().map(|&n| u64::from(page(n))).collect();
        assert_eq!(data, expected);
        assert!(
            trace
                .records
                .iter()
                .all(|record| record.ns_since_resume > 0)
        );
    });
}

#[test]
fn a_machine_whose_faults_are_served_is_refused() {
    guarded(|| {
        let dir = snapshots::shared("helloworld");
        let machine = snapshots::restore(&dir, MemoryRestoreMode::OnDemand);
        let refused = machine.memory().track_writes(10);
        assert!(matches!(refused, Err(MemoryError::WritesWithPager)));
        // Mode file is no anonymous memory.
        let machine = snapshots::restore(&dir, MemoryRestoreMode::File);
        let refused = machine.memory().track_writes(10);
        assert!(matches!(refused, Err(MemoryError::Writes(_))));
        // It goes on as if nothing had been asked.
        assert_eq!(snapshots::call(&machine, 1)["ok"], true);
    });
}

fn record(dir: &Path, out: &Path, source: &str, mode: &str) -> Ended {
    let mut command = launcher::command(["trace", "record", "--json", "--warm-page-cache"]);
    command.args([
        "--input",
        "{\"seed\":5}",
        "--source",
        source,
        "--mode",
        mode,
    ]);
    command.arg(dir).arg("--out").arg(out);
    launcher::finish(launcher::start(&mut command))
}

/// The report, and the records of the trace with their distinct pages.
fn recorded(dir: &Path, out: &Path, source: &str, mode: &str) -> (Value, Vec<TraceRecord>) {
    let report = record(dir, out, source, mode).json();
    let records = trace::read(out, &snapshots::open(dir).id()).unwrap();
    assert_eq!(report["trace"]["records"], records.len());
    (report, records)
}

fn pages(records: &[TraceRecord]) -> BTreeSet<u64> {
    records.iter().map(|record| record.gpa).collect()
}

#[test]
fn protection_and_dirty_log_are_compared_page_by_page() {
    guarded(|| {
        let scratch = scratch::dir();
        let out = scratch.path().join("writes.trace");
        let dir = snapshots::shared("json_serdes");

        let (report, records) = recorded(&dir, &out, "writes", "copy");
        let seen = pages(&records);
        assert!(seen.len() > 20, "{report}");
        assert!(records.iter().all(|r| r.access == Access::WriteProtect));
        let writes = &report["trace"]["writes"];
        let count = |name: &str| writes[name].as_u64().unwrap();
        let protected = count("both") + count("only_devices") + count("only_protected");
        assert_eq!(protected, seen.len() as u64);
        // What a guest writes is what both are made to see.
        assert!(
            count("both") * 2 > protected + count("only_logged"),
            "{writes}"
        );
        let reader = TraceReader::open(&out, None).unwrap();
        assert_eq!(reader.header().source.as_str(), "uffd-write-protect");
        let notes = &reader.summary().notes;
        assert!(
            notes.iter().any(|note| note.contains("dirty log")),
            "{notes:?}"
        );

        let (report, _) = recorded(&dir, &out, "write-protect", "copy");
        assert!(report["trace"]["writes"].is_null(), "{report}");
        let response = report["response"].clone();

        // The log is there in every mode; it has no order, and says so.
        for mode in ["copy", "file", "ondemand"] {
            let (report, records) = recorded(&dir, &out, "dirty-log", mode);
            assert_eq!(report["response"], response, "{mode}");
            assert!(records.len() > 20, "{mode}: {report}");
            assert!(records.iter().all(|r| r.access == Access::Write), "{mode}");
            assert!(records.is_sorted_by_key(|record| record.gpa), "{mode}");
            let reader = TraceReader::open(&out, None).unwrap();
            assert_eq!(reader.header().source.as_str(), "kvm-dirty-log");
            let limits = &reader.header().limits;
            assert!(limits.contains(&trace::Limit::OrderByPhase));
            if mode == "copy" {
                let again = pages(&records).intersection(&seen).count();
                assert!(again * 2 > seen.len(), "{again} of {}", seen.len());
            }
        }
    });
}

#[test]
fn protection_is_refused_where_pages_are_missing() {
    guarded(|| {
        let scratch = scratch::dir();
        let out = scratch.path().join("writes.trace");
        let dir = snapshots::shared("helloworld");
        for mode in ["ondemand", "file"] {
            for source in ["writes", "write-protect"] {
                record(&dir, &out, source, mode).failure(&["--mode copy", mode]);
            }
        }
        assert!(!out.exists());
    });
}
