//! Writes to memory that is protected by a real userfaultfd; threads of the test stand for vCPUs.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use reapvm_reap::{
    Access, MemoryRegion, Outcome, Phase, PhaseCell, UffdError, WriteTracker, WriteTrackerError,
};
use support::{GuestMemory, PAGE, TestSource, pager, shuffled, within_time};

fn begin(regions: Vec<MemoryRegion>, phase: &Arc<PhaseCell>, max_records: u64) -> WriteTracker {
    // SAFETY: the tests keep their memory mapped until the tracker is gone, and it is anonymous.
    unsafe { WriteTracker::begin(regions, Arc::clone(phase), max_records) }.unwrap()
}

#[test]
fn the_first_write_to_each_page_is_kept_in_order_and_reads_are_not() {
    const PAGES: usize = 600;
    let memory = GuestMemory::new(PAGES);
    // Some pages are there already, the others were never touched.
    for page in (0..PAGES).step_by(3) {
        memory.write_byte(page, 1, 7);
    }
    let cell = support::phase(Phase::Request);
    let tracker = begin(vec![memory.region()], &cell, 1 << 20);
    let order = shuffled(PAGES, 9);
    let (guest, written) = (Arc::clone(&memory), order[..400].to_vec());
    let thread_id = within_time(move || {
        for page in 0..PAGES {
            assert_eq!(guest.read_byte(page, 1), if page % 3 == 0 { 7 } else { 0 });
        }
        for round in 0..2 {
            for &page in &written {
                guest.write_byte(page, 2, round);
            }
        }
        rustix::thread::gettid().as_raw_pid().unsigned_abs()
    });
    // By the kernel, for this process: a read of a file into guest memory.
    let zero = File::open("/dev/zero").unwrap();
    let guest = Arc::clone(&memory);
    let by_kernel = order[400];
    within_time(move || {
        // SAFETY: the page is inside the mapping, to which no reference exists.
        let page = unsafe { std::slice::from_raw_parts_mut(guest.address(by_kernel), PAGE) };
        rustix::io::read(zero.as_fd(), page).unwrap();
    });
    let trace = tracker.stop(0).unwrap();
    assert_eq!(trace.dropped, 0);
    let pages: Vec<usize> = trace
        .records
        .iter()
        .map(|record| record.gpa as usize / PAGE)
        .collect();
    assert_eq!(pages, order[..=400]);
    for record in &trace.records[..400] {
        assert_eq!(record.access, Access::WriteProtect);
        assert_eq!(record.outcome, Outcome::Hit);
        assert_eq!(record.phase, Phase::Request);
        assert_eq!(record.thread_id, thread_id);
        assert!(record.is_first_touch && record.ns_since_resume > 0);
        assert_eq!(record.hva - record.gpa, memory.region().hva);
    }
    assert!(trace.records.is_sorted_by_key(|r| r.ns_since_resume));
    // The protection is gone with the tracker.
    let guest = Arc::clone(&memory);
    within_time(move || guest.write_byte(order[500], 0, 1));
}

#[test]
fn writers_go_on_when_the_tracker_is_dropped_or_full() {
    const PAGES: usize = 4096;
    for round in 0..6 {
        let memory = GuestMemory::new(PAGES);
        let tracker = begin(vec![memory.region()], &support::phase(Phase::Idle), 100);
        let guests: Vec<_> = (0..3_usize)
            .map(|thread| {
                let guest = Arc::clone(&memory);
                thread::spawn(move || {
                    for page in shuffled(PAGES, 1) {
                        guest.write_byte(page, thread, 5);
                    }
                })
            })
            .collect();
        thread::sleep(std::time::Duration::from_millis(round));
        if round % 2 == 0 {
            drop(tracker);
            within_time(move || guests.into_iter().for_each(|guest| guest.join().unwrap()));
        } else {
            within_time(move || guests.into_iter().for_each(|guest| guest.join().unwrap()));
            let trace = tracker.stop(0).unwrap();
            assert_eq!(trace.records.len(), 100);
            // Two that wait for one page are two records.
            assert!(trace.dropped >= (PAGES - 100) as u64);
        }
        let guest = Arc::clone(&memory);
        within_time(move || {
            for page in 0..PAGES {
                assert_eq!(guest.read_byte(page, 1), 5);
            }
        });
    }
}

#[test]
fn memory_that_has_a_pager_is_refused() {
    let memory = GuestMemory::new(8);
    let (mut pager, _failures) = pager(vec![memory.region()], TestSource::new(), false);
    pager.start().unwrap();
    let cell = support::phase(Phase::Idle);
    // SAFETY: the memory is anonymous and stays mapped.
    let result = unsafe { WriteTracker::begin(vec![memory.region()], cell, 1) };
    let Err(error) = result else {
        panic!("it was not refused");
    };
    assert!(
        matches!(&error, WriteTrackerError::Uffd(UffdError::Register { .. })),
        "{error:?}"
    );
}
