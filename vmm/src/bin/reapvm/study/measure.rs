//! The measurements of one function.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use reapvm::cold_start::{ColdStart, ColdStartReport, WorkingSetOptions};
use reapvm::config::Overrides;
use reapvm::observe::{SourceChoice, TraceOptions};
use reapvm_reap::study::{FunctionMeasurements, Start, StartKind, StudyPlan, WarmCall};
use reapvm_reap::{MemoryRestoreMode, MergeRule, SnapshotPageSource, TouchCounts, WorkingSet};
use reapvm_snapshot::{PAGE_SIZE, Snapshot, WORKING_SET_FILE};
use serde_json::Value;

use super::folder::{FunctionFolder, StudyFolder, link_snapshot};
use super::summarise;
use crate::bench::image::BenchImage;
use crate::bench::{self, Progress};
use crate::cli::StudyArguments;

/// Cold starts of one function.
pub(super) fn starts_a_function(plan: &StudyPlan) -> u64 {
    let inputs = plan.inputs.len();
    let of = |kind: StartKind| {
        let with = (0..inputs).filter(|input| kind.is_with(*input, inputs));
        let repetitions = match kind {
            StartKind::Instructions => 1,
            _ => u64::from(plan.repetitions),
        };
        with.count() as u64 * repetitions
    };
    StartKind::ALL.into_iter().map(of).sum()
}

/// What the starts of one function have in common.
struct Starter<'a> {
    image: &'a BenchImage,
    name: &'a str,
    plan: &'a StudyPlan,
    study: &'a StudyFolder,
    folder: FunctionFolder,
    overrides: Overrides,
    arguments: &'a StudyArguments,
    progress: &'a Progress,
    /// What the machine that was never interrupted answered, by input.
    expected: Vec<Value>,
}

/// Measures `name` as planned; its snapshots are removed afterwards, unless they are to be kept.
pub(super) fn function(
    image: &BenchImage,
    name: &str,
    plan: &StudyPlan,
    study: &StudyFolder,
    arguments: &StudyArguments,
    progress: &Progress,
) -> Result<FunctionMeasurements, Box<dyn Error>> {
    let folder = study.function(name)?;
    progress.function(format!("{name}: booting, saving, warm invocations"));
    let (manifest, vm) = bench::save_and_boot(image, name, &folder.base)?;
    let mut warm = Vec::new();
    let mut expected = Vec::new();
    for repetition in 0..plan.repetitions {
        for (input, value) in plan.inputs.iter().enumerate() {
            let (ms, response) = bench::warm_call(&vm, value)?;
            warm.push(WarmCall { input, ms });
            if repetition == 0 {
                expected.push(response);
            }
        }
    }
    // Its memory is not to compete with those that are measured.
    drop(vm);
    let starter = Starter {
        image,
        name,
        plan,
        study,
        folder,
        overrides: Overrides::default(),
        arguments,
        progress,
        expected,
    };
    let starts = starter.starts()?;
    if !arguments.keep_snapshots {
        study.remove_function(name)?;
    }
    Ok(FunctionMeasurements {
        function: name.to_owned(),
        snapshot: manifest.id.to_string(),
        memory_bytes: manifest.memory.page_count() * PAGE_SIZE as u64,
        booted_resident_bytes: manifest.memory.booted_resident_bytes,
        warm,
        starts,
    })
}

impl Starter<'_> {
    fn starts(&self) -> Result<Vec<Start>, Box<dyn Error>> {
        let name = self.name;
        let inputs = self.plan.inputs.len();
        let mut starts = Vec::new();
        self.progress.function(format!("{name}: recordings"));
        // The first recordings become the sets that prefetch uses. All sets are there before anything
        // is timed: writing files between the starts would make the disk's write-back a part of them.
        let snapshot = Arc::new(Snapshot::open(&self.folder.base)?);
        let mut recorded = Vec::new();
        for input in 0..inputs {
            starts.push(self.start(StartKind::Traced, input, 0)?);
            let memory_bytes = snapshot.manifest().memory.page_count() * PAGE_SIZE as u64;
            let path = self.folder.base.join(WORKING_SET_FILE);
            let set = WorkingSet::describe(&path, &snapshot.id(), memory_bytes)?;
            recorded.push(set.touch_counts());
        }
        self.write_set(&snapshot, &self.folder.one, &recorded[..1])?;
        if inputs > 2 {
            self.write_set(&snapshot, &self.folder.merged, &recorded[..inputs - 1])?;
        }
        self.progress.function(format!("{name}: cold starts"));
        for repetition in 0..self.plan.repetitions {
            for input in 0..inputs {
                for kind in StartKind::ALL {
                    let is_done = match kind {
                        StartKind::Traced => repetition == 0,
                        StartKind::Instructions => repetition > 0,
                        _ => false,
                    };
                    if kind.is_with(input, inputs) && !is_done {
                        starts.push(self.start(kind, input, repetition)?);
                    }
                }
            }
        }
        Ok(starts)
    }

    /// Makes `dir` the snapshot with the merged sets of these recordings.
    fn write_set(
        &self,
        snapshot: &Arc<Snapshot>,
        dir: &Path,
        recorded: &[TouchCounts],
    ) -> Result<(), Box<dyn Error>> {
        link_snapshot(&self.folder.base, dir)?;
        let merged = TouchCounts::merge(recorded, MergeRule::Union)?;
        let mut source = SnapshotPageSource::new(Arc::clone(snapshot))?;
        let path = dir.join(WORKING_SET_FILE);
        WorkingSet::write_counted(&path, &snapshot.id(), &merged, &mut source)?;
        Ok(())
    }

    fn start(
        &self,
        kind: StartKind,
        input: usize,
        repetition: u32,
    ) -> Result<Start, Box<dyn Error>> {
        let folder = &self.folder;
        let (mode, dir) = match kind {
            StartKind::File | StartKind::Instructions => (MemoryRestoreMode::File, &folder.base),
            StartKind::OnDemand => (MemoryRestoreMode::OnDemand, &folder.base),
            StartKind::Record | StartKind::Traced => (MemoryRestoreMode::Record, &folder.base),
            StartKind::PrefetchOne => (MemoryRestoreMode::Prefetch, &folder.one),
            StartKind::PrefetchMerged => (MemoryRestoreMode::Prefetch, &folder.merged),
        };
        let (trace_name, source) = match kind {
            StartKind::Traced => (
                Some(format!("{}.{input}.{repetition}.trace", self.name)),
                SourceChoice::Pager,
            ),
            StartKind::Instructions => (
                Some(format!("{}.instructions.trace", self.name)),
                SourceChoice::Auto,
            ),
            _ => (None, SourceChoice::Auto),
        };
        let trace = trace_name.as_ref().map(|name| TraceOptions {
            function: Some(self.name.to_owned()),
            source,
            ..TraceOptions::new(self.study.trace_path(name))
        });
        let start = ColdStart {
            overrides: &self.overrides,
            dir,
            mode,
            set: WorkingSetOptions::default(),
            install: self.arguments.install.options(dir)?,
            input: &self.plan.inputs[input],
            timeout: bench::TIMEOUT,
            keep_recording: kind == StartKind::Traced && repetition == 0,
            count_resident: true,
            trace: trace.as_ref(),
            started_ns: 0,
        };
        let report: ColdStartReport = bench::cold_start(self.image, &start, &self.expected[input])?;
        self.progress.step(format!(
            "{}: {}, {:.1} ms",
            self.name,
            kind.as_str(),
            report.total_ms
        ));
        Ok(summarise(kind, input, repetition, &report, trace_name))
    }
}
