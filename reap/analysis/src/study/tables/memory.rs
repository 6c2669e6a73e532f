//! Tables of what starts touch.

use reapvm_reap::averages::mean;
use reapvm_reap::study::Study;

use super::FUNCTION;
use crate::dataset::{Column, Dataset, count, number, text};
use crate::study::findings::Function;
use crate::study::invocation::PARTS;
use crate::study::numbers::percent;
use crate::study::readahead::{Shape, WINDOWS};
use crate::study::sets::Reuse;

pub(super) fn runs(functions: &[Function<'_>]) -> Dataset {
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

pub(super) fn contiguity(functions: &[Function<'_>]) -> Dataset {
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

pub(super) fn reuse(functions: &[Function<'_>]) -> Dataset {
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

pub(super) fn map(functions: &[Function<'_>]) -> Dataset {
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

pub(super) fn curve(study: &Study, functions: &[Function<'_>]) -> Dataset {
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

pub(super) fn touches(functions: &[Function<'_>]) -> Dataset {
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

pub(super) fn readahead(functions: &[Function<'_>]) -> Dataset {
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
pub(in crate::study) fn mean_readahead(
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

pub(super) fn readahead_mean(functions: &[Function<'_>]) -> Dataset {
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

pub(super) fn sets(functions: &[Function<'_>]) -> Dataset {
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

pub(super) fn symbols(functions: &[Function<'_>]) -> Dataset {
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
