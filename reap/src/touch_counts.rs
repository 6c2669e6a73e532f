//! Which pages the recordings of a snapshot touched, and in how many of them: what working sets are
//! merged and compared by.

use std::collections::{HashMap, HashSet};

use crate::PAGE_SIZE_BYTES;
use crate::recorder::FirstTouch;

/// A page, and how many recordings touched it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageTouches {
    /// Guest-physical address of the page.
    pub gpa: u64,
    /// How many of the recordings touched it, at least 1.
    pub recordings: u16,
    /// How long the guest had run, in nanoseconds of its own time, when it needs the page or the
    /// first of those after it; none if that is not known, or is between those of the pages around.
    pub own_ns: Option<u64>,
}

/// Together, the sets stand for more recordings than a working set can count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "together they stand for {recordings} recordings: a working set counts at most {}",
    u16::MAX
)]
pub struct TooManyRecordings {
    /// How many.
    pub recordings: u64,
}

/// What decides whether a page gets into a merged set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeRule {
    /// Any of the sets has it.
    Union,
    /// Each of the sets has it.
    Intersection,
    /// At least so many of all recordings touched it.
    AtLeast(u16),
}

/// How many pages two sets have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Pages of both, in the order of the first.
    pub both: Vec<u64>,
    /// Pages of the first only, in its order.
    pub only_first: Vec<u64>,
    /// Pages of the second only, in its order.
    pub only_second: Vec<u64>,
}

impl Difference {
    /// Jaccard index: pages of both over pages of either, 1 for two empty sets.
    #[must_use]
    pub fn jaccard(&self) -> f64 {
        let either = self.both.len() + self.only_first.len() + self.only_second.len();
        match either {
            0 => 1.0,
            either => self.both.len() as f64 / either as f64,
        }
    }
}

/// The pages that recordings of one snapshot touched, each once, in the order in which they are to
/// be installed, with the number of recordings that touched it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TouchCounts {
    recordings: u16,
    pages: Vec<PageTouches>,
}

impl TouchCounts {
    /// The pages of one recording, in the order of their first touch. An address inside a page
    /// stands for that page, and a page that is named twice counts where it was named first. When
    /// they were touched is not known.
    #[must_use]
    pub fn of_recording(first_touch_gpas: &[u64]) -> Self {
        Self::of_one(first_touch_gpas.iter().map(|gpa| (*gpa, None)))
    }

    /// As [`of_recording`](Self::of_recording), with the time of each touch.
    #[must_use]
    pub fn of_first_touches(touches: &[FirstTouch]) -> Self {
        Self::of_one(touches.iter().map(|touch| (touch.gpa, Some(touch.own_ns))))
    }

    fn of_one(touches: impl ExactSizeIterator<Item = (u64, Option<u64>)>) -> Self {
        let mut seen = HashSet::with_capacity(touches.len());
        Self {
            recordings: 1,
            pages: touches
                .map(|(gpa, own_ns)| (gpa - gpa % PAGE_SIZE_BYTES, own_ns))
                .filter(|(gpa, _)| seen.insert(*gpa))
                .map(|(gpa, own_ns)| PageTouches {
                    gpa,
                    recordings: 1,
                    own_ns,
                })
                .collect(),
        }
    }

    /// What is known before the first recording.
    pub(crate) fn none() -> Self {
        Self::from_checked(0, Vec::new())
    }

    /// Pages that are known to be distinct, each touched by 1 to `recordings` recordings.
    pub(crate) fn from_checked(recordings: u16, pages: Vec<PageTouches>) -> Self {
        Self { recordings, pages }
    }

    /// How many recordings there were.
    #[must_use]
    pub fn recordings(&self) -> u16 {
        self.recordings
    }

    /// The pages, in the order of their installation.
    #[must_use]
    pub fn pages(&self) -> &[PageTouches] {
        &self.pages
    }

    /// Makes one set of several recordings of the same snapshot, at least one. The counts of a
    /// page add up. Pages stand in the order of the first set, then of the second, and so on. When
    /// they are needed is what the first set says: of pages that it has not, which come after its
    /// own, nothing is known.
    ///
    /// # Errors
    /// When the recordings are more than can be counted.
    pub fn merge(sets: &[Self], rule: MergeRule) -> Result<Self, TooManyRecordings> {
        let recordings: u64 = sets.iter().map(|set| u64::from(set.recordings)).sum();
        let recordings = u16::try_from(recordings).map_err(|_| TooManyRecordings { recordings })?;
        struct Merged {
            page: PageTouches,
            /// Of its first appearance.
            position: usize,
            /// How many sets have it.
            sets: usize,
        }
        let mut merged: HashMap<u64, Merged> = HashMap::new();
        let numbered = sets.iter().enumerate();
        for (set, page) in numbered.flat_map(|(n, set)| set.pages.iter().map(move |page| (n, page)))
        {
            let position = merged.len();
            let own_ns = page.own_ns.filter(|_| set == 0);
            merged
                .entry(page.gpa)
                .and_modify(|merged| {
                    // The sum of all recordings fits, so this does.
                    merged.page.recordings += page.recordings;
                    merged.sets += 1;
                })
                .or_insert(Merged {
                    page: PageTouches { own_ns, ..*page },
                    position,
                    sets: 1,
                });
        }
        let mut pages: Vec<Merged> = merged
            .into_values()
            .filter(|merged| match rule {
                MergeRule::Union => true,
                MergeRule::Intersection => merged.sets == sets.len(),
                MergeRule::AtLeast(least) => merged.page.recordings >= least,
            })
            .collect();
        pages.sort_unstable_by_key(|merged| merged.position);
        Ok(Self {
            recordings,
            pages: pages.into_iter().map(|merged| merged.page).collect(),
        })
    }

    /// Those of the pages `gpas` that are not in it, as if one recording had touched them.
    pub(crate) fn lacking(&self, gpas: &[u64]) -> Self {
        let held: HashSet<u64> = self.pages.iter().map(|page| page.gpa).collect();
        let mut lacking = Self::of_recording(gpas);
        lacking.pages.retain(|page| !held.contains(&page.gpa));
        lacking
    }

    /// With more pages, which it has not yet. No recording is added.
    pub(crate) fn with(&self, more: &Self) -> Self {
        Self {
            recordings: self.recordings,
            pages: self.pages.iter().chain(&more.pages).copied().collect(),
        }
    }

    /// Compares the pages of two sets of the same snapshot.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Difference {
        let gpas = |set: &Self| -> HashSet<u64> { set.pages.iter().map(|page| page.gpa).collect() };
        let (first, second) = (gpas(self), gpas(other));
        let (both, only_first) = self
            .pages
            .iter()
            .map(|page| page.gpa)
            .partition(|gpa| second.contains(gpa));
        Difference {
            both,
            only_first,
            only_second: other
                .pages
                .iter()
                .map(|page| page.gpa)
                .filter(|gpa| !first.contains(gpa))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn recording(pages: &[u64]) -> TouchCounts {
        let gpas: Vec<u64> = pages.iter().map(|page| page * PAGE_SIZE_BYTES).collect();
        TouchCounts::of_recording(&gpas)
    }

    fn pages_of(set: &TouchCounts) -> Vec<(u64, u16)> {
        set.pages()
            .iter()
            .map(|page| (page.gpa / PAGE_SIZE_BYTES, page.recordings))
            .collect()
    }

    #[test]
    fn rules_take_the_pages_that_they_say_in_the_order_of_the_sets() {
        let sets = [
            recording(&[5, 1, 3]),
            recording(&[1, 9, 5]),
            recording(&[5, 3]),
        ];
        let merge = |rule| pages_of(&TouchCounts::merge(&sets, rule).unwrap());
        assert_eq!(merge(MergeRule::Union), [(5, 3), (1, 2), (3, 2), (9, 1)]);
        assert_eq!(merge(MergeRule::Intersection), [(5, 3)]);
        assert_eq!(merge(MergeRule::AtLeast(2)), [(5, 3), (1, 2), (3, 2)]);
        assert_eq!(merge(MergeRule::AtLeast(4)), []);
    }

    #[test]
    fn merged_sets_merge_by_their_recordings_and_not_by_their_files() {
        let first =
            TouchCounts::merge(&[recording(&[1, 2]), recording(&[2])], MergeRule::Union).unwrap();
        let merged = TouchCounts::merge(&[first, recording(&[1])], MergeRule::AtLeast(2)).unwrap();
        assert_eq!(merged.recordings(), 3);
        assert_eq!(pages_of(&merged), [(1, 2), (2, 2)]);
    }

    #[test]
    fn a_merged_page_is_needed_when_the_first_set_says_so() {
        let timed = |touches: &[(u64, u64)]| {
            let touches: Vec<FirstTouch> = touches
                .iter()
                .map(|&(page, own_ns)| FirstTouch {
                    gpa: page * PAGE_SIZE_BYTES,
                    own_ns,
                })
                .collect();
            TouchCounts::of_first_touches(&touches)
        };
        let times = |set: &TouchCounts| -> Vec<Option<u64>> {
            set.pages().iter().map(|page| page.own_ns).collect()
        };
        let sets = [
            timed(&[(5, 10), (1, 20), (3, 30)]),
            timed(&[(1, 5), (9, 8), (3, 40)]),
        ];
        let union = TouchCounts::merge(&sets, MergeRule::Union).unwrap();
        assert_eq!(times(&union), [Some(10), Some(20), Some(30), None]);
        let both = TouchCounts::merge(&sets, MergeRule::Intersection).unwrap();
        assert_eq!(times(&both), [Some(20), Some(30)]);
        let sets = [recording(&[5, 1]), timed(&[(5, 10)])];
        let union = TouchCounts::merge(&sets, MergeRule::Union).unwrap();
        assert_eq!(times(&union), [None, None]);
    }

    #[test]
    fn more_recordings_than_can_be_counted_are_an_error() {
        let many = TouchCounts::from_checked(u16::MAX, vec![]);
        assert_eq!(
            TouchCounts::merge(&[many.clone(), recording(&[])], MergeRule::Union),
            Err(TooManyRecordings { recordings: 65536 })
        );
        assert!(TouchCounts::merge(&[many], MergeRule::Union).is_ok());
    }

    #[test]
    fn empty_sets_are_alike() {
        let difference = recording(&[]).difference(&recording(&[]));
        assert_eq!(difference.jaccard(), 1.0);
        assert_eq!(recording(&[1]).difference(&recording(&[])).jaccard(), 0.0);
    }

    proptest! {
        #[test]
        fn merging_counts_as_a_map_does(
            sets in prop::collection::vec(prop::collection::vec(0u64..40, 0..40), 1..6),
            least in 1u16..6,
        ) {
            let recordings: Vec<TouchCounts> = sets.iter().map(|set| recording(set)).collect();
            let mut counts: BTreeMap<u64, u16> = BTreeMap::new();
            for page in recordings.iter().flat_map(pages_of) {
                *counts.entry(page.0).or_default() += 1;
            }
            for (rule, least) in [
                (MergeRule::Union, 1),
                (MergeRule::AtLeast(least), least),
                (MergeRule::Intersection, sets.len() as u16),
            ] {
                let merged = TouchCounts::merge(&recordings, rule).unwrap();
                prop_assert_eq!(usize::from(merged.recordings()), sets.len());
                let expected: BTreeMap<u64, u16> =
                    counts.clone().into_iter().filter(|(_, count)| *count >= least).collect();
                prop_assert_eq!(pages_of(&merged).into_iter().collect::<BTreeMap<_, _>>(), expected);
                prop_assert_eq!(merged.pages().len(), merged.difference(&merged).both.len());
            }
            let difference = recordings[0].difference(&recordings[recordings.len() - 1]);
            let pages = difference.both.len() + difference.only_first.len();
            prop_assert_eq!(pages, recordings[0].pages().len());
            prop_assert!((0.0..=1.0).contains(&difference.jaccard()));
        }
    }
}
