//! A histogram of fixed size for numbers of any size.

use serde::Serialize;

/// Buckets an octave: each is a quarter of the power of two that it lies in.
const BUCKETS_AN_OCTAVE: u64 = 4;
const BUCKETS: usize = 64 * BUCKETS_AN_OCTAVE as usize;

/// Counts numbers in buckets that grow with them: those below 8 have a bucket each, the others one
/// whose width is at most a quarter of its lower bound.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    count: u64,
    sum: u128,
    min: u64,
    max: u64,
}

/// A bucket of a [`Histogram`] and what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// The smallest number that belongs to it.
    pub from: u64,
    /// The largest number that belongs to it.
    pub to: u64,
    /// How many numbers are in it.
    pub count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
            count: 0,
            sum: 0,
            min: u64::MAX,
            max: 0,
        }
    }
}

fn bucket_of(value: u64) -> usize {
    if value < 2 * BUCKETS_AN_OCTAVE {
        return value as usize;
    }
    // At least 3: the two bits below the highest one choose the bucket in the octave.
    let octave = u64::from(value.ilog2());
    let within = (value >> (octave - 2)) & (BUCKETS_AN_OCTAVE - 1);
    ((octave - 1) * BUCKETS_AN_OCTAVE + within) as usize
}

fn first_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * BUCKETS_AN_OCTAVE {
        return bucket;
    }
    let octave = bucket / BUCKETS_AN_OCTAVE + 1;
    (BUCKETS_AN_OCTAVE + bucket % BUCKETS_AN_OCTAVE) << (octave - 2)
}

fn last_of(bucket: usize) -> u64 {
    // The last bucket that a number can have ends where numbers do.
    if bucket >= bucket_of(u64::MAX) {
        return u64::MAX;
    }
    first_of(bucket + 1) - 1
}

impl Histogram {
    /// Counts `value`.
    pub fn add(&mut self, value: u64) {
        self.counts[bucket_of(value)] += 1;
        self.count += 1;
        self.sum += u128::from(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// How many numbers were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their sum, at most what fits.
    #[must_use]
    pub fn sum(&self) -> u64 {
        u64::try_from(self.sum).unwrap_or(u64::MAX)
    }

    /// Their mean; 0 if there is none.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        self.sum as f64 / self.count as f64
    }

    /// The largest of them; 0 if there is none.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// A number that at least `share` (0 to 1) of the numbers do not exceed: the end of the bucket
    /// that has it, so at most a quarter too large. 0 if there is none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = (share.clamp(0.0, 1.0) * self.count as f64).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= wanted {
                return last_of(bucket).clamp(self.min, self.max);
            }
        }
        0
    }

    /// The buckets from the first to the last that has something in it.
    #[must_use]
    pub fn buckets(&self) -> Vec<Bucket> {
        if self.count == 0 {
            return Vec::new();
        }
        (bucket_of(self.min)..=bucket_of(self.max))
            .map(|bucket| Bucket {
                from: first_of(bucket),
                to: last_of(bucket),
                count: self.counts[bucket],
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_lie_side_by_side() {
        for bucket in 0..=bucket_of(u64::MAX) {
            assert_eq!(bucket_of(first_of(bucket)), bucket);
            assert_eq!(bucket_of(last_of(bucket)), bucket);
        }
        assert!(bucket_of(u64::MAX) < BUCKETS);
    }

    #[test]
    fn nothing_has_no_buckets() {
        let empty = Histogram::default();
        assert!(empty.buckets().is_empty());
        assert_eq!((empty.quantile(0.5), empty.max(), empty.sum()), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn counts_and_quantiles_are_those_of_the_numbers(
            mut values in prop::collection::vec(prop_oneof![0..100u64, any::<u64>()], 1..200),
            share in 0.0..1.0f64,
        ) {
            let mut histogram = Histogram::default();
            for value in &values {
                histogram.add(*value);
            }
            let buckets = histogram.buckets();
            prop_assert_eq!(buckets.iter().map(|b| b.count).sum::<u64>(), values.len() as u64);
            for bucket in buckets {
                let inside = values.iter().filter(|v| (bucket.from..=bucket.to).contains(v)).count();
                prop_assert_eq!(bucket.count, inside as u64);
            }
            values.sort_unstable();
            let at = ((share * values.len() as f64).ceil() as usize).max(1) - 1;
            let exact = values[at];
            let found = histogram.quantile(share);
            prop_assert!(found >= exact);
            prop_assert!(found - exact <= exact / 4);
        }
    }
}
