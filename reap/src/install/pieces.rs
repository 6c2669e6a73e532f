//! Cutting a working set into what one read brings.

use reapvm_snapshot::PAGE_SIZE;

use crate::extents::Extent;

/// Consecutive pages of a working-set file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Number of its first page in the file.
    pub(super) first_page: u64,
    pub(super) pages: u64,
    /// Index of the extent that the first page belongs to.
    extent: usize,
    /// How many pages of that extent come before it.
    pages_before: u64,
}

impl Piece {
    /// Its runs: guest-physical address and number of pages.
    pub(super) fn runs(self, extents: &[Extent]) -> impl Iterator<Item = (u64, u64)> {
        let mut skipped = self.pages_before;
        let mut left = self.pages;
        extents
            .get(self.extent..)
            .unwrap_or_default()
            .iter()
            .map_while(move |extent| {
                let gpa = extent.gpa + skipped * PAGE_SIZE as u64;
                let pages = (extent.pages - skipped).min(left);
                skipped = 0;
                left -= pages;
                (pages > 0).then_some((gpa, pages))
            })
    }
}

/// Cuts the pages of `extents` into pieces of `piece_pages`, at least 1; the last may be shorter.
pub(super) fn pieces(extents: &[Extent], piece_pages: u64) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut first_page = 0;
    for (index, extent) in extents.iter().enumerate() {
        let mut pages_before = 0;
        while pages_before < extent.pages {
            let pages_left = extent.pages - pages_before;
            let taken = match pieces.last_mut().filter(|last| last.pages < piece_pages) {
                Some(last) => {
                    let taken = pages_left.min(piece_pages - last.pages);
                    last.pages += taken;
                    taken
                }
                None => {
                    let taken = pages_left.min(piece_pages);
                    pieces.push(Piece {
                        first_page,
                        pages: taken,
                        extent: index,
                        pages_before,
                    });
                    taken
                }
            };
            pages_before += taken;
            first_page += taken;
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pieces_of_no_pages_are_none() {
        assert_eq!(pieces(&[], 4), []);
    }

    proptest! {
        #[test]
        fn pieces_hold_each_page_once_and_in_order(
            lengths in prop::collection::vec((1u64..40, 1u64..4), 0..30),
            piece_pages in 1u64..50,
        ) {
            let mut gpa = 0;
            let extents: Vec<Extent> = lengths
                .iter()
                .map(|&(pages, gap)| {
                    let extent = Extent { gpa, pages };
                    gpa += (pages + gap) * PAGE_SIZE as u64;
                    extent
                })
                .collect();
            let expected: Vec<u64> = extents.iter().flat_map(Extent::page_gpas).collect();
            let cut = pieces(&extents, piece_pages);
            let mut found = Vec::new();
            for piece in &cut {
                prop_assert_eq!(piece.first_page, found.len() as u64);
                for (gpa, pages) in piece.runs(&extents) {
                    found.extend(Extent { gpa, pages }.page_gpas());
                }
                prop_assert_eq!(piece.first_page + piece.pages, found.len() as u64);
            }
            prop_assert_eq!(found, expected);
            let full = cut.len().saturating_sub(1);
            prop_assert!(cut[..full].iter().all(|piece| piece.pages == piece_pages));
        }
    }
}
