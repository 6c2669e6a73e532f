//! What reading memory should have found, without the memory.

use std::format;
use std::string::String;

use super::Case;
use crate::functions::memory_touch::{PAGES_PER_MIB, WORDS_PER_PAGE, page_digest, runs, word};

/// In the order of memory, which is not the function's.
pub(super) fn memory_touch(case: &Case<'_>) -> Result<(), String> {
    let pages = case.sizes[0] * PAGES_PER_MIB;
    let touched = runs(pages)
        .into_iter()
        .flat_map(|(first, length)| first..first + length);
    let digest = touched.fold(0_u64, |digest, page| {
        let words = (0..WORDS_PER_PAGE).map(|n| word(page * WORDS_PER_PAGE + n));
        digest.wrapping_add(page_digest(case.seed, page, words))
    });
    case.expect_integer("pages", pages)?;
    case.expect_text("digest", &format!("{digest:016x}"))
}
