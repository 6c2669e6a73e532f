//! The balloon device under a driver.

use std::sync::Mutex;

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_ID,
    VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_STATUS,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend as _};

use super::device::{F_DEFLATE_ON_OOM, F_STATS_VQ};
use super::*;
use crate::GuestMemory;
use crate::test_driver::{Driver, MEMORY_BYTES, Piece, buffer_gpa, dirty_pages, evt, memory_of};
use crate::virtio::{DeviceUpdate, MmioTransport, UpdateDeviceError, VirtioDevice};

const PAGE: u64 = 4096;
const ACTUAL: u32 = VIRTIO_MMIO_CONFIG + 4;
/// A page that the driver's rings and buffers do not touch.
const FREE_PFN: u32 = 0x1e0;

fn balloon(config: BalloonConfig) -> Balloon {
    Balloon::new(config, Box::new(release_anonymous)).unwrap()
}

fn booted(config: BalloonConfig, features: u64) -> (Driver, BalloonHandle) {
    let balloon = balloon(config);
    let handle = balloon.handle();
    (Driver::booted(Box::new(balloon), features), handle)
}

/// Has the guest put these bytes in a queue, cut in two at `cut`.
fn put(driver: &mut Driver, queue: usize, bytes: &[u8], cut: usize) {
    let gpa = buffer_gpa(queue, driver.rings[queue].avail_idx % 16);
    driver.mem.write_slice(bytes, GuestAddress(gpa)).unwrap();
    let piece = |from: usize, to: usize| Piece {
        gpa: gpa + from as u64,
        len: (to - from) as u32,
        writable: false,
    };
    driver.offer(queue, &[piece(0, cut), piece(cut, bytes.len())]);
    driver.kick(queue);
    driver.run();
}

fn list(pfns: &[u32]) -> Vec<u8> {
    pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect()
}

fn fill(mem: &GuestMemory, pfn: u32) {
    let gpa = GuestAddress(u64::from(pfn) * PAGE);
    mem.write_slice(&[0xaa; 4096], gpa).unwrap();
}

fn first_byte(mem: &GuestMemory, pfn: u32) -> u8 {
    mem.read_obj(GuestAddress(u64::from(pfn) * PAGE)).unwrap()
}

fn stat(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

#[test]
fn features_queues_and_configuration_are_those_asked_for() {
    let plain = balloon(BalloonConfig {
        amount_mib: 3,
        ..BalloonConfig::default()
    });
    assert_eq!(plain.device_features(), 0);
    assert_eq!(plain.queue_max_sizes().len(), 2);
    let full = balloon(BalloonConfig {
        amount_mib: 0,
        deflate_on_oom: true,
        stats_polling_interval_s: 1,
    });
    assert_eq!(full.device_features(), F_STATS_VQ | F_DEFLATE_ON_OOM);
    assert_eq!(full.queue_max_sizes().len(), 3);
    let mut driver = Driver::booted(Box::new(plain), 0);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 5);
    assert_eq!(driver.read(VIRTIO_MMIO_CONFIG), 3 * 256);
    let err = Balloon::new(
        BalloonConfig {
            amount_mib: 1 << 24,
            ..BalloonConfig::default()
        },
        Box::new(release_anonymous),
    );
    assert!(matches!(err, Err(BalloonError::TargetTooLarge(0x100_0000))));
}

#[test]
fn a_new_target_interrupts_the_driver_and_the_driver_says_how_far_it_is() {
    let (mut driver, handle) = booted(BalloonConfig::default(), 0);
    driver.run();
    driver.interrupts();
    let generation = driver.read(VIRTIO_MMIO_CONFIG_GENERATION);
    handle.set_target_mib(2).unwrap();
    driver.run();
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    assert_ne!(driver.read(VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_eq!(driver.read(VIRTIO_MMIO_CONFIG), 512);
    driver.write(ACTUAL, 300);
    // The target is not the driver's to write.
    driver.write(VIRTIO_MMIO_CONFIG, 7);
    let stats = handle.stats();
    assert_eq!((stats.target_pages, stats.target_mib), (512, 2));
    assert_eq!((stats.actual_pages, stats.actual_mib), (300, 1));
    assert_eq!(stats.guest, None);
    assert!(matches!(
        handle.set_target_mib(u32::MAX),
        Err(BalloonError::TargetTooLarge(u32::MAX))
    ));
    driver.boot(0);
    assert_eq!(handle.stats().actual_pages, 0);
    assert_eq!(handle.stats().target_pages, 512);
}

#[test]
fn pages_given_up_lose_their_memory_and_no_others_do() {
    let (mut driver, _handle) = booted(BalloonConfig::default(), 0);
    for pfn in FREE_PFN..FREE_PFN + 8 {
        fill(&driver.mem, pfn);
    }
    // In any order, with repetitions, and a number that is cut by a descriptor.
    let pfns = [3, 1, 2, 1, 6].map(|i| FREE_PFN + i);
    put(&mut driver, INFLATE_QUEUE, &list(&pfns), 6);
    let used = driver.take_used(INFLATE_QUEUE);
    assert_eq!(used.map(|(_, len)| len), Some(0));
    let left: Vec<u8> = (FREE_PFN..FREE_PFN + 8)
        .map(|pfn| first_byte(&driver.mem, pfn))
        .collect();
    assert_eq!(left, [0xaa, 0, 0, 0, 0xaa, 0xaa, 0, 0xaa]);
    put(&mut driver, DEFLATE_QUEUE, &list(&pfns), 4);
    assert!(driver.take_used(DEFLATE_QUEUE).is_some());
}

#[test]
fn adjoining_pages_go_together() {
    let calls = std::sync::Arc::new(Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&calls);
    let release: PageRelease = Box::new(move |pages| {
        seen.lock().unwrap().push(pages.len());
        Err(io::ErrorKind::Unsupported.into())
    });
    let balloon = Balloon::new(BalloonConfig::default(), release).unwrap();
    let mut driver = Driver::booted(Box::new(balloon), 0);
    let pfns = [4, 1, 2, 0, 1, 9].map(|i| FREE_PFN + i);
    put(&mut driver, INFLATE_QUEUE, &list(&pfns), 0);
    // A host that refuses one run is asked for the others.
    assert_eq!(*calls.lock().unwrap(), [3 * 4096, 4096, 4096]);
    assert!(driver.take_used(INFLATE_QUEUE).is_some());
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0xf);
}

#[test]
fn runs_end_where_memory_has_a_hole() {
    let ranges = [
        (GuestAddress(0), 2 * 4096),
        (GuestAddress(4 * 4096), 4096),
        (GuestAddress(5 * 4096), 4096),
    ];
    let mem = memory_of(&ranges);
    let mut released = Vec::new();
    let sink = std::sync::Arc::new(Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&sink);
    let mut release: PageRelease = Box::new(move |pages| {
        seen.lock()
            .unwrap()
            .push((pages.ptr_guard().as_ptr().addr(), pages.len()));
        Ok(())
    });
    assert!(dirty_pages(&mem).is_empty());
    pages::release(&mem, &mut vec![0, 4], &mut release).unwrap();
    assert_eq!(dirty_pages(&mem), [0, 4], "what is dropped has changed");
    sink.lock().unwrap().clear();
    pages::release(&mem, &mut (0..8).collect(), &mut release).unwrap();
    released.append(&mut sink.lock().unwrap());
    let host = |page: u64| {
        let slice = mem.get_slice(GuestAddress(page * PAGE), 4096).unwrap();
        slice.ptr_guard().as_ptr().addr()
    };
    let expected = [(host(0), 8192), (host(4), 4096), (host(5), 4096)];
    assert_eq!(released, expected);
}

#[test]
fn hostile_lists_are_harmless() {
    let (mut driver, _handle) = booted(BalloonConfig::default(), 0);
    let last = (MEMORY_BYTES as u64 / PAGE) as u32 - 1;
    fill(&driver.mem, last);
    put(
        &mut driver,
        INFLATE_QUEUE,
        &list(&[u32::MAX, last + 1, last, 0x8000_0000]),
        8,
    );
    assert_eq!(first_byte(&driver.mem, last), 0);
    // A number that is not whole.
    fill(&driver.mem, FREE_PFN);
    put(&mut driver, INFLATE_QUEUE, &list(&[FREE_PFN])[..3], 1);
    assert_eq!(first_byte(&driver.mem, FREE_PFN), 0xaa);
    // Lists that are huge, and that are not in memory.
    for (gpa, len) in [
        (0u64, u32::MAX),
        (0, MEMORY_BYTES as u32),
        (u64::MAX - 2, 64),
        (MEMORY_BYTES as u64 - 2, 64),
    ] {
        let piece = Piece {
            gpa,
            len,
            writable: false,
        };
        driver.offer(INFLATE_QUEUE, &[piece]);
        driver.offer(DEFLATE_QUEUE, &[piece]);
    }
    driver.kick(INFLATE_QUEUE);
    driver.kick(DEFLATE_QUEUE);
    driver.run();
    for used in 0..6 {
        assert!(driver.take_used(INFLATE_QUEUE).is_some(), "{used}");
    }
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0xf);
}

#[test]
fn a_long_list_is_cut_and_a_turn_ends_after_it() {
    let (mut driver, _handle) = booted(BalloonConfig::default(), 0);
    let mut pfns = vec![FREE_PFN; pages::MAX_PAGES_PER_LIST];
    pfns.push(FREE_PFN + 1);
    fill(&driver.mem, FREE_PFN);
    fill(&driver.mem, FREE_PFN + 1);
    let gpa = buffer_gpa(0, 0);
    driver
        .mem
        .write_slice(&list(&pfns), GuestAddress(gpa))
        .unwrap();
    let piece = Piece {
        gpa,
        len: pfns.len() as u32 * 4,
        writable: false,
    };
    driver.offer(INFLATE_QUEUE, &[piece]);
    driver.offer(INFLATE_QUEUE, &[piece]);
    driver.kick(INFLATE_QUEUE);
    driver.transport.process_pending();
    assert!(driver.take_used(INFLATE_QUEUE).is_some());
    assert!(driver.take_used(INFLATE_QUEUE).is_none());
    driver.run();
    assert!(driver.take_used(INFLATE_QUEUE).is_some());
    assert_eq!(first_byte(&driver.mem, FREE_PFN), 0);
    assert_eq!(first_byte(&driver.mem, FREE_PFN + 1), 0xaa);
}

#[test]
fn statistics_are_read_and_asked_for_again() {
    let config = BalloonConfig {
        stats_polling_interval_s: 1,
        ..BalloonConfig::default()
    };
    let (mut driver, handle) = booted(config, F_STATS_VQ);
    let mut bytes = stat(4, 1 << 20);
    bytes.extend(stat(0x7777, 5));
    bytes.extend(stat(5, 1 << 30));
    bytes.extend([1, 2, 3]);
    put(&mut driver, STATS_QUEUE, &bytes, 7);
    let expected = GuestMemoryStats {
        free_bytes: Some(1 << 20),
        total_bytes: Some(1 << 30),
        ..GuestMemoryStats::default()
    };
    assert_eq!(handle.stats().guest, Some(expected));
    // The buffer comes back when the timer expires, not before.
    let mut used = None;
    for _ in 0..10_000 {
        used = driver.take_used(STATS_QUEUE);
        if used.is_some() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
        driver.run();
    }
    assert_eq!(used.map(|(_, len)| len), Some(0));
    put(&mut driver, STATS_QUEUE, &stat(4, 77), 10);
    assert_eq!(handle.stats().guest.unwrap().free_bytes, Some(77));
    assert_eq!(handle.stats().guest.unwrap().total_bytes, None);
    driver.boot(0);
    assert_eq!(handle.stats().guest, None);
    put(&mut driver, STATS_QUEUE, &stat(4, 78), 10);
    assert_eq!(handle.stats().guest, None, "they were not negotiated");
}

#[test]
fn the_interval_of_statistics_is_changed_but_not_whether_there_are_any() {
    let interval = |stats_polling_interval_s| DeviceUpdate::Balloon {
        stats_polling_interval_s,
    };
    let config = BalloonConfig {
        stats_polling_interval_s: u16::MAX,
        ..BalloonConfig::default()
    };
    let (mut driver, _handle) = booted(config, F_STATS_VQ);
    put(&mut driver, STATS_QUEUE, &stat(4, 1), 4);
    let refused = driver.transport.update(interval(0));
    assert!(matches!(refused, Err(UpdateDeviceError::StatisticsSwitch)));
    driver.transport.update(interval(1)).unwrap();
    let returned = (0..10_000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        driver.run();
        driver.take_used(STATS_QUEUE).is_some()
    });
    assert!(returned, "the driver is not asked for statistics");
    let (mut driver, _handle) = booted(BalloonConfig::default(), 0);
    let refused = driver.transport.update(interval(1));
    assert!(matches!(refused, Err(UpdateDeviceError::StatisticsSwitch)));
    driver.transport.update(interval(0)).unwrap();
}

#[test]
fn a_restored_balloon_goes_on_and_tells_of_a_target_that_was_not_told() {
    let (mut driver, handle) = booted(BalloonConfig::default(), 0);
    handle.set_target_mib(5).unwrap();
    driver.write(ACTUAL, 100);
    let restored = |driver: &Driver| {
        let state = driver.transport.save().unwrap();
        let balloon = balloon(BalloonConfig::default());
        let handle = balloon.handle();
        let transport =
            MmioTransport::restore(driver.mem.clone(), Box::new(balloon), evt(), &state).unwrap();
        let mut new = Driver::over(driver.mem.clone(), transport, evt());
        new.rings = driver.rings.clone();
        new.run();
        (new, handle)
    };
    let (mut new, new_handle) = restored(&driver);
    assert_eq!(new_handle.stats().target_pages, 5 * 256);
    assert_eq!(new_handle.stats().actual_pages, 100);
    assert_eq!(new.read(VIRTIO_MMIO_INTERRUPT_STATUS) & 2, 2);
    assert_eq!(new.read(VIRTIO_MMIO_CONFIG), 5 * 256);
    // The one that was saved tells its guest as well; then the target is no news any more.
    driver.run();
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS) & 2, 2);
    driver.write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_INTERRUPT_ACK, 3);
    let (mut quiet, _handle) = restored(&driver);
    assert_eq!(quiet.read(VIRTIO_MMIO_INTERRUPT_STATUS) & 2, 0);
    fill(&quiet.mem, FREE_PFN);
    put(&mut quiet, INFLATE_QUEUE, &list(&[FREE_PFN]), 4);
    assert_eq!(first_byte(&quiet.mem, FREE_PFN), 0);
}
