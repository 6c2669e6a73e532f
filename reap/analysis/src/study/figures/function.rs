//! The figures of one function.

use reapvm_reap::study::{StartKind, StartPhasesMs};

use super::{names, of_rows};
use crate::dataset::{Cell, Dataset};
use crate::plot::{self, Bars, MAX_SERIES, PlotError, RowBars};
use crate::report::{Figure, octaves};
use crate::study::findings::Function;
use crate::study::tables::{Tables, WARM};

pub(in crate::study) fn of_one(
    function: &Function<'_>,
    tables: &Tables,
) -> Result<Vec<Figure>, PlotError> {
    Ok(vec![
        latency(function, tables)?,
        curve(function, tables)?,
        map(function, tables)?,
        runs(function, tables)?,
    ])
}

/// A figure about one function, with its rows of `dataset`.
fn of_function(
    function: &Function<'_>,
    name: &str,
    title: &str,
    svg: String,
    caption: String,
    dataset: &Dataset,
) -> Figure {
    let is_its = |row: &[Cell]| matches!(&row[0], Cell::Text(name) if name == function.name());
    let (table, shown, all) = dataset.thinned_table(1, is_its);
    Figure {
        anchor: format!("{}-{name}", function.name()),
        title: title.to_owned(),
        caption: caption + &of_rows(shown, all),
        svg,
        series: Vec::new(),
        table,
        files: dataset.files(),
    }
}

fn latency(function: &Function<'_>, tables: &Tables) -> Result<Figure, PlotError> {
    let title = format!("{}: where the time of a start goes", function.name());
    let warm = [None, None, None, None, function.warm_ms()];
    let mut rows = vec![(WARM.to_owned(), warm.to_vec())];
    for kind in StartKind::TIMED {
        if let Some(start) = function.median_start(kind) {
            let parts = start.phases_ms.parts().map(Some);
            rows.push((kind.as_str().to_owned(), parts.to_vec()));
        }
    }
    let bars = RowBars {
        title: &title,
        x_label: "from exec to the whole response (ms)",
        is_stacked: true,
        rows,
    };
    let caption = "Each bar is the start whose time is the median, so that its parts add up. Warm is a \
                   call of the machine that was never interrupted.";
    let mut figure = of_function(
        function,
        "latency",
        &title,
        plot::row_bars(&bars)?,
        caption.to_owned(),
        &tables.latency,
    );
    figure.series = names(&StartPhasesMs::NAMES);
    Ok(figure)
}

fn curve(function: &Function<'_>, tables: &Tables) -> Result<Figure, PlotError> {
    let title = format!("{}: first touches over time", function.name());
    let mut shown = function.one_of_each_input();
    let inputs = shown.len();
    shown.truncate(MAX_SERIES);
    let curves: Vec<_> = shown
        .iter()
        .map(|i| i.statistics.curve.as_slice())
        .collect();
    let which = match shown.len() < inputs {
        true => format!("each of the first {} inputs", shown.len()),
        false => "each input".to_owned(),
    };
    let caption = format!(
        "A recorded invocation with {which}. A steep part is a burst of first touches; a flat one is \
         computing on pages that are there."
    );
    let mut figure = of_function(
        function,
        "curve",
        &title,
        plot::curves(&curves, &title)?,
        caption,
        &tables.curve,
    );
    figure.series = (1..=shown.len()).map(|at| format!("input {at}")).collect();
    Ok(figure)
}

fn map(function: &Function<'_>, tables: &Tables) -> Result<Figure, PlotError> {
    let title = format!("{}: touched parts of guest memory", function.name());
    let bins = function
        .invocations
        .first()
        .map(|first| first.statistics.map.bins())
        .unwrap_or_default();
    let touched = bins.iter().filter(|bin| bin.touched > 0).count();
    let caption = format!(
        "The first recorded invocation; each bar is a part of {} KiB, of which {touched} of {} were \
         touched.",
        bins.first().map_or(0, |bin| bin.pages * 4),
        bins.len()
    );
    let svg = plot::spatial_bars(&bins, &title)?;
    Ok(of_function(
        function,
        "map",
        &title,
        svg,
        caption,
        &tables.map,
    ))
}

fn runs(function: &Function<'_>, tables: &Tables) -> Result<Figure, PlotError> {
    let title = format!("{}: lengths of runs of touched pages", function.name());
    let first = function.invocations.first();
    let octaves = first.map(|first| octaves(&first.statistics.run_pages));
    let bars = Bars {
        title: &title,
        x_label: "pages in a run",
        y_label: "runs",
        bars: octaves
            .unwrap_or_default()
            .into_iter()
            .map(|(name, runs)| (name, vec![runs]))
            .collect(),
    };
    let caption = match first.map(|first| &first.statistics) {
        None => "No invocation was recorded.".to_owned(),
        Some(statistics) => format!(
            "The first recorded invocation: {} runs, {:.2} pages each on average, the longest {}.",
            statistics.run_pages.count(),
            statistics.pages_a_run(),
            statistics.run_pages.max()
        ),
    };
    let svg = plot::bars(&bars)?;
    Ok(of_function(
        function,
        "runs",
        &title,
        svg,
        caption,
        &tables.runs,
    ))
}
