//! Which reads install a working set fastest: installs of several sizes, with all that belongs to
//! one, by reads of each size and number.
//!
//! A shared disk changes its pace from one second to the next, so that times mean little and the
//! best of many is mostly the luckiest. What counts is each combination against the default of the
//! same round, and what looks better has to show it once more, alone against the default.

use std::path::Path;

use reapvm_reap::averages;
use reapvm_reap::{InstallMethod, InstallOptions, InstallTrial, ReadPath, TrialError};

use super::{Tuning, TuningError};

/// Pieces that are tried, in bytes, with each of [`DEPTHS`].
const PIECES_BYTES: [u64; 5] = [64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20];
/// Reads under way in each thread.
const DEPTHS: [usize; 5] = [1, 2, 4, 8, 16];
/// Sizes of the sets.
const SETS_BYTES: [u64; 3] = [8 << 20, 24 << 20, 64 << 20];
/// How many of them each combination installs; the best has to do with all.
const FIRST_SETS: usize = 2;
/// Installs of each of these by each combination.
const ROUNDS: usize = 3;
/// Installs of each set by the best combination, and by the default, to compare these two.
const FINAL_ROUNDS: usize = 7;
/// Combinations that take so little more than the best, in percent, count as being as fast.
const AS_FAST_PCT: f64 = 2.0;
/// What a combination has to gain over the default to take its place, in percent: less is noise.
const LEAST_GAIN_PCT: f64 = 5.0;

/// One combination and how long it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    /// Bytes that one read asks for.
    pub piece_bytes: u64,
    /// Reads under way in each of two threads.
    pub depth: usize,
    /// Time of an install, in parts of the default's: median of the rounds and sizes.
    pub of_default: f64,
}

/// Measures installs from the directory `dir`, with files that are removed afterwards; tells
/// `on_tried` of each combination.
///
/// # Errors
/// [`TuningError::Measure`].
pub fn measure(dir: &Path, mut on_tried: impl FnMut(&Tried)) -> Result<Tuning, TuningError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| TuningError::Measure {
        path: dir.to_owned(),
        source,
    };
    let files = tempfile::tempdir_in(dir).map_err(|error| failed(error.into()))?;
    let trials = SETS_BYTES
        .map(|bytes| InstallTrial::create(&files.path().join(bytes.to_string()), bytes))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(error.into()))?;
    let default = (
        InstallOptions::DEFAULT_PIECE_BYTES,
        InstallOptions::DEFAULT_DEPTH,
    );
    let all: Vec<(u64, usize)> = PIECES_BYTES
        .into_iter()
        .flat_map(|piece| DEPTHS.map(|depth| (piece, depth)))
        .collect();
    let mut run = |trial: &InstallTrial, reads: (u64, usize)| time_s(trial, reads);
    let times = compare(&trials[..FIRST_SETS], &all, ROUNDS, &mut run)
        .map_err(|error| failed(error.into()))?;
    let base = times[all.iter().position(|reads| *reads == default).unwrap_or(0)].clone();
    let tried: Vec<Tried> = all
        .iter()
        .zip(&times)
        .map(|(&(piece_bytes, depth), times)| Tried {
            piece_bytes,
            depth,
            of_default: median_ratio(times, &base),
        })
        .collect();
    tried.iter().for_each(&mut on_tried);
    let best = candidate(&tried).map_or(default, |best| (best.piece_bytes, best.depth));
    let finals = compare(&trials, &[best, default], FINAL_ROUNDS, &mut run)
        .map_err(|error| failed(error.into()))?;
    let is_better = best != default && beats(&finals[0], &finals[1]);
    let (piece_bytes, depth) = if is_better { best } else { default };
    let bytes: u64 = trials.iter().map(InstallTrial::set_bytes).sum();
    let all_sets_s: f64 = finals[usize::from(!is_better)]
        .iter()
        .map(|times| median(times.clone()))
        .sum();
    Ok(Tuning {
        piece_bytes,
        depth,
        mib_s: bytes as f64 / f64::from(1 << 20) / all_sets_s,
        gain_pct: match is_better {
            true => 100.0 * (1.0 - median_ratio(&finals[0], &finals[1])),
            false => 0.0,
        },
    })
}

/// One install, in seconds.
fn time_s(trial: &InstallTrial, (piece_bytes, depth): (u64, usize)) -> Result<f64, TrialError> {
    let report = trial.run(InstallOptions {
        read_path: Some(ReadPath::IoUring),
        piece_bytes,
        depth,
        ..InstallOptions::new(InstallMethod::Streamed)
    })?;
    Ok(report.total_ns as f64 / 1e9)
}

/// Times of a combination: of each size, each round.
type Times = Vec<Vec<f64>>;

/// Installs each of `trials` by each of `reads` in each of the `rounds`, all in turn; every other
/// round backwards, so that none always comes after the same.
fn compare<T>(
    trials: &[T],
    reads: &[(u64, usize)],
    rounds: usize,
    run: &mut impl FnMut(&T, (u64, usize)) -> Result<f64, TrialError>,
) -> Result<Vec<Times>, TrialError> {
    let mut times = vec![vec![Vec::with_capacity(rounds); trials.len()]; reads.len()];
    for round in 0..rounds {
        for (size, trial) in trials.iter().enumerate() {
            for turn in 0..reads.len() {
                let at = match round % 2 {
                    0 => turn,
                    _ => reads.len() - 1 - turn,
                };
                let time_s = run(trial, reads[at])?;
                times[at][size].push(time_s);
            }
        }
    }
    Ok(times)
}

/// The times `own` in parts of those of `base` in the same round and of the same size.
fn ratios(own: &[f64], base: &[f64]) -> Vec<f64> {
    own.iter().zip(base).map(|(own, base)| own / base).collect()
}

fn median_ratio(own: &Times, base: &Times) -> f64 {
    median(
        own.iter()
            .zip(base)
            .flat_map(|(own, base)| ratios(own, base))
            .collect(),
    )
}

/// Of no times it is no number, which is neither faster nor slower than any.
fn median(values: Vec<f64>) -> f64 {
    averages::median(values).unwrap_or(f64::NAN)
}

/// The combination with the least memory in flight of those that are as fast as the best.
fn candidate(tried: &[Tried]) -> Option<&Tried> {
    let best = tried
        .iter()
        .map(|one| one.of_default)
        .fold(f64::INFINITY, f64::min);
    tried
        .iter()
        .filter(|one| one.of_default <= best * (1.0 + AS_FAST_PCT / 100.0))
        .min_by_key(|one| (one.piece_bytes * one.depth as u64, one.piece_bytes))
}

/// Whether `own` is faster than `base` by more than noise, and for no size slower.
fn beats(own: &Times, base: &Times) -> bool {
    let no_size_is_slower = own
        .iter()
        .zip(base)
        .all(|(own, base)| median(ratios(own, base)) <= 1.0);
    no_size_is_slower && median_ratio(own, base) <= 1.0 - LEAST_GAIN_PCT / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_with_the_least_memory_of_the_fast_ones_is_the_candidate() {
        let tried = |piece_bytes, depth, of_default| Tried {
            piece_bytes,
            depth,
            of_default,
        };
        let all = [
            tried(4096, 1, 3.0),
            tried(8192, 4, 0.91),
            tried(16384, 2, 0.905),
            tried(65536, 16, 0.9),
            tried(4096, 7, 0.93),
        ];
        assert_eq!(candidate(&all), Some(&all[1]));
        assert_eq!(candidate(&[]), None);
    }

    #[test]
    fn all_take_turns_and_each_is_compared_with_the_same_round() {
        let reads = [(1, 1), (2, 1)];
        let mut order = Vec::new();
        // The disk is half as fast in each round, and the second combination better by a tenth.
        let times = compare(&[10.0, 20.0], &reads, 2, &mut |size, reads| {
            order.push(reads.0);
            let slow = if order.len() > 4 { 2.0 } else { 1.0 };
            Ok(size * slow * if reads.0 == 2 { 0.9 } else { 1.0 })
        })
        .unwrap();
        assert_eq!(order, [1, 2, 1, 2, 2, 1, 2, 1]);
        assert_eq!(times[0], [[10.0, 20.0], [20.0, 40.0]]);
        assert!((median_ratio(&times[1], &times[0]) - 0.9).abs() < 1e-9);
        assert!(beats(&times[1], &times[0]));
        assert!(!beats(&times[0], &times[1]));
    }

    #[test]
    fn what_is_noise_or_slower_for_a_size_does_not_take_the_place_of_the_default() {
        let base = vec![vec![1.0; 3], vec![2.0; 3]];
        let times = |small: f64, large: f64| vec![vec![small; 3], vec![2.0 * large; 3]];
        assert!(!beats(&base, &base));
        assert!(!beats(&times(0.97, 0.97), &base));
        assert!(!beats(&times(1.02, 0.5), &base));
        assert!(beats(&times(0.9, 0.92), &base));
    }
}
