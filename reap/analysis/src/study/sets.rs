//! Pages that invocations share, and how well the recordings of some fit another one.

use super::invocation::Invocation;
use reapvm_reap::averages::mean;

use super::numbers::percent;
use crate::page_set::PageSet;

/// How much invocations share, on average over pairs of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Reuse {
    /// Pairs that were compared.
    pub(super) pairs: u64,
    /// Pages of both.
    pub(super) common: f64,
    /// Pages of one that the other has not.
    pub(super) unique: f64,
    /// Pages of both, in percent of those of one.
    pub(super) same_pct: f64,
    /// Pages of both over pages of either, 0 to 1.
    pub(super) jaccard: f64,
}

/// Compares each invocation with each later one: those with the same input, or with another one.
pub(super) fn reuse(invocations: &[Invocation], is_same_input: bool) -> Option<Reuse> {
    let mut found = Vec::new();
    for (at, one) in invocations.iter().enumerate() {
        for other in &invocations[at + 1..] {
            if (one.input == other.input) == is_same_input {
                found.push(compare(one.pages(), other.pages()));
            }
        }
    }
    let average = |of: fn(&Reuse) -> f64| mean(found.iter().map(of));
    Some(Reuse {
        pairs: found.len() as u64,
        common: average(|r| r.common)?,
        unique: average(|r| r.unique)?,
        same_pct: average(|r| r.same_pct)?,
        jaccard: average(|r| r.jaccard)?,
    })
}

/// Each side is compared with the other: the average of both.
fn compare(one: &PageSet, other: &PageSet) -> Reuse {
    let common = one.common_with(other);
    let either = one.len() + other.len() - common;
    let of = |set: &PageSet| match set.is_empty() {
        true => 100.0,
        false => percent(common, set.len()),
    };
    Reuse {
        pairs: 1,
        common: common as f64,
        unique: (one.len() + other.len()) as f64 / 2.0 - common as f64,
        same_pct: (of(one) + of(other)) / 2.0,
        jaccard: match either {
            0 => 1.0,
            _ => common as f64 / either as f64,
        },
    }
}

/// How well merged recordings of other inputs fit an invocation, on average.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Fit {
    /// Recordings that were merged.
    pub(super) recordings: usize,
    /// Invocations that were looked at.
    pub(super) trials: u64,
    /// Pages of the set.
    pub(super) set_pages: f64,
    /// Pages that an invocation touches and the set lacks.
    pub(super) missed: f64,
    /// The same in percent of what it touches.
    pub(super) missed_pct: f64,
    /// Pages of the set that it does not touch.
    pub(super) wasted: f64,
    /// The same in percent of the set.
    pub(super) wasted_pct: f64,
}

/// The fit of each number of recordings that there can be: of the inputs that follow that of the
/// invocation, which is never among them, the first invocation each.
pub(super) fn fits(invocations: &[Invocation], inputs: usize) -> Vec<Fit> {
    let recording = |input: usize| invocations.iter().find(|i| i.input == input);
    let mut fits = Vec::new();
    for recordings in 1..inputs {
        let mut trials = Vec::new();
        for invocation in invocations {
            let mut set = PageSet::default();
            let others = (1..=recordings).map(|step| (invocation.input + step) % inputs);
            let Some(recorded) = others.map(recording).collect::<Option<Vec<_>>>() else {
                continue;
            };
            for one in recorded {
                set.add_all(one.pages());
            }
            let touched = invocation.pages();
            let common = touched.common_with(&set);
            let (missed, wasted) = (touched.len() - common, set.len() - common);
            trials.push(Fit {
                recordings,
                trials: 1,
                set_pages: set.len() as f64,
                missed: missed as f64,
                missed_pct: percent(missed, touched.len()),
                wasted: wasted as f64,
                wasted_pct: percent(wasted, set.len()),
            });
        }
        let average = |of: fn(&Fit) -> f64| mean(trials.iter().map(of)).unwrap_or_default();
        if !trials.is_empty() {
            fits.push(Fit {
                recordings,
                trials: trials.len() as u64,
                set_pages: average(|fit| fit.set_pages),
                missed: average(|fit| fit.missed),
                missed_pct: average(|fit| fit.missed_pct),
                wasted: average(|fit| fit.wasted),
                wasted_pct: average(|fit| fit.wasted_pct),
            });
        }
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::invocation::tests::invocation;

    #[test]
    fn pairs_are_compared_by_their_inputs() {
        let invocations = [
            invocation(0, &[1, 2, 3, 4]),
            invocation(0, &[1, 2, 3, 5]),
            invocation(1, &[1, 2]),
        ];
        let same = reuse(&invocations, true).unwrap();
        assert_eq!((same.pairs, same.common, same.unique), (1, 3.0, 1.0));
        assert_eq!((same.same_pct, same.jaccard), (75.0, 0.6));
        let other = reuse(&invocations, false).unwrap();
        assert_eq!((other.pairs, other.common, other.unique), (2, 2.0, 1.0));
        assert_eq!((other.same_pct, other.jaccard), (75.0, 0.5));
        assert_eq!(reuse(&invocations[..1], true), None);
        let empty = [invocation(0, &[]), invocation(0, &[])];
        assert_eq!(reuse(&empty, true).unwrap().same_pct, 100.0);
    }

    #[test]
    fn more_recordings_miss_less_and_waste_more() {
        let invocations = [
            invocation(0, &[1, 2, 3, 4]),
            invocation(1, &[1, 2, 5]),
            invocation(2, &[1, 3, 6]),
        ];
        let fits = fits(&invocations, 3);
        assert_eq!(fits.len(), 2);
        let (one, two) = (fits[0], fits[1]);
        // By hand: 0 with 1's set misses 3 and 4, wastes 5; 1 with 2's misses 2 and 5, wastes 3 and 6; 2
        // with 0's misses 6, wastes 2 and 4.
        assert_eq!((one.recordings, one.trials), (1, 3));
        assert!((one.missed - 5.0 / 3.0).abs() < 1e-9, "{one:?}");
        assert!((one.wasted - 5.0 / 3.0).abs() < 1e-9, "{one:?}");
        // 0 misses 4, wastes 5 and 6; 1 misses 5, wastes 3, 4, 6; 2 misses 6, wastes 2, 4, 5.
        assert!((two.missed - 1.0).abs() < 1e-9, "{two:?}");
        assert!((two.wasted - 8.0 / 3.0).abs() < 1e-9, "{two:?}");
        assert!(fits[1].missed_pct < fits[0].missed_pct);
        assert!(super::fits(&invocations[..1], 3).is_empty());
    }
}
