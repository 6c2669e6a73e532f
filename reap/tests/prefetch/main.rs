//! Recording, packing and installing a working set, on a real userfaultfd.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod bad_disk;
mod faults;
mod methods;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use reapvm_reap::{
    FirstTouch, Install, InstallError, InstallMethod, InstallOptions, InstallReport, LeadRule,
    MemoryRegion, PageState, Pager, PagerError, ReadPath, TouchCounts, WorkingSet, WorkingSetError,
    WorkingSetReader, measure_fault_ns,
};
use reapvm_snapshot::SnapshotId;
use reapvm_test_support::{Refused, without};
use support::{
    GuestMemory, PAGE, TestSource, expected_page, failure_of, pager, shuffled, unregistered_pager,
    within_time,
};

/// More than two pieces of a streamed install.
const PAGES: usize = 1600;

fn id() -> SnapshotId {
    SnapshotId::from_bytes([3; 16])
}

fn gpas(pages: &[usize]) -> Vec<u64> {
    pages.iter().map(|page| (page * PAGE) as u64).collect()
}

/// Pages as an invocation touches them: runs of some pages here and there.
fn touched_pages() -> Vec<usize> {
    shuffled(PAGES / 8, 5)
        .into_iter()
        .filter(|run| run % 3 != 0)
        .flat_map(|run| (0..3).map(move |page| run * 8 + page))
        .collect()
}

fn write_set(path: &Path, pages: &[usize]) -> WorkingSet {
    WorkingSet::write(path, &id(), &gpas(pages), &mut TestSource::new()).unwrap()
}

fn open(path: &Path) -> WorkingSetReader {
    WorkingSet::open(path, &id(), (PAGES * PAGE) as u64).unwrap()
}

/// The methods that need nothing but a working-set file.
fn methods() -> impl Iterator<Item = InstallMethod> {
    InstallMethod::ALL
        .into_iter()
        .filter(|method| *method != InstallMethod::MemoryFile)
}

fn new_pager(memory: &GuestMemory) -> Pager {
    let (mut pager, _) = pager(vec![memory.region()], TestSource::new(), true);
    pager.start().unwrap();
    pager
}

/// The pager is started either way, and the installation over.
fn install_with(
    regions: Vec<MemoryRegion>,
    reader: WorkingSetReader,
    options: InstallOptions,
) -> (Pager, Result<InstallReport, Arc<InstallError>>) {
    let install = Install {
        working_set: Arc::new(reader),
        memory: None,
        options,
    };
    if options.method.needs_unregistered_memory() {
        let (mut pager, _) = unregistered_pager(regions, TestSource::new(), true);
        // SAFETY: no test touches the memory before it has the pager.
        let result = unsafe { pager.install_unregistered(&install) };
        pager.start().unwrap();
        (pager, result.map_err(Arc::new))
    } else {
        let (mut pager, _) = pager(regions, TestSource::new(), true);
        pager.start().unwrap();
        let result = pager.install(install);
        (pager, result)
    }
}

fn install_all(
    memory: &GuestMemory,
    path: &Path,
    method: InstallMethod,
) -> (Pager, Result<InstallReport, Arc<InstallError>>) {
    install_with(
        vec![memory.region()],
        open(path),
        InstallOptions::new(method),
    )
}

fn beside(pager: &mut Pager, path: &Path) -> Result<InstallReport, Arc<InstallError>> {
    pager.install(Install {
        working_set: Arc::new(open(path)),
        memory: None,
        options: InstallOptions::default(),
    })
}

fn check_pages(memory: &Arc<GuestMemory>, pages: Vec<usize>) {
    let guest = Arc::clone(memory);
    within_time(move || {
        for page in pages {
            assert_eq!(
                guest.read_page(page),
                expected_page((page * PAGE) as u64),
                "page {page}"
            );
        }
    });
}
