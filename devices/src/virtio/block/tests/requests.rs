//! What a driver asks for and what it gets, in order and out of it.

use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;

use super::*;

const ALL_BYTES: usize = (NSECTORS * SECTOR_BYTES) as usize;

#[test]
fn the_configuration_space_describes_the_disk() {
    let image = image();
    let mut guest = Guest::boot(disk(&image));
    let mut config = |offset| guest.driver.read(VIRTIO_MMIO_CONFIG + offset);
    assert_eq!((config(0), config(4)), (NSECTORS as u32, 0));
    assert_eq!(config(12), 254); // seg_max
    assert_eq!(config(20), 512); // blk_size
    assert_eq!([36, 40, 44].map(&mut config), [4 << 20, 1, 8]); // discard
    assert_eq!([48, 52, 56].map(&mut config), [4 << 20, 1, 1]); // write zeroes
    assert_eq!([60, 0x200].map(&mut config), [0, 0]);
}

#[test]
fn reads_and_writes_go_to_their_sectors() {
    let image = image();
    let mut guest = Guest::boot(disk(&image));
    let before = pattern(NSECTORS);
    let gpa = guest.data_gpa();
    let pieces = [piece(gpa, 1024, true)];
    assert_eq!(guest.request(VIRTIO_BLK_T_IN, 3, &pieces), (OK, 1025));
    assert_eq!(guest.driver.bytes(gpa, 1024), before[3 * 512..5 * 512]);
    assert_eq!(guest.write(62, &[0x5a; 1024]), OK);
    assert_eq!(
        guest.read(61, 1536),
        (OK, {
            let mut expected = before[61 * 512..62 * 512].to_vec();
            expected.extend([0x5a; 1024]);
            expected
        })
    );
    assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
    let file = std::fs::read(image.path()).unwrap();
    assert_eq!(file.len(), ALL_BYTES);
    assert_eq!(file[..62 * 512], before[..62 * 512]);
    assert_eq!(file[62 * 512..], [0x5a; 1024]);
}

#[test]
fn pages_that_the_disk_writes_are_marked_and_others_are_not() {
    let image = image();
    let mut guest = Guest::boot(disk(&image));
    // What neither the driver nor its rings and buffers touch.
    let [into, from] = [0x1d_0000, 0x1e_0000];
    let pieces = [piece(into + 4000, 1024, true)];
    assert_eq!(guest.request(VIRTIO_BLK_T_IN, 0, &pieces).0, OK);
    let pieces = [piece(from, 1024, false)];
    assert_eq!(guest.request(VIRTIO_BLK_T_OUT, 0, &pieces).0, OK);
    let dirty = dirty_pages(&guest.driver.mem);
    assert!(dirty.contains(&(into / 4096)) && dirty.contains(&(into / 4096 + 1)));
    assert!(!dirty.contains(&(into / 4096 + 2)) && !dirty.contains(&(from / 4096)));
}

#[test]
fn a_request_may_be_cut_into_descriptors_anyhow() {
    let image = image();
    let mut guest = Guest::boot(disk(&image));
    let before = pattern(NSECTORS);
    // The data in two pieces that are no sectors, the second with the status byte.
    let gpa = guest.chain_gpa();
    guest.put(gpa, &[0; 8]);
    guest.put(gpa + 8, &7_u64.to_le_bytes());
    guest.driver.offer(
        0,
        &[
            piece(gpa, 16, false),
            piece(gpa + 0x800, 100, true),
            piece(gpa + 0x1000, 925, true),
        ],
    );
    guest.kick();
    assert_eq!(guest.wait().1, 1025);
    let mut read = guest.driver.bytes(gpa + 0x800, 100);
    read.extend(guest.driver.bytes(gpa + 0x1000, 924));
    assert_eq!(read, before[7 * 512..9 * 512]);
    assert_eq!(guest.driver.bytes(gpa + 0x1000 + 924, 1), [OK]);
    // The header in two pieces, the second with data.
    let gpa = guest.chain_gpa();
    guest.put(gpa, &VIRTIO_BLK_T_OUT.to_le_bytes());
    guest.put(gpa + 0x100, &0_u32.to_le_bytes());
    guest.put(gpa + 0x104, &9_u64.to_le_bytes());
    guest.put(gpa + 0x10c, &[0x77; 512]);
    let status_gpa = gpa + STATUS_OFFSET;
    guest.driver.offer(
        0,
        &[
            piece(gpa, 4, false),
            piece(gpa + 0x100, 12 + 500, false),
            piece(gpa + 0x10c + 500, 12, false),
            piece(status_gpa, 1, true),
        ],
    );
    guest.kick();
    guest.wait();
    assert_eq!(guest.driver.bytes(status_gpa, 1), [OK]);
    assert_eq!(guest.read(9, 512), (OK, vec![0x77; 512]));
}

#[test]
fn many_requests_at_once_all_come_back() {
    let image = image();
    let mut guest = Guest::boot(disk(&image));
    let mut waiting: Vec<u16> = (0..u64::from(CHAINS))
        .map(|sector| {
            let pieces = [piece(guest.data_gpa(), 512, true)];
            guest.offer(VIRTIO_BLK_T_IN, sector, &pieces)
        })
        .collect();
    guest.kick();
    while !waiting.is_empty() {
        let (chain, len) = guest.wait();
        assert_eq!((guest.status(chain), len), (OK, 513));
        let data = guest.driver.bytes(buffer_gpa(0, chain) + DATA_OFFSET, 512);
        let at = usize::from(chain) * 512;
        assert_eq!(data, pattern(NSECTORS)[at..at + 512]);
        waiting.retain(|&other| other != chain);
    }
    assert!(guest.driver.interrupts() > 0);
}

#[test]
fn what_is_not_on_the_disk_is_an_io_error() {
    let image = image();
    let mut guest = Guest::boot(disk(&image));
    for (sector, len) in [
        (NSECTORS, 512),
        (NSECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX - 1, 1024),
        (u64::MAX / 512, 512),
        (1 << 55, 512),
        (0, 0),
        (0, 511),
        (0, 513),
    ] {
        for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT] {
            let writable = kind == VIRTIO_BLK_T_IN;
            let pieces = [piece(guest.data_gpa(), len, writable)];
            let (status, _) = guest.request(kind, sector, &pieces);
            assert_eq!(status, IOERR, "{kind} of {len} at {sector}");
        }
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            let status = guest.range(kind, sector, len.div_ceil(512).saturating_sub(1), 0);
            assert!(sector < NSECTORS || status == IOERR, "{kind} at {sector}");
        }
    }
    assert_eq!(
        guest.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, (4 << 20) + 1, 0),
        IOERR
    );
    assert_eq!(std::fs::read(image.path()).unwrap().len(), ALL_BYTES);
}

#[test]
fn requests_that_make_no_sense_are_answered() {
    let image = image();
    let mut guest = Guest::boot(disk(&image));
    let data = |guest: &Guest, writable| [piece(guest.data_gpa(), 512, writable)];
    for kind in [3, 12, VIRTIO_BLK_T_SECURE_ERASE, u32::MAX] {
        let pieces = data(&guest, true);
        assert_eq!(guest.request(kind, 0, &pieces).0, UNSUPP, "{kind}");
    }
    // Data of the wrong direction.
    for (kind, writable) in [
        (VIRTIO_BLK_T_IN, false),
        (VIRTIO_BLK_T_OUT, true),
        (VIRTIO_BLK_T_FLUSH, false),
        (VIRTIO_BLK_T_GET_ID, false),
        (VIRTIO_BLK_T_DISCARD, true),
    ] {
        let pieces = data(&guest, writable);
        assert_eq!(guest.request(kind, 0, &pieces).0, IOERR, "{kind}");
    }
    // Not in guest memory, or beyond its end.
    for (gpa, len) in [
        (1 << 40, 512),
        (u64::MAX - 100, 512),
        (crate::test_driver::MEMORY_BYTES as u64 - 100, 512),
    ] {
        for (kind, writable) in [(VIRTIO_BLK_T_IN, true), (VIRTIO_BLK_T_OUT, false)] {
            let pieces = [piece(gpa, len, writable)];
            assert_eq!(
                guest.request(kind, 0, &pieces).0,
                IOERR,
                "{kind} at {gpa:#x}"
            );
        }
    }
    // A header that is too short.
    let gpa = guest.chain_gpa();
    guest.put(gpa + STATUS_OFFSET, &[UNTOUCHED]);
    let short = [piece(gpa, 15, false), piece(gpa + STATUS_OFFSET, 1, true)];
    guest.driver.offer(0, &short);
    guest.kick();
    guest.wait();
    assert_eq!(guest.driver.bytes(gpa + STATUS_OFFSET, 1), [IOERR]);
    assert!(!guest.needs_reset());
    assert_eq!(guest.read(0, 512), (OK, pattern(1)));
}

#[test]
fn a_request_that_cannot_be_answered_breaks_the_queue() {
    type Pieces = fn(u64) -> Vec<Piece>;
    let chains: [Pieces; 5] = [
        // No status byte.
        |gpa| vec![piece(gpa, 16, false)],
        |gpa| vec![piece(gpa, 16, false), piece(gpa + 16, 512, false)],
        // An empty one.
        |gpa| vec![piece(gpa, 16, false), piece(gpa + 16, 0, true)],
        // One that is not there.
        |gpa| vec![piece(gpa, 16, false), piece(1 << 40, 1, true)],
        // What is to be read comes last.
        |gpa| vec![piece(gpa + 16, 1, true), piece(gpa, 16, false)],
    ];
    for chain in chains {
        let image = image();
        let mut guest = Guest::boot(disk(&image));
        let gpa = guest.chain_gpa();
        guest.put(gpa, &[0; 16]);
        let pieces = chain(gpa);
        guest.driver.offer(0, &pieces);
        guest.kick();
        assert!(guest.needs_reset());
        assert_eq!(guest.driver.take_used(0), None);
        // A reset makes it good.
        guest.driver.boot(FEATURES);
        assert_eq!(guest.read(0, 512), (OK, pattern(1)));
    }
}

#[test]
fn a_chain_that_goes_in_a_circle_breaks_the_queue() {
    let image = image();
    let mut guest = Guest::boot(disk(&image));
    let gpa = guest.chain_gpa();
    let chain = [piece(gpa, 16, false), piece(gpa + 16, 1, false)];
    guest.driver.offer(0, &chain);
    let second_next = crate::test_driver::desc_gpa(0) + 16 + 12;
    guest.driver.put_u16(second_next, 1); // NEXT
    guest.driver.put_u16(second_next + 2, 0);
    guest.kick();
    assert!(guest.needs_reset());
}

#[test]
fn the_id_is_told_as_far_as_there_is_room() {
    let image = image();
    let mut guest = Guest::boot(disk(&image));
    let mut id = b"disk-0".to_vec();
    id.resize(20, 0);
    let gpa = guest.data_gpa();
    let whole = [piece(gpa, 20, true)];
    assert_eq!(guest.request(VIRTIO_BLK_T_GET_ID, 0, &whole), (OK, 21));
    assert_eq!(guest.driver.bytes(gpa, 20), id);
    let gpa = guest.data_gpa();
    let pieces = [piece(gpa, 2, true), piece(gpa + 8, 3, true)];
    assert_eq!(guest.request(VIRTIO_BLK_T_GET_ID, 0, &pieces), (OK, 6));
    assert_eq!(guest.driver.bytes(gpa, 2), b"di");
    assert_eq!(guest.driver.bytes(gpa + 8, 3), b"sk-");
    let large = [piece(guest.data_gpa(), 512, true)];
    assert_eq!(guest.request(VIRTIO_BLK_T_GET_ID, 0, &large), (OK, 20));
}

#[test]
fn a_read_only_disk_is_not_written() {
    let image = image();
    let block = Block::new(&BlockConfig {
        read_only: true,
        ..config(&image)
    })
    .unwrap();
    let mut guest = Guest::boot(block);
    assert_eq!(guest.read(5, 512), (OK, pattern(6)[5 * 512..].to_vec()));
    assert_eq!(guest.write(5, &[1; 512]), IOERR);
    assert_eq!(guest.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(guest.range(kind, 0, 8, 0), UNSUPP);
    }
    assert_eq!(std::fs::read(image.path()).unwrap(), pattern(NSECTORS));
}

#[test]
fn discarded_and_zeroed_sectors_read_as_zeroes() {
    let image = image();
    let mut guest = Guest::boot(disk(&image));
    let blocks_before = image.as_file().metadata().unwrap().blocks();
    assert_eq!(guest.range(VIRTIO_BLK_T_DISCARD, 8, 8, 0), OK);
    let unmap = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    assert_eq!(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, 16, 8, unmap), OK);
    let zeroed = guest.range(VIRTIO_BLK_T_WRITE_ZEROES, 25, 1, 0);
    // Not every file system zeroes a range; that it says so is right then.
    assert!(matches!(zeroed, OK | UNSUPP));
    let mut expected = pattern(NSECTORS);
    expected[8 * 512..24 * 512].fill(0);
    if zeroed == OK {
        expected[25 * 512..26 * 512].fill(0);
    }
    assert_eq!(std::fs::read(image.path()).unwrap(), expected);
    assert!(image.as_file().metadata().unwrap().blocks() < blocks_before);
    // Flags that there are not.
    assert_eq!(guest.range(VIRTIO_BLK_T_DISCARD, 32, 8, unmap), UNSUPP);
    assert_eq!(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, 32, 8, 2), UNSUPP);
    // More ranges than one.
    let pieces = [piece(guest.data_gpa(), 32, false)];
    assert_eq!(guest.request(VIRTIO_BLK_T_DISCARD, 0, &pieces).0, IOERR);
    assert_eq!(std::fs::read(image.path()).unwrap(), expected);
}

#[test]
fn without_their_features_there_are_no_discards_and_writes_are_synchronous() {
    let image = image();
    let mut guest = Guest {
        driver: Driver::booted(Box::new(disk(&image)), 0),
    };
    assert_eq!(guest.range(VIRTIO_BLK_T_DISCARD, 8, 8, 0), UNSUPP);
    assert_eq!(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, 8, 8, 0), UNSUPP);
    assert_eq!(guest.write(1, &[9; 512]), OK);
    assert_eq!(guest.read(1, 512), (OK, vec![9; 512]));
    // Zeroes without the cache's feature: written, then flushed, in one request.
    let features = 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    guest.driver.boot(features);
    let unmap = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    assert_eq!(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, unmap), OK);
    assert_eq!(guest.read(1, 512), (OK, vec![0; 512]));
}

#[test]
fn a_disk_that_shrinks_gives_io_errors_beyond_its_end() {
    let image = image();
    let mut guest = Guest::boot(disk(&image));
    image.as_file().set_len(10 * 512 + 100).unwrap();
    assert_eq!(guest.read(9, 512).0, OK);
    // The end is in the middle of it: what was there is told to have been written.
    let pieces = [piece(guest.data_gpa(), 1024, true)];
    assert_eq!(guest.request(VIRTIO_BLK_T_IN, 10, &pieces), (IOERR, 100));
    let pieces = [piece(guest.data_gpa(), 512, true)];
    assert_eq!(guest.request(VIRTIO_BLK_T_IN, 40, &pieces), (IOERR, 0));
    assert!(!guest.needs_reset());
    image.as_file().write_all_at(&[3; 512], 40 * 512).unwrap();
    assert_eq!(guest.read(40, 512), (OK, vec![3; 512]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// The disk is an array of sectors, whatever the order and the pieces.
    #[test]
    fn the_disk_is_an_array_of_sectors(
        requests in prop::collection::vec(
            (0u32..5, 0u64..NSECTORS, 1u32..8, 1u32..512, any::<u8>()), 1..40),
    ) {
        let image = image();
        let mut guest = Guest::boot(disk(&image));
        let mut model = pattern(NSECTORS);
        for (what, sector, sectors, cut, byte) in requests {
            let len = sectors * 512;
            let fits = sector + u64::from(sectors) <= NSECTORS;
            let at = sector as usize * 512..(sector as usize * 512 + len as usize);
            let gpa = guest.data_gpa();
            let two = |writable| [piece(gpa, cut, writable), piece(gpa + u64::from(cut), len - cut, writable)];
            match what {
                0 | 1 => {
                    let (status, _) = guest.request(VIRTIO_BLK_T_IN, sector, &two(true));
                    prop_assert_eq!(status == OK, fits);
                    if fits {
                        prop_assert_eq!(&guest.driver.bytes(gpa, len as usize), &model[at]);
                    }
                }
                2 | 3 => {
                    guest.put(gpa, &vec![byte; len as usize]);
                    let (status, _) = guest.request(VIRTIO_BLK_T_OUT, sector, &two(false));
                    prop_assert_eq!(status == OK, fits);
                    if fits {
                        model[at].fill(byte);
                    }
                }
                _ => {
                    let flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
                    let kind = VIRTIO_BLK_T_WRITE_ZEROES;
                    prop_assert_eq!(guest.range(kind, sector, sectors, flags) == OK, fits);
                    if fits {
                        model[at].fill(0);
                    }
                }
            }
        }
        prop_assert_eq!(std::fs::read(image.path()).unwrap(), model);
    }
}
