use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use proptest::prelude::*;
use reapvm_snapshot::{LockError, PAGE_SIZE, SnapshotDirectory, SnapshotId};

use super::state::Defect;
use super::*;
use crate::source::{Page, PageSource, PageSourceError};
use crate::{PAGE_SIZE_BYTES, WorkingSet, WorkingSetError};

const MEMORY_BYTES: u64 = 4096 * PAGE_SIZE_BYTES;

struct Same([u8; PAGE_SIZE]);

impl PageSource for Same {
    fn read_page(&mut self, _gpa: u64) -> Result<Page<'_>, PageSourceError> {
        Ok(Page::Data(&self.0))
    }
}

fn source() -> Same {
    Same([7; PAGE_SIZE])
}

fn id() -> SnapshotId {
    SnapshotId::from_bytes([1; 16])
}

fn gpas(pages: impl IntoIterator<Item = u64>) -> Vec<u64> {
    pages
        .into_iter()
        .map(|page| page * PAGE_SIZE_BYTES)
        .collect()
}

fn recording(pages: impl IntoIterator<Item = u64>) -> TouchCounts {
    TouchCounts::of_recording(&gpas(pages))
}

fn set_in(dir: &Path) -> EvolvingSet {
    EvolvingSet {
        directory: Arc::new(SnapshotDirectory::open(dir).unwrap()),
        set_path: dir.join("working-set"),
        state_path: dir.join("working-set-state"),
        id: id(),
        memory_bytes: MEMORY_BYTES,
        rules: EvolutionRules::default(),
        reset_state: false,
    }
}

fn held(set: &EvolvingSet) -> WorkingSet {
    WorkingSet::verify(&set.set_path, &id(), MEMORY_BYTES).unwrap()
}

fn pages_of(set: &WorkingSet) -> BTreeSet<u64> {
    set.page_gpas().map(|gpa| gpa / PAGE_SIZE_BYTES).collect()
}

/// One start of a guest that touches `touches`: what it did, and how many pages it missed.
fn start(set: &EvolvingSet, touches: &BTreeSet<u64>) -> (Plan, u64) {
    let plan = set.plan().unwrap();
    let mut missed = 0;
    match plan {
        Plan::Record(_) => {
            set.add_recording(&recording(touches.iter().copied()), &mut source())
                .unwrap();
        }
        Plan::Prefetch => {
            let installed = held(set);
            let missing = gpas(touches.difference(&pages_of(&installed)).copied());
            missed = missing.len() as u64;
            set.add_prefetch(&installed, &missing, None, &mut source())
                .unwrap();
        }
    }
    (plan, missed)
}

/// A prefetch that missed so many pages, beyond those that any test's set has.
fn add_prefetch(
    set: &EvolvingSet,
    installed: &WorkingSet,
    missed: u64,
    unused: Option<u64>,
) -> Prefetched {
    set.add_prefetch(installed, &gpas(2000..2000 + missed), unused, &mut source())
        .unwrap()
}

#[test]
fn a_set_of_other_pages_becomes_right_and_recording_ends() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_in(dir.path());
    let touches: BTreeSet<u64> = (100..300).collect();
    WorkingSet::write(&set.set_path, &id(), &gpas(0..150), &mut source()).unwrap();
    let plans: Vec<Plan> = (0..8).map(|_| start(&set, &touches).0).collect();
    use Plan::{Prefetch, Record};
    assert_eq!(
        plans[..5],
        [
            Prefetch,
            Record(RecordReason::Misses),
            Record(RecordReason::Unused),
            Record(RecordReason::Unused),
            Prefetch,
        ]
    );
    assert_eq!(plans[5..], [Prefetch; 3]);
    let held = held(&set);
    assert_eq!(pages_of(&held), touches);
    assert_eq!(held.recordings(), 4);
    // The pages that the prefetch missed are in the set since then.
    let counts = held.touch_counts();
    assert!(counts.pages().iter().all(|page| page.recordings == 4));
}

#[test]
fn a_set_from_elsewhere_that_misses_nothing_is_checked_once() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_in(dir.path());
    let touches: BTreeSet<u64> = (0..100).collect();
    let write = |pages| {
        WorkingSet::write(&set.set_path, &id(), &gpas(0..pages), &mut source()).unwrap();
    };
    use Plan::{Prefetch, Record};
    let check = Record(RecordReason::Unchecked);
    write(100);
    let plans = [(); 4].map(|()| start(&set, &touches).0);
    assert_eq!(plans, [Prefetch, check, Prefetch, Prefetch]);
    // Too large.
    write(150);
    let unused = Record(RecordReason::Unused);
    let plans = [(); 6].map(|()| start(&set, &touches).0);
    assert_eq!(plans, [Prefetch, check, unused, unused, Prefetch, Prefetch]);
    assert_eq!(pages_of(&held(&set)), touches);
    // A prefetch that was measured is a check.
    write(105);
    let found = add_prefetch(&set, &held(&set), 0, Some(5));
    assert_eq!(found.record_next, None);
    assert_eq!(set.plan().unwrap(), Prefetch);
}

#[test]
fn an_empty_set_and_none_at_all_are_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_in(dir.path());
    let touches: BTreeSet<u64> = (5..9).collect();
    assert_eq!(start(&set, &touches).0, Plan::Record(RecordReason::NoSet));
    assert_eq!(start(&set, &touches), (Plan::Prefetch, 0));
    WorkingSet::write(&set.set_path, &id(), &[], &mut source()).unwrap();
    assert_eq!(start(&set, &touches), (Plan::Prefetch, 4));
    assert_eq!(start(&set, &touches).0, Plan::Record(RecordReason::Misses));
    assert_eq!(start(&set, &touches), (Plan::Prefetch, 0));
    assert_eq!(pages_of(&held(&set)), touches);
}

#[test]
fn inputs_that_take_turns_share_a_set() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_in(dir.path());
    let inputs: [BTreeSet<u64>; 2] = [(0..200).collect(), (50..250).collect()];
    let mut last_recording = 0;
    for run in 0..30 {
        let (plan, _) = start(&set, &inputs[run % 2]);
        if plan != Plan::Prefetch {
            last_recording = run;
        }
    }
    assert!(last_recording < 8, "{last_recording}");
    assert_eq!(pages_of(&held(&set)), (0..250).collect());
}

#[test]
fn pages_of_the_set_that_were_touched_before_they_were_installed_are_no_misses() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_in(dir.path());
    let touches: BTreeSet<u64> = (0..100).collect();
    start(&set, &touches);
    let installed = held(&set);
    let found = set
        .add_prefetch(&installed, &gpas(0..101), None, &mut source())
        .unwrap();
    assert_eq!(found, Prefetched::default());
    assert_eq!(held(&set), installed);
    let found = set
        .add_prefetch(&installed, &gpas(0..102), None, &mut source())
        .unwrap();
    assert_eq!(found.added_pages, 2);
}

#[test]
fn few_misses_change_nothing_and_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_in(dir.path());
    let touches: BTreeSet<u64> = (0..1000).collect();
    start(&set, &touches);
    let installed = held(&set);
    add_prefetch(&set, &installed, 10, Some(100));
    let before = fs::metadata(&set.state_path).unwrap();
    assert_eq!(
        add_prefetch(&set, &installed, 10, Some(100)).record_next,
        None
    );
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(&set.state_path).unwrap().ino(), before.ino());
    assert_eq!(
        add_prefetch(&set, &installed, 0, Some(101)).record_next,
        Some(RecordReason::Unused)
    );
    assert_eq!(set.plan().unwrap(), Plan::Record(RecordReason::Unused));
    assert_eq!(
        add_prefetch(&set, &installed, 11, None).record_next,
        Some(RecordReason::Misses)
    );
}

#[test]
fn what_a_prefetch_of_a_replaced_set_found_is_not_told_of_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_in(dir.path());
    set.add_recording(&recording(0..10), &mut source()).unwrap();
    let installed = held(&set);
    set.add_recording(&recording(0..90), &mut source()).unwrap();
    let found = set
        .add_prefetch(&installed, &gpas(10..90), None, &mut source())
        .unwrap();
    assert_eq!(found.record_next, None);
    assert_eq!(set.plan().unwrap(), Plan::Prefetch);
}

#[test]
fn pages_that_a_prefetch_missed_join_the_set_as_it_is_by_then() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_in(dir.path());
    set.add_recording(&recording(0..100), &mut source())
        .unwrap();
    let installed = held(&set);
    set.add_recording(&recording(0..110), &mut source())
        .unwrap();
    let found = set
        .add_prefetch(&installed, &gpas(100..120), None, &mut source())
        .unwrap();
    assert_eq!(found.added_pages, 10);
    assert_eq!(found.record_next, Some(RecordReason::Misses));
    let now = held(&set);
    assert_eq!(pages_of(&now), (0..120).collect());
    assert_eq!(now.recordings(), 2);
    assert_eq!(set.plan().unwrap(), Plan::Record(RecordReason::Misses));
}

#[test]
fn a_state_of_another_set_says_nothing_and_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_in(dir.path());
    set.add_recording(&recording(0..10), &mut source()).unwrap();
    add_prefetch(&set, &held(&set), 9, None);
    assert_eq!(set.plan().unwrap(), Plan::Record(RecordReason::Misses));
    WorkingSet::write(&set.set_path, &id(), &gpas(0..12), &mut source()).unwrap();
    assert_eq!(set.plan().unwrap(), Plan::Prefetch);
    let recorded = set.add_recording(&recording(0..12), &mut source()).unwrap();
    assert!(
        recorded
            .state_reset
            .unwrap()
            .contains("another working set")
    );
    assert_eq!(recorded.recordings, 2);
}

#[test]
fn a_state_that_cannot_be_used_is_an_error_unless_it_may_be_reset() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_in(dir.path());
    set.add_recording(&recording(0..10), &mut source()).unwrap();
    let good = fs::read(&set.state_path).unwrap();
    let foreign = WorkingSetState::decode(&good, &id())
        .unwrap()
        .encode(&SnapshotId::from_bytes([2; 16]));
    let newer = {
        let mut bytes = good.clone();
        bytes[8] = 2;
        bytes
    };
    let cases: [(Vec<u8>, &str); 5] = [
        (vec![], "truncated"),
        (good[..good.len() - 1].to_vec(), "truncated"),
        (foreign, "belongs to snapshot"),
        (newer, "version 2"),
        ([&good[..], &[0]].concat(), "damaged"),
    ];
    for (bytes, message) in cases {
        fs::write(&set.state_path, &bytes).unwrap();
        let installed = held(&set);
        let errors = [
            set.plan().unwrap_err(),
            set.add_prefetch(&installed, &[], None, &mut source())
                .unwrap_err(),
            set.add_recording(&recording(0..10), &mut source())
                .unwrap_err(),
        ];
        for error in errors {
            let text = error.to_string();
            assert!(text.contains(message), "{text}");
            assert!(text.contains("--reset-working-set-state"), "{text}");
        }
        let lenient = EvolvingSet {
            reset_state: true,
            ..set.clone()
        };
        assert_eq!(lenient.plan().unwrap(), Plan::Prefetch);
        let reset = lenient
            .add_prefetch(&installed, &[], None, &mut source())
            .unwrap()
            .state_reset;
        assert!(reset.unwrap().contains(message));
        // It was begun anew.
        let plan = set.plan().unwrap();
        assert_eq!(plan, Plan::Record(RecordReason::Unchecked));
    }
    fs::remove_file(&set.state_path).unwrap();
    fs::create_dir(&set.state_path).unwrap();
    let lenient = EvolvingSet {
        reset_state: true,
        ..set.clone()
    };
    let error = lenient.plan().unwrap_err();
    assert!(
        matches!(
            error,
            EvolutionError::State(WorkingSetStateError::Read { .. })
        ),
        "{error}"
    );
}

#[test]
fn a_set_that_cannot_be_used_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_in(dir.path());
    fs::write(&set.set_path, b"REAPVMWS").unwrap();
    for error in [
        set.plan().unwrap_err(),
        set.add_recording(&recording([]), &mut source())
            .unwrap_err(),
    ] {
        assert!(
            matches!(
                error,
                EvolutionError::Set(WorkingSetError::Truncated { .. })
            ),
            "{error}"
        );
    }
}

#[test]
fn recordings_of_many_threads_are_all_counted() {
    let dir = tempfile::tempdir().unwrap();
    let set = set_in(dir.path());
    thread::scope(|scope| {
        for thread in 0..8_u64 {
            let set = &set;
            scope.spawn(move || {
                for _ in 0..4 {
                    let touched = recording((0..50).chain([100 + thread]));
                    set.add_recording(&touched, &mut source()).unwrap();
                }
            });
        }
    });
    let held = held(&set);
    assert_eq!(held.recordings(), 32);
    let counts = held.touch_counts();
    let common = counts.pages().iter().filter(|page| page.recordings == 32);
    assert_eq!(common.count(), 50);
    let plan = set.plan().unwrap();
    assert!(matches!(
        plan,
        Plan::Prefetch | Plan::Record(RecordReason::Unused)
    ));
}

#[test]
fn counts_are_halved_before_they_overflow() {
    let pages = vec![
        PageTouches {
            gpa: 0,
            recordings: u16::MAX,
            own_ns: Some(7),
        },
        PageTouches {
            gpa: 4096,
            recordings: 1,
            own_ns: Some(9),
        },
    ];
    let before = TouchCounts::from_checked(u16::MAX, pages);
    let evolved = add_recording(&before, &Untouched::new(), &recording([0]), 3);
    assert_eq!(evolved.touches.recordings(), 32768);
    let counts: Vec<u16> = evolved
        .touches
        .pages()
        .iter()
        .map(|page| page.recordings)
        .collect();
    assert_eq!(counts, [32768, 1]);
}

fn any_state() -> impl Strategy<Value = WorkingSetState> {
    (
        any::<u32>(),
        prop::option::of(prop_oneof![
            Just(RecordReason::Misses),
            Just(RecordReason::Unused),
            Just(RecordReason::Unchecked)
        ]),
        any::<u16>(),
        prop::collection::vec(any::<u16>(), 0..300),
    )
        .prop_map(
            |(fingerprint, record_next, recordings_in_a_row, untouched_in_a_row)| WorkingSetState {
                fingerprint,
                record_next,
                recordings_in_a_row,
                untouched_in_a_row,
            },
        )
}

proptest! {
    #[test]
    fn a_state_round_trips_and_refuses_every_damage(
        state in any_state(), at in any::<prop::sample::Index>(), bit in 0u8..8,
    ) {
        let bytes = state.encode(&id());
        prop_assert_eq!(WorkingSetState::decode(&bytes, &id()), Ok(state));
        let at = at.index(bytes.len());
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << bit;
        prop_assert!(WorkingSetState::decode(&flipped, &id()).is_err());
        prop_assert_eq!(WorkingSetState::decode(&bytes[..at], &id()), Err(Defect::Truncated));
    }

    #[test]
    fn arbitrary_bytes_are_no_state(
        tail in prop::collection::vec(any::<u8>(), 0..300), keep in 0usize..48,
    ) {
        let state = WorkingSetState {
            fingerprint: 1,
            record_next: None,
            recordings_in_a_row: 0,
            untouched_in_a_row: vec![],
        };
        let mut bytes = state.encode(&id())[..keep].to_vec();
        bytes.extend(&tail);
        if let Ok(decoded) = WorkingSetState::decode(&bytes, &id()) {
            // By chance, the very bytes that were cut off.
            prop_assert_eq!(decoded, state);
        }
    }

    #[test]
    fn a_recording_adds_what_it_touched_and_drops_only_what_is_old(
        before in prop::collection::btree_map(0u64..60, (1u16..5, 0u16..4), 0..60),
        touched in prop::collection::btree_set(0u64..60, 0..60),
        leave_after in 1u16..5,
    ) {
        let counts = TouchCounts::from_checked(
            5,
            before
                .iter()
                .map(|(&page, &(recordings, _))| PageTouches {
                    gpa: page * 4096,
                    recordings,
                    own_ns: None,
                })
                .collect(),
        );
        let untouched: Untouched =
            before.iter().map(|(&page, &(_, rows))| (page * 4096, rows)).collect();
        let recording = recording(touched.iter().copied());
        let evolved = add_recording(&counts, &untouched, &recording, leave_after);
        let after: BTreeSet<u64> =
            evolved.touches.pages().iter().map(|page| page.gpa / 4096).collect();
        prop_assert!(touched.is_subset(&after));
        prop_assert_eq!(after.len(), evolved.touches.pages().len());
        for (&page, &(recordings, rows)) in &before {
            let is_touched = touched.contains(&page);
            prop_assert_eq!(after.contains(&page), is_touched || rows + 1 < leave_after);
            if let Some(now) = evolved.touches.pages().iter().find(|p| p.gpa == page * 4096) {
                prop_assert_eq!(now.recordings, recordings + u16::from(is_touched));
            }
        }
        prop_assert_eq!(
            before.len() as u64 + evolved.added_pages - evolved.left_pages,
            after.len() as u64
        );
    }
}

#[test]
fn nothing_is_written_into_a_snapshot_that_took_the_place_of_this_one() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("s");
    fs::create_dir(&dir).unwrap();
    let set = set_in(&dir);
    set.add_recording(&recording(0..8), &mut source()).unwrap();
    let installed = held(&set);
    fs::rename(&dir, parent.path().join("older")).unwrap();
    fs::create_dir(&dir).unwrap();

    let error = set
        .add_recording(&recording(0..9), &mut source())
        .unwrap_err();
    assert!(
        matches!(error, EvolutionError::Lock(LockError::Replaced { .. })),
        "{error}"
    );
    let error = set
        .add_prefetch(&installed, &gpas(20..40), None, &mut source())
        .unwrap_err();
    assert!(
        matches!(error, EvolutionError::Lock(LockError::Replaced { .. })),
        "{error}"
    );
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
}
