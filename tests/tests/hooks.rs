//! Machines with a page source, fault policy or fault listener of somebody else's.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use reapvm::invocation::{Connection, InvokeError};
use reapvm::machine::{BuildError, Machine, PrepareOptions, PreparedMachine, RestoreOptions};
use reapvm::memory::{MemoryError, MemoryHooks};
use reapvm::vcpu::GuestExit;
use reapvm_reap::{
    FaultAround, FaultInfo, FaultPlan, InstallOptions, MemoryRestoreMode, Page, PageSource,
    PageSourceError, PagerError, PagerStats, ServeError, SnapshotPageSource, fault_channel,
};
use reapvm_tests::scratch;
use reapvm_tests::snapshots::{self, TIMEOUT, call, input};
use reapvm_tests::watchdog::guarded;
use serde_json::Value;

fn restore(dir: &Path, mode: MemoryRestoreMode, hooks: MemoryHooks) -> Machine {
    let options = RestoreOptions::new(mode).hooks(hooks);
    let mut machine = Machine::restore(&snapshots::open(dir), options).unwrap();
    machine.resume().unwrap();
    machine
}

/// What a machine with `hooks` answers, and what its pager did.
fn answer(dir: &Path, hooks: MemoryHooks, seed: u64) -> (Value, PagerStats) {
    let mut machine = restore(dir, MemoryRestoreMode::OnDemand, hooks);
    let answer = call(&machine, seed);
    machine.pause().unwrap();
    (answer, machine.memory().pager_stats())
}

/// The pages of a snapshot, read before its memory file is emptied.
struct Taken(std::collections::HashMap<u64, Box<[u8; 4096]>>);

impl Taken {
    /// Leaves a memory file of the same length with nothing in it.
    fn from(dir: &Path) -> Self {
        let snapshot = snapshots::open(dir);
        let mut source = SnapshotPageSource::new(Arc::clone(&snapshot)).unwrap();
        let mut pages = std::collections::HashMap::new();
        for region in &snapshot.manifest().memory.regions {
            for gpa in (region.gpa..region.gpa + region.size_bytes).step_by(4096) {
                if let Page::Data(bytes) = source.read_page(gpa).unwrap() {
                    pages.insert(gpa, Box::new(*bytes));
                }
            }
        }
        let memory = File::options()
            .write(true)
            .open(dir.join("memory"))
            .unwrap();
        let length = memory.metadata().unwrap().len();
        memory.set_len(0).unwrap();
        memory.set_len(length).unwrap();
        Self(pages)
    }
}

impl PageSource for Taken {
    fn read_page(&mut self, gpa: u64) -> Result<Page<'_>, PageSourceError> {
        match self.0.get(&gpa) {
            Some(bytes) => Ok(Page::Data(bytes)),
            None => Err(PageSourceError::OutOfRange { gpa }),
        }
    }
}

#[test]
fn a_machine_whose_pages_come_from_elsewhere_answers_records_and_is_saved_as_any() {
    guarded(|| {
        let scratch = scratch::dir();
        let dir = scratch.path().join("snap");
        let again = scratch.path().join("again");
        let expected = snapshots::create("json_serdes", &dir, &[11, 12]);
        let mut taken = Taken::from(&dir);
        let mut hooks = || {
            let pages = std::mem::take(&mut taken.0);
            taken.0.clone_from(&pages);
            MemoryHooks::new().page_source(Taken(pages))
        };

        let (answered, stats) = answer(&dir, hooks(), 11);
        assert_eq!(answered, expected[0]);
        assert!(
            stats.data_faults > 50 && stats.policy_pages == 0,
            "{stats:?}"
        );

        // The working set is made of the source's pages too.
        let mut machine = restore(&dir, MemoryRestoreMode::Record, hooks());
        assert_eq!(call(&machine, 11), expected[0]);
        machine.pause().unwrap();
        let snapshot = snapshots::open(&dir);
        let recorded =
            reapvm::cold_start::write_recording(&machine, &snapshot, &input(11)).unwrap();
        assert!(recorded > 50);
        drop(machine);
        let machine = restore(&dir, MemoryRestoreMode::Prefetch, hooks());
        assert_eq!(call(&machine, 12), expected[1]);
        let stats = machine.memory().pager_stats();
        assert_eq!(stats.prefetched_pages + stats.early_faults, recorded);
        assert!(
            stats.faults - stats.early_faults < recorded / 10,
            "{stats:?}"
        );
        drop(machine);

        // What was never touched is saved from the source.
        let mut machine = restore(&dir, MemoryRestoreMode::OnDemand, hooks());
        machine.pause().unwrap();
        machine.save(&again).unwrap();
        drop(machine);
        let machine = snapshots::restore(&again, MemoryRestoreMode::Copy);
        assert_eq!(call(&machine, 12), expected[1]);
    });
}

/// How a source misbehaves when the guest asks for its `after`th page.
#[derive(Clone, Copy, Debug)]
enum Misbehaviour {
    Fails,
    Panics,
    GivesTooLittle,
    GivesAnotherPage,
    GivesZeroes,
}

struct Misbehaves {
    inner: SnapshotPageSource,
    after: u64,
    how: Misbehaviour,
}

impl PageSource for Misbehaves {
    fn read_page(&mut self, gpa: u64) -> Result<Page<'_>, PageSourceError> {
        if self.after > 0 {
            self.after -= 1;
            return self.inner.read_page(gpa);
        }
        match self.how {
            Misbehaviour::Fails => Err(PageSourceError::Other {
                gpa,
                source: "the network is gone".into(),
            }),
            Misbehaviour::Panics => panic!("the source has a bug"),
            Misbehaviour::GivesTooLittle => Page::from_bytes(gpa, &[1; 100]),
            Misbehaviour::GivesAnotherPage => Ok(Page::Data(&[0x5a; 4096])),
            Misbehaviour::GivesZeroes => Ok(Page::Zero),
        }
    }
}

/// Why a call of a machine of `dir` with `hooks` failed.
fn pager_error(dir: &Path, hooks: MemoryHooks) -> PagerError {
    let machine = restore(dir, MemoryRestoreMode::OnDemand, hooks);
    let result = Connection::open(&machine)
        .and_then(|mut connection| connection.call(&machine, &input(1), TIMEOUT));
    match result {
        Err(InvokeError::GuestEnded(GuestExit::PagerFailed(error))) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_source_that_misbehaves_ends_the_machine_with_an_error_that_names_the_page() {
    guarded(|| {
        let dir = snapshots::shared("helloworld");
        for (how, says) in [
            (Misbehaviour::Fails, "the network is gone"),
            (Misbehaviour::Panics, "the source has a bug"),
            (Misbehaviour::GivesTooLittle, "gave 100 bytes"),
            (Misbehaviour::GivesAnotherPage, "another page"),
            (Misbehaviour::GivesZeroes, "another page"),
        ] {
            let source = Misbehaves {
                inner: SnapshotPageSource::new(snapshots::open(&dir)).unwrap(),
                after: 20,
                how,
            };
            let error = pager_error(&dir, MemoryHooks::new().page_source(source));
            let text = reapvm::invocation::describe_exit(&GuestExit::PagerFailed(error));
            assert!(text.contains(says), "{how:?}: {text}");
            assert!(text.contains("guest address 0x"), "{how:?}: {text}");
        }
    });
}

#[test]
fn pages_that_are_not_verified_are_taken_as_they_come() {
    guarded(|| {
        let dir = snapshots::shared("helloworld");
        let (expected, _) = answer(&dir, MemoryHooks::new(), 31);
        let source = SnapshotPageSource::new(snapshots::open(&dir)).unwrap();
        let hooks = MemoryHooks::new().unverified_page_source(source);
        let (answered, stats) = answer(&dir, hooks, 31);
        assert_eq!(answered, expected);
        assert!(stats.zero_faults > 0 && stats.data_faults > 0);
    });
}

#[test]
fn a_window_around_each_fault_gives_the_same_answer_with_fewer_faults() {
    guarded(|| {
        let dir = snapshots::shared("json_serdes");
        let (expected, on_demand) = answer(&dir, MemoryHooks::new(), 41);
        let window = |pages| FaultAround::new(NonZeroU64::new(pages).unwrap());
        let (answered, stats) = answer(&dir, MemoryHooks::new().fault_policy(window(16)), 41);
        assert_eq!(answered, expected);
        assert!(
            stats.faults * 2 < on_demand.faults,
            "{} faults, on demand {}",
            stats.faults,
            on_demand.faults
        );
        assert!(stats.policy_pages > stats.faults, "{stats:?}");
        assert!(stats.bytes_read < on_demand.bytes_read);

        // All that there is, after the first fault: nothing else is a miss.
        let everything = |_: &FaultInfo, plan: &mut FaultPlan<'_>| plan.install(0, u64::MAX);
        let (answered, stats) = answer(&dir, MemoryHooks::new().fault_policy(everything), 41);
        assert_eq!(answered, expected);
        assert_eq!(stats.zero_faults + stats.data_faults, 1, "{stats:?}");
    });
}

#[test]
fn a_policy_that_panics_ends_the_machine() {
    guarded(|| {
        let dir = snapshots::shared("helloworld");
        let mut left = 10;
        let policy = move |_: &FaultInfo, _: &mut FaultPlan<'_>| {
            left -= 1;
            assert!(left > 0, "the predictor is at its end");
        };
        let error = pager_error(&dir, MemoryHooks::new().fault_policy(policy));
        assert!(
            matches!(&error, PagerError::Serve(cause)
                if matches!(&**cause, ServeError::PolicyPanicked { reason, .. }
                    if reason == "the predictor is at its end")),
            "{error:?}"
        );
    });
}

#[test]
fn a_listener_hears_of_as_many_faults_as_are_counted() {
    guarded(|| {
        let dir = snapshots::shared("helloworld");
        for capacity in [16, 1 << 16] {
            let (sender, mut listener) = fault_channel(capacity);
            // A prepared machine takes hooks too.
            let mode = MemoryRestoreMode::OnDemand;
            let mut prepared =
                PreparedMachine::new(&snapshots::open(&dir), PrepareOptions::new(mode)).unwrap();
            prepared.set_hooks(MemoryHooks::new().fault_listener(sender));
            let mut machine = prepared
                .restore(mode, InstallOptions::default(), None)
                .unwrap();
            let listening = thread::spawn(move || {
                let records: Vec<_> = listener.by_ref().collect();
                (records, listener.dropped())
            });
            machine.resume().unwrap();
            call(&machine, 51);
            machine.pause().unwrap();
            let stats = machine.memory().pager_stats();
            drop(machine);
            let (records, dropped) = listening.join().unwrap();
            assert_eq!(records.len() as u64 + dropped, stats.faults);
            assert!(records.is_sorted_by(|a, b| a.sequence < b.sequence));
            if capacity > 16 {
                assert_eq!(dropped, 0);
                assert!(records.iter().all(|record| record.is_first_touch));
            }
        }
    });
}

#[test]
fn hooks_that_nobody_would_use_are_refused() {
    guarded(|| {
        let snapshot = snapshots::open(&snapshots::shared("helloworld"));
        let policy = |_: &FaultInfo, _: &mut FaultPlan<'_>| {};
        for mode in MemoryRestoreMode::ALL {
            let hooks = MemoryHooks::new().fault_policy(policy);
            let result = Machine::restore(&snapshot, RestoreOptions::new(mode).hooks(hooks));
            match (mode, result) {
                (MemoryRestoreMode::OnDemand, Ok(_)) => {}
                (
                    MemoryRestoreMode::Copy | MemoryRestoreMode::File,
                    Err(BuildError::Memory(MemoryError::HooksNeedPager { mode: refused })),
                ) => assert_eq!(refused, mode),
                (
                    MemoryRestoreMode::Record,
                    Err(BuildError::Memory(MemoryError::PolicyRecords)),
                ) => {}
                // It has no working set.
                (
                    MemoryRestoreMode::Prefetch,
                    Err(BuildError::Memory(MemoryError::WorkingSet(_))),
                ) => {}
                (mode, result) => panic!("{mode}: {result:?}"),
            }
        }
    });
}
