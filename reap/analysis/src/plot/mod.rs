//! Figures as SVG, in colours that the page around them chooses.
//!
//! Plotters writes fixed colours. Those used here stand for roles, and the style sheet of a report
//! replaces each by the colour that the role has in a light or a dark page: see [`STYLE`].

mod axes;
mod bars;
mod curve;

use plotters::style::RGBColor;

pub(crate) use bars::{Bars, RowBars, bars, histogram_bars, row_bars, spatial_bars};
pub(crate) use curve::{curve, curves};

/// Width of a figure in its own units.
const WIDTH: u32 = 720;

/// Text and axes.
const INK: RGBColor = RGBColor(1, 1, 1);
/// Lines behind the data.
const GRID: RGBColor = RGBColor(2, 2, 2);
/// Series that a figure has at most.
pub(crate) const MAX_SERIES: usize = 6;
/// Data, the first series first.
const SERIES: [RGBColor; MAX_SERIES] = [
    RGBColor(3, 3, 3),
    RGBColor(4, 4, 4),
    RGBColor(5, 5, 5),
    RGBColor(6, 6, 6),
    RGBColor(7, 7, 7),
    RGBColor(8, 8, 8),
];

/// What replaces the colours by those of the page, which defines the variables.
pub(crate) const STYLE: &str = "\
svg [fill='#010101']{fill:var(--ink)}svg [stroke='#010101']{stroke:var(--ink)}
svg [fill='#020202']{fill:var(--grid)}svg [stroke='#020202']{stroke:var(--grid)}
svg [fill='#030303']{fill:var(--s0)}svg [stroke='#030303']{stroke:var(--s0)}
svg [fill='#040404']{fill:var(--s1)}svg [stroke='#040404']{stroke:var(--s1)}
svg [fill='#050505']{fill:var(--s2)}svg [stroke='#050505']{stroke:var(--s2)}
svg [fill='#060606']{fill:var(--s3)}svg [stroke='#060606']{stroke:var(--s3)}
svg [fill='#070707']{fill:var(--s4)}svg [stroke='#070707']{stroke:var(--s4)}
svg [fill='#080808']{fill:var(--s5)}svg [stroke='#080808']{stroke:var(--s5)}
";

/// A figure was not drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw a figure: {0}")]
pub struct PlotError(String);

impl PlotError {
    fn new(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// `svg` as a part of a page: it grows with the page and tells a screen reader what it shows.
fn embed(svg: &str, title: &str, height: u32) -> String {
    let start = format!(
        "<svg role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {WIDTH} {height}\" ",
        crate::report::escape(title)
    );
    // The size in pixels would keep it from growing.
    let svg = svg.replacen("<svg ", &start, 1);
    let svg = svg.replacen(&format!("width=\"{WIDTH}\" height=\"{height}\" "), "", 1);
    // The second view box is Plotters' own.
    let own = format!("viewBox=\"0 0 {WIDTH} {height}\" xmlns");
    svg.replacen(&own, "xmlns", 1)
}

/// A number with spaces between its thousands.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            // No line break in a number.
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A label on an axis: short, and without digits that say nothing.
fn axis_number(value: f64) -> String {
    if value.fract().abs() < 1e-6 && value.abs() < 1e15 {
        let sign = if value < 0.0 { "\u{2212}" } else { "" };
        return format!("{sign}{}", grouped(value.abs() as u64));
    }
    format!("{value:.3}")
        .trim_end_matches('0')
        .trim_end_matches('.')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(axis_number(-1500.0), "\u{2212}1\u{202f}500");
        assert_eq!(axis_number(0.250), "0.25");
    }
}
