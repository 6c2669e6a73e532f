//! The figures of a study: those of all functions, and in `function` those of each.

mod function;

use reapvm_reap::averages::mean;
use reapvm_reap::study::StartKind;

use super::findings::Function;
use super::invocation::PARTS;
use super::readahead::{Shape, WINDOWS};
use super::tables::{Tables, mean_readahead};
use crate::dataset::Dataset;
use crate::plot::{self, PlotError, RowBars};
use crate::report::Figure;

pub(super) use function::of_one;

/// Functions of the guest that have a bar of their own.
const MAX_SYMBOLS: usize = 15;

pub(super) fn of_all(
    functions: &[Function<'_>],
    tables: &Tables,
) -> Result<Vec<Figure>, PlotError> {
    Ok(vec![
        footprint(functions, tables)?,
        times(functions, tables)?,
        touches(functions, tables)?,
        contiguity(functions, tables)?,
        reuse(functions, tables)?,
        readahead(functions, tables)?,
        sets(functions, tables)?,
        symbols(functions, tables)?,
    ])
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A row of bars for each function.
fn by_function(
    functions: &[Function<'_>],
    parts: impl Fn(&Function<'_>) -> Vec<Option<f64>>,
) -> Vec<(String, Vec<Option<f64>>)> {
    let row = |function: &Function<'_>| (function.name().to_owned(), parts(function));
    functions.iter().map(row).collect()
}

/// A figure about all functions, with all of `dataset`.
fn overview(
    anchor: &str,
    bars: &RowBars<'_>,
    series: &[&str],
    caption: String,
    dataset: &Dataset,
) -> Result<Figure, PlotError> {
    Ok(Figure {
        anchor: anchor.to_owned(),
        title: bars.title.to_owned(),
        caption,
        svg: plot::row_bars(bars)?,
        series: names(series),
        table: dataset.table(0, |_| true),
        files: dataset.files(),
    })
}

fn footprint(functions: &[Function<'_>], tables: &Tables) -> Result<Figure, PlotError> {
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let bars = RowBars {
        title: "Footprint: booted against restored",
        x_label: "resident guest memory (MiB)",
        is_stacked: false,
        rows: by_function(functions, |f| {
            let booted = f.measured.booted_resident_bytes as f64;
            vec![Some(mib(booted)), f.restored_bytes().map(mib)]
        }),
    };
    let caption = "Booted: resident when the machine was saved, after one request. Restored: resident \
                   after the response of a start on demand, median. Touched pages are those of its \
                   traces.";
    overview(
        "footprint",
        &bars,
        &["booted", "restored"],
        caption.to_owned(),
        &tables.footprint,
    )
}

fn times(functions: &[Function<'_>], tables: &Tables) -> Result<Figure, PlotError> {
    let bars = RowBars {
        title: "Time of a cold start by memory mode",
        x_label: "from exec to the whole response, median (ms)",
        is_stacked: false,
        rows: by_function(functions, |f| {
            StartKind::TIMED.map(|kind| f.total_ms(kind)).into()
        }),
    };
    let speed_ups: Vec<f64> = functions.iter().filter_map(Function::speed_up).collect();
    let caption = match mean(speed_ups) {
        None => "The speed-up was not measured.".to_owned(),
        Some(mean) => format!(
            "file is the baseline, a private mapping of the memory file with the kernel's readahead; \
             prefetch is {mean:.2} times faster on average. The sets that are prefetched are of other \
             inputs."
        ),
    };
    let series = StartKind::TIMED.map(StartKind::as_str);
    overview("times", &bars, &series, caption, &tables.latency)
}

fn touches(functions: &[Function<'_>], tables: &Tables) -> Result<Figure, PlotError> {
    let bars = RowBars {
        title: "When pages are touched for the first time",
        x_label: "first touches (%)",
        is_stacked: true,
        rows: by_function(functions, |f| f.by_part().map(Some).into()),
    };
    let caption = "By the recorded starts. Connection: from the guest's first instruction until it \
                   accepts the connection; processing: from there to the response.";
    overview(
        "touches",
        &bars,
        &PARTS,
        caption.to_owned(),
        &tables.touches,
    )
}

fn contiguity(functions: &[Function<'_>], tables: &Tables) -> Result<Figure, PlotError> {
    let bars = RowBars {
        title: "Contiguity: pages of an average run",
        x_label: "pages a run",
        is_stacked: false,
        rows: by_function(functions, |f| vec![f.pages_a_run()]),
    };
    let caption = "A run is a row of neighbouring pages that were touched, all in guest-physical \
                   addresses. The paper finds 1.6 to 4.9.";
    overview(
        "contiguity",
        &bars,
        &[],
        caption.to_owned(),
        &tables.contiguity,
    )
}

fn reuse(functions: &[Function<'_>], tables: &Tables) -> Result<Figure, PlotError> {
    let bars = RowBars {
        title: "Reuse: pages that two invocations share",
        x_label: "pages of one that the other touches too (%)",
        is_stacked: false,
        rows: by_function(functions, |f| {
            let same = |reuse: Option<crate::study::sets::Reuse>| reuse.map(|r| r.same_pct);
            vec![same(f.same_input), same(f.other_input)]
        }),
    };
    let mut caption = "Each recorded invocation against each other one, on average. Unique pages are \
                       those of one that the other has not; the Jaccard index is the pages of both over \
                       those of either."
        .to_owned();
    if functions.iter().all(|f| f.same_input.is_none()) {
        caption.push_str(" No input was recorded twice.");
    }
    overview(
        "reuse",
        &bars,
        &["same input", "other input"],
        caption,
        &tables.reuse,
    )
}

fn readahead(functions: &[Function<'_>], tables: &Tables) -> Result<Figure, PlotError> {
    let rows = WINDOWS.iter().map(|window| {
        let name = match window {
            1 => "1 page".to_owned(),
            pages => format!("{pages} pages"),
        };
        let (covered, wasted) = mean_readahead(functions, *window, Shape::Around);
        (name, vec![covered, wasted])
    });
    let bars = RowBars {
        title: "What readahead would have helped",
        x_label: "covered: of the touched pages; wasted: of the pages read (%)",
        is_stacked: false,
        rows: rows.collect(),
    };
    let caption = "Windows around each fault, played over the recorded first touches with an empty page \
                   cache, mean of the functions. Covered: an earlier window had brought the page. \
                   Wasted: nobody touched it. Linux's own window is 32 pages; the table also has \
                   windows ahead of the fault, and the files each function.";
    let mut figure = overview(
        "readahead",
        &bars,
        &["covered", "wasted"],
        caption.to_owned(),
        &tables.readahead_mean,
    )?;
    figure.files.extend(tables.readahead.files());
    Ok(figure)
}

fn sets(functions: &[Function<'_>], tables: &Tables) -> Result<Figure, PlotError> {
    let ends = |f: &Function<'_>| {
        let (first, last) = (
            f.fits.first(),
            f.fits.last().filter(|fit| fit.recordings > 1),
        );
        vec![
            first.map(|fit| fit.missed_pct),
            last.map(|fit| fit.missed_pct),
            first.map(|fit| fit.wasted_pct),
            last.map(|fit| fit.wasted_pct),
        ]
    };
    let bars = RowBars {
        title: "Misses and waste of working sets, from one recording and from several",
        x_label: "missed: of the touched pages; wasted: of the set (%)",
        is_stacked: false,
        rows: by_function(functions, ends),
    };
    let merged = functions.iter().flat_map(|f| &f.fits).map(|f| f.recordings);
    let merged = merged.max().unwrap_or_default();
    let caption = format!(
        "Sets of recordings with other inputs, against each recorded invocation. Merged: the union of \
         {merged}. A miss is a fault; waste is read and copied for nothing."
    );
    overview(
        "sets",
        &bars,
        &[
            "missed, one",
            "missed, merged",
            "wasted, one",
            "wasted, merged",
        ],
        caption,
        &tables.sets,
    )
}

fn symbols(functions: &[Function<'_>], tables: &Tables) -> Result<Figure, PlotError> {
    const TITLE: &str = "Faults by the guest's functions";
    let mut sums: Vec<(String, f64)> = Vec::new();
    for symbol in functions.iter().filter_map(|f| f.symbols.touches.as_ref()) {
        for one in &symbol.symbols {
            match sums.iter_mut().find(|(name, _)| *name == one.symbol) {
                Some((_, touches)) => *touches += one.touches as f64,
                None => sums.push((one.symbol.clone(), one.touches as f64)),
            }
        }
    }
    sums.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    sums.truncate(MAX_SYMBOLS);
    // Each reason once, however many functions have it.
    let mut reasons: Vec<&str> = functions
        .iter()
        .map(|f| f.symbols.reason.as_str())
        .collect();
    reasons.dedup();
    let reasons = reasons.join("; ");
    let (svg, caption) = match sums.is_empty() {
        true => (
            String::new(),
            format!("Not known here: {reasons}. docs/trace.md says what KVM's tracepoint needs."),
        ),
        false => {
            let rows = sums.into_iter();
            let bars = RowBars {
                title: TITLE,
                x_label: "touches, all functions together",
                is_stacked: false,
                rows: rows
                    .map(|(name, touches)| (shortened(&name), vec![Some(touches)]))
                    .collect(),
            };
            (plot::row_bars(&bars)?, reasons)
        }
    };
    let (table, shown, all) = tables.symbols.thinned_table(0, |_| true);
    Ok(Figure {
        anchor: "symbols".to_owned(),
        title: TITLE.to_owned(),
        caption: caption + &of_rows(shown, all),
        svg,
        series: Vec::new(),
        table,
        files: tables.symbols.files(),
    })
}

/// A name that fits beside a bar. The table has the whole one.
fn shortened(name: &str) -> String {
    const MAX_CHARS: usize = 18;
    if name.chars().count() <= MAX_CHARS {
        return name.to_owned();
    }
    let start: String = name.chars().take(MAX_CHARS - 1).collect();
    format!("{start}…")
}

/// How many rows of the data a table has, where those are not all.
fn of_rows(shown: usize, all: usize) -> String {
    match shown < all {
        true => format!(" The table has {shown} of {all} rows."),
        false => String::new(),
    }
}
