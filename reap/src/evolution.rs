//! A working set that stays right: what a run tells about the set, and how the set changes by it.
//!
//! A set is recorded once and prefetched many times. The guest's inputs change, and then the set
//! misses pages that every run pays for with a fault, and holds pages that every run reads for
//! nothing. So each prefetch is looked at, and where it missed too much, the pages that it missed
//! join the set and the next start records again, because only a recording shows what is not
//! touched. It does not replace the set: the pages that it touched count as touched by one recording
//! more, new ones join, and a page that several recordings in a row did not touch leaves. A set that
//! came from elsewhere is prefetched once and recorded then, whatever it missed: a prefetch alone
//! does not show what is not touched.
//!
//! As long as much of the set is pages that the last recording did not touch, recording goes on, so
//! that a set of another function's is right after a few starts. It goes on for no longer than it
//! takes such pages to leave: what is still there then was touched by one of those recordings.

mod files;
mod state;
#[cfg(test)]
#[path = "evolution/test.rs"]
mod tests;

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::touch_counts::{PageTouches, TouchCounts};

pub use files::{EvolutionError, EvolvingSet, Plan, Prefetched, Recorded};
pub use state::{WorkingSetState, WorkingSetStateError};

/// **Unstable.** When a working set is recorded again, and what leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvolutionRules {
    /// A prefetch that missed more than this share of the set, in percent, has the next start
    /// record.
    pub miss_threshold_pct: f64,
    /// A run that left more than this share of the set untouched, in percent, has the next start
    /// record.
    pub unused_threshold_pct: f64,
    /// After so many recordings in a row that did not touch it, a page leaves; at least 1.
    pub leave_after: u16,
}

impl Default for EvolutionRules {
    fn default() -> Self {
        Self {
            miss_threshold_pct: 1.0,
            unused_threshold_pct: 10.0,
            leave_after: 3,
        }
    }
}

impl EvolutionRules {
    /// Whether a prefetch of `set_pages` pages that missed `missed_pages` missed too much.
    #[must_use]
    pub fn misses_too_much(&self, missed_pages: u64, set_pages: u64) -> bool {
        exceeds(missed_pages, set_pages, self.miss_threshold_pct)
    }

    /// Whether a run that left `unused_pages` of `set_pages` pages untouched left too many.
    #[must_use]
    pub fn wastes_too_much(&self, unused_pages: u64, set_pages: u64) -> bool {
        exceeds(unused_pages, set_pages, self.unused_threshold_pct)
    }
}

fn exceeds(part: u64, whole: u64, percent: f64) -> bool {
    part as f64 * 100.0 > whole as f64 * percent
}

/// **Unstable.** Why a start records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordReason {
    /// There is no working set.
    NoSet,
    /// A prefetch missed too much.
    Misses,
    /// A run left too much of the set untouched.
    Unused,
    /// It is not known how much of the set is touched: it is not one that evolved.
    Unchecked,
    /// Every start is to record.
    Always,
}

impl RecordReason {
    /// In words, for a sentence.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSet => "there was no working set",
            Self::Misses => "a prefetch missed too many pages",
            Self::Unused => "too many pages of the set were not touched",
            Self::Unchecked => "it was not known how much of the set is touched",
            Self::Always => "every start is to record",
        }
    }
}

/// How many recordings in a row did not touch a page, by its guest-physical address; 0 for those
/// that are not in it.
type Untouched = HashMap<u64, u16>;

/// A set after one more recording.
#[derive(Clone, Debug, PartialEq)]
struct Evolved {
    touches: TouchCounts,
    untouched: Untouched,
    /// Pages of the set before it that the recording did not touch.
    unused_pages: u64,
    /// Pages that the recording touched and the set before it had not.
    added_pages: u64,
    /// Pages that left.
    left_pages: u64,
}

/// Adds a recording to the set `before`. What it did not
/// touch comes after what it did, and nothing is said of when that is needed.
fn add_recording(
    before: &TouchCounts,
    untouched: &Untouched,
    recording: &TouchCounts,
    leave_after: u16,
) -> Evolved {
    // A set counts no more recordings than that. Halved, the counts still say what share of the
    // recordings touched a page, and later ones weigh more.
    let halve = before.recordings() == u16::MAX;
    let scale = |count: u16| if halve { (count / 2).max(1) } else { count };
    let counts: HashMap<u64, u16> = before
        .pages()
        .iter()
        .map(|page| (page.gpa, scale(page.recordings)))
        .collect();
    let touched: HashSet<u64> = recording.pages().iter().map(|page| page.gpa).collect();
    let mut evolved = Evolved {
        touches: TouchCounts::from_checked(1, Vec::new()),
        untouched: HashMap::new(),
        unused_pages: 0,
        added_pages: 0,
        left_pages: 0,
    };
    // What the guest needs first is first, by the latest that is known of it.
    let mut pages: Vec<PageTouches> = recording
        .pages()
        .iter()
        .map(|page| {
            let earlier = counts.get(&page.gpa).copied();
            evolved.added_pages += u64::from(earlier.is_none());
            PageTouches {
                gpa: page.gpa,
                recordings: earlier.unwrap_or(0) + 1,
                own_ns: page.own_ns,
            }
        })
        .collect();
    for page in before.pages() {
        if touched.contains(&page.gpa) {
            continue;
        }
        evolved.unused_pages += 1;
        let in_a_row = untouched.get(&page.gpa).map_or(1, |n| n.saturating_add(1));
        if in_a_row >= leave_after {
            evolved.left_pages += 1;
            continue;
        }
        evolved.untouched.insert(page.gpa, in_a_row);
        pages.push(PageTouches {
            gpa: page.gpa,
            recordings: scale(page.recordings),
            own_ns: None,
        });
    }
    evolved.touches = TouchCounts::from_checked(scale(before.recordings()) + 1, pages);
    evolved
}
