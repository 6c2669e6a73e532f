//! The axes that every figure has: their place, their look and their labels.

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use super::{GRID, INK, PlotError, WIDTH, embed};

/// Around the plot and its labels.
const MARGIN: u32 = 12;
/// On the right: the last label of an axis goes beyond it.
const MARGIN_RIGHT: u32 = 28;
/// For the labels and the name of the axis below.
const X_LABELS_HEIGHT: u32 = 52;
const LABEL_SIZE: u32 = 15;
const NAME_SIZE: u32 = 16;

/// What the coordinates of a figure are drawn on.
pub(super) type Chart<'a, X, Y> = ChartContext<
    'a,
    SVGBackend<'a>,
    Cartesian2d<<X as AsRangedCoord>::CoordDescType, <Y as AsRangedCoord>::CoordDescType>,
>;

/// The axes of a figure.
pub(super) struct Axes<'a> {
    /// What the figure shows.
    pub(super) title: &'a str,
    /// What is below, with its unit.
    pub(super) x_label: &'a str,
    /// What is on the left, with its unit; empty for none.
    pub(super) y_label: &'a str,
    /// Height of the plot itself.
    pub(super) plot_height: u32,
    /// Width of the labels on the left.
    pub(super) y_labels_width: u32,
    /// Labels below, and on the left, at most.
    pub(super) labels: (usize, usize),
    /// Whether lines go up from the labels below, and to the right from those on the left.
    pub(super) lines: (bool, bool),
}

impl Axes<'_> {
    /// What most figures have.
    pub(super) fn new<'a>(title: &'a str, x_label: &'a str, y_label: &'a str) -> Axes<'a> {
        Axes {
            title,
            x_label,
            y_label,
            plot_height: 254,
            y_labels_width: 78,
            labels: (9, 6),
            lines: (false, true),
        }
    }

    /// A figure with these axes over `x` and `y`, labelled by `x_name` and `y_name`, on which `series`
    /// draws.
    pub(super) fn draw<X, Y>(
        &self,
        (x, y): (X, Y),
        x_name: &dyn Fn(&X::Value) -> String,
        y_name: &dyn Fn(&Y::Value) -> String,
        series: impl FnOnce(&mut Chart<'_, X, Y>) -> Result<(), PlotError>,
    ) -> Result<String, PlotError>
    where
        X: AsRangedCoord,
        Y: AsRangedCoord,
        X::CoordDescType: ValueFormatter<X::Value>,
        Y::CoordDescType: ValueFormatter<Y::Value>,
    {
        let height = self.plot_height + X_LABELS_HEIGHT + 2 * MARGIN;
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
            let mut chart = ChartBuilder::on(&root)
                .margin(MARGIN)
                .margin_right(MARGIN_RIGHT)
                .x_label_area_size(X_LABELS_HEIGHT)
                .y_label_area_size(self.y_labels_width)
                .build_cartesian_2d(x, y)
                .map_err(PlotError::new)?;
            let mut mesh = chart.configure_mesh();
            if !self.lines.0 {
                mesh.disable_x_mesh();
            }
            if !self.lines.1 {
                mesh.disable_y_mesh();
            }
            if !self.y_label.is_empty() {
                mesh.y_desc(self.y_label);
            }
            mesh.axis_style(INK)
                .bold_line_style(GRID)
                .light_line_style(TRANSPARENT)
                .label_style(("sans-serif", LABEL_SIZE).into_font().color(&INK))
                .axis_desc_style(("sans-serif", NAME_SIZE).into_font().color(&INK))
                .x_desc(self.x_label)
                .x_label_formatter(x_name)
                .y_label_formatter(y_name)
                .x_labels(self.labels.0)
                .y_labels(self.labels.1)
                .draw()
                .map_err(PlotError::new)?;
            series(&mut chart)?;
            root.present().map_err(PlotError::new)?;
        }
        Ok(embed(&svg, self.title, height))
    }
}
