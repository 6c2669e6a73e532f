//! Bars: of categories, of a histogram on a logarithmic axis, of places in memory.

use std::ops::Range;

use plotters::coord::ranged1d::{
    AsRangedCoord, DefaultFormatting, KeyPointHint, Ranged, ValueFormatter,
};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::axes::Axes;
use super::{PlotError, SERIES, axis_number};
use crate::histogram::Bucket;
use crate::space::AddressBin;

/// Height of the bars of a row.
const ROW_BARS_HEIGHT: u32 = 22;
/// Height of one of several bars of a row.
const ROW_BAR_HEIGHT: u32 = 11;
/// Between the bars of two rows.
const ROW_GAP: u32 = 10;

/// Bars of categories, each of stacked parts.
pub(crate) struct Bars<'a> {
    /// What the figure shows.
    pub(crate) title: &'a str,
    /// What the categories are.
    pub(crate) x_label: &'a str,
    /// What is counted.
    pub(crate) y_label: &'a str,
    /// The name of each category and its parts, in the order of the series.
    pub(crate) bars: Vec<(String, Vec<u64>)>,
}

/// A figure of `bars`.
pub(crate) fn bars(bars: &Bars<'_>) -> Result<String, PlotError> {
    let count = bars.bars.len();
    let most = bars
        .bars
        .iter()
        .map(|(_, parts)| parts.iter().sum::<u64>())
        .max()
        .unwrap_or(1)
        .max(1) as f64;
    let axes = Axes {
        labels: (count, 6),
        ..Axes::new(bars.title, bars.x_label, bars.y_label)
    };
    let place = (places(count), 0.0..most * 1.08);
    let name = |value: &f64| name_at(*value, |at| Some(&bars.bars.get(at)?.0));
    axes.draw(place, &name, &|value| axis_number(*value), |chart| {
        for (at, (_, parts)) in bars.bars.iter().enumerate() {
            let place = at as f64;
            let mut from = 0.0;
            for (part, color) in parts.iter().zip(SERIES) {
                let to = from + *part as f64;
                let corners = [(place, from), (place + 1.0, to)];
                let mut bar = Rectangle::new(corners, color.filled());
                let gap = if count > 12 { 2 } else { 12 };
                bar.set_margin(0, 0, gap, gap);
                if *part > 0 {
                    chart.draw_series([bar]).map_err(PlotError::new)?;
                }
                from = to;
            }
        }
        Ok(())
    })
}

/// Bars that lie, a row for each category: names have room on the left.
pub(crate) struct RowBars<'a> {
    /// What the figure shows.
    pub(crate) title: &'a str,
    /// What the lengths are, with their unit.
    pub(crate) x_label: &'a str,
    /// Whether the parts of a row follow each other; otherwise each has a bar of its own.
    pub(crate) is_stacked: bool,
    /// The name of each row and its parts, in the order of the series; a part that is not known has
    /// no bar.
    pub(crate) rows: Vec<(String, Vec<Option<f64>>)>,
}

/// A figure of `bars`.
pub(crate) fn row_bars(bars: &RowBars<'_>) -> Result<String, PlotError> {
    let count = bars.rows.len().max(1);
    let series = bars.rows.iter().map(|(_, parts)| parts.len()).max();
    let series = series.unwrap_or(1).max(1) as u32;
    let is_apart = !bars.is_stacked && series > 1;
    let bars_height = match is_apart {
        true => ROW_BAR_HEIGHT * series,
        false => ROW_BARS_HEIGHT,
    };
    let row_height = bars_height + ROW_GAP;
    let length = |parts: &[Option<f64>]| {
        let parts = parts.iter().flatten();
        match bars.is_stacked {
            true => parts.sum::<f64>(),
            false => parts.copied().fold(0.0, f64::max),
        }
    };
    let most = bars.rows.iter().map(|(_, parts)| length(parts));
    let most = most.fold(0.0, f64::max);
    let most = if most > 0.0 { most } else { 1.0 };
    let axes = Axes {
        plot_height: row_height * count as u32,
        y_labels_width: 172,
        labels: (7, count),
        lines: (true, false),
        ..Axes::new(bars.title, bars.x_label, "")
    };
    let place = (0.0..most * 1.04, places(count));
    // Rows go down, the axis up.
    let name = |value: &f64| {
        name_at(*value, |at| {
            Some(&bars.rows.get(count.checked_sub(at + 1)?)?.0)
        })
    };
    axes.draw(place, &|value| axis_number(*value), &name, |chart| {
        for (row, (_, parts)) in bars.rows.iter().enumerate() {
            let place = (count - 1 - row) as f64;
            let mut from = 0.0;
            for ((number, part), color) in (0..).zip(parts).zip(SERIES) {
                let part = part.unwrap_or_default();
                let to = from + part;
                let corners = [(from, place + 1.0), (to, place)];
                let mut bar = Rectangle::new(corners, color.filled());
                let (above, below) = match is_apart {
                    true => (
                        number * ROW_BAR_HEIGHT,
                        (series - number - 1) * ROW_BAR_HEIGHT,
                    ),
                    false => (0, 0),
                };
                bar.set_margin(ROW_GAP / 2 + above, ROW_GAP / 2 + below, 0, 0);
                if part > 0.0 {
                    chart.draw_series([bar]).map_err(PlotError::new)?;
                }
                if bars.is_stacked {
                    from = to;
                }
            }
        }
        Ok(())
    })
}

/// An axis with labels at these points and no others.
struct Marked<R: Ranged> {
    axis: R,
    points: Vec<f64>,
}

impl<R: Ranged<ValueType = f64>> Ranged for Marked<R> {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.axis.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.points.clone()
    }

    fn range(&self) -> Range<f64> {
        self.axis.range()
    }
}

/// An axis of so many categories: each has a length of one, and its label in the middle. Plotters' own
/// for such has no length for a single one.
fn places(count: usize) -> Marked<RangedCoordf64> {
    Marked {
        axis: (0.0..count.max(1) as f64).into(),
        points: (0..count).map(|at| at as f64 + 0.5).collect(),
    }
}

/// A logarithmic axis, with labels also where there is no power of ten or only one.
fn logarithmic(from: f64, to: f64) -> Marked<LogCoord<f64>> {
    // Where there are more, they would lie on each other.
    const MAX_LABELS: usize = 9;
    let decades = from.log10().floor() as i32..=to.log10().ceil() as i32;
    let marks = |of_ten: &[f64]| -> Vec<f64> {
        let all = decades
            .clone()
            .flat_map(|decade| of_ten.iter().map(move |n| n * 10_f64.powi(decade)));
        all.filter(|mark| (from..=to).contains(mark)).collect()
    };
    let some = marks(&[1.0, 2.0, 5.0]);
    Marked {
        points: match some.len() {
            0..=MAX_LABELS => some,
            _ => marks(&[1.0]),
        },
        axis: (from..to).log_scale().into(),
    }
}

/// The label in the middle of a category: what `name` says of its number.
fn name_at<'a>(value: f64, name: impl Fn(usize) -> Option<&'a String>) -> String {
    name(value as usize).cloned().unwrap_or_default()
}

/// A histogram of times in ns on a logarithmic axis in µs.
pub(crate) fn histogram_bars(buckets: &[Bucket], title: &str) -> Result<String, PlotError> {
    // A logarithm has no zero: what is less than 1 ns is drawn there.
    let us = |ns: u64| ns.max(1) as f64 / 1e3;
    let first = buckets.first().map_or(1.0, |bucket| us(bucket.from));
    let last = buckets.last().map_or(10.0, |bucket| us(bucket.to));
    let most = buckets.iter().map(|bucket| bucket.count).max().unwrap_or(1) as f64;
    let bars: Vec<(f64, f64, f64)> = buckets
        .iter()
        .filter(|bucket| bucket.count > 0)
        .map(|b| (us(b.from), us(b.to.saturating_add(1)), b.count as f64))
        .collect();
    let x = logarithmic(first, last.max(first * 2.0) * 1.1);
    let axes = Axes::new(title, "service time (µs, logarithmic)", "faults");
    rectangles(&axes, x, most, &bars)
}

/// Touched pages over the address space.
pub(crate) fn spatial_bars(bins: &[AddressBin], title: &str) -> Result<String, PlotError> {
    const PAGES_A_MIB: f64 = 256.0;
    let mut at = 0.0;
    let mut bars = Vec::with_capacity(bins.len());
    for bin in bins {
        let from = at;
        at += bin.pages as f64 / PAGES_A_MIB;
        if bin.touched > 0 {
            bars.push((
                from,
                at,
                100.0 * bin.touched as f64 / bin.pages.max(1) as f64,
            ));
        }
    }
    let most = bars.iter().map(|bar| bar.2).fold(1.0, f64::max);
    let axes = Axes::new(
        title,
        "place in guest memory (MiB, holes left out)",
        "pages touched (%)",
    );
    rectangles(&axes, 0.0..at.max(1.0), most, &bars)
}

/// Bars from the first to the second number, as high as the third.
fn rectangles<X>(
    axes: &Axes<'_>,
    x: X,
    most: f64,
    bars: &[(f64, f64, f64)],
) -> Result<String, PlotError>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let number = |value: &f64| axis_number(*value);
    axes.draw((x, 0.0..most * 1.05), &number, &number, |chart| {
        let bars = bars.iter().map(|(from, to, height)| {
            Rectangle::new([(*from, 0.0), (*to, *height)], SERIES[0].filled())
        });
        chart.draw_series(bars).map_err(PlotError::new)?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Width and height of what is filled with a series' colour.
    fn filled(svg: &str) -> Vec<(i32, i32)> {
        let number = |rect: &str, name: &str| {
            let text = rect.split(&format!(" {name}=\"")).nth(1).unwrap();
            text.split('"').next().unwrap().parse().unwrap()
        };
        let rects = svg.split("<rect ").skip(1);
        rects
            .filter(|rect| rect.contains("fill=\"#03"))
            .map(|rect| (number(rect, "width"), number(rect, "height")))
            .collect()
    }

    #[test]
    fn times_have_labels_however_far_apart_they_are() {
        for (from, to) in [(20_000, 70_000), (1, 90_000_000_000), (300, 301), (0, 0)] {
            let count = 3;
            let svg = histogram_bars(&[Bucket { from, to, count }], "").unwrap();
            // Those below are in the middle of their mark, as is the axis's name.
            let labels = svg.matches("text-anchor=\"middle\"").count();
            assert!((3..14).contains(&labels), "{from} to {to}: {labels}");
        }
    }

    #[test]
    fn one_bar_or_many_have_room_and_their_names() {
        for count in [1, 2, 15] {
            let names: Vec<String> = (0..count).map(|at| format!("name {at}")).collect();
            let lying = row_bars(&RowBars {
                title: "",
                x_label: "",
                is_stacked: false,
                rows: names
                    .iter()
                    .map(|n| (n.clone(), vec![Some(2.0), None]))
                    .collect(),
            });
            let standing = bars(&Bars {
                title: "",
                x_label: "",
                y_label: "",
                bars: names.iter().map(|n| (n.clone(), vec![3])).collect(),
            });
            for svg in [lying.unwrap(), standing.unwrap()] {
                let filled = filled(&svg);
                assert_eq!(filled.len(), count);
                assert!(filled.iter().all(|(w, h)| *w > 5 && *h > 5), "{filled:?}");
                for name in &names {
                    assert!(svg.contains(&format!("\n{name}\n")), "{name}");
                }
            }
        }
    }
}
