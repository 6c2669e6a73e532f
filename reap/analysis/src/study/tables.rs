//! The tables of a study, which its figures are drawn from.

use reapvm_reap::study::{StartKind, Study};

use super::claims::Claim;
use super::findings::Function;
use super::invocation::PARTS;
use super::numbers::{mean, percent, range};
use super::readahead::{Shape, WINDOWS};
use super::sets::Reuse;
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
            runs: runs(functions),
            contiguity: contiguity(functions),
            reuse: reuse(functions),
            map: map(functions),
            curve: curve(study, functions),
            touches: touches(functions),
            readahead: readahead(functions),
            readahead_mean: readahead_mean(functions),
            sets: sets(functions),
            symbols: symbols(functions),
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

fn runs(functions: &[Function<'_>]) -> Dataset {
    const COLUMNS: &[Column] = &[
        FUNCTION,
        count("from_pages", "From (pages)"),
        count("to_pages", "To (pages)"),
        count("runs", "Runs"),
    ];
    let mut table = Dataset::new("runs", COLUMNS);
    for function in functions {
        if let Some(first) = function.invocations.first() {
            for bucket in first.statistics.run_pages.buckets() {
                table.row([
                    function.name().into(),
                    bucket.from.into(),
                    bucket.to.into(),
                    bucket.count.into(),
                ]);
            }
        }
    }
    table
}

fn contiguity(functions: &[Function<'_>]) -> Dataset {
    const COLUMNS: &[Column] = &[
        FUNCTION,
        number("pages_a_run", "Pages a run", 2),
        count("half_pages", "Half of the runs have at most (pages)"),
        count("longest_pages", "The longest (pages)"),
        number("next_page_pct", "Next touch is the next page (%)", 1),
    ];
    let mut table = Dataset::new("contiguity", COLUMNS);
    for function in functions {
        let first = function
            .invocations
            .first()
            .map(|i| &i.statistics.run_pages);
        table.row([
            function.name().into(),
            function.pages_a_run().into(),
            first.map(|runs| runs.quantile(0.5)).into(),
            first.map(crate::Histogram::max).into(),
            function.next_page_pct().into(),
        ]);
    }
    table
}

fn reuse(functions: &[Function<'_>]) -> Dataset {
    const COLUMNS: &[Column] = &[
        FUNCTION,
        text("inputs", "Inputs"),
        count("pairs", "Pairs"),
        number("same_pages", "Same (pages)", 0),
        number("unique_pages", "Unique (pages)", 0),
        number("same_pct", "Same (%)", 2),
        number("jaccard", "Jaccard index", 4),
    ];
    let mut table = Dataset::new("reuse", COLUMNS);
    for function in functions {
        let mut row = |inputs: &str, reuse: Option<Reuse>| {
            table.row([
                function.name().into(),
                inputs.into(),
                reuse.map_or(0, |r| r.pairs).into(),
                reuse.map(|r| r.common).into(),
                reuse.map(|r| r.unique).into(),
                reuse.map(|r| r.same_pct).into(),
                reuse.map(|r| r.jaccard).into(),
            ]);
        };
        row("same", function.same_input);
        row("other", function.other_input);
    }
    table
}

fn map(functions: &[Function<'_>]) -> Dataset {
    const COLUMNS: &[Column] = &[
        FUNCTION,
        text("gpa", "Guest-physical address"),
        count("pages", "Pages"),
        count("touched_pages", "Touched (pages)"),
    ];
    let mut table = Dataset::new("map", COLUMNS);
    for function in functions {
        for bin in function
            .invocations
            .first()
            .map(|first| first.statistics.map.bins())
            .unwrap_or_default()
        {
            if bin.touched > 0 {
                table.row([
                    function.name().into(),
                    format!("{:#x}", bin.gpa).into(),
                    bin.pages.into(),
                    bin.touched.into(),
                ]);
            }
        }
    }
    table
}

fn curve(study: &Study, functions: &[Function<'_>]) -> Dataset {
    const COLUMNS: &[Column] = &[
        FUNCTION,
        text("input", "Input"),
        number("since_resume_ms", "Time since resume (ms)", 3),
        count("pages", "Distinct pages"),
    ];
    let mut table = Dataset::new("curve", COLUMNS);
    for function in functions {
        for one in function.one_of_each_input() {
            for point in &one.statistics.curve {
                table.row([
                    function.name().into(),
                    study.plan.inputs[one.input].to_string().into(),
                    (point.ns as f64 / 1e6).into(),
                    point.pages.into(),
                ]);
            }
        }
    }
    table
}

fn touches(functions: &[Function<'_>]) -> Dataset {
    const COLUMNS: &[Column] = &[
        FUNCTION,
        number("before_pct", "Before the guest runs (%)", 1),
        number("connection_pct", "Connection (%)", 1),
        number("processing_pct", "Processing (%)", 1),
        number("after_pct", "After the response (%)", 1),
    ];
    const { assert!(COLUMNS.len() == PARTS.len() + 1) };
    let mut table = Dataset::new("touches", COLUMNS);
    for function in functions {
        let [before, connection, processing, after] = function.by_part();
        table.row([
            function.name().into(),
            before.into(),
            connection.into(),
            processing.into(),
            after.into(),
        ]);
    }
    table
}

fn readahead(functions: &[Function<'_>]) -> Dataset {
    const COLUMNS: &[Column] = &[
        FUNCTION,
        text("window_lies", "Window"),
        count("window_pages", "Window (pages)"),
        count("faults", "Faults"),
        count("covered_pages", "Covered (pages)"),
        number("covered_pct", "Covered (%)", 1),
        count("read_pages", "Read (pages)"),
        count("wasted_pages", "Wasted (pages)"),
        number("wasted_a_touched", "Wasted for one touched", 2),
    ];
    let mut table = Dataset::new("readahead", COLUMNS);
    for function in functions {
        for shape in Shape::ALL {
            for window in WINDOWS {
                let found = function.readahead(window, shape);
                let touched = found.faults + found.covered;
                table.row([
                    function.name().into(),
                    shape.as_str().into(),
                    window.into(),
                    found.faults.into(),
                    found.covered.into(),
                    percent(found.covered, touched).into(),
                    found.read.into(),
                    found.wasted.into(),
                    (found.wasted as f64 / touched.max(1) as f64).into(),
                ]);
            }
        }
    }
    table
}

/// The share, in percent, of touches that windows would have covered, and of pages that they would have
/// read for nothing: the mean of `functions`.
pub(super) fn mean_readahead(
    functions: &[Function<'_>],
    window: u64,
    shape: Shape,
) -> (Option<f64>, Option<f64>) {
    let played = || functions.iter().map(|f| f.readahead(window, shape));
    (
        mean(played().map(|o| percent(o.covered, o.faults + o.covered))),
        mean(played().map(|o| percent(o.wasted, o.read))),
    )
}

fn readahead_mean(functions: &[Function<'_>]) -> Dataset {
    const COLUMNS: &[Column] = &[
        text("window_lies", "Window"),
        count("window_pages", "Window (pages)"),
        number("covered_pct", "Covered: of the touched pages (%)", 1),
        number("wasted_pct", "Wasted: of the pages read (%)", 1),
    ];
    let mut table = Dataset::new("readahead_mean", COLUMNS);
    for shape in Shape::ALL {
        for window in WINDOWS {
            let (covered, wasted) = mean_readahead(functions, window, shape);
            table.row([
                shape.as_str().into(),
                window.into(),
                covered.into(),
                wasted.into(),
            ]);
        }
    }
    table
}

fn sets(functions: &[Function<'_>]) -> Dataset {
    const COLUMNS: &[Column] = &[
        FUNCTION,
        count("recordings", "Merged recordings"),
        count("trials", "Invocations"),
        number("set_pages", "Set (pages)", 0),
        number("missed_pages", "Missed (pages)", 1),
        number("missed_pct", "Missed (%)", 2),
        number("wasted_pages", "Wasted (pages)", 1),
        number("wasted_pct", "Wasted (%)", 2),
    ];
    let mut table = Dataset::new("sets", COLUMNS);
    for function in functions {
        for fit in &function.fits {
            table.row([
                function.name().into(),
                (fit.recordings as u64).into(),
                fit.trials.into(),
                fit.set_pages.into(),
                fit.missed.into(),
                fit.missed_pct.into(),
                fit.wasted.into(),
                fit.wasted_pct.into(),
            ]);
        }
    }
    table
}

fn symbols(functions: &[Function<'_>]) -> Dataset {
    const COLUMNS: &[Column] = &[
        FUNCTION,
        text("symbol", "Guest's function"),
        count("touches", "Touches"),
        count("pages", "Pages"),
    ];
    let mut table = Dataset::new("symbols", COLUMNS);
    for function in functions {
        for symbol in function.symbols.touches.iter().flat_map(|t| &t.symbols) {
            table.row([
                function.name().into(),
                symbol.symbol.as_str().into(),
                symbol.touches.into(),
                symbol.pages.into(),
            ]);
        }
    }
    table
}
