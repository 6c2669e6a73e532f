//! A set of page numbers that need not be near each other.

use std::collections::HashMap;

/// A set of page numbers. Takes memory for the pages that are in it, not for those that could be:
/// a trace may name any address.
#[derive(Clone, Debug, Default)]
pub struct PageSet {
    /// A bit a page, 64 pages a word, by the pages' number divided by 64.
    words: HashMap<u64, u64>,
    len: u64,
}

impl PageSet {
    /// Puts `page` in; `true` if it was not in before.
    pub fn insert(&mut self, page: u64) -> bool {
        let word = self.words.entry(page / 64).or_default();
        let bit = 1 << (page % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        self.len += u64::from(is_new);
        is_new
    }

    /// How many pages are in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many pages are in this set and in `other`.
    #[must_use]
    pub fn common_with(&self, other: &Self) -> u64 {
        self.words
            .iter()
            .filter_map(|(at, word)| Some(u64::from((word & other.words.get(at)?).count_ones())))
            .sum()
    }

    /// Puts all pages of `other` in.
    pub fn add_all(&mut self, other: &Self) {
        for (at, word) in &other.words {
            let mine = self.words.entry(*at).or_default();
            self.len += u64::from((word & !*mine).count_ones());
            *mine |= word;
        }
    }

    /// Hands `run` the length, in pages, of each run of neighbours, in the order of addresses.
    pub fn for_each_run(&self, mut run: impl FnMut(u64)) {
        let mut places: Vec<u64> = self.words.keys().copied().collect();
        places.sort_unstable();
        let mut length = 0;
        let mut last = None;
        for at in places {
            let word = self.words[&at];
            for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
                let page = at * 64 + bit;
                if last.is_some_and(|last| last + 1 != page) {
                    run(std::mem::take(&mut length));
                }
                length += 1;
                last = Some(page);
            }
        }
        if length > 0 {
            run(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set(pages: &[u64]) -> PageSet {
        let mut set = PageSet::default();
        for page in pages {
            set.insert(*page);
        }
        set
    }

    fn runs(set: &PageSet) -> Vec<u64> {
        let mut runs = Vec::new();
        set.for_each_run(|pages| runs.push(pages));
        runs
    }

    #[test]
    fn runs_go_over_the_borders_of_words() {
        assert_eq!(runs(&set(&[])), [0; 0]);
        assert_eq!(runs(&set(&[62, 63, 64, 65, 67, 1 << 51])), [4, 1, 1]);
    }

    proptest! {
        #[test]
        fn is_what_a_plain_set_is(
            a in prop::collection::vec(0..300u64, 0..200),
            b in prop::collection::vec(0..300u64, 0..200),
        ) {
            let (ours, others) = (set(&a), set(&b));
            let plain: BTreeSet<u64> = a.into_iter().collect();
            let other: BTreeSet<u64> = b.into_iter().collect();
            prop_assert_eq!(ours.len(), plain.len() as u64);
            let common = plain.intersection(&other).count() as u64;
            prop_assert_eq!(ours.common_with(&others), common);
            prop_assert_eq!(others.common_with(&ours), common);
            let mut both = ours.clone();
            both.add_all(&others);
            prop_assert_eq!(both.len(), plain.union(&other).count() as u64);
            prop_assert_eq!(both.common_with(&ours), ours.len());
            let starts = plain.iter().filter(|p| **p == 0 || !plain.contains(&(**p - 1))).count();
            let found = runs(&ours);
            prop_assert_eq!(found.len(), starts);
            prop_assert_eq!(found.iter().sum::<u64>(), plain.len() as u64);
        }
    }
}
