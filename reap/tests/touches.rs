//! Telling touched pages from others, on a real userfaultfd and by the kernel's own marks.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;

use reapvm_reap::{Install, InstallOptions, MemoryRegion, TouchProbe, WorkingSet};
use reapvm_snapshot::SnapshotId;
use support::{GuestMemory, PAGE, TestSource, pager, within_time};

const PAGES: usize = 3000;

/// Reads a byte of a page as KVM gets one for a guest: through `get_user_pages`, which marks it as
/// accessed. A plain access would only change this process's page table.
fn touch(memory: &GuestMemory, page: usize) {
    let mut byte = 0_u8;
    let local = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let remote = libc::iovec {
        iov_base: memory.address(page).cast(),
        iov_len: 1,
    };
    // SAFETY: one byte is read of a page of the mapping, into a byte of this stack.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    assert_eq!(read, 1, "{}", std::io::Error::last_os_error());
}

fn gpas(pages: impl IntoIterator<Item = usize>) -> BTreeSet<u64> {
    pages.into_iter().map(|page| (page * PAGE) as u64).collect()
}

#[test]
fn pages_are_told_apart_however_often_and_by_whom_they_are_touched() {
    let probe = match TouchProbe::open() {
        Ok(probe) => probe,
        // Only root may look.
        Err(error) if !rustix::process::geteuid().is_root() => {
            eprintln!("not tested: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    let id = SnapshotId::from_bytes([3; 16]);
    // Every fifth page is not in the set, and one that is comes to be dropped.
    let in_set = |page: &usize| page % 5 != 4;
    let all: Vec<u64> = gpas((0..PAGES).filter(in_set)).into_iter().collect();
    WorkingSet::write(&path, &id, &all, &mut TestSource::new()).unwrap();

    let memory = GuestMemory::new(PAGES);
    let mut prefetcher = pager(vec![memory.region()], TestSource::new(), true).0;
    let memory_bytes = (PAGES * PAGE) as u64;
    let reader = Arc::new(WorkingSet::open(&path, &id, memory_bytes).unwrap());
    prefetcher.start().unwrap();
    prefetcher
        .install(Install {
            working_set: Arc::clone(&reader),
            memory: None,
            options: InstallOptions {
                own_zero_pages: true,
                ..InstallOptions::default()
            },
        })
        .unwrap();
    probe.settle().unwrap();
    // From several threads, so from several processors, and some pages again and again.
    let touched = |page: &usize| in_set(page) && page.is_multiple_of(3);
    thread::scope(|scope| {
        for thread in 0..3 {
            let memory = Arc::clone(&memory);
            scope.spawn(move || {
                for page in (0..PAGES).filter(touched) {
                    if page % 4 >= thread {
                        touch(&memory, page);
                    }
                }
            });
        }
    });
    let guest = Arc::clone(&memory);
    within_time(move || guest.drop_pages(1, 1));

    let set = reader.read_tables().unwrap();
    let found = probe.touched(&[memory.region()], &set).unwrap();
    assert_eq!(found.unknown_pages, 1, "the dropped one");
    let found_touched: BTreeSet<u64> = found.touched.into_iter().collect();
    let found_untouched: BTreeSet<u64> = found.untouched.into_iter().collect();
    let expected_touched = gpas((0..PAGES).filter(touched));
    let mut expected_untouched = gpas((0..PAGES).filter(|page| in_set(page) && !touched(page)));
    expected_untouched.remove(&(PAGE as u64));
    let wrong = (&found_touched ^ &expected_touched).len();
    // A kernel that is short of memory changes marks of its own accord.
    assert!(wrong * 50 <= expected_touched.len(), "{wrong}");
    let wrong = (&found_untouched ^ &expected_untouched).len();
    assert!(wrong * 50 <= expected_untouched.len(), "{wrong}");
}

#[test]
fn pages_outside_guest_memory_are_unknown() {
    let Ok(probe) = TouchProbe::open() else {
        assert!(!rustix::process::geteuid().is_root());
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    let id = SnapshotId::from_bytes([3; 16]);
    let set = WorkingSet::write(
        &path,
        &id,
        &[0, 4096, 8192, 1 << 20],
        &mut TestSource::new(),
    )
    .unwrap();
    let memory = GuestMemory::new(2);
    let region = MemoryRegion {
        size_bytes: PAGE as u64,
        ..memory.region()
    };
    // Of the first page nothing is there, of the others not even a region.
    let found = probe.touched(&[region], &set).unwrap();
    assert_eq!(found.unknown_pages, 4);
    assert!(found.touched.is_empty() && found.untouched.is_empty());
}
