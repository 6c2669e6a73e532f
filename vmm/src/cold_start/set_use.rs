//! How well the working set fitted a cold start, and how the set changes by that.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use reapvm_reap::{
    EvolutionRules, EvolvingSet, MemoryRestoreMode, PageSource, Plan, RecordReason,
    SnapshotPageSource, TouchCounts, WorkingSet, WorkingSetError,
};
use reapvm_snapshot::{PAGE_SIZE, Snapshot};
use serde::{Deserialize, Serialize};

use super::{ColdStart, ColdStartError};
use crate::machine::Machine;
use crate::memory::Observation;
use crate::observe;

/// What happens to a snapshot's working set from start to start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkingSetPolicy {
    /// It stays as it is, until a start in record mode replaces it.
    #[default]
    Fixed,
    /// A start prefetches it, or records where there is none or a start before it did not fit:
    /// see [`EvolvingSet`].
    Evolve,
    /// A start records, and the recording is added to the set.
    Record,
}

/// A name that is none of the policies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown working-set policy \"{name}\": use one of fixed, evolve or record")]
pub struct ParseWorkingSetPolicyError {
    /// The name as it was given.
    pub name: String,
}

impl WorkingSetPolicy {
    /// All policies.
    pub const ALL: [Self; 3] = [Self::Fixed, Self::Evolve, Self::Record];

    /// The name that the command line and the results use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Evolve => "evolve",
            Self::Record => "record",
        }
    }
}

impl fmt::Display for WorkingSetPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for WorkingSetPolicy {
    type Err = ParseWorkingSetPolicyError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.as_str() == name)
            .ok_or_else(|| ParseWorkingSetPolicyError {
                name: name.to_owned(),
            })
    }
}

/// What is to be known of the working set, and done about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkingSetOptions {
    /// Whether and how the set changes.
    pub policy: WorkingSetPolicy,
    /// When it changes.
    pub rules: EvolutionRules,
    /// Begin anew with a state of the set that cannot be used, instead of failing.
    pub reset_state: bool,
    /// Measure which of the prefetched pages the guest touched. It makes the start longer.
    pub measure_unused: bool,
}

/// Pages of a working set against pages that the guest touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetUse {
    /// Pages of the set.
    pub set_pages: u64,
    /// Pages of it that the guest did not touch.
    pub unused_pages: u64,
    /// Pages that the guest touched and the set has not.
    pub lacking_pages: u64,
    /// Pages of the set of which it cannot be said whether the guest touched them.
    pub unknown_pages: u64,
}

/// How well the working set fitted, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case")]
pub enum MeasuredUse {
    /// The start recorded every touch; the set is the one that was there before.
    Recording(SetUse),
    /// By the marks that KVM's page tables leave: see [`reapvm_reap::TouchProbe`].
    PageTables(SetUse),
    /// It is not known.
    NotMeasured {
        /// Why.
        reason: String,
    },
}

/// What a start did to an evolving working set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvolutionReport {
    /// The policy.
    pub policy: WorkingSetPolicy,
    /// Why this start recorded, if it did.
    pub recorded: Option<RecordReason>,
    /// Pages that joined the set.
    pub added_pages: u64,
    /// Pages that left it.
    pub left_pages: u64,
    /// Why the next start records, if it does.
    pub record_next: Option<RecordReason>,
    /// Why what was known of the set's pages was not used, if there was something.
    pub state_reset: Option<String>,
}

/// A start's part in the life of its working set.
pub(super) struct SetRun<'a> {
    snapshot: &'a Arc<Snapshot>,
    options: WorkingSetOptions,
    /// The memory mode that the start has.
    pub(super) mode: MemoryRestoreMode,
    /// Unless the policy is fixed.
    evolving: Option<EvolvingSet>,
    recorded: Option<RecordReason>,
}

/// What is known at the end of it.
#[derive(Default)]
pub(super) struct SetResult {
    /// Pages that were recorded.
    pub(super) recorded_pages: Option<u64>,
    pub(super) set_use: Option<MeasuredUse>,
    pub(super) evolution: Option<EvolutionReport>,
}

impl<'a> SetRun<'a> {
    /// Decides how memory comes back: as `mode` says, or as the set needs it.
    pub(super) fn plan(
        snapshot: &'a Arc<Snapshot>,
        mode: MemoryRestoreMode,
        options: WorkingSetOptions,
    ) -> Result<Self, ColdStartError> {
        let mut run = Self {
            snapshot,
            options,
            mode,
            evolving: None,
            recorded: None,
        };
        if options.policy == WorkingSetPolicy::Fixed {
            return Ok(run);
        }
        let evolving = EvolvingSet {
            directory: Arc::clone(snapshot.directory()),
            set_path: snapshot.working_set_path(),
            state_path: snapshot.working_set_state_path(),
            id: snapshot.id(),
            memory_bytes: memory_bytes(snapshot),
            rules: options.rules,
            reset_state: options.reset_state,
        };
        // With any policy, so that a set or state that cannot be used fails before any work.
        let plan = match (evolving.plan()?, options.policy) {
            (Plan::Prefetch, WorkingSetPolicy::Record) => Plan::Record(RecordReason::Always),
            (plan, _) => plan,
        };
        (run.mode, run.recorded) = match plan {
            Plan::Prefetch => (MemoryRestoreMode::Prefetch, None),
            Plan::Record(reason) => (MemoryRestoreMode::Record, Some(reason)),
        };
        run.evolving = Some(evolving);
        Ok(run)
    }

    /// What the machine is to observe.
    pub(super) fn observation(&self) -> Observation {
        let prefetches = self.mode == MemoryRestoreMode::Prefetch;
        Observation {
            touches: prefetches && self.options.measure_unused,
            misses: prefetches && (self.evolving.is_some() || self.options.measure_unused),
        }
    }

    /// The snapshot.
    pub(super) fn snapshot(&self) -> &Arc<Snapshot> {
        self.snapshot
    }

    /// Whether the machine is to be paused before [`finish`](Self::finish).
    pub(super) fn needs_rest(&self) -> bool {
        self.mode == MemoryRestoreMode::Record || self.observation() != Observation::default()
    }

    /// Looks at what `machine` did and writes what is to be kept of it. The response has arrived.
    pub(super) fn finish(
        &self,
        machine: &Machine,
        start: &ColdStart<'_>,
    ) -> Result<SetResult, ColdStartError> {
        match self.mode {
            MemoryRestoreMode::Record => self.finish_recording(machine, start),
            MemoryRestoreMode::Prefetch => self.finish_prefetch(machine),
            MemoryRestoreMode::Copy | MemoryRestoreMode::File | MemoryRestoreMode::OnDemand => {
                Ok(SetResult::default())
            }
        }
    }

    fn finish_recording(
        &self,
        machine: &Machine,
        start: &ColdStart<'_>,
    ) -> Result<SetResult, ColdStartError> {
        let recording = machine.memory().recording().unwrap_or_default();
        let touched = recording.pages_until_idle();
        let mut result = SetResult {
            recorded_pages: Some(touched.len() as u64),
            set_use: self.use_by_recording(&touched),
            evolution: None,
        };
        if !start.keep_recording {
            return Ok(result);
        }
        match &self.evolving {
            None => {
                super::write_recording(machine, self.snapshot, start.input)?;
            }
            Some(evolving) => {
                let mut source = self.pages_of(machine)?;
                let recorded =
                    evolving.add_recording(&super::touches_of(&recording)?, &mut *source)?;
                let _lock = self.snapshot.directory().lock()?;
                let path = self.snapshot.trace_path();
                let input = start.input.to_string();
                let id = self.snapshot.id();
                observe::write_first_touches(machine, &id, &path, &recording, Some(&input))?;
                result.evolution = Some(EvolutionReport {
                    policy: self.options.policy,
                    recorded: self.recorded,
                    added_pages: recorded.added_pages,
                    left_pages: recorded.left_pages,
                    record_next: recorded.record_next,
                    state_reset: recorded.state_reset,
                });
            }
        }
        Ok(result)
    }

    /// The pages as they were saved, from where the machine takes them.
    fn pages_of(&self, machine: &Machine) -> Result<Box<dyn PageSource>, ColdStartError> {
        Ok(match machine.memory().page_source() {
            Some(source) => source,
            None => Box::new(SnapshotPageSource::new(Arc::clone(self.snapshot))?),
        })
    }

    /// The set that is there against a recording.
    fn use_by_recording(&self, touched: &[u64]) -> Option<MeasuredUse> {
        let set = WorkingSet::describe(
            &self.snapshot.working_set_path(),
            &self.snapshot.id(),
            memory_bytes(self.snapshot),
        );
        match set {
            Ok(set) => {
                let touched = TouchCounts::of_recording(touched);
                let difference = set.touch_counts().difference(&touched);
                Some(MeasuredUse::Recording(SetUse {
                    set_pages: set.page_count(),
                    unused_pages: difference.only_first.len() as u64,
                    lacking_pages: difference.only_second.len() as u64,
                    unknown_pages: 0,
                }))
            }
            Err(WorkingSetError::Missing { .. }) => None,
            Err(error) => Some(MeasuredUse::NotMeasured {
                reason: format!("the set before this recording cannot be used: {error}"),
            }),
        }
    }

    fn finish_prefetch(&self, machine: &Machine) -> Result<SetResult, ColdStartError> {
        let missed = machine
            .memory()
            .recording()
            .unwrap_or_default()
            .pages_until_idle();
        let set = machine.memory().prefetched_set().map_err(build_error)?;
        let set_use = match (machine.memory().touched_pages(), &set) {
            (Ok(Some(touched)), Some(set)) => MeasuredUse::PageTables(SetUse {
                set_pages: set.page_count(),
                unused_pages: touched.untouched.len() as u64,
                lacking_pages: lacking_pages(set, &missed),
                unknown_pages: touched.unknown_pages,
            }),
            (Ok(_), _) => MeasuredUse::NotMeasured {
                reason: match self.options.measure_unused {
                    false => "it was not asked for (--measure-unused)",
                    true if set.is_none() => "no working set was installed",
                    true => "the machine was prepared before it was asked for",
                }
                .to_owned(),
            },
            (Err(error), _) => MeasuredUse::NotMeasured {
                reason: error.to_string(),
            },
        };
        let mut result = SetResult::default();
        if let (Some(evolving), Some(set)) = (&self.evolving, &set) {
            let unused_pages = match &set_use {
                MeasuredUse::PageTables(set_use) => Some(set_use.unused_pages),
                _ => None,
            };
            let mut source = self.pages_of(machine)?;
            let found = evolving.add_prefetch(set, &missed, unused_pages, &mut *source)?;
            result.evolution = Some(EvolutionReport {
                policy: self.options.policy,
                recorded: None,
                added_pages: found.added_pages,
                left_pages: 0,
                record_next: found.record_next,
                state_reset: found.state_reset,
            });
        }
        result.set_use = Some(set_use);
        Ok(result)
    }
}

/// How many of the pages `missed`, which took faults, are not in `set`. Others may be in it and were
/// touched before they were installed.
fn lacking_pages(set: &WorkingSet, missed: &[u64]) -> u64 {
    let missed = TouchCounts::of_recording(missed);
    set.touch_counts().difference(&missed).only_second.len() as u64
}

fn build_error(error: crate::memory::MemoryError) -> ColdStartError {
    crate::machine::BuildError::from(error).into()
}

fn memory_bytes(snapshot: &Snapshot) -> u64 {
    snapshot.manifest().memory.page_count() * PAGE_SIZE as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_agree_with_serde() {
        for policy in WorkingSetPolicy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
            let json = serde_json::to_string(&policy).unwrap();
            assert_eq!(json, format!("\"{policy}\""));
        }
        let error = "always".parse::<WorkingSetPolicy>().unwrap_err();
        for policy in WorkingSetPolicy::ALL {
            assert!(error.to_string().contains(policy.as_str()), "{error}");
        }
    }

    #[test]
    fn what_is_measured_says_by_what() {
        let measured = MeasuredUse::PageTables(SetUse {
            set_pages: 10,
            unused_pages: 2,
            ..SetUse::default()
        });
        let json = serde_json::to_value(&measured).unwrap();
        assert_eq!(json["source"], "page-tables");
        assert_eq!(json["unused_pages"], 2);
        assert_eq!(
            serde_json::from_value::<MeasuredUse>(json).unwrap(),
            measured
        );
    }
}
