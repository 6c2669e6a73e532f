//! The pager on a real userfaultfd; threads of the test stand for vCPUs.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use reapvm_reap::{
    Access, DEFAULT_SPIN, MemoryRegion, PageState, Pager, PagerConfig, PagerError, PagerHooks,
    Phase, ServeError, SnapshotPageSource, UffdError,
};
use reapvm_snapshot::MEMORY_FILE;
use support::snapshot::write_snapshot;
use support::{
    GuestMemory, PAGE, TestSource, Trouble, expected_page, failure_of, pager, pager_with, phase,
    shuffled, within_time,
};

#[test]
fn every_page_reads_as_the_source_says() {
    const PAGES: usize = 512;
    for spin in [Duration::ZERO, DEFAULT_SPIN] {
        let memory = GuestMemory::new(PAGES);
        let (mut pager, _failures) = pager_with(
            vec![memory.region()],
            TestSource::new(),
            false,
            phase(Phase::Restore),
            spin,
        );
        pager.start().unwrap();
        let guest = Arc::clone(&memory);
        within_time(move || {
            for page in shuffled(PAGES, 1) {
                assert_eq!(guest.read_page(page), expected_page((page * PAGE) as u64));
            }
        });
        let stats = pager.stats();
        assert_eq!(stats.faults, PAGES as u64);
        assert_eq!(stats.zero_faults, PAGES as u64 / 4);
        assert_eq!(stats.data_faults, PAGES as u64 * 3 / 4);
        assert_eq!(stats.already_present, 0);
        assert_eq!(stats.bytes_read, stats.data_faults * PAGE as u64);
        assert!(stats.service_ns > 0);
        assert!(pager.stop().unwrap().is_empty());
    }
}

#[test]
fn regions_with_a_hole_between_them_are_served_by_guest_address() {
    const HIGH: u64 = 0x1_0000_0000;
    let memory = GuestMemory::new(8);
    // The lower guest addresses are at the higher host addresses.
    let regions = vec![memory.part(5, 3, 0), memory.part(0, 5, HIGH)];
    let (mut pager, _failures) = pager(regions, TestSource::new(), true);
    pager.start().unwrap();
    let guest = Arc::clone(&memory);
    within_time(move || {
        assert_eq!(guest.read_page(6), expected_page(0x1000));
        assert_eq!(guest.read_page(3), expected_page(HIGH + 0x3000));
    });
    let recording = pager.stop().unwrap();
    assert_eq!(recording.pages(), [0x1000, HIGH + 0x3000]);
}

#[test]
fn a_recording_has_the_first_touches_in_order_with_who_how_and_when() {
    const PAGES: usize = 128;
    let memory = GuestMemory::new(PAGES);
    let order = shuffled(PAGES, 7);
    let cell = phase(Phase::Restore);
    let (mut pager, _failures) = pager_with(
        vec![memory.region()],
        TestSource::new(),
        true,
        Arc::clone(&cell),
        DEFAULT_SPIN,
    );
    pager.start().unwrap();

    let guest = Arc::clone(&memory);
    let (first_half, second_half) = (order[..64].to_vec(), order[64..].to_vec());
    let thread_id = within_time(move || {
        for page in first_half {
            guest.read_byte(page, 0);
        }
        rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs()
    });
    let early = pager.take_recording();
    pager.mark_resumed().unwrap();
    cell.set(Phase::Idle);
    let guest = Arc::clone(&memory);
    let again = order.clone();
    within_time(move || {
        for page in second_half {
            guest.write_byte(page, 5, 0xee);
        }
        for page in again {
            guest.read_byte(page, 1);
        }
    });
    let recording = pager.stop().unwrap();

    let gpas: Vec<u64> = order.iter().map(|page| (page * PAGE) as u64).collect();
    assert_eq!(recording.pages(), gpas);
    assert_eq!(recording.pages_until_idle(), gpas[..64]);
    assert_eq!(early.pages(), gpas[..64]);
    for (at, record) in recording.records.iter().enumerate() {
        assert_eq!(record.sequence, at as u64);
        let is_first_half = at < 64;
        assert_eq!(record.ns_since_resume < 0, is_first_half);
        assert_eq!(record.thread_id == thread_id, is_first_half);
        let (access, phase) = match is_first_half {
            true => (Access::Read, Phase::Restore),
            false => (Access::Write, Phase::Idle),
        };
        assert_eq!((record.access, record.phase), (access, phase));
    }
    assert!(
        recording
            .records
            .is_sorted_by_key(|record| record.ns_since_resume)
    );
}

#[test]
fn writes_are_kept() {
    let memory = GuestMemory::new(8);
    let (mut pager, _failures) = pager(vec![memory.region()], TestSource::new(), false);
    pager.start().unwrap();
    let guest = Arc::clone(&memory);
    within_time(move || {
        for page in 0..8 {
            guest.write_byte(page, 100, 0xee);
            let mut expected = expected_page((page * PAGE) as u64);
            expected[100] = 0xee;
            assert_eq!(guest.read_page(page), expected);
        }
    });
    pager.stop().unwrap();
}

#[test]
fn faults_of_the_kernel_are_served_too() {
    let memory = GuestMemory::new(8);
    let (mut pager, _failures) = pager(vec![memory.region()], TestSource::new(), false);
    pager.start().unwrap();
    let guest = Arc::clone(&memory);
    let bytes = within_time(move || {
        let file = tempfile::tempfile().unwrap();
        // SAFETY: mapped memory of this length; only the kernel reads through it.
        let pages = unsafe { std::slice::from_raw_parts(guest.address(1), 2 * PAGE) };
        file.write_all_at(pages, 0).unwrap();
        let mut bytes = vec![0; 2 * PAGE];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    });
    assert_eq!(
        bytes,
        [expected_page(0x1000), expected_page(0x2000)].concat()
    );
    assert_eq!(pager.stats().faults, 2);
    pager.stop().unwrap();
}

#[test]
fn many_threads_that_touch_the_same_pages_all_see_them() {
    const PAGES: usize = 1024;
    const THREADS: usize = 6;
    let memory = GuestMemory::new(PAGES);
    let (mut pager, _failures) = pager(vec![memory.region()], TestSource::new(), true);
    pager.start().unwrap();
    let guest = Arc::clone(&memory);
    within_time(move || {
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let guest = &guest;
                scope.spawn(move || {
                    // Pairs of threads share an order, so that they meet at the same pages.
                    for page in shuffled(PAGES, thread as u64 / 2) {
                        let expected = expected_page((page * PAGE) as u64);
                        assert_eq!(guest.read_byte(page, 9), expected[9]);
                        assert_eq!(guest.read_page(page), expected);
                    }
                });
            }
        });
    });
    let stats = pager.stats();
    assert_eq!(stats.zero_faults + stats.data_faults, PAGES as u64);
    let mut pages = pager.stop().unwrap().pages();
    pages.sort_unstable();
    let all: Vec<u64> = (0..PAGES as u64).map(|page| page * PAGE as u64).collect();
    assert_eq!(pages, all);
}

#[test]
fn two_threads_that_fault_on_one_page_are_both_woken() {
    const PAGES: usize = 300;
    let memory = GuestMemory::new(PAGES);
    let (mut pager, _failures) = pager(vec![memory.region()], TestSource::new(), false);
    let meet = Arc::new(Barrier::new(2));
    // Both wait for the first page before the pager serves at all, so two messages are there.
    let guests: Vec<_> = (0..2)
        .map(|_| {
            let (guest, meet) = (Arc::clone(&memory), Arc::clone(&meet));
            thread::spawn(move || {
                for page in 0..PAGES {
                    meet.wait();
                    let expected = expected_page((page * PAGE) as u64);
                    assert_eq!(guest.read_byte(page, 2), expected[2]);
                }
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(20));
    pager.start().unwrap();
    within_time(move || guests.into_iter().for_each(|guest| guest.join().unwrap()));
    let stats = pager.stats();
    assert_eq!(stats.zero_faults + stats.data_faults, PAGES as u64);
    pager.stop().unwrap();
}

#[test]
fn a_storm_of_removals_neither_stops_the_pager_nor_brings_old_contents_back() {
    const PAGES: usize = 512;
    // The storm drops only these; faults go everywhere.
    const DROPPED: usize = 64;
    let memory = GuestMemory::new(PAGES);
    let (mut pager, _failures) = pager(vec![memory.region()], TestSource::new(), false);
    pager.start().unwrap();

    let is_over = Arc::new(AtomicBool::new(false));
    let storm = {
        let (guest, is_over) = (Arc::clone(&memory), Arc::clone(&is_over));
        thread::spawn(move || {
            let mut round = 0;
            // At least once over all, however fast the reader is.
            while round < DROPPED || !is_over.load(Ordering::Relaxed) {
                guest.drop_pages(round % DROPPED, 1);
                round += 1;
                // Batches, as a balloon gets them from its guest. Without any pause it would be
                // chance whether the kernel ever lets a page in between.
                if round % 16 == 0 {
                    thread::sleep(Duration::from_micros(100));
                }
            }
        })
    };
    let guest = Arc::clone(&memory);
    within_time(move || {
        for round in 0..2 {
            for page in shuffled(PAGES, round) {
                let got = guest.read_byte(page, 3);
                let expected = expected_page((page * PAGE) as u64)[3];
                // A page may be read before it is dropped for the first time.
                assert!(
                    got == expected || (page < DROPPED && got == 0),
                    "page {page}"
                );
            }
        }
    });
    is_over.store(true, Ordering::Relaxed);
    within_time(move || storm.join().unwrap());

    let guest = Arc::clone(&memory);
    within_time(move || {
        for page in 0..DROPPED {
            assert_eq!(guest.read_page(page), vec![0; PAGE], "page {page}");
        }
        for page in DROPPED..PAGES {
            assert_eq!(guest.read_page(page), expected_page((page * PAGE) as u64));
        }
    });
    assert!(pager.stats().removed_pages >= DROPPED as u64);
    pager.stop().unwrap();
}

#[test]
fn what_became_of_each_page_is_known_without_touching_it() {
    let memory = GuestMemory::new(16);
    let (mut pager, _failures) = pager(vec![memory.region()], TestSource::new(), false);
    pager.start().unwrap();
    let guest = Arc::clone(&memory);
    within_time(move || {
        guest.read_byte(1, 0);
        guest.write_byte(2, 0, 1);
        guest.read_byte(5, 0);
        // One that was there, one that never was, and one that comes back.
        guest.drop_pages(2, 3);
        guest.read_byte(4, 0);
    });
    let states = pager.page_states();
    let expected = [
        PageState::Missing,
        PageState::Installed,
        PageState::Dropped,
        PageState::Dropped,
        PageState::Installed,
        PageState::Installed,
        PageState::Missing,
    ];
    for (page, expected) in (0..).zip(expected) {
        let (state, _) = states.run_at(page * PAGE as u64, 1).unwrap();
        assert_eq!(state, expected, "page {page}");
    }
    // Later events change the next answer, not this one.
    let guest = Arc::clone(&memory);
    within_time(move || {
        guest.read_byte(3, 0);
    });
    assert_eq!(states.bytes_in(PageState::Dropped), 2 * PAGE as u64);
    let states = pager.page_states();
    assert_eq!(states.bytes_in(PageState::Dropped), PAGE as u64);
    assert_eq!(states.bytes_in(PageState::Installed), 4 * PAGE as u64);
    pager.stop().unwrap();
}

#[test]
fn threads_that_drop_and_touch_the_same_pages_go_on() {
    const PAGES: usize = 32;
    const ROUNDS: usize = 300;
    let memory = GuestMemory::new(PAGES);
    let (mut pager, _failures) = pager(vec![memory.region()], TestSource::new(), false);
    pager.start().unwrap();
    let guest = Arc::clone(&memory);
    within_time(move || {
        thread::scope(|scope| {
            for thread in 0..4 {
                let guest = &guest;
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let page = (round * 7 + thread) % PAGES;
                        guest.drop_pages(page, 1);
                        guest.read_byte(page, 0);
                    }
                });
            }
        });
    });
    assert_eq!(pager.stats().removed_pages, 4 * ROUNDS as u64);
    pager.stop().unwrap();
}

#[test]
fn a_source_that_fails_ends_the_pager_loudly() {
    let memory = GuestMemory::new(16);
    let source = TestSource::with_trouble(0x5000, Trouble::Fail);
    let (mut pager, failures) = pager(vec![memory.region()], source, false);
    pager.start().unwrap();
    // Before this nobody is kept waiting after a failure.
    pager.mark_resumed().unwrap();
    let guest = Arc::clone(&memory);
    let vcpu = thread::spawn(move || {
        assert_eq!(guest.read_byte(1, 0), expected_page(0x1000)[0]);
        guest.read_byte(5, 0);
    });
    let error = failure_of(&failures);
    let PagerError::Serve(cause) = &error else {
        panic!("{error:?}");
    };
    assert!(
        matches!(**cause, ServeError::Source { gpa: 0x5000, .. }),
        "{cause:?}"
    );
    assert!(!vcpu.is_finished(), "the page must not appear");
    assert!(matches!(pager.failure(), Some(PagerError::Serve(_))));
    assert!(matches!(pager.stop(), Err(PagerError::Serve(_))));
    // The memory is no longer the pager's, so the thread goes on.
    within_time(move || vcpu.join().unwrap());
}

#[test]
fn a_source_that_panics_is_a_failure_too() {
    let memory = GuestMemory::new(16);
    let source = TestSource::with_trouble(0x5000, Trouble::Panic);
    let (mut pager, failures) = pager(vec![memory.region()], source, false);
    pager.start().unwrap();
    let guest = Arc::clone(&memory);
    let vcpu = thread::spawn(move || guest.read_byte(5, 0));
    let error = failure_of(&failures);
    assert!(
        matches!(&error, PagerError::Serve(cause)
            if matches!(&**cause, ServeError::SourcePanicked { gpa: 0x5000, reason }
                if reason == "a source that panics")),
        "{error:?}"
    );
    drop(pager);
    within_time(move || vcpu.join().unwrap());
}

#[test]
fn a_damaged_page_of_a_snapshot_is_never_given_to_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("snapshot");
    let snapshot = write_snapshot(&dir, 16);
    let file = OpenOptions::new()
        .write(true)
        .open(dir.join(MEMORY_FILE))
        .unwrap();
    file.write_all_at(&[0], 6 * PAGE as u64 + 1000).unwrap();

    let memory = GuestMemory::new(16);
    let source = SnapshotPageSource::new(snapshot).unwrap();
    let (mut pager, failures) = pager(vec![memory.region()], source, false);
    pager.mark_resumed().unwrap();
    pager.start().unwrap();
    let guest = Arc::clone(&memory);
    let vcpu = thread::spawn(move || {
        for page in [5, 4, 7] {
            assert_eq!(guest.read_page(page), expected_page((page * PAGE) as u64));
        }
        guest.read_byte(6, 0);
    });
    let error = failure_of(&failures);
    let mut chain = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = cause {
        chain.push_str(&error.to_string());
        cause = error.source();
    }
    assert!(
        chain.contains("0x6000") && chain.contains("damaged"),
        "{chain}"
    );
    assert_eq!(pager.stats().zero_faults, 1);
    assert!(!vcpu.is_finished(), "the page must not appear");
    drop(pager);
    within_time(move || vcpu.join().unwrap());
}

#[test]
fn an_idle_pager_stops_at_once() {
    for spin in [Duration::ZERO, DEFAULT_SPIN, Duration::from_secs(3600)] {
        let memory = GuestMemory::new(4);
        let (mut pager, _failures) = pager_with(
            vec![memory.region()],
            TestSource::new(),
            true,
            phase(Phase::Restore),
            spin,
        );
        pager.start().unwrap();
        // With the first two it sleeps by now, with the last it spins.
        thread::sleep(Duration::from_millis(10));
        within_time(move || assert!(pager.stop().unwrap().is_empty()));
        drop(memory);
    }
}

#[test]
fn a_pager_that_was_never_started_or_only_dropped_ends_too() {
    let memory = GuestMemory::new(4);
    let (mut first, _failures) = pager(vec![memory.region()], TestSource::new(), false);
    // While it exists, no other can have the memory.
    let error = new_error(vec![memory.region()]);
    assert!(
        matches!(error, PagerError::Uffd(UffdError::Register { gpa: 0, .. })),
        "{error}"
    );
    first.start().unwrap();
    assert!(matches!(first.start(), Err(PagerError::AlreadyStarted)));
    within_time(move || drop(first));
    let (second, _failures) = pager(vec![memory.region()], TestSource::new(), false);
    within_time(move || drop(second.stop().unwrap()));
}

fn new_error(regions: Vec<MemoryRegion>) -> PagerError {
    let config = PagerConfig {
        regions,
        source: Box::new(TestSource::new()),
        record: false,
        trace_records: None,
        phase: Arc::default(),
        spin: Duration::ZERO,
        hooks: PagerHooks::default(),
        on_failure: Box::new(|_| {}),
    };
    // SAFETY: the regions are memory of the tests, or nothing at all.
    match unsafe { Pager::new(config) } {
        Ok(_) => panic!("a pager for memory that cannot have one"),
        Err(error) => error,
    }
}

#[test]
fn memory_that_breaks_a_rule_is_refused() {
    let memory = GuestMemory::new(4);
    assert!(matches!(new_error(vec![]), PagerError::Regions(_)));
    let twice = vec![memory.region(), memory.region()];
    assert!(matches!(new_error(twice), PagerError::Regions(_)));
}
