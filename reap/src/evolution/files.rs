//! The files of an evolving working set, under any number of launchers.
//!
//! Both files are replaced by rename, so that whoever reads one sees the old one or the new one.
//! Whoever changes them holds a lock on the snapshot's directory (flock), which the system takes
//! back from a process that dies, and which keeps another snapshot from taking the place of this
//! one. The set is written first: who dies between the two leaves a state that describes another
//! set, and that says nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reapvm_snapshot::files::remove_leftovers;
use reapvm_snapshot::{DirectoryLock, LockError, SnapshotDirectory, SnapshotId};

use super::state::{WorkingSetState, WorkingSetStateError};
use super::{EvolutionRules, RecordReason, Untouched, add_recording};
use crate::source::PageSource;
use crate::touch_counts::TouchCounts;
use crate::working_set::{WorkingSet, WorkingSetError};

/// Temporary files that have not been written to for so long are those of processes that died.
const LEFTOVER_AGE: Duration = Duration::from_secs(600);

/// **Unstable.** Why a working set did not evolve.
#[derive(Debug, thiserror::Error)]
pub enum EvolutionError {
    /// The set.
    #[error(transparent)]
    Set(#[from] WorkingSetError),
    /// Its state.
    #[error(transparent)]
    State(#[from] WorkingSetStateError),
    /// The snapshot's directory cannot be locked, or another snapshot has taken its place.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// **Unstable.** What a start is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Prefetch the set.
    Prefetch,
    /// Record, and why.
    Record(RecordReason),
}

/// **Unstable.** What a recording did to the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Pages of the set now.
    pub set_pages: u64,
    /// Of how many recordings it is made.
    pub recordings: u16,
    /// Pages that the recording touched.
    pub touched_pages: u64,
    /// Pages of the set before it, if there was one.
    pub pages_before: Option<u64>,
    /// Pages of the set before it that the recording did not touch.
    pub unused_pages: u64,
    /// Pages that joined the set.
    pub added_pages: u64,
    /// Pages that left it.
    pub left_pages: u64,
    /// Why the next start records, if it does.
    pub record_next: Option<RecordReason>,
    /// Why what was known of the set's pages was not used, if there was something.
    pub state_reset: Option<String>,
}

/// **Unstable.** What a prefetch did to the set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefetched {
    /// Missed pages that joined the set.
    pub added_pages: u64,
    /// Why the next start records, if it does.
    pub record_next: Option<RecordReason>,
    /// Why what was known of the set's pages was not used, if there was something.
    pub state_reset: Option<String>,
}

/// **Unstable.** The working set of a snapshot and its state, as they change from run to run.
#[derive(Clone, Debug)]
pub struct EvolvingSet {
    /// The snapshot's directory.
    pub directory: Arc<SnapshotDirectory>,
    /// The working set's file.
    pub set_path: PathBuf,
    /// Its state's.
    pub state_path: PathBuf,
    /// The snapshot.
    pub id: SnapshotId,
    /// Size of its guest memory.
    pub memory_bytes: u64,
    /// When it is recorded again, and what leaves it.
    pub rules: EvolutionRules,
    /// Begin anew with a state that cannot be used, instead of failing.
    pub reset_state: bool,
}

/// What is known of the pages of a set.
#[derive(Default)]
struct Known {
    untouched: Untouched,
    recordings_in_a_row: u16,
    record_next: Option<RecordReason>,
    /// There is a state that describes the set.
    is_described: bool,
    /// Why what the file said is not used, if there is one.
    reset: Option<String>,
}

/// A state that was read.
struct Found {
    state: Option<WorkingSetState>,
    /// Why there is none although there is a file.
    reset: Option<String>,
}

impl EvolvingSet {
    /// What the next start is to do. Takes no lock and reads no page.
    ///
    /// # Errors
    /// When the set or its state cannot be used.
    pub fn plan(&self) -> Result<Plan, EvolutionError> {
        let fingerprint =
            match WorkingSet::read_fingerprint(&self.set_path, &self.id, self.memory_bytes) {
                Ok(fingerprint) => fingerprint,
                Err(WorkingSetError::Missing { .. }) => {
                    return Ok(Plan::Record(RecordReason::NoSet));
                }
                Err(error) => return Err(error.into()),
            };
        let due = self
            .read_state()?
            .state
            .filter(|state| state.fingerprint == fingerprint)
            .and_then(|state| state.record_next);
        Ok(due.map_or(Plan::Prefetch, Plan::Record))
    }

    /// Adds `recording`, which is one, to the set. The contents come from `source`.
    ///
    /// # Errors
    /// When the set or its state cannot be used, cannot be written, or another process keeps the
    /// lock. Each of the two files is then the old one or the new one.
    pub fn add_recording(
        &self,
        recording: &TouchCounts,
        source: &mut dyn PageSource,
    ) -> Result<Recorded, EvolutionError> {
        let _lock = self.lock()?;
        let before = self.read_set()?;
        let known = self.read_known(before.as_ref())?;
        let counts = before
            .as_ref()
            .map_or_else(TouchCounts::none, WorkingSet::touch_counts);
        let leave_after = self.rules.leave_after;
        let evolved = add_recording(&counts, &known.untouched, recording, leave_after);
        let recordings_in_a_row = known.recordings_in_a_row.saturating_add(1);
        let surplus = evolved.untouched.len() as u64;
        let set_pages = evolved.touches.pages().len() as u64;
        let is_settling = recordings_in_a_row < leave_after;
        let record_next = (is_settling && self.rules.wastes_too_much(surplus, set_pages))
            .then_some(RecordReason::Unused);
        let next = Known {
            untouched: evolved.untouched,
            recordings_in_a_row,
            record_next,
            is_described: true,
            reset: None,
        };
        let set = WorkingSet::write_counted(&self.set_path, &self.id, &evolved.touches, source)?;
        self.write_known(&set, &next)?;
        Ok(Recorded {
            set_pages,
            recordings: set.recordings(),
            touched_pages: set_pages - surplus,
            pages_before: before.map(|set| set.page_count()),
            unused_pages: evolved.unused_pages,
            added_pages: evolved.added_pages,
            left_pages: evolved.left_pages,
            record_next,
            state_reset: known.reset,
        })
    }

    /// Tells of a prefetch of `set` that took faults on the pages `missed_gpas`, each named once,
    /// and, if that is known, left `unused_pages` untouched. Pages of the set among the former were
    /// touched before they were installed, and are no misses. The pages of a prefetch that missed
    /// too much join the set at once: the next start, which records, may have another input and not
    /// touch them. Nothing is written where nothing changes.
    ///
    /// # Errors
    /// As [`add_recording`](Self::add_recording).
    pub fn add_prefetch(
        &self,
        set: &WorkingSet,
        missed_gpas: &[u64],
        unused_pages: Option<u64>,
        source: &mut dyn PageSource,
    ) -> Result<Prefetched, EvolutionError> {
        let pages = set.page_count();
        let misses_too_much = self.rules.misses_too_much(missed_gpas.len() as u64, pages);
        let wastes_too_much =
            unused_pages.is_some_and(|unused| self.rules.wastes_too_much(unused, pages));
        let fingerprint = set.fingerprint();
        let found = self.read_state()?;
        let is_settled = match &found.state {
            Some(state) => {
                state.fingerprint == fingerprint
                    && state.recordings_in_a_row == 0
                    && (state.record_next.is_some() || !wastes_too_much)
            }
            None => false,
        };
        if is_settled && !misses_too_much {
            return Ok(Prefetched {
                record_next: found.state.and_then(|state| state.record_next),
                ..Prefetched::default()
            });
        }

        let _lock = self.lock()?;
        let Some(before) = self.read_set()? else {
            // Removed in the meantime: the next start records for that.
            return Ok(Prefetched::default());
        };
        let mut known = self.read_known(Some(&before))?;
        let mut result = Prefetched {
            state_reset: known.reset.take(),
            ..Prefetched::default()
        };
        // The set may be another one by now, which has some of the pages and perhaps all.
        let counts = before.touch_counts();
        let lacking = counts.lacking(missed_gpas);
        result.added_pages = lacking.pages().len() as u64;
        if self
            .rules
            .misses_too_much(result.added_pages, before.page_count())
        {
            known.record_next = Some(RecordReason::Misses);
            known.recordings_in_a_row = 0;
            let touches = counts.with(&lacking);
            let set = WorkingSet::write_counted(&self.set_path, &self.id, &touches, source)?;
            self.write_known(&set, &known)?;
        } else {
            result.added_pages = 0;
            if before.fingerprint() == fingerprint {
                known.recordings_in_a_row = 0;
                if wastes_too_much {
                    known.record_next.get_or_insert(RecordReason::Unused);
                } else if !known.is_described && unused_pages.is_none() {
                    known.record_next = Some(RecordReason::Unchecked);
                }
                self.write_known(&before, &known)?;
            }
        }
        result.record_next = known.record_next;
        Ok(result)
    }

    fn read_set(&self) -> Result<Option<WorkingSet>, EvolutionError> {
        match WorkingSet::describe(&self.set_path, &self.id, self.memory_bytes) {
            Ok(set) => Ok(Some(set)),
            Err(WorkingSetError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What the state says of the pages of `set`.
    fn read_known(&self, set: Option<&WorkingSet>) -> Result<Known, EvolutionError> {
        let found = self.read_state()?;
        let mut known = Known {
            reset: found.reset,
            ..Known::default()
        };
        match (set, found.state) {
            (Some(set), Some(state)) if state.fingerprint == set.fingerprint() => {
                if state.untouched_in_a_row.len() as u64 != set.page_count() {
                    return Err(WorkingSetStateError::Corrupt {
                        path: self.state_path.clone(),
                        reason: "it has another number of pages than the set that it describes",
                    }
                    .into());
                }
                known.untouched = set.page_gpas().zip(state.untouched_in_a_row).collect();
                known.recordings_in_a_row = state.recordings_in_a_row;
                known.record_next = state.record_next;
                known.is_described = true;
            }
            (_, Some(_)) => {
                known.reset = Some("it described another working set than the one found".into());
            }
            (_, None) => {}
        }
        Ok(known)
    }

    fn write_known(&self, set: &WorkingSet, known: &Known) -> Result<(), EvolutionError> {
        let state = WorkingSetState {
            fingerprint: set.fingerprint(),
            record_next: known.record_next,
            recordings_in_a_row: known.recordings_in_a_row,
            untouched_in_a_row: set
                .page_gpas()
                .map(|gpa| known.untouched.get(&gpa).copied().unwrap_or(0))
                .collect(),
        };
        Ok(state.write(&self.state_path, &self.id)?)
    }

    fn read_state(&self) -> Result<Found, EvolutionError> {
        match WorkingSetState::read(&self.state_path, &self.id, self.memory_bytes) {
            Ok(state) => Ok(Found { state, reset: None }),
            Err(error) if self.reset_state && error.is_of_contents() => Ok(Found {
                state: None,
                reset: Some(error.to_string()),
            }),
            Err(error) => Err(error.into()),
        }
    }

    fn lock(&self) -> Result<DirectoryLock, EvolutionError> {
        let lock = self.directory.lock()?;
        remove_leftovers(&self.set_path, LEFTOVER_AGE);
        remove_leftovers(&self.state_path, LEFTOVER_AGE);
        Ok(lock)
    }
}
