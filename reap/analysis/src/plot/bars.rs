//! Bars: of categories, of a histogram on a logarithmic axis, of places in memory.

use plotters::coord::ranged1d::SegmentValue;
use plotters::prelude::*;

use super::{GRID, HEIGHT, INK, PlotError, SERIES, WIDTH, axis_number, embed};
use crate::histogram::Bucket;
use crate::space::AddressBin;

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
    let count = bars.bars.len().max(1) as i32;
    let most = bars
        .bars
        .iter()
        .map(|(_, parts)| parts.iter().sum::<u64>())
        .max()
        .unwrap_or(1)
        .max(1) as f64;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .margin_right(28)
            .x_label_area_size(52)
            .y_label_area_size(78)
            .build_cartesian_2d((0..count - 1).into_segmented(), 0.0..most * 1.08)
            .map_err(PlotError::new)?;
        let name = |value: &SegmentValue<i32>| match value {
            SegmentValue::CenterOf(at) => bars
                .bars
                .get(*at as usize)
                .map(|(name, _)| name.clone())
                .unwrap_or_default(),
            _ => String::new(),
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .label_style(("sans-serif", 15).into_font().color(&INK))
            .axis_desc_style(("sans-serif", 16).into_font().color(&INK))
            .x_desc(bars.x_label)
            .y_desc(bars.y_label)
            .x_label_formatter(&name)
            .y_label_formatter(&|value| axis_number(*value))
            .x_labels(count as usize)
            .y_labels(6)
            .draw()
            .map_err(PlotError::new)?;
        for (at, (_, parts)) in (0..).zip(&bars.bars) {
            let mut from = 0.0;
            for (part, color) in parts.iter().zip(SERIES) {
                let to = from + *part as f64;
                let mut bar = Rectangle::new(
                    [
                        (SegmentValue::Exact(at), from),
                        (SegmentValue::Exact(at + 1), to),
                    ],
                    color.filled(),
                );
                let gap = if count > 12 { 2 } else { 12 };
                bar.set_margin(0, 0, gap, gap);
                if *part > 0 {
                    chart.draw_series([bar]).map_err(PlotError::new)?;
                }
                from = to;
            }
        }
        root.present().map_err(PlotError::new)?;
    }
    Ok(embed(&svg, bars.title))
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
    let x = (first..last.max(first * 2.0) * 1.1).log_scale();
    rectangles(
        x,
        most,
        &bars,
        title,
        "service time (µs, logarithmic)",
        "faults",
    )
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
    rectangles(
        0.0..at.max(1.0),
        most,
        &bars,
        title,
        "place in guest memory (MiB, holes left out)",
        "pages touched (%)",
    )
}

/// Bars from the first to the second number, as high as the third.
fn rectangles<X>(
    x: X,
    most: f64,
    bars: &[(f64, f64, f64)],
    title: &str,
    x_label: &str,
    y_label: &str,
) -> Result<String, PlotError>
where
    X: plotters::coord::ranged1d::AsRangedCoord<Value = f64>,
    X::CoordDescType: plotters::coord::ranged1d::ValueFormatter<f64>,
{
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .margin_right(28)
            .x_label_area_size(52)
            .y_label_area_size(78)
            .build_cartesian_2d(x, 0.0..most * 1.05)
            .map_err(PlotError::new)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .label_style(("sans-serif", 15).into_font().color(&INK))
            .axis_desc_style(("sans-serif", 16).into_font().color(&INK))
            .x_desc(x_label)
            .y_desc(y_label)
            .x_label_formatter(&|value| axis_number(*value))
            .y_label_formatter(&|value| axis_number(*value))
            .x_labels(9)
            .y_labels(6)
            .draw()
            .map_err(PlotError::new)?;
        chart
            .draw_series(bars.iter().map(|(from, to, height)| {
                Rectangle::new([(*from, 0.0), (*to, *height)], SERIES[0].filled())
            }))
            .map_err(PlotError::new)?;
        root.present().map_err(PlotError::new)?;
    }
    Ok(embed(&svg, title))
}
