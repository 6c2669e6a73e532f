//! The vocabulary that the text models share: its terms, how frequent they are and how text is
//! drawn from it.

use alloc::string::String;

use crate::random::Random;

/// How many terms there are; the most frequent come first.
pub(crate) const TERMS: usize = 12_000;
/// The terms that reviews are written with are among this many most frequent ones (2^10 - 1).
const OCTAVES: u64 = 10;
/// How many documents the frequencies were counted in.
const COUNTED_DOCUMENTS: f32 = 1_000_000.0;

const SYLLABLES: [&str; 20] = [
    "ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "qui", "ro", "su",
    "ta", "ve", "wi", "xo", "zu",
];

/// The text of term `rank`; no two are the same.
pub(crate) fn term(rank: usize) -> String {
    let mut text = String::new();
    // At least two syllables; the digits of a number are distinct for distinct numbers.
    let mut number = rank + SYLLABLES.len();
    while number > 0 {
        text.push_str(SYLLABLES[number % SYLLABLES.len()]);
        number /= SYLLABLES.len();
    }
    text
}

/// In how many of the counted documents term `rank` occurs (Zipf's law).
fn document_frequency(rank: usize) -> f32 {
    COUNTED_DOCUMENTS / (2.0 + rank as f32)
}

/// The inverse document frequency, smoothed as in scikit-learn.
pub(crate) fn inverse_document_frequency(rank: usize) -> f32 {
    libm::logf((1.0 + COUNTED_DOCUMENTS) / (1.0 + document_frequency(rank))) + 1.0
}

/// The rank of the next word of a review: an octave of ranks is as likely as the next one, which
/// is Zipf's law in integers.
pub(crate) fn draw_rank(random: &mut Random) -> usize {
    let octave = 1 << random.below(OCTAVES);
    (octave + random.below(octave) - 1) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn terms_are_distinct() {
        let terms: BTreeSet<String> = (0..TERMS).map(term).collect();
        assert_eq!(terms.len(), TERMS);
    }

    #[test]
    fn words_are_frequent_terms_and_rarer_ones_weigh_more() {
        let mut random = Random::new(1);
        assert!((0..10_000).all(|_| draw_rank(&mut random) < 1023));
        assert!(inverse_document_frequency(1000) > inverse_document_frequency(10));
    }
}
