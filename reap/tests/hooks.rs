//! What is hung into a pager: fault policies, fault listeners, and sources of other kinds.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use reapvm_reap::{
    FaultAround, FaultInfo, FaultPlan, FaultPolicy, Page, PageSource, PageSourceError, PageState,
    Pager, PagerError, PagerHooks, PagerStats, ServeError, fault_channel,
};
use support::{
    GuestMemory, PAGE, TestSource, Trouble, expected_page, failure_of, pager, pager_with_hooks,
    shuffled, within_time,
};

const PAGE_BYTES: u64 = PAGE as u64;

fn with_policy(policy: impl FaultPolicy + 'static) -> PagerHooks {
    PagerHooks {
        policy: Some(Box::new(policy)),
        listener: None,
    }
}

fn check_pages(memory: &Arc<GuestMemory>, pages: Vec<usize>) {
    let guest = Arc::clone(memory);
    within_time(move || {
        for page in pages {
            assert_eq!(guest.read_page(page), expected_page((page * PAGE) as u64));
        }
    });
}

/// Waits until `is_so` of what the pager has done.
fn wait_until(pager: &Pager, is_so: impl Fn(&PagerStats) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so(&pager.stats()) {
        assert!(Instant::now() < deadline, "{:?}", pager.stats());
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_window_around_each_fault_saves_the_faults_of_its_other_pages() {
    const PAGES: usize = 1024;
    for block in [1_usize, 2, 16, 64, PAGES, 1 << 50] {
        let memory = GuestMemory::new(PAGES);
        let policy = FaultAround::new(NonZeroU64::new(block as u64).unwrap());
        let (mut pager, _failures) = pager_with_hooks(
            vec![memory.region()],
            TestSource::new(),
            with_policy(policy),
        );
        pager.start().unwrap();
        check_pages(&memory, shuffled(PAGES, 3));
        let stats = pager.stats();
        let blocks = PAGES.div_ceil(block) as u64;
        assert_eq!(stats.faults, blocks);
        assert_eq!(stats.policy_pages, PAGES as u64 - blocks);
        assert_eq!(stats.already_present, 0);
        // Every fourth page is zero.
        assert_eq!(
            stats.bytes_read + stats.policy_bytes,
            PAGES as u64 * 3 / 4 * PAGE_BYTES
        );
        assert_eq!(
            pager.page_states().bytes_in(PageState::Installed),
            memory.len_bytes()
        );
        // A page of the policy's is no fault, and in no trace.
        assert_eq!(pager.fault_trace().unwrap().records.len() as u64, blocks);
    }
}

#[test]
fn what_can_wait_is_installed_when_no_fault_waits() {
    const PAGES: usize = 512;
    let memory = GuestMemory::new(PAGES);
    let all_later = |_: &FaultInfo, plan: &mut FaultPlan<'_>| plan.install_later(0, u64::MAX);
    let (mut pager, _failures) = pager_with_hooks(
        vec![memory.region()],
        TestSource::new(),
        with_policy(all_later),
    );
    pager.start().unwrap();
    check_pages(&memory, vec![77]);
    wait_until(&pager, |stats| stats.policy_pages == PAGES as u64 - 1);
    check_pages(&memory, shuffled(PAGES, 5));
    let stats = pager.stats();
    assert_eq!((stats.faults, stats.data_faults), (1, 1));
}

#[test]
fn threads_that_touch_what_is_being_installed_all_see_it() {
    const PAGES: usize = 512;
    const THREADS: u64 = 4;
    // Both ways at once, and more often than needed.
    let both = |fault: &FaultInfo, plan: &mut FaultPlan<'_>| {
        plan.install(fault.gpa.saturating_sub(8 * PAGE_BYTES), 4);
        plan.install(fault.gpa, 2);
        plan.install(fault.gpa, 2);
        plan.install_later(fault.gpa, 64);
        plan.install_later(u64::MAX, 7);
        assert!(!plan.is_missing(u64::MAX));
    };
    for _ in 0..5 {
        let memory = GuestMemory::new(PAGES);
        let (mut pager, _failures) =
            pager_with_hooks(vec![memory.region()], TestSource::new(), with_policy(both));
        pager.start().unwrap();
        let barrier = Arc::new(Barrier::new(THREADS as usize));
        let guests: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (guest, barrier) = (Arc::clone(&memory), Arc::clone(&barrier));
                thread::spawn(move || {
                    barrier.wait();
                    for page in shuffled(PAGES, thread) {
                        assert_eq!(guest.read_page(page), expected_page((page * PAGE) as u64));
                    }
                })
            })
            .collect();
        within_time(move || guests.into_iter().for_each(|guest| guest.join().unwrap()));
        wait_until(&pager, |stats| {
            let brought = stats.zero_faults + stats.data_faults + stats.policy_pages;
            brought == PAGES as u64
        });
        let stats = pager.stats();
        let faults = stats.zero_faults + stats.data_faults + stats.already_present;
        assert_eq!(stats.faults, faults);
        assert!(stats.faults < PAGES as u64 * THREADS);
        assert!(stats.policy_present > 0);
    }
}

#[test]
fn pages_that_were_dropped_stay_zero_whatever_the_policy_names() {
    const PAGES: usize = 256;
    let memory = GuestMemory::new(PAGES);
    let all = |_: &FaultInfo, plan: &mut FaultPlan<'_>| {
        plan.install(0, u64::MAX);
        plan.install_later(0, u64::MAX);
    };
    let (mut pager, _failures) =
        pager_with_hooks(vec![memory.region()], TestSource::new(), with_policy(all));
    pager.start().unwrap();
    let guest = Arc::clone(&memory);
    within_time(move || guest.drop_pages(32, 64));
    check_pages(&memory, vec![3]);
    assert_eq!(pager.stats().policy_pages, PAGES as u64 - 64 - 1);
    let guest = Arc::clone(&memory);
    within_time(move || {
        for page in 32..96 {
            assert_eq!(guest.read_page(page), [0; PAGE]);
        }
    });
    assert_eq!(pager.stats().zero_faults, 64);
}

#[test]
fn a_storm_of_removals_loses_no_page_of_the_policy_and_brings_none_back() {
    const PAGES: usize = 2048;
    const STORM: usize = 64;
    let memory = GuestMemory::new(PAGES);
    let around = |fault: &FaultInfo, plan: &mut FaultPlan<'_>| {
        plan.install(fault.gpa, 16);
        plan.install_later(0, u64::MAX);
    };
    let (mut pager, _failures) = pager_with_hooks(
        vec![memory.region()],
        TestSource::new(),
        with_policy(around),
    );
    pager.start().unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let (guest, over) = (Arc::clone(&memory), Arc::clone(&is_over));
    let storm = thread::spawn(move || {
        let mut round = 0;
        while !over.load(Ordering::Relaxed) {
            guest.drop_pages(round % STORM, 1);
            round += 1;
            if round % 64 == 0 {
                thread::sleep(Duration::from_micros(100));
            }
        }
        round
    });
    check_pages(&memory, (STORM..PAGES).step_by(31).collect());
    wait_until(&pager, |stats| {
        stats.data_faults + stats.zero_faults + stats.policy_pages >= (PAGES - STORM) as u64
    });
    is_over.store(true, Ordering::Relaxed);
    let rounds = within_time(move || storm.join().unwrap());
    check_pages(&memory, (STORM..PAGES).collect());
    let guest = Arc::clone(&memory);
    within_time(move || {
        for page in 0..STORM.min(rounds) {
            assert_eq!(guest.read_page(page), [0; PAGE]);
        }
    });
}

/// From the announcement of a removal until the removal has come to a page, the page may be touched and
/// put in place: then the pager has it in place, and it goes all the same.
#[test]
fn a_page_that_goes_after_it_was_put_in_place_again_is_served_again() {
    // So many that it takes a while to come to the last one.
    const PAGES: usize = 4096;
    const LAST: usize = PAGES - 1;
    for _ in 0..12 {
        let memory = GuestMemory::new(PAGES);
        let all = |_: &FaultInfo, plan: &mut FaultPlan<'_>| plan.install(0, u64::MAX);
        let (mut pager, _failures) =
            pager_with_hooks(vec![memory.region()], TestSource::new(), with_policy(all));
        pager.start().unwrap();
        let guest = Arc::clone(&memory);
        within_time(move || {
            guest.read_byte(0, 0);
            let is_over = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        guest.read_byte(LAST, 0);
                    }
                });
                guest.drop_pages(LAST, 1);
                guest.drop_pages(0, PAGES);
                guest.read_byte(LAST, 0);
                is_over.store(true, Ordering::Relaxed);
            });
        });
        assert_eq!(pager.stats().removed_pages, PAGES as u64 + 1);
    }
}

#[test]
fn a_policy_that_panics_ends_the_pager_with_an_error_that_says_where() {
    let memory = GuestMemory::new(16);
    let panics = |fault: &FaultInfo, _: &mut FaultPlan<'_>| {
        assert!(
            fault.gpa < 0x5000,
            "no idea what comes after {:#x}",
            fault.gpa
        );
    };
    let (mut pager, failures) = pager_with_hooks(
        vec![memory.region()],
        TestSource::new(),
        with_policy(panics),
    );
    pager.start().unwrap();
    pager.mark_resumed().unwrap();
    check_pages(&memory, vec![1]);
    let guest = Arc::clone(&memory);
    let vcpu = thread::spawn(move || guest.read_byte(5, 0));
    let error = failure_of(&failures);
    assert!(
        matches!(&error, PagerError::Serve(cause)
            if matches!(&**cause, ServeError::PolicyPanicked { gpa: 0x5000, reason }
                if reason == "no idea what comes after 0x5000")),
        "{error:?}"
    );
    assert!(!vcpu.is_finished(), "the page must not appear");
    drop(pager);
    within_time(move || vcpu.join().unwrap());
}

#[test]
fn a_source_that_fails_at_a_page_of_the_policy_fails_as_at_any() {
    let next = |fault: &FaultInfo, plan: &mut FaultPlan<'_>| {
        plan.install(fault.gpa + PAGE_BYTES, 1);
    };
    let later = |fault: &FaultInfo, plan: &mut FaultPlan<'_>| {
        plan.install_later(fault.gpa + PAGE_BYTES, 1);
    };
    for hooks in [with_policy(next), with_policy(later)] {
        let memory = GuestMemory::new(16);
        let source = TestSource::with_trouble(0x6000, Trouble::Fail);
        let (mut pager, failures) = pager_with_hooks(vec![memory.region()], source, hooks);
        pager.start().unwrap();
        let guest = Arc::clone(&memory);
        let vcpu = thread::spawn(move || guest.read_byte(5, 1));
        let error = failure_of(&failures);
        assert!(
            matches!(&error, PagerError::Serve(cause)
                if matches!(**cause, ServeError::Source { gpa: 0x6000, .. })),
            "{error:?}"
        );
        drop(pager);
        within_time(move || vcpu.join().unwrap());
    }
}

/// Gives pages of any length.
struct Lengths(Vec<u8>);

impl PageSource for Lengths {
    fn read_page(&mut self, gpa: u64) -> Result<Page<'_>, PageSourceError> {
        let end = self.0.len().min((gpa / PAGE_BYTES * 2048) as usize);
        Page::from_bytes(gpa, &self.0[..end])
    }
}

#[test]
fn what_is_not_a_page_is_refused_with_its_length() {
    for page in [0_usize, 1, 3, 4] {
        let memory = GuestMemory::new(8);
        let source = Lengths(vec![7; 3 * PAGE]);
        let (mut pager, failures) = pager(vec![memory.region()], source, false);
        pager.start().unwrap();
        pager.mark_resumed().unwrap();
        let guest = Arc::clone(&memory);
        within_time(move || assert_eq!(guest.read_byte(2, 9), 7));
        let guest = Arc::clone(&memory);
        let vcpu = thread::spawn(move || guest.read_byte(page, 0));
        let PagerError::Serve(error) = failure_of(&failures) else {
            panic!("it was served");
        };
        let ServeError::Source { source, .. } = &*error else {
            panic!("{error:?}");
        };
        let expected = PageSourceError::WrongLength {
            gpa: page as u64 * PAGE_BYTES,
            actual_bytes: page * 2048,
        };
        assert_eq!(source.to_string(), expected.to_string());
        drop(pager);
        within_time(move || vcpu.join().unwrap());
    }
}

#[test]
fn a_listener_hears_of_every_fault_or_counts_it() {
    const PAGES: usize = 2000;
    for capacity in [1, 100, PAGES * 2] {
        let memory = GuestMemory::new(PAGES);
        let (sender, listener) = fault_channel(capacity);
        let hooks = PagerHooks {
            policy: None,
            listener: Some(sender),
        };
        let (mut pager, _failures) =
            pager_with_hooks(vec![memory.region()], TestSource::new(), hooks);
        pager.start().unwrap();
        let heard = thread::spawn(move || {
            let mut listener = listener;
            let records: Vec<_> = listener.by_ref().collect();
            (records, listener.dropped())
        });
        pager.mark_resumed().unwrap();
        let guests: Vec<_> = (0..2)
            .map(|thread| {
                let guest = Arc::clone(&memory);
                thread::spawn(move || {
                    // Each thread its own half: who is woken by another's page goes on before
                    // its own fault is counted.
                    for page in shuffled(PAGES / 2, thread) {
                        guest.read_byte(page + thread as usize * PAGES / 2, 0);
                    }
                })
            })
            .collect();
        within_time(move || guests.into_iter().for_each(|guest| guest.join().unwrap()));
        let (stats, trace) = (pager.stats(), pager.fault_trace().unwrap());
        drop(pager);
        let (records, dropped) = within_time(move || heard.join().unwrap());
        assert_eq!(records.len() as u64 + dropped, stats.faults);
        assert_eq!(trace.records.len() as u64, stats.faults);
        // Each is the record that a trace keeps.
        for record in &records {
            assert_eq!(*record, trace.records[record.sequence as usize]);
        }
        assert!(records.is_sorted_by(|a, b| a.sequence < b.sequence));
        if capacity == PAGES * 2 {
            assert_eq!(dropped, 0);
        }
    }
}

#[test]
fn a_listener_that_looks_away_keeps_nobody_waiting() {
    const PAGES: usize = 1000;
    let memory = GuestMemory::new(PAGES);
    let (sender, listener) = fault_channel(10);
    let hooks = PagerHooks {
        policy: None,
        listener: Some(sender),
    };
    let (mut pager, _failures) = pager_with_hooks(vec![memory.region()], TestSource::new(), hooks);
    pager.start().unwrap();
    check_pages(&memory, shuffled(PAGES, 1));
    // The last thread may go on before its fault is told of, but not before it is counted.
    assert_eq!(pager.stats().faults, PAGES as u64);
    assert_eq!(listener.dropped(), PAGES as u64 - 10);
    drop(pager);
    assert_eq!(listener.count(), 10);
}
