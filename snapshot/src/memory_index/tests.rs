//! Indexes of full snapshots and of diffs, and every way to be wrong.

use super::*;
use proptest::prelude::*;
use proptest::sample::Index;

const ID: SnapshotId = SnapshotId::from_bytes([7; 16]);

/// A page of an index: what it is, and the checksum of a data page.
type TestPage = (PageKind, u32);

const ZERO: TestPage = (PageKind::Zero, 0);
const UNCHANGED: TestPage = (PageKind::Unchanged, 0);

fn data(crc32c: u32) -> TestPage {
    (PageKind::Data, crc32c)
}

fn encode(layout: Layout, pages: &[TestPage]) -> Vec<u8> {
    let mut builder = MemoryIndexBuilder::new(&ID, pages.len() as u64, layout).unwrap();
    for (page_index, (kind, crc32c)) in (0..).zip(pages) {
        match kind {
            PageKind::Zero => {}
            PageKind::Data => builder.set_data(page_index, *crc32c),
            PageKind::Unchanged => builder.set_unchanged(page_index),
        }
    }
    builder.finish()
}

/// A full snapshot's pages, or a diff's.
fn pages() -> impl Strategy<Value = (Layout, Vec<TestPage>)> {
    let full = prop_oneof![Just(ZERO), any::<u32>().prop_map(data)];
    let diff = prop_oneof![Just(ZERO), any::<u32>().prop_map(data), Just(UNCHANGED)];
    prop_oneof![
        (Just(Layout::Full), proptest::collection::vec(full, 0..100)),
        (Just(Layout::Diff), proptest::collection::vec(diff, 0..100)),
    ]
}

fn count(pages: &[TestPage], wanted: PageKind) -> u64 {
    pages.iter().filter(|(kind, _)| *kind == wanted).count() as u64
}

#[test]
fn checksum_of_the_zero_page() {
    assert_eq!(crc32c(&ZERO_PAGE), ZERO_PAGE_CRC32C);
}

proptest! {
    #[test]
    fn round_trip((layout, pages) in pages()) {
        let index = MemoryIndex::decode(encode(layout, &pages), &ID).unwrap();
        prop_assert_eq!(index.snapshot_id(), ID);
        prop_assert_eq!(index.is_diff(), layout == Layout::Diff);
        prop_assert_eq!(index.page_count(), pages.len() as u64);
        prop_assert_eq!(index.zero_page_count(), count(&pages, PageKind::Zero));
        prop_assert_eq!(index.data_page_count(), count(&pages, PageKind::Data));
        prop_assert_eq!(index.unchanged_page_count(), count(&pages, PageKind::Unchanged));
        for (page_index, (kind, crc32c)) in (0..).zip(&pages) {
            prop_assert_eq!(index.page_kind(page_index), Some(*kind));
            prop_assert_eq!(index.is_zero(page_index), *kind == PageKind::Zero);
            let expected = match kind {
                PageKind::Zero => ZERO_PAGE_CRC32C,
                PageKind::Data => *crc32c,
                PageKind::Unchanged => 0,
            };
            prop_assert_eq!(index.page_crc32c(page_index), expected);
        }
    }

    #[test]
    fn any_flipped_bit_is_refused(
        (layout, pages) in pages(),
        at in any::<Index>(),
        bit in 0..8_u32,
    ) {
        let mut bytes = encode(layout, &pages);
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        prop_assert!(MemoryIndex::decode(bytes, &ID).is_err());
    }

    #[test]
    fn any_other_length_is_refused((layout, pages) in pages(), more in 1..64_usize) {
        let bytes = encode(layout, &pages);
        for len in 0..bytes.len() {
            prop_assert!(MemoryIndex::decode(bytes[..len].to_vec(), &ID).is_err());
        }
        let mut longer = bytes;
        longer.resize(longer.len() + more, 0);
        prop_assert!(MemoryIndex::decode(longer, &ID).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(MemoryIndex::decode(bytes, &ID).is_err());
    }

    /// A header that is right in all but its page count.
    #[test]
    fn hostile_page_counts_never_panic(
        is_diff in any::<bool>(),
        page_count in prop_oneof![any::<u64>(), 0..200_u64],
        extra in 0..900_usize,
    ) {
        let layout = if is_diff { Layout::Diff } else { Layout::Full };
        let mut bytes = encode(layout, &[]);
        bytes[PAGE_COUNT_AT..CRC_AT].copy_from_slice(&page_count.to_le_bytes());
        bytes.resize(HEADER_BYTES + extra, 0);
        let crc = checksum(&bytes[..CRC_AT], &bytes[HEADER_BYTES..]);
        bytes[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        if let Ok(index) = MemoryIndex::decode(bytes, &ID) {
            let len_bytes = (HEADER_BYTES + extra) as u64;
            prop_assert_eq!(layout.encoded_bytes(index.page_count()), len_bytes);
        }
    }
}

#[test]
fn another_snapshots_index_is_refused() {
    let other = SnapshotId::from_bytes([8; 16]);
    let error = MemoryIndex::decode(encode(Layout::Full, &[data(1), ZERO]), &other).unwrap_err();
    assert_eq!(
        error,
        MemoryIndexError::OtherSnapshot {
            found: ID,
            expected: other
        }
    );
}

#[test]
fn a_mark_after_the_last_page_is_refused() {
    for (layout, at) in [
        (Layout::Full, HEADER_BYTES),
        (Layout::Diff, HEADER_BYTES),
        (Layout::Diff, HEADER_BYTES + 1),
    ] {
        let mut bytes = encode(layout, &[ZERO; 3]);
        bytes[at] |= 1 << 3;
        let error = MemoryIndex::decode(with_right_checksum(bytes), &ID).unwrap_err();
        assert_eq!(error, MemoryIndexError::NoSuchPage { page_index: 3 });
    }
}

#[test]
fn a_page_is_not_data_and_unchanged() {
    let mut bytes = encode(Layout::Diff, &[ZERO, UNCHANGED, data(1)]);
    bytes[HEADER_BYTES] |= 1 << 1;
    let error = MemoryIndex::decode(with_right_checksum(bytes), &ID).unwrap_err();
    assert_eq!(error, MemoryIndexError::Contradiction { page_index: 1 });
}

#[test]
fn another_layout_is_refused_by_number() {
    let mut bytes = encode(Layout::Diff, &[ZERO]);
    bytes[8] = 3;
    let error = MemoryIndex::decode(with_right_checksum(bytes), &ID).unwrap_err();
    assert_eq!(error, MemoryIndexError::Layout { found: 3 });
}

fn with_right_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = checksum(&bytes[..CRC_AT], &bytes[HEADER_BYTES..]);
    bytes[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn pages_are_verified() {
    let page = [0x5a; PAGE_SIZE];
    let pages = [ZERO, data(crc32c(&page)), UNCHANGED];
    let index = MemoryIndex::decode(encode(Layout::Diff, &pages), &ID).unwrap();
    for bytes in [&page, &ZERO_PAGE] {
        let unchanged = Err(PageError::Unchanged { page_index: 2 });
        assert_eq!(index.verify_page(2, bytes), unchanged);
    }
    assert_eq!(index.verify_place(2, &ZERO_PAGE), Ok(()));
    assert_eq!(
        index.verify_place(2, &page),
        Err(PageError::NotEmpty { page_index: 2 })
    );
    assert_eq!(index.verify_place(1, &page), Ok(()));
    assert_eq!(index.verify_page(0, &ZERO_PAGE), Ok(()));
    assert_eq!(index.verify_page(1, &page), Ok(()));
    assert_eq!(
        index.verify_page(0, &page),
        Err(PageError::NotZero { page_index: 0 })
    );
    let zeroed = index.verify_page(1, &ZERO_PAGE);
    let (expected, actual) = (crc32c(&page), ZERO_PAGE_CRC32C);
    assert_eq!(
        zeroed,
        Err(PageError::Checksum {
            page_index: 1,
            expected,
            actual
        })
    );
    let short = index.verify_page(1, &page[1..]);
    assert_eq!(
        short,
        Err(PageError::Length {
            actual_bytes: PAGE_SIZE - 1
        })
    );
}

#[test]
fn pages_that_do_not_exist() {
    let index = MemoryIndex::decode(encode(Layout::Full, &[ZERO]), &ID).unwrap();
    for page_index in [1, 8, u64::MAX] {
        assert!(!index.is_zero(page_index));
        assert_eq!(index.page_crc32c(page_index), 0);
        let error = index.verify_page(page_index, &ZERO_PAGE);
        assert_eq!(
            error,
            Err(PageError::OutOfRange {
                page_index,
                page_count: 1
            })
        );
    }
}

#[test]
fn too_many_pages_are_refused_before_memory_is_taken() {
    let error = MemoryIndexBuilder::new(&ID, MAX_PAGES + 1, Layout::Full)
        .err()
        .unwrap();
    assert_eq!(
        error,
        MemoryIndexError::TooManyPages {
            page_count: MAX_PAGES + 1
        }
    );
}
