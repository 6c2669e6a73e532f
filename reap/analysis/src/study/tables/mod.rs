//! The tables of a study, which its figures are drawn from: those of starts, and in `memory` those of what
//! they touch.

mod memory;

use reapvm_reap::study::{StartKind, Study};

use super::claims::Claim;
use super::findings::Function;
use super::numbers::range;
pub(super) use memory::mean_readahead;

use crate::dataset::{Cell, Column, Dataset, count, number, text};

const FUNCTION: Column = text("function", "Function");

/// All of them.
pub(super) struct Tables {
    pub(super) claims: Dataset,
    pub(super) starts: Dataset,
    pub(super) footprint: Dataset,
    pub(super) latency: Dataset,
    pub(super) runs: Dataset,
    pub(super) contiguity: Dataset,
    pub(super) reuse: Dataset,
    pub(super) map: Dataset,
    pub(super) curve: Dataset,
    pub(super) touches: Dataset,
    pub(super) readahead: Dataset,
    /// The mean of the functions.
    pub(super) readahead_mean: Dataset,
    pub(super) sets: Dataset,
    pub(super) symbols: Dataset,
}

impl Tables {
    pub(super) fn new(study: &Study, functions: &[Function<'_>], claims: &[Claim]) -> Self {
        Self {
            claims: claims_table(claims),
            starts: starts(study, functions),
            footprint: footprint(functions),
            latency: latency(functions),
            runs: memory::runs(functions),
            contiguity: memory::contiguity(functions),
            reuse: memory::reuse(functions),
            map: memory::map(functions),
            curve: memory::curve(study, functions),
            touches: memory::touches(functions),
            readahead: memory::readahead(functions),
            readahead_mean: memory::readahead_mean(functions),
            sets: memory::sets(functions),
            symbols: memory::symbols(functions),
        }
    }

    pub(super) fn all(&self) -> [&Dataset; 14] {
        [
            &self.claims,
            &self.starts,
            &self.footprint,
            &self.latency,
            &self.runs,
            &self.contiguity,
            &self.reuse,
            &self.map,
            &self.curve,
            &self.touches,
            &self.readahead,
            &self.readahead_mean,
            &self.sets,
            &self.symbols,
        ]
    }
}

fn claims_table(claims: &[Claim]) -> Dataset {
    const COLUMNS: &[Column] = &[
        text("claim", "Claim"),
        text("paper", "Paper"),
        text("ours", "Here"),
        text("linux", "Linux guests"),
        text("verdict", "Verdict"),
        text("rule", "The same if"),
        text("why", "What the figures say"),
    ];
    let mut table = Dataset::new("claims", COLUMNS);
    for claim in claims {
        table.row([
            claim.claim.into(),
            claim.paper.into(),
            claim.ours.as_str().into(),
            claim.linux.as_str().into(),
            claim.verdict.as_str().into(),
            claim.rule.into(),
            claim.why.as_str().into(),
        ]);
    }
    table
}

fn starts(study: &Study, functions: &[Function<'_>]) -> Dataset {
    const COLUMNS: &[Column] = &[
        FUNCTION,
        text("start", "Start"),
        text("input", "Input"),
        count("repetition", "Repetition"),
        number("total_ms", "Time (ms)", 1),
        number("launch_ms", "Launch (ms)", 1),
        number("restore_ms", "State restore (ms)", 1),
        number("working_set_ms", "Working set (ms)", 1),
        number("connection_ms", "Connection (ms)", 1),
        number("processing_ms", "Processing (ms)", 1),
        count("pager_faults", "Faults of the pager"),
        count("missed_pages", "Missed pages"),
        count("major_faults", "Major faults"),
        count("minor_faults", "Minor faults"),
        count("working_set_pages", "Working set (pages)"),
        count("guest_resident_kib", "Guest resident (KiB)"),
    ];
    let mut table = Dataset::new("starts", COLUMNS);
    for function in functions {
        for start in &function.measured.starts {
            let [launch, restore, working_set, connection, processing] = start.phases_ms.parts();
            table.row([
                function.name().into(),
                start.kind.as_str().into(),
                study.plan.inputs[start.input].to_string().into(),
                u64::from(start.repetition).into(),
                start.total_ms.into(),
                launch.into(),
                restore.into(),
                working_set.into(),
                connection.into(),
                processing.into(),
                start.pager_faults.into(),
                start.missed_pages.into(),
                start.major_faults.into(),
                start.minor_faults.into(),
                start.working_set_pages.into(),
                start.guest_resident_kib.into(),
            ]);
        }
    }
    table
}

fn footprint(functions: &[Function<'_>]) -> Dataset {
    const COLUMNS: &[Column] = &[
        FUNCTION,
        number("booted_mib", "Booted (MiB)", 1),
        number("restored_mib", "Restored (MiB)", 1),
        number("reduction_pct", "Less (%)", 1),
        number("touched_pages", "Touched (pages)", 0),
        number("touched_mib", "Touched (MiB)", 1),
        number("memory_mib", "Guest memory (MiB)", 0),
    ];
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let mut table = Dataset::new("footprint", COLUMNS);
    for function in functions {
        let touched = function.touched_pages();
        table.row([
            function.name().into(),
            mib(function.measured.booted_resident_bytes as f64).into(),
            function.restored_bytes().map(mib).into(),
            function.footprint_reduction_pct().into(),
            touched.into(),
            touched.map(|pages| pages / 256.0).into(),
            mib(function.measured.memory_bytes as f64).into(),
        ]);
    }
    table
}

/// Name of the rows of warm calls.
pub(super) const WARM: &str = "warm";

fn latency(functions: &[Function<'_>]) -> Dataset {
    const COLUMNS: &[Column] = &[
        FUNCTION,
        text("start", "Start"),
        count("starts", "Starts"),
        number("median_ms", "Median (ms)", 1),
        number("least_ms", "Least (ms)", 1),
        number("most_ms", "Most (ms)", 1),
        number("launch_ms", "Launch (ms)", 1),
        number("restore_ms", "State restore (ms)", 1),
        number("working_set_ms", "Working set (ms)", 1),
        number("connection_ms", "Connection (ms)", 1),
        number("processing_ms", "Processing (ms)", 1),
    ];
    let mut table = Dataset::new("latency", COLUMNS);
    for function in functions {
        let warm = || function.measured.warm.iter().filter(|call| call.input > 0);
        let calls = warm().count() as u64;
        let ends = range(warm().map(|call| call.ms));
        let warm_ms = function.warm_ms();
        table.row([
            function.name().into(),
            WARM.into(),
            calls.into(),
            warm_ms.into(),
            ends.map(|ends| ends.0).into(),
            ends.map(|ends| ends.1).into(),
            Cell::None,
            Cell::None,
            Cell::None,
            Cell::None,
            warm_ms.into(),
        ]);
        for kind in StartKind::TIMED {
            let Some(start) = function.median_start(kind) else {
                continue;
            };
            let ends = range(function.starts(kind).map(|s| s.total_ms));
            let [launch, restore, working_set, connection, processing] = start.phases_ms.parts();
            table.row([
                function.name().into(),
                kind.as_str().into(),
                (function.starts(kind).count() as u64).into(),
                function.total_ms(kind).into(),
                ends.map(|ends| ends.0).into(),
                ends.map(|ends| ends.1).into(),
                launch.into(),
                restore.into(),
                working_set.into(),
                connection.into(),
                processing.into(),
            ]);
        }
    }
    table
}
