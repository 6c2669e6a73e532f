//! What a study finds of each function.

use std::path::Path;

use reapvm_reap::averages::{mean, median};
use reapvm_reap::study::{FunctionMeasurements, Start, StartKind, Study};
use reapvm_snapshot::SnapshotId;

use super::StudyError;
use super::invocation::Invocation;
use super::numbers::percent;
use super::readahead::{self, Outcome, Shape};
use super::sets::{self, Fit, Reuse};
use super::symbols::{GuestSymbols, SymbolFindings};
use crate::PAGE_BYTES;

/// One function: its measurements, and what its traces tell.
#[derive(Debug)]
pub(super) struct Function<'a> {
    pub(super) measured: &'a FunctionMeasurements,
    /// Traced invocations, in the order in which they were made.
    pub(super) invocations: Vec<Invocation>,
    /// Of invocations with the same input.
    pub(super) same_input: Option<Reuse>,
    /// Of invocations with different inputs.
    pub(super) other_input: Option<Reuse>,
    /// By the number of recordings.
    pub(super) fits: Vec<Fit>,
    pub(super) symbols: SymbolFindings,
}

impl<'a> Function<'a> {
    pub(super) fn new(
        dir: &Path,
        study: &Study,
        measured: &'a FunctionMeasurements,
        symbols: &GuestSymbols,
    ) -> Result<Self, StudyError> {
        let id: SnapshotId = measured.snapshot.parse().map_err(|_| StudyError::Empty {
            dir: dir.to_owned(),
        })?;
        let of = |kind| measured.starts.iter().filter(move |s| s.kind == kind);
        let mut invocations = Vec::new();
        for start in of(StartKind::Traced) {
            invocations.extend(Invocation::read(dir, start, &id)?);
        }
        let instructions = of(StartKind::Instructions).next();
        Ok(Self {
            measured,
            same_input: sets::reuse(&invocations, true),
            other_input: sets::reuse(&invocations, false),
            fits: sets::fits(&invocations, study.plan.inputs.len()),
            symbols: SymbolFindings::of(dir, instructions, &id, symbols)?,
            invocations,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.measured.function
    }

    /// Starts of this kind. Those that are compared have another input than the recorded one, in all
    /// modes: the first.
    pub(super) fn starts(&self, kind: StartKind) -> impl Iterator<Item = &'a Start> + use<'a> {
        let starts = self.measured.starts.iter();
        starts.filter(move |start| start.kind == kind && start.input > 0)
    }

    fn median(&self, kind: StartKind, of: impl Fn(&Start) -> f64) -> Option<f64> {
        median(self.starts(kind).map(of))
    }

    /// Median time of a start, in ms.
    pub(super) fn total_ms(&self, kind: StartKind) -> Option<f64> {
        self.median(kind, |start| start.total_ms)
    }

    /// The start of this kind whose time is the median; of an even number, the faster of the middle
    /// two. Its parts add up to its time, which medians of parts would not.
    pub(super) fn median_start(&self, kind: StartKind) -> Option<&'a Start> {
        let mut starts: Vec<&Start> = self.starts(kind).collect();
        starts.sort_by(|a, b| a.total_ms.total_cmp(&b.total_ms));
        let middle = starts.len().checked_sub(1)? / 2;
        starts.get(middle).copied()
    }

    /// Median time in which the guest is called and answers, in ms: without the restore, which a warm
    /// call has not either.
    pub(super) fn call_ms(&self, kind: StartKind) -> Option<f64> {
        self.median(kind, |s| s.phases_ms.connection + s.phases_ms.processing)
    }

    /// Median time of a warm call, in ms.
    pub(super) fn warm_ms(&self) -> Option<f64> {
        let calls = self.measured.warm.iter().filter(|call| call.input > 0);
        median(calls.map(|call| call.ms))
    }

    /// Guest memory that is resident after a start on demand, in bytes.
    pub(super) fn restored_bytes(&self) -> Option<f64> {
        self.median(StartKind::OnDemand, |s| {
            s.guest_resident_kib as f64 * 1024.0
        })
    }

    /// By how much that is less than after a boot, in percent.
    pub(super) fn footprint_reduction_pct(&self) -> Option<f64> {
        let booted = self.measured.booted_resident_bytes as f64;
        let restored = self.restored_bytes()?;
        (booted > 0.0).then(|| 100.0 * (1.0 - restored / booted))
    }

    /// The first traced invocation with each input.
    pub(super) fn one_of_each_input(&self) -> Vec<&Invocation> {
        let mut found: Vec<&Invocation> = Vec::new();
        for one in &self.invocations {
            if !found.iter().any(|known| known.input == one.input) {
                found.push(one);
            }
        }
        found
    }

    /// Distinct pages that an invocation touches.
    pub(super) fn touched_pages(&self) -> Option<f64> {
        median(self.invocations.iter().map(|i| i.pages().len() as f64))
    }

    /// Pages of an average run of neighbours.
    pub(super) fn pages_a_run(&self) -> Option<f64> {
        let runs = self.invocations.iter().map(|i| &i.statistics.run_pages);
        let (pages, count) = runs.fold((0, 0), |sum, runs| {
            (sum.0 + runs.sum(), sum.1 + runs.count())
        });
        (count > 0).then(|| pages as f64 / count as f64)
    }

    /// Of the faults of starts on demand, the share in percent that a working set of another input
    /// spares. Those are left that it lacks, and those that are touched before they are in place.
    pub(super) fn eliminated_pct(&self) -> Option<f64> {
        let all = self.median(StartKind::OnDemand, |s| s.pager_faults as f64)?;
        let left = self.median(StartKind::PrefetchOne, |s| s.pager_faults as f64)?;
        (all > 0.0).then(|| 100.0 * (1.0 - left / all))
    }

    /// Faults of a start with a working set of another input: on pages that it lacks, and on all.
    pub(super) fn faults_left(&self) -> Option<(f64, f64)> {
        let lacking = self.median(StartKind::PrefetchOne, |s| s.missed_pages as f64)?;
        let all = self.median(StartKind::PrefetchOne, |s| s.pager_faults as f64)?;
        Some((lacking, all))
    }

    /// How many times faster a start with a working set is than the baseline.
    pub(super) fn speed_up(&self) -> Option<f64> {
        Some(self.total_ms(StartKind::File)? / self.total_ms(StartKind::PrefetchOne)?)
    }

    /// What a recording costs over a start of this kind, in percent.
    pub(super) fn recording_cost_pct(&self, over: StartKind) -> Option<f64> {
        let recording = self.total_ms(StartKind::Record)?;
        Some(100.0 * (recording / self.total_ms(over)? - 1.0))
    }

    /// Faults at which no other one waited, in percent.
    pub(super) fn alone_pct(&self) -> Option<f64> {
        mean(self.invocations.iter().filter_map(Invocation::alone_pct))
    }

    /// What readahead would have done, all invocations together.
    pub(super) fn readahead(&self, window: u64, shape: Shape) -> Outcome {
        let file_pages = self.measured.memory_bytes / PAGE_BYTES;
        let played = self
            .invocations
            .iter()
            .map(|i| readahead::play(&i.order, file_pages, window, shape));
        played.fold(Outcome::default(), |sum, one| Outcome {
            faults: sum.faults + one.faults,
            covered: sum.covered + one.covered,
            read: sum.read + one.read,
            wasted: sum.wasted + one.wasted,
        })
    }

    /// Touches whose page follows the one touched before, in percent.
    pub(super) fn next_page_pct(&self) -> Option<f64> {
        let invocations = self.invocations.iter();
        mean(invocations.map(|i| readahead::next_page_percent(&i.order)))
    }

    /// Share of the touches in each of the parts of an invocation, in percent.
    pub(super) fn by_part(&self) -> [f64; 4] {
        let sums = self.invocations.iter().fold([0; 4], |mut sums, one| {
            for (sum, count) in sums.iter_mut().zip(one.by_part) {
                *sum += count;
            }
            sums
        });
        let all = sums.iter().sum();
        sums.map(|count| percent(count, all))
    }
}
