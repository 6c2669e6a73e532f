//! The figures of a series of runs.

use reapvm_reap::averages;
use serde::Serialize;

/// Order statistics of a series, in the unit of its values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// The `percent` percentile by nearest rank: always a value that was measured, save for the
/// median of an even number of values, which is the mean of the middle two.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// The median; 0 for an empty series.
pub(crate) fn median(values: &[f64]) -> f64 {
    averages::median(values.iter().copied()).unwrap_or_default()
}

/// Summarises a series; all zero for an empty one.
pub(crate) fn summarise(values: &[f64]) -> Summary {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.first(), sorted.last()) {
        (Some(&min), Some(&max)) => Summary {
            p50: median(values),
            p99: percentile(&sorted, 99.0),
            min,
            max,
        },
        _ => Summary::default(),
    }
}

/// Arithmetic mean; 0 for an empty series.
pub(crate) fn mean(values: &[f64]) -> f64 {
    averages::mean(values.iter().copied()).unwrap_or_default()
}

/// Geometric mean of positive values; 0 for an empty series.
pub(crate) fn geometric_mean(values: &[f64]) -> f64 {
    averages::mean(values.iter().map(|value| value.ln())).map_or(0.0, f64::exp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn p99_of_few_runs_is_the_slowest_one() {
        let summary = summarise(&[5.0, 1.0, 9.0]);
        assert_eq!((summary.p99, summary.min, summary.max), (9.0, 1.0, 9.0));
    }

    #[test]
    fn means_are_what_their_names_say() {
        assert_eq!(mean(&[1.0, 4.0]), 2.5);
        assert!((geometric_mean(&[1.0, 4.0]) - 2.0).abs() < 1e-12);
    }
}
