//! Lines: distinct pages over time, and others.

use plotters::prelude::*;

use super::axes::Axes;
use super::{PlotError, SERIES, axis_number};
use crate::statistics::CurvePoint;

/// The curve of first touches.
pub(crate) fn curve(points: &[CurvePoint], title: &str) -> Result<String, PlotError> {
    curves(std::slice::from_ref(&points), title)
}

/// Curves of first touches of several invocations.
pub(crate) fn curves(curves: &[&[CurvePoint]], title: &str) -> Result<String, PlotError> {
    let ms = |point: &CurvePoint| point.ns as f64 / 1e6;
    let all = || curves.iter().flat_map(|points| points.iter());
    let first = all().map(ms).fold(f64::INFINITY, f64::min).min(0.0);
    let last = all().map(ms).fold(0.001, f64::max);
    let most = all().map(|point| point.pages).max().unwrap_or(1) as f64;
    let axes = Axes {
        lines: (true, true),
        ..Axes::new(
            title,
            "time since the guest resumed (ms)",
            "distinct pages touched",
        )
    };
    let number = |value: &f64| axis_number(*value);
    let place = (first..last * 1.02, 0.0..most * 1.05);
    axes.draw(place, &number, &number, |chart| {
        for (points, color) in curves.iter().zip(SERIES) {
            let line = points.iter().map(|point| (ms(point), point.pages as f64));
            chart
                .draw_series(LineSeries::new(line, color.stroke_width(3)))
                .map_err(PlotError::new)?;
        }
        Ok(())
    })
}
