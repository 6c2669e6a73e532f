//! How a pager ends: once, loudly, and without leaving a thread behind that waits; and what it
//! has to say until then.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::Duration;

use reapvm_reap::{Page, PageSource, PageSourceError, PagerError, ServeError};
use support::{GuestMemory, PAGE, TestSource, expected_page, failure_of, pager, within_time};

/// Fails for every page from the address on.
struct FailsFrom(u64, TestSource);

impl PageSource for FailsFrom {
    fn read_page(&mut self, gpa: u64) -> Result<Page<'_>, PageSourceError> {
        if gpa >= self.0 {
            return Err(PageSourceError::OutOfRange { gpa });
        }
        self.1.read_page(gpa)
    }
}

#[test]
fn a_failure_is_told_once_however_many_threads_wait() {
    const THREADS: usize = 6;
    let memory = GuestMemory::new(16);
    let source = FailsFrom(0x8000, TestSource::new());
    let (mut pager, failures) = pager(vec![memory.region()], source, true);
    // All of them wait before the first page is served, so there is a failure for each.
    let guests: Vec<_> = (0..THREADS)
        .map(|thread| {
            let guest = Arc::clone(&memory);
            thread::spawn(move || guest.read_byte(8 + thread, 0))
        })
        .collect();
    thread::sleep(Duration::from_millis(20));
    pager.mark_resumed().unwrap();
    pager.start().unwrap();
    let first = failure_of(&failures);
    assert!(matches!(first, PagerError::Serve(_)), "{first:?}");
    // The callback is gone with its sender, so it cannot be called again.
    assert!(matches!(
        failures.recv_timeout(Duration::from_secs(20)),
        Err(RecvTimeoutError::Disconnected)
    ));
    assert_eq!(pager.failure().unwrap().to_string(), first.to_string());
    // The account can be read after a failure, and says nothing of what was not served.
    assert_eq!(pager.stats().faults, 0);
    assert!(pager.take_recording().is_empty());
    assert!(guests.iter().all(|guest| !guest.is_finished()));
    within_time(move || {
        assert!(pager.stop().is_err());
        guests
            .into_iter()
            .for_each(|guest| assert_eq!(guest.join().unwrap(), 0));
    });
}

#[test]
fn a_failure_before_the_guest_runs_keeps_nobody_waiting_and_the_guest_from_running() {
    let memory = GuestMemory::new(16);
    let source = FailsFrom(0x8000, TestSource::new());
    let (mut pager, failures) = pager(vec![memory.region()], source, false);
    pager.start().unwrap();
    // As a restore does that hands guest memory to KVM: it cannot look at anything meanwhile.
    let guest = Arc::clone(&memory);
    within_time(move || {
        assert_eq!(guest.read_byte(3, 1), expected_page(0x3000)[1]);
        assert_eq!(guest.read_byte(9, 0), 0);
        assert_eq!(guest.read_byte(10, 0), 0);
    });
    let failure = failure_of(&failures);
    let refusal = pager.mark_resumed().unwrap_err();
    assert_eq!(refusal.to_string(), failure.to_string());
}

#[test]
fn a_failure_amid_a_storm_of_removals_is_told_too() {
    let memory = GuestMemory::new(64);
    let source = FailsFrom(32 * PAGE as u64, TestSource::new());
    let (mut pager, failures) = pager(vec![memory.region()], source, false);
    pager.mark_resumed().unwrap();
    pager.start().unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let (guest, over) = (Arc::clone(&memory), Arc::clone(&is_over));
    let storm = thread::spawn(move || {
        let mut round = 0;
        while !over.load(Ordering::Relaxed) {
            guest.drop_pages(round % 16, 1);
            round += 1;
        }
    });
    let guest = Arc::clone(&memory);
    let vcpu = thread::spawn(move || {
        for page in 16..32 {
            assert_eq!(
                guest.read_byte(page, 1),
                expected_page((page * PAGE) as u64)[1]
            );
        }
        guest.read_byte(32, 0);
    });
    let error = failure_of(&failures);
    assert!(
        matches!(&error, PagerError::Serve(cause)
            if matches!(**cause, ServeError::Source { gpa: 0x20000, .. })),
        "{error:?}"
    );
    assert!(!vcpu.is_finished(), "the page must not appear");
    is_over.store(true, Ordering::Relaxed);
    // The storm waits for its last message to be read: it must go on as the vCPU does.
    within_time(move || {
        drop(pager);
        storm.join().unwrap();
        vcpu.join().unwrap();
    });
}

#[test]
fn a_pager_can_be_stopped_while_threads_fault_and_drop_pages() {
    const PAGES: usize = 4096;
    for round in 0..10 {
        let memory = GuestMemory::new(PAGES);
        let (mut pager, failures) = pager(vec![memory.region()], TestSource::new(), true);
        pager.start().unwrap();
        let guests: Vec<_> = (0..3)
            .map(|thread| {
                let guest = Arc::clone(&memory);
                thread::spawn(move || {
                    for page in 0..PAGES {
                        guest.read_byte(page, 0);
                        if thread == 0 {
                            guest.drop_pages(page / 2, 1);
                        }
                    }
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(round));
        let recording = within_time(move || pager.stop().unwrap());
        within_time(move || {
            guests.into_iter().for_each(|guest| guest.join().unwrap());
        });
        // No page twice, whatever was dropped and touched again.
        let mut pages = recording.pages();
        pages.sort_unstable();
        assert!(pages.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(matches!(
            failures.try_recv(),
            Err(TryRecvError::Disconnected)
        ));
    }
}

#[test]
fn a_touch_that_has_returned_is_in_the_account() {
    const PAGES: usize = 2000;
    let memory = GuestMemory::new(PAGES);
    let (mut pager, _failures) = pager(vec![memory.region()], TestSource::new(), true);
    pager.start().unwrap();
    // On this thread, without a watchdog: only then nothing comes between touch and look.
    for page in 0..PAGES {
        memory.read_byte(page, 0);
        assert_eq!(pager.stats().faults, page as u64 + 1);
        if page % 50 == 0 {
            assert_eq!(pager.take_recording().len(), page + 1);
        }
    }
    pager.stop().unwrap();
}
