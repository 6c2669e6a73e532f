//! Distinct pages over time.

use plotters::prelude::*;

use super::{GRID, HEIGHT, INK, PlotError, SERIES, WIDTH, axis_number, embed};
use crate::statistics::CurvePoint;

/// The curve of first touches.
pub(crate) fn curve(points: &[CurvePoint], title: &str) -> Result<String, PlotError> {
    let ms = |point: &CurvePoint| point.ns as f64 / 1e6;
    let first = points.iter().map(ms).fold(f64::INFINITY, f64::min).min(0.0);
    let last = points.iter().map(ms).fold(0.001, f64::max);
    let most = points.iter().map(|point| point.pages).max().unwrap_or(1) as f64;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .margin_right(28)
            .x_label_area_size(52)
            .y_label_area_size(78)
            .build_cartesian_2d(first..last * 1.02, 0.0..most * 1.05)
            .map_err(PlotError::new)?;
        chart
            .configure_mesh()
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .label_style(("sans-serif", 15).into_font().color(&INK))
            .axis_desc_style(("sans-serif", 16).into_font().color(&INK))
            .x_desc("time since the guest resumed (ms)")
            .y_desc("distinct pages touched")
            .x_label_formatter(&|value| axis_number(*value))
            .y_label_formatter(&|value| axis_number(*value))
            .x_labels(9)
            .y_labels(6)
            .draw()
            .map_err(PlotError::new)?;
        let line = points.iter().map(|point| (ms(point), point.pages as f64));
        chart
            .draw_series(LineSeries::new(line, SERIES[0].stroke_width(3)))
            .map_err(PlotError::new)?;
        root.present().map_err(PlotError::new)?;
    }
    Ok(embed(&svg, title))
}
