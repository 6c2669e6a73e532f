//! The figures of a report, each with its numbers.

use super::figure::Figure;
use super::table::Table;
use crate::histogram::Histogram;
use crate::plot::{self, Bars, PlotError, grouped};
use crate::statistics::{PHASES, Statistics, ThreadCounts};

/// Rows that a table has at most where it could have many.
const MAX_ROWS: usize = 40;
/// Threads that have a bar of their own.
const MAX_THREADS: usize = 5;

pub(super) fn figures(statistics: &Statistics) -> Result<Vec<Figure>, PlotError> {
    Ok(vec![
        curve(statistics)?,
        map(statistics)?,
        runs(statistics)?,
        service(statistics)?,
        threads(statistics)?,
    ])
}

fn curve(statistics: &Statistics) -> Result<Figure, PlotError> {
    const TITLE: &str = "First touches over time";
    let points = &statistics.curve;
    let mut table = Table::new(&["Time since resume (ms)", "Distinct pages", "MiB"]);
    for point in thinned(points) {
        table.row(vec![
            format!("{:.3}", point.ns as f64 / 1e6),
            grouped(point.pages),
            mib(point.pages),
        ]);
    }
    Ok(Figure {
        anchor: "curve".to_owned(),
        title: TITLE.to_owned(),
        caption: "A steep part is a burst of first touches; a flat one is computing on pages that \
                  are there. Time begins at the guest's first instruction."
            .to_owned(),
        svg: plot::curve(points, TITLE)?,
        series: Vec::new(),
        table,
        files: Vec::new(),
    })
}

fn map(statistics: &Statistics) -> Result<Figure, PlotError> {
    const TITLE: &str = "Touched parts of guest memory";
    let bins = statistics.map.bins();
    let touched: Vec<_> = bins.iter().filter(|bin| bin.touched > 0).collect();
    let mut table = Table::new(&["Guest-physical address", "Pages touched", "Of"]);
    // The fullest parts, in the order of addresses.
    let mut shown = touched.clone();
    shown.sort_by_key(|bin| std::cmp::Reverse(bin.touched));
    shown.truncate(MAX_ROWS);
    shown.sort_by_key(|bin| bin.gpa);
    for bin in &shown {
        table.row(vec![
            format!("{:#x}", bin.gpa),
            grouped(bin.touched),
            grouped(bin.pages),
        ]);
    }
    let bin_kib = bins.first().map_or(0, |bin| bin.pages * 4);
    let mut caption = format!(
        "Each bar is a part of {} KiB; {} of {} parts were touched.",
        grouped(bin_kib),
        grouped(touched.len() as u64),
        grouped(bins.len() as u64)
    );
    if shown.len() < touched.len() {
        caption.push_str(&format!(
            " The table has the {} fullest parts.",
            shown.len()
        ));
    }
    if statistics.map.outside() > 0 {
        caption.push_str(&format!(
            " {} pages lie outside of guest memory.",
            grouped(statistics.map.outside())
        ));
    }
    Ok(Figure {
        anchor: "map".to_owned(),
        title: TITLE.to_owned(),
        caption,
        svg: plot::spatial_bars(&bins, TITLE)?,
        series: Vec::new(),
        table,
        files: Vec::new(),
    })
}

fn runs(statistics: &Statistics) -> Result<Figure, PlotError> {
    const TITLE: &str = "Contiguity: lengths of runs of touched pages";
    let octaves = octaves(&statistics.run_pages);
    let mut table = Table::new(&["Pages in a run", "Runs"]);
    for (name, count) in &octaves {
        table.row(vec![name.clone(), grouped(*count)]);
    }
    Ok(Figure {
        anchor: "runs".to_owned(),
        title: TITLE.to_owned(),
        caption: format!(
            "{} runs of neighbouring pages, {:.2} pages each on average, the longest {}. Short \
             runs are why reading pages one by one is slow, and why a file of them helps.",
            grouped(statistics.run_pages.count()),
            statistics.pages_a_run(),
            grouped(statistics.run_pages.max())
        ),
        svg: plot::bars(&Bars {
            title: TITLE,
            x_label: "pages in a run",
            y_label: "runs",
            bars: octaves
                .into_iter()
                .map(|(name, n)| (name, vec![n]))
                .collect(),
        })?,
        series: Vec::new(),
        table,
        files: Vec::new(),
    })
}

/// Counts by octaves: 1, 2–3, 4–7, 8–15, …
pub(crate) fn octaves(histogram: &Histogram) -> Vec<(String, u64)> {
    let mut octaves: Vec<(u64, u64)> = Vec::new();
    for bucket in histogram.buckets() {
        // No bucket of the histogram lies in two octaves.
        let octave = 1 << bucket.from.max(1).ilog2();
        match octaves.last_mut() {
            Some(last) if last.0 == octave => last.1 += bucket.count,
            _ => octaves.push((octave, bucket.count)),
        }
    }
    octaves
        .into_iter()
        .map(|(from, count)| {
            let name = match from {
                1 => "1".to_owned(),
                _ => format!("{from}–{}", from - 1 + from),
            };
            (name, count)
        })
        .collect()
}

fn service(statistics: &Statistics) -> Result<Figure, PlotError> {
    const TITLE: &str = "Service times of faults";
    let histogram = &statistics.service_ns;
    let buckets = histogram.buckets();
    let us = |ns: u64| format!("{:.1}", ns as f64 / 1e3);
    let mut table = Table::new(&["Service time", "µs"]);
    for (name, share) in [
        ("median", 0.5),
        ("90 %", 0.9),
        ("99 %", 0.99),
        ("99.9 %", 0.999),
    ] {
        table.row(vec![name.to_owned(), us(histogram.quantile(share))]);
    }
    table.row(vec!["longest".to_owned(), us(histogram.max())]);
    table.row(vec![
        "mean".to_owned(),
        format!("{:.1}", histogram.mean() / 1e3),
    ]);
    table.row(vec!["sum".to_owned(), us(histogram.sum())]);
    Ok(Figure {
        anchor: "service".to_owned(),
        title: TITLE.to_owned(),
        caption: match histogram.count() {
            0 => "This source does not know how long a page took.".to_owned(),
            count => format!(
                "{} faults, from the pager's reading of the fault to the page being there. A \
                 bucket's width is at most a quarter of its start, so quantiles are at most so much \
                 too large.",
                grouped(count)
            ),
        },
        svg: plot::histogram_bars(&buckets, TITLE)?,
        series: Vec::new(),
        table,
        files: Vec::new(),
    })
}

fn threads(statistics: &Statistics) -> Result<Figure, PlotError> {
    const TITLE: &str = "Faults by thread and phase";
    let mut table = Table::new(&[
        "Thread",
        "Restore",
        "Connection",
        "Request",
        "Idle",
        "All",
        "Of these writes",
    ]);
    let all = |thread: &ThreadCounts| thread.by_phase.iter().sum::<u64>();
    let mut sorted: Vec<&ThreadCounts> = statistics.threads.iter().collect();
    sorted.sort_by_key(|thread| std::cmp::Reverse(all(thread)));
    for thread in sorted.iter().take(MAX_ROWS) {
        let mut cells = vec![thread.label.clone()];
        cells.extend(thread.by_phase.iter().map(|count| grouped(*count)));
        cells.push(grouped(all(thread)));
        cells.push(grouped(thread.writes));
        table.row(cells);
    }
    let mut bars: Vec<(String, Vec<u64>)> = sorted
        .iter()
        .take(MAX_THREADS)
        .map(|thread| (shortened(&thread.label), thread.by_phase.to_vec()))
        .collect();
    if sorted.len() > MAX_THREADS {
        let mut rest = vec![0; 4];
        for thread in &sorted[MAX_THREADS..] {
            for (sum, count) in rest.iter_mut().zip(thread.by_phase) {
                *sum += count;
            }
        }
        bars.push(("others".to_owned(), rest));
    }
    Ok(Figure {
        anchor: "threads".to_owned(),
        title: TITLE.to_owned(),
        caption: "Where KVM lets a kernel worker fetch the page of a vCPU, the fault is the \
                  worker's here, and a worker always asks to write."
            .to_owned(),
        svg: plot::bars(&Bars {
            title: TITLE,
            x_label: "thread",
            y_label: "faults",
            bars,
        })?,
        series: PHASES.iter().map(ToString::to_string).collect(),
        table,
        files: Vec::new(),
    })
}

/// At most [`MAX_ROWS`] of `points`, the first and the last among them.
fn thinned<T>(points: &[T]) -> Vec<&T> {
    thinned_to(points, MAX_ROWS)
}

/// At most `most` of `points`, the first and the last among them.
pub(crate) fn thinned_to<T>(points: &[T], most: usize) -> Vec<&T> {
    let count = points.len().min(most);
    match count {
        0 | 1 => points.iter().collect(),
        _ => (0..count)
            .map(|at| &points[at * (points.len() - 1) / (count - 1)])
            .collect(),
    }
}

/// A name that fits below a bar, also on a phone. The table has the whole one.
fn shortened(name: &str) -> String {
    const MAX_CHARS: usize = 10;
    // Most of the names are those of kernel workers: what tells them apart comes after that.
    let name = name.replace("kworker/", "kw/");
    if name.chars().count() <= MAX_CHARS {
        return name;
    }
    let start: String = name.chars().take(MAX_CHARS - 1).collect();
    format!("{start}…")
}

pub(crate) fn mib(pages: u64) -> String {
    format!("{:.1}", pages as f64 / 256.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octaves_hold_every_run() {
        let mut histogram = Histogram::default();
        for pages in [1, 2, 3, 4, 4, 5, 8, 9, 16, 17] {
            histogram.add(pages);
        }
        let counts: Vec<(String, u64)> = octaves(&histogram);
        let expected = [("1", 1), ("2–3", 2), ("4–7", 3), ("8–15", 2), ("16–31", 2)];
        for ((name, count), expected) in counts.iter().zip(expected) {
            assert_eq!((name.as_str(), *count), expected);
        }
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), 10);
    }

    #[test]
    fn a_thinned_list_has_both_ends() {
        let numbers: Vec<u64> = (0..1000).collect();
        let thin = thinned(&numbers);
        assert_eq!(thin.len(), MAX_ROWS);
        assert_eq!((*thin[0], *thin[MAX_ROWS - 1]), (0, 999));
        assert_eq!(thinned(&numbers[..3]).len(), 3);
        assert!(thinned::<u64>(&[]).is_empty());
    }
}
