//! The trace of a pager on a real userfaultfd; threads of the test stand for vCPUs.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use reapvm_reap::trace::{ThreadKind, name_threads};
use reapvm_reap::{
    Access, FaultTrace, Outcome, Pager, PagerConfig, PagerHooks, PagerStats, Phase, TraceRecord,
};
use support::{GuestMemory, PAGE, TestSource, pager, pager_with, phase, shuffled, within_time};

fn trace_of(pager: &Pager) -> FaultTrace {
    pager.fault_trace().unwrap()
}

/// What the pager has counted and traced, of the same moment. Whoever is woken by another's page goes
/// on before its own fault is served, so that more may come between the two.
fn stats_and_trace_of(pager: &Pager) -> (PagerStats, FaultTrace) {
    loop {
        let (stats, trace) = (pager.stats(), trace_of(pager));
        if pager.stats() == stats {
            return (stats, trace);
        }
    }
}

/// Touches each of `pages` on a thread named `name`, writing if `write`.
fn touch(memory: &Arc<GuestMemory>, name: &str, pages: Vec<usize>, write: bool) -> u32 {
    let guest = Arc::clone(memory);
    let name = name.to_owned();
    within_time(move || {
        let toucher = move || {
            for page in pages {
                if write {
                    guest.write_byte(page, 5, 9);
                } else {
                    guest.read_byte(page, 5);
                }
            }
            rustix::thread::gettid().as_raw_pid().unsigned_abs()
        };
        let thread = thread::Builder::new().name(name).spawn(toucher);
        thread.unwrap().join().unwrap()
    })
}

#[test]
fn every_fault_is_traced_whether_or_not_the_pager_records() {
    const PAGES: usize = 200;
    for record in [false, true] {
        let memory = GuestMemory::new(PAGES);
        let cell = phase(Phase::Connection);
        let (mut pager, _failures) = pager_with(
            vec![memory.region()],
            TestSource::new(),
            record,
            Arc::clone(&cell),
            Duration::ZERO,
        );
        pager.start().unwrap();
        let order = shuffled(PAGES, 3);
        let (first, second) = order.split_at(PAGES / 2);
        let reader = touch(&memory, "reader", first.to_vec(), false);
        pager.mark_resumed().unwrap();
        cell.set(Phase::Request);
        let writer = touch(&memory, "writer", second.to_vec(), true);

        let trace = trace_of(&pager);
        assert_eq!(trace.dropped, 0);
        assert_eq!(trace.records.len(), PAGES);
        for (number, (record, page)) in trace.records.iter().zip(&order).enumerate() {
            let gpa = (page * PAGE) as u64;
            let is_second = number >= PAGES / 2;
            assert_eq!(record.sequence, number as u64);
            assert_eq!(record.gpa, gpa);
            assert_eq!(record.hva, memory.address(*page) as u64);
            assert_eq!(record.ns_since_resume > 0, is_second, "{record:?}");
            assert_eq!(record.thread_id, if is_second { writer } else { reader });
            let (access, phase) = match is_second {
                true => (Access::Write, Phase::Request),
                false => (Access::Read, Phase::Connection),
            };
            assert_eq!((record.access, record.phase), (access, phase));
            let outcome = if page % 4 == 0 {
                Outcome::Zero
            } else {
                Outcome::Miss
            };
            assert_eq!(record.outcome, outcome);
            assert!(record.is_first_touch && record.service_ns > 0 && record.queue_depth == 1);
        }
        // Of the recording, if there is one, the trace has the same.
        let recorded: Vec<TraceRecord> = pager.stop().unwrap().records;
        assert_eq!(recorded.len(), if record { PAGES } else { 0 });
        assert!(recorded.iter().zip(&trace.records).all(|(a, b)| a == b));
    }
}

#[test]
fn a_page_that_was_dropped_is_traced_again_but_not_as_a_first_touch() {
    let memory = GuestMemory::new(8);
    let (mut pager, _failures) = pager(vec![memory.region()], TestSource::new(), true);
    pager.start().unwrap();
    touch(&memory, "first", vec![5, 6], false);
    let guest = Arc::clone(&memory);
    within_time(move || guest.drop_pages(5, 1));
    touch(&memory, "again", vec![5], false);

    let trace = trace_of(&pager);
    let seen: Vec<(u64, bool, Outcome)> = trace
        .records
        .iter()
        .map(|r| (r.gpa / PAGE as u64, r.is_first_touch, r.outcome))
        .collect();
    assert_eq!(
        seen,
        [
            (5, true, Outcome::Miss),
            (6, true, Outcome::Miss),
            (5, false, Outcome::Zero)
        ]
    );
    assert_eq!(pager.stop().unwrap().len(), 2);
}

#[test]
fn faults_of_several_threads_for_one_page_are_all_there_and_queue() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 100;
    let memory = GuestMemory::new(ROUNDS);
    let (mut pager, _failures) = pager(vec![memory.region()], TestSource::new(), false);
    pager.start().unwrap();
    let barrier = Arc::new(Barrier::new(THREADS));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (guest, barrier) = (Arc::clone(&memory), Arc::clone(&barrier));
            thread::spawn(move || {
                for page in 0..ROUNDS {
                    barrier.wait();
                    guest.read_byte(page, 0);
                }
            })
        })
        .collect();
    within_time(move || threads.into_iter().for_each(|t| t.join().unwrap()));
    let (stats, trace) = stats_and_trace_of(&pager);
    assert_eq!(trace.records.len() as u64, stats.faults);
    let hits = |r: &&TraceRecord| r.outcome == Outcome::Hit;
    let first = |r: &&TraceRecord| r.is_first_touch;
    assert_eq!(
        trace.records.iter().filter(hits).count() as u64,
        stats.already_present
    );
    assert_eq!(trace.records.iter().filter(first).count(), ROUNDS);
    let depths = 1..=THREADS as u32;
    assert!(
        trace
            .records
            .iter()
            .all(|r| depths.contains(&r.queue_depth))
    );
}

#[test]
fn a_full_buffer_never_keeps_the_guest_waiting() {
    const PAGES: usize = 300;
    let memory = GuestMemory::new(PAGES);
    let config = PagerConfig {
        regions: vec![memory.region()],
        source: Box::new(TestSource::new()),
        record: false,
        trace_records: Some(100),
        phase: Arc::default(),
        spin: Duration::ZERO,
        hooks: PagerHooks::default(),
        on_failure: Box::new(|_| {}),
    };
    // SAFETY: the memory is anonymous and stays mapped until the pager is gone.
    let mut pager = unsafe { Pager::new(config) }.unwrap();
    pager.start().unwrap();
    touch(&memory, "toucher", (0..PAGES).collect(), true);
    assert_eq!(pager.stats().faults, PAGES as u64);
    let trace = trace_of(&pager);
    assert_eq!((trace.records.len(), trace.dropped), (100, 200));
    drop(pager.stop().unwrap());
}

#[test]
fn threads_are_named_while_they_are_there() {
    let names = within_time(|| {
        thread::Builder::new()
            .name("vcpu-2".to_owned())
            .spawn(|| name_threads([rustix::thread::gettid().as_raw_pid().unsigned_abs()]))
            .unwrap()
            .join()
            .unwrap()
    });
    assert_eq!(names[0].kind, ThreadKind::Vcpu);
    assert_eq!(names[0].vcpu, Some(2));
    let gone = name_threads([names[0].thread_id]);
    assert_eq!(gone[0].kind, ThreadKind::Unknown);
}
