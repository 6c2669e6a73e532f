//! `memory_touch`: reads a chosen amount of memory that was written before the snapshot, and nothing
//! else. None of the paper's functions: it is there to measure working sets of any size.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Workload, fields};
use crate::FunctionError;
use crate::parameters::{Parameters, SizeParameter};
use crate::random::scramble;
use crate::serde_json::{Map, Value};

/// The most that one invocation reads.
const MAXIMUM_MIB: u64 = 96;

const MIB: SizeParameter = SizeParameter {
    name: "mib",
    description: "how many MiB are read",
    default: MAXIMUM_MIB,
    minimum: 1,
    maximum: MAXIMUM_MIB,
};

pub(crate) const SIZES_8: [SizeParameter; 1] = [SizeParameter { default: 8, ..MIB }];
pub(crate) const SIZES_96: [SizeParameter; 1] = [MIB];

pub(crate) const PAGES_PER_MIB: usize = 256;
pub(crate) const WORDS_PER_PAGE: usize = 512;

/// Lengths of runs of pages that are read, again and again, each followed by a page that is not:
/// 1.4 pages on average, as recordings of functions have them.
const RUN_PAGES: [usize; 8] = [1, 2, 1, 1, 3, 1, 1, 1];

/// From one run to the next in the order of reading; a prime, so that no number of runs that there
/// can be is a multiple of it but one that gives the order of memory.
const STRIDE: usize = 7919;

/// The runs that hold `pages` pages: number of the first page and length, in the order of memory.
pub(crate) fn runs(pages: usize) -> Vec<(usize, usize)> {
    let mut runs = Vec::new();
    let (mut first, mut left) = (0, pages);
    for length in RUN_PAGES.iter().cycle() {
        if left == 0 {
            break;
        }
        let length = left.min(*length);
        runs.push((first, length));
        first += length + 1;
        left -= length;
    }
    runs
}

/// What the word number `number` of the memory holds.
pub(crate) fn word(number: usize) -> u64 {
    scramble(number as u64 + 1)
}

/// What the page number `page` with `words` adds to the answer for `seed`.
pub(crate) fn page_digest(seed: u64, page: usize, words: impl Iterator<Item = u64>) -> u64 {
    let digest = words.fold(scramble(seed ^ page as u64), |digest, word| {
        (digest.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    scramble(digest)
}

/// What is read, and as much again as lies between.
struct MemoryTouch {
    words: Vec<u64>,
}

/// Writes the memory that invocations read.
pub(crate) fn start() -> Result<Box<dyn Workload>, FunctionError> {
    let pages = runs(MAXIMUM_MIB as usize * PAGES_PER_MIB)
        .last()
        .map_or(0, |(first, length)| first + length);
    Ok(Box::new(MemoryTouch {
        words: (0..pages * WORDS_PER_PAGE).map(word).collect(),
    }))
}

impl Workload for MemoryTouch {
    fn run(&mut self, parameters: &Parameters) -> Result<Map<String, Value>, FunctionError> {
        let pages = parameters.size(0) * PAGES_PER_MIB;
        let runs = runs(pages);
        let stride = if runs.len().is_multiple_of(STRIDE) {
            1
        } else {
            STRIDE
        };
        let mut digest = 0_u64;
        for number in 0..runs.len() {
            let (first, length) = runs[number * stride % runs.len()];
            for page in first..first + length {
                let words = &self.words[page * WORDS_PER_PAGE..][..WORDS_PER_PAGE];
                let page = page_digest(parameters.seed, page, words.iter().copied());
                digest = digest.wrapping_add(page);
            }
        }
        Ok(fields([
            ("pages", Value::from(pages)),
            ("digest", Value::from(alloc::format!("{digest:016x}"))),
        ]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serde_json::json;

    #[test]
    fn runs_have_the_pages_that_were_asked_for_and_none_twice() {
        for pages in [0, 1, 2, 11, 12, 256, 2048, 24576] {
            let runs = runs(pages);
            assert_eq!(runs.iter().map(|(_, length)| length).sum::<usize>(), pages);
            assert!(
                runs.windows(2)
                    .all(|pair| pair[0].0 + pair[0].1 < pair[1].0)
            );
        }
    }

    #[test]
    fn one_wrong_word_of_what_is_read_changes_the_answer_and_one_beside_it_does_not() {
        let parameters = Parameters::parse(&json!({"seed": 3, "mib": 1}), &SIZES_96).unwrap();
        let mut memory = MemoryTouch {
            words: (0..2 * PAGES_PER_MIB * WORDS_PER_PAGE).map(word).collect(),
        };
        let right = memory.run(&parameters).unwrap();
        for (word, changes) in [
            (0, true),
            (511, true),
            (512, false),
            (1023, false),
            (1024, true),
        ] {
            memory.words[word] ^= 1 << 40;
            assert_eq!(memory.run(&parameters).unwrap() != right, changes, "{word}");
            memory.words[word] ^= 1 << 40;
        }
        // A page in the place of another.
        let (first, rest) = memory.words.split_at_mut(2 * WORDS_PER_PAGE);
        first[..WORDS_PER_PAGE].swap_with_slice(&mut rest[..WORDS_PER_PAGE]);
        assert_ne!(memory.run(&parameters).unwrap(), right);
    }
}
