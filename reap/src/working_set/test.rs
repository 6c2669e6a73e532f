use super::*;
use crate::recorder::FirstTouch;
use crate::touch_counts::MergeRule;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;

const MEMORY_PAGES: u64 = 256;
const MEMORY_BYTES: u64 = MEMORY_PAGES * PAGE_SIZE_BYTES;

/// Each page begins with its own address; every fourth is zero.
struct AddressSource([u8; PAGE_SIZE]);

impl PageSource for AddressSource {
    fn read_page(&mut self, gpa: u64) -> Result<Page<'_>, PageSourceError> {
        if gpa >= MEMORY_BYTES {
            return Err(PageSourceError::OutOfRange { gpa });
        }
        if (gpa / PAGE_SIZE_BYTES).is_multiple_of(4) {
            return Ok(Page::Zero);
        }
        self.0[..8].copy_from_slice(&gpa.to_le_bytes());
        Ok(Page::Data(&self.0))
    }
}

fn source() -> AddressSource {
    AddressSource([0x5a; PAGE_SIZE])
}

fn id(byte: u8) -> SnapshotId {
    SnapshotId::from_bytes([byte; 16])
}

fn write_pages(path: &Path, pages: &[u64]) -> WorkingSet {
    let gpas: Vec<u64> = pages.iter().map(|page| page * PAGE_SIZE_BYTES).collect();
    WorkingSet::write(path, &id(1), &gpas, &mut source()).unwrap()
}

/// As [`write_pages`], of pages that are needed after so many nanoseconds.
fn write_timed(path: &Path, pages: &[(u64, u64)]) -> WorkingSet {
    let touches: Vec<FirstTouch> = pages
        .iter()
        .map(|&(page, own_ns)| FirstTouch {
            gpa: page * PAGE_SIZE_BYTES,
            own_ns,
        })
        .collect();
    let touches = TouchCounts::of_first_touches(&touches);
    WorkingSet::write_counted(path, &id(1), &touches, &mut source()).unwrap()
}

/// Both ways to read the file `path`: the direct one, without the checks of its pages, and the
/// whole verification.
fn read_both(
    path: &Path,
) -> (
    Result<WorkingSet, WorkingSetError>,
    Result<WorkingSet, WorkingSetError>,
) {
    let direct = WorkingSet::open(path, &id(1), MEMORY_BYTES).and_then(|reader| {
        let (set, _pages) = reader.read_whole()?;
        assert_eq!(reader.read_tables().unwrap(), set);
        Ok(set)
    });
    (direct, WorkingSet::verify(path, &id(1), MEMORY_BYTES))
}

fn changed(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Puts the right checksum on tables that were changed, as a hostile writer would.
fn sign(bytes: &mut [u8], data_offset: usize) {
    let crc32c = tables_crc32c(&bytes[..data_offset]);
    bytes[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc32c.to_le_bytes());
}

#[test]
fn pages_are_packed_in_install_order_and_aligned() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    let set = write_pages(&path, &[9, 3, 1, 2, 8, 200]);
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, set.len_bytes());
    // Pages 8 and 200 are zero, so they are not in the file.
    assert_eq!((set.page_count(), set.zero_page_count()), (6, 2));
    assert_eq!(set.len_bytes(), 4096 + 4 * 4096);
    let firsts: Vec<u64> = bytes[4096..]
        .chunks(4096)
        .map(|page| u64_at(page, 0).unwrap() / PAGE_SIZE_BYTES)
        .collect();
    assert_eq!(firsts, [9, 1, 2, 3]);
    let extent = |page: u64, pages| Extent {
        gpa: page * PAGE_SIZE_BYTES,
        pages,
    };
    assert_eq!(set.data_extents(), [extent(9, 1), extent(1, 3)]);
    assert_eq!(set.zero_extents(), [extent(8, 1), extent(200, 1)]);
    let (direct, verified) = read_both(&path);
    assert_eq!(direct.unwrap(), set);
    assert_eq!(verified.unwrap(), set);
}

#[test]
fn a_page_of_zeros_is_zero_whatever_the_source_calls_it() {
    struct Zeros([u8; PAGE_SIZE]);
    impl PageSource for Zeros {
        fn read_page(&mut self, gpa: u64) -> Result<Page<'_>, PageSourceError> {
            self.0[PAGE_SIZE - 1] = u8::from(gpa == 0x3000);
            Ok(Page::Data(&self.0))
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    let gpas = [0x1000, 0x3000, 0x2000];
    let set = WorkingSet::write(&path, &id(1), &gpas, &mut Zeros([0; PAGE_SIZE])).unwrap();
    assert_eq!((set.page_count(), set.zero_page_count()), (3, 2));
    let (direct, verified) = read_both(&path);
    assert_eq!(direct.unwrap(), set);
    assert_eq!(verified.unwrap(), set);
}

#[test]
fn a_missing_one_says_how_to_make_one() {
    let (direct, verified) = read_both(Path::new("/nonexistent/working-set"));
    for error in [direct.unwrap_err(), verified.unwrap_err()] {
        assert!(matches!(error, WorkingSetError::Missing { .. }));
        assert!(error.to_string().contains("record"), "{error}");
    }
}

#[test]
fn one_of_another_snapshot_or_version_is_refused_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_pages(&path, &[1]);
    for error in [
        WorkingSet::open(&path, &id(2), MEMORY_BYTES).unwrap_err(),
        WorkingSet::verify(&path, &id(2), MEMORY_BYTES).unwrap_err(),
    ] {
        assert!(matches!(error, WorkingSetError::Foreign { .. }));
        assert!(error.to_string().contains("record again"), "{error}");
    }
    for other in [1, 2, 3, 5] {
        changed(&path, |bytes| bytes[8] = other);
        let (direct, verified) = read_both(&path);
        for error in [direct.unwrap_err(), verified.unwrap_err()] {
            assert!(
                matches!(error, WorkingSetError::Version { version, .. } if version == u32::from(other))
            );
            assert!(
                error.to_string().contains(&format!("version {other}")),
                "{error}"
            );
        }
    }
}

#[test]
fn more_pages_than_memory_are_refused_before_anything_is_allocated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_pages(&path, &[1, 2, 3]);
    let error = WorkingSet::open(&path, &id(1), 2 * PAGE_SIZE_BYTES).unwrap_err();
    assert!(matches!(error, WorkingSetError::Corrupt { .. }));

    // A sparse giant whose header agrees with its length is refused by the size of memory.
    changed(&path, |bytes| {
        let pages: u64 = 1 << 40;
        bytes[32..40].copy_from_slice(&pages.to_le_bytes());
        bytes[40..48].copy_from_slice(&pages.to_le_bytes());
        bytes[48..56].copy_from_slice(&data_offset(pages, pages).to_le_bytes());
    });
    let (direct, verified) = read_both(&path);
    assert!(matches!(direct, Err(WorkingSetError::Corrupt { .. })));
    assert!(matches!(verified, Err(WorkingSetError::Corrupt { .. })));
}

#[test]
fn tables_that_make_no_sense_are_refused_even_with_a_right_checksum() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    let extents = HEADER_BYTES;
    let crc32cs = extents + 2 * 16;
    let counts = crc32cs + 5 * 4;
    let zero = counts + 5 * 2;
    let curve = zero + 1;
    for (offset, value) in [
        (12, 1u8),
        (60, 0),
        (62, 1),
        // Two zero pages, and more than there are pages.
        (64, 2),
        (64, 6),
        // Another number of points than there are, more than there may be, and no zero.
        (72, 0),
        (72, 1),
        (72, 3),
        (72, 65),
        (75, 1),
        (76, 1),
        (extents, 1),
        (extents + 8, 0),
        (extents + 8, 5),
        (extents + 16, 0),
        // The checksum of the zero page.
        (crc32cs + 3 * 4, 0x55),
        (counts, 0),
        (counts + 8, 2),
        // No page, another one, two, and one that is not there.
        (zero, 0),
        (zero, 0b0_0001),
        (zero, 0b0_1001),
        (zero, 0b10_1000),
        // Not from the first page on, beyond the last, back in pages, back in time, after a day.
        (curve, 1),
        (curve + 16, 4),
        (curve + 16, 0),
        (curve + 23, 0xff),
        (curve + 8, 0xff),
        (curve + 24 + 7, 1),
        // After the last point.
        (curve + 32, 1),
        (curve + 1023, 1),
    ] {
        // The fourth of them, in the order of installation, is zero.
        let times = [(5, 3), (6, 4), (7, 5), (8, 9), (2, 6)];
        let set = write_timed(&path, &times);
        assert_eq!(set.zero_extents()[0].gpa, 0x8000);
        assert_eq!(set.touch_curve().len(), 2);
        changed(&path, |bytes| {
            if offset == extents + 16 {
                // The second extent over the first.
                bytes.copy_within(extents..extents + 8, extents + 16);
            } else {
                assert_ne!(bytes[offset], value, "{offset}");
                bytes[offset] = value;
            }
            sign(bytes, 4096);
        });
        let (direct, verified) = read_both(&path);
        assert!(
            matches!(direct, Err(WorkingSetError::Corrupt { .. })),
            "{offset}"
        );
        assert!(
            matches!(verified, Err(WorkingSetError::Corrupt { .. })),
            "{offset}"
        );
    }
}

#[test]
fn a_damaged_page_is_found_by_verification_with_its_address() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_pages(&path, &[5, 6, 1]);
    changed(&path, |bytes| bytes[4096 + 4096 + 7] ^= 0x10);
    assert!(matches!(
        WorkingSet::verify(&path, &id(1), MEMORY_BYTES),
        Err(WorkingSetError::CorruptPage { gpa: 0x6000, .. })
    ));
}

#[test]
fn a_page_that_cannot_be_had_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    let set = write_pages(&path, &[5]);
    let error =
        WorkingSet::write(&path, &id(1), &[0x1000, MEMORY_BYTES], &mut source()).unwrap_err();
    assert!(matches!(
        error,
        WorkingSetError::Source {
            source: PageSourceError::OutOfRange { gpa: MEMORY_BYTES },
            ..
        }
    ));
    assert_eq!(read_both(&path).1.unwrap(), set);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn pages_carry_how_many_recordings_touched_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    let gpas = |pages: &[u64]| -> Vec<u64> { pages.iter().map(|page| page * 4096).collect() };
    let touches = TouchCounts::merge(
        &[
            TouchCounts::of_recording(&gpas(&[9, 3, 8])),
            TouchCounts::of_recording(&gpas(&[3, 4])),
        ],
        MergeRule::Union,
    )
    .unwrap();
    WorkingSet::write_counted(&path, &id(1), &touches, &mut source()).unwrap();
    let (direct, verified) = read_both(&path);
    let described = WorkingSet::describe(&path, &id(1), MEMORY_BYTES).unwrap();
    for set in [direct.unwrap(), verified.unwrap(), described] {
        assert_eq!(set.recordings(), 2);
        let counts = set.touch_counts();
        assert_eq!(counts.recordings(), 2);
        let pages: Vec<(u64, u16)> = counts
            .pages()
            .iter()
            .map(|page| (page.gpa / 4096, page.recordings))
            .collect();
        // In the order of the runs, each from its lowest page on.
        assert_eq!(pages, [(8, 1), (9, 1), (3, 2), (4, 1)]);
    }
    let one = write_pages(&path, &[9, 3, 8, 4]);
    let other = write_pages(&path, &[9, 3, 8]);
    assert_ne!(one.fingerprint(), other.fingerprint());
    assert_eq!(
        write_pages(&path, &[9, 3, 8, 4]).fingerprint(),
        one.fingerprint()
    );
}

#[test]
fn pages_carry_when_they_are_needed_as_far_as_that_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    // In the order of installation 8, 9, 1, 2, 3 and 200; the first and the last are zero.
    let set = write_timed(
        &path,
        &[(9, 0), (3, 10), (1, 20), (2, 90), (8, 95), (200, 99)],
    );
    let points: Vec<(u64, u64)> = set
        .touch_curve()
        .iter()
        .map(|point| (point.page, point.own_ns))
        .collect();
    // Page 3 is the last of its run, and needed first.
    assert_eq!(points, [(0, 0), (1, 10), (3, 10)]);
    let (direct, verified) = read_both(&path);
    for read in [direct.unwrap(), verified.unwrap()] {
        assert_eq!(read, set);
        let touches = read.touch_counts();
        let points = touches.pages().iter();
        let points = points.filter_map(|page| Some((page.gpa / PAGE_SIZE_BYTES, page.own_ns?)));
        assert_eq!(points.collect::<Vec<_>>(), [(9, 0), (1, 10), (3, 10)]);
        // Of what it says of its pages the same is written.
        WorkingSet::write_counted(&path, &id(1), &touches, &mut source()).unwrap();
        assert_eq!(read_both(&path).1.unwrap(), set);
    }
    let slower = write_timed(
        &path,
        &[(9, 0), (3, 11), (1, 20), (2, 90), (8, 95), (200, 99)],
    );
    assert_ne!(slower.fingerprint(), set.fingerprint());
    assert!(write_pages(&path, &[9, 3]).touch_curve().is_empty());
    assert!(read_both(&path).0.unwrap().touch_curve().is_empty());
    // Zero pages alone have none.
    assert!(
        write_timed(&path, &[(4, 1), (8, 2)])
            .touch_curve()
            .is_empty()
    );
    assert!(write_timed(&path, &[]).touch_curve().is_empty());
}

#[test]
fn an_empty_one_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_pages(&path, &[]);
    let (direct, verified) = read_both(&path);
    assert_eq!(direct.unwrap().page_count(), 0);
    assert_eq!(verified.unwrap().page_count(), 0);
}

#[test]
fn what_is_no_file_is_refused_without_waiting_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("working-set");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    for path in [pipe, dir.path().to_owned()] {
        let (sender, receiver) = std::sync::mpsc::channel();
        let reader = path.clone();
        // A pipe that is waited for would hang the test.
        std::thread::spawn(move || sender.send(Box::new(read_both(&reader))));
        let (direct, verified) = *receiver
            .recv_timeout(std::time::Duration::from_secs(20))
            .unwrap();
        for error in [direct.unwrap_err(), verified.unwrap_err()] {
            assert!(matches!(error, WorkingSetError::Read { .. }), "{error:?}");
        }
    }
}

#[test]
fn every_flipped_bit_before_the_pages_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    let set = write_timed(&path, &[(7, 100), (8, 300), (3, 300)]);
    let whole = fs::read(&path).unwrap();
    let decode = |bytes: &[u8]| {
        let header = Header::decode(bytes, whole.len() as u64, &id(1), MEMORY_BYTES)?;
        WorkingSet::decode_tables(&bytes[..header.data_offset as usize], &header)
    };
    assert_eq!(decode(&whole), Ok(set));
    let mut bytes = whole.clone();
    for at in 0..PAGE_SIZE {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(decode(&bytes).is_err(), "bit {bit} of byte {at}");
            bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn counts_of_any_size_are_refused_without_overflow() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_pages(&path, &[7, 8, 3]);
    let whole = fs::read(&path).unwrap();
    let hostile = [0, 4, 1 << 32, 1 << 52, 1 << 60, u64::MAX - 4095, u64::MAX];
    for memory_bytes in [0, PAGE_SIZE_BYTES, MEMORY_BYTES, u64::MAX] {
        for extents in hostile {
            for pages in hostile {
                for (offset, zero) in hostile
                    .into_iter()
                    .flat_map(|offset| [0, 1, u64::MAX].map(|zero| (offset, zero)))
                {
                    let mut bytes = whole.clone();
                    bytes[64..72].copy_from_slice(&zero.to_le_bytes());
                    bytes[32..40].copy_from_slice(&extents.to_le_bytes());
                    bytes[40..48].copy_from_slice(&pages.to_le_bytes());
                    bytes[48..56].copy_from_slice(&offset.to_le_bytes());
                    let decoded = Header::decode(&bytes, whole.len() as u64, &id(1), memory_bytes);
                    assert!(decoded.is_err(), "{extents} {pages} {offset} {zero}");
                }
            }
        }
    }
}

proptest! {
    // Every case writes and syncs a file.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn round_trips_and_refuses_every_damage(
        pages in prop::collection::vec(0..MEMORY_PAGES, 1..60),
        others in prop::collection::vec(prop::collection::vec(0..MEMORY_PAGES, 0..20), 0..4),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("working-set");
        let recordings: Vec<TouchCounts> = std::iter::once(&pages)
            .chain(&others)
            .map(|pages| {
                let gpas: Vec<u64> = pages.iter().map(|page| page * PAGE_SIZE_BYTES).collect();
                TouchCounts::of_recording(&gpas)
            })
            .collect();
        let touches = TouchCounts::merge(&recordings, MergeRule::Union).unwrap();
        let set = WorkingSet::write_counted(&path, &id(1), &touches, &mut source()).unwrap();
        let sorted = |counts: &TouchCounts| {
            let mut pages = counts.pages().to_vec();
            pages.sort_unstable_by_key(|page| page.gpa);
            pages
        };
        prop_assert_eq!(sorted(&set.touch_counts()), sorted(&touches));
        let (direct, verified) = read_both(&path);
        prop_assert_eq!(&direct.unwrap(), &set);
        prop_assert_eq!(&verified.unwrap(), &set);
        let held: BTreeSet<u64> = set.page_gpas().map(|gpa| gpa / PAGE_SIZE_BYTES).collect();
        let given: BTreeSet<u64> = pages.iter().chain(others.iter().flatten()).copied().collect();
        prop_assert_eq!(held, given);

        // Each page is either in the file, where its place says, or zero; never both.
        let whole = fs::read(&path).unwrap();
        let pages_of = |extents: &[Extent]| -> Vec<u64> {
            extents.iter().flat_map(Extent::page_gpas).collect()
        };
        let is_zero = |gpa: &u64| (gpa / PAGE_SIZE_BYTES).is_multiple_of(4);
        let (zero, data): (Vec<u64>, Vec<u64>) = set.page_gpas().partition(is_zero);
        prop_assert_eq!(pages_of(set.zero_extents()), zero);
        let in_file: Vec<u64> = whole[set.data_offset as usize..]
            .chunks(PAGE_SIZE)
            .map(|page| u64_at(page, 0).unwrap())
            .collect();
        prop_assert_eq!(&in_file, &data);
        prop_assert_eq!(pages_of(set.data_extents()), data);

        let at = at.index(whole.len());
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << bit;
        fs::write(&path, flipped).unwrap();
        let (direct, verified) = read_both(&path);
        prop_assert!(verified.is_err());
        // The direct read verifies pages only when it installs them.
        prop_assert!(direct.is_err() || at as u64 >= set.data_offset);

        fs::write(&path, &whole[..at]).unwrap();
        let (direct, verified) = read_both(&path);
        prop_assert!(matches!(direct, Err(WorkingSetError::Truncated { .. })), "{:?}", direct);
        prop_assert!(matches!(verified, Err(WorkingSetError::Truncated { .. })), "{:?}", verified);
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(
        tail in prop::collection::vec(any::<u8>(), 0..6000), begins_right in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("working-set");
        let mut bytes = if begins_right {
            write_pages(&path, &[]);
            fs::read(&path).unwrap()[..32].to_vec()
        } else {
            vec![]
        };
        bytes.extend(tail);
        fs::write(&path, bytes).unwrap();
        let (direct, verified) = read_both(&path);
        prop_assert!(direct.is_err());
        prop_assert!(verified.is_err());
    }
}
