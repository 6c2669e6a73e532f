//! Disks that are changed while a guest works with them.

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_INT_CONFIG,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
};

use super::*;
use crate::rate_limiter::TokenBucketConfig;
use crate::virtio::block::{BlockError, DiskFile};
use crate::virtio::{DeviceUpdate, UpdateDeviceError};

fn swap(guest: &mut Guest, path: &std::path::Path) -> Result<(), UpdateDeviceError> {
    let file = DiskFile::open(path, false)?;
    guest.driver.transport.update(DeviceUpdate::Block {
        file: Some(file),
        rate_limiter: RateLimiterConfig::default(),
    })
}

fn capacity(guest: &mut Guest) -> u32 {
    guest.driver.read(VIRTIO_MMIO_CONFIG)
}

/// Takes the interrupts that came since it was asked last.
fn interrupt_status(guest: &mut Guest) -> u32 {
    let status = guest.driver.read(VIRTIO_MMIO_INTERRUPT_STATUS);
    guest.driver.write(VIRTIO_MMIO_INTERRUPT_ACK, status);
    guest.driver.interrupts();
    status
}

#[test]
fn another_file_takes_the_place_of_the_one_before() {
    let (first, second) = (image(), NamedTempFile::new().unwrap());
    std::fs::write(second.path(), [9; 8 * 512]).unwrap();
    let mut guest = Guest::boot(disk(&first));
    assert_eq!(guest.write(4, &[4; 512]), OK);
    interrupt_status(&mut guest);
    let generation = guest.driver.read(VIRTIO_MMIO_CONFIG_GENERATION);
    swap(&mut guest, second.path()).unwrap();
    assert_eq!(guest.driver.interrupts(), 1);
    assert_eq!(interrupt_status(&mut guest), VIRTIO_MMIO_INT_CONFIG);
    assert_ne!(guest.driver.read(VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_eq!(capacity(&mut guest), 8);
    assert_eq!(guest.read(7, 512), (OK, vec![9; 512]));
    assert_eq!(guest.read(8, 512).0, IOERR);
    assert_eq!(guest.write(1, &[1; 512]), OK);
    assert_eq!(std::fs::read(second.path()).unwrap()[512..1024], [1; 512]);
    assert_eq!(std::fs::read(first.path()).unwrap()[4 * 512], 4);
    // The one before is free again, and this one is not.
    drop(disk(&first));
    let locked = Block::new(&config(&second));
    assert!(matches!(locked, Err(BlockError::InUse { .. })));
}

#[test]
fn a_file_that_does_not_fit_leaves_the_disk_as_it_is() {
    let (image, used, odd) = (image(), image(), NamedTempFile::new().unwrap());
    std::fs::write(odd.path(), [0; 513]).unwrap();
    let _user = disk(&used);
    let mut guest = Guest::boot(disk(&image));
    assert_eq!(guest.read(0, 512).0, OK);
    interrupt_status(&mut guest);
    for (path, named) in [
        (used.path(), "in use"),
        (odd.path(), "513 bytes"),
        (std::path::Path::new("/nonexistent/disk"), "no such file"),
        (std::path::Path::new("/dev/null"), "/dev/null"),
    ] {
        let err = swap(&mut guest, path).unwrap_err().to_string();
        assert!(err.contains(named), "{err}");
        assert!(err.contains(path.to_str().unwrap()), "{err}");
    }
    let read_only = DiskFile::open(used.path(), true).unwrap();
    let err = guest.driver.transport.update(DeviceUpdate::Block {
        file: Some(read_only),
        rate_limiter: RateLimiterConfig::default(),
    });
    let err = err.unwrap_err();
    assert!(matches!(
        err,
        UpdateDeviceError::Access { read_only: false }
    ));
    assert!(err.to_string().contains("is writable"), "{err}");
    // Limits that cannot be keep the file out too.
    let err = guest.driver.transport.update(DeviceUpdate::Block {
        file: Some(DiskFile::open(odd.path(), false).unwrap()),
        rate_limiter: limit(u64::MAX),
    });
    assert!(err.is_err());
    for update in [
        DeviceUpdate::Net {
            rx_rate_limiter: RateLimiterConfig::default(),
            tx_rate_limiter: RateLimiterConfig::default(),
        },
        DeviceUpdate::Balloon {
            stats_polling_interval_s: 1,
        },
    ] {
        let err = guest.driver.transport.update(update);
        assert!(matches!(err, Err(UpdateDeviceError::OtherDevice)));
    }
    assert_eq!(interrupt_status(&mut guest), 0);
    assert_eq!(capacity(&mut guest), NSECTORS as u32);
    assert_eq!(guest.read(3, 512), (OK, pattern(4)[3 * 512..].to_vec()));
    assert!(!guest.needs_reset());
}

#[test]
fn the_same_file_is_measured_again_and_stays_locked() {
    let image = image();
    let mut guest = Guest::boot(disk(&image));
    image.as_file().set_len(2 * NSECTORS * 512).unwrap();
    assert_eq!(guest.read(NSECTORS, 512).0, IOERR);
    interrupt_status(&mut guest);
    let link = image.path().with_extension("link");
    std::fs::hard_link(image.path(), &link).unwrap();
    let swapped = swap(&mut guest, &link);
    std::fs::remove_file(&link).unwrap();
    swapped.unwrap();
    assert_eq!(interrupt_status(&mut guest), VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(capacity(&mut guest), 2 * NSECTORS as u32);
    assert_eq!(guest.read(NSECTORS, 512), (OK, vec![0; 512]));
    let locked = Block::new(&config(&image));
    assert!(matches!(locked, Err(BlockError::InUse { .. })));
}

#[test]
fn a_disk_without_a_driver_is_swapped_too() {
    let (first, second) = (image(), NamedTempFile::new().unwrap());
    std::fs::write(second.path(), [9; 8 * 512]).unwrap();
    let mut guest = Guest {
        driver: Driver::new(Box::new(disk(&first))),
    };
    swap(&mut guest, second.path()).unwrap();
    // There is nobody to be interrupted.
    assert_eq!(interrupt_status(&mut guest), 0);
    guest.driver.boot(FEATURES);
    assert_eq!(capacity(&mut guest), 8);
    assert_eq!(guest.read(0, 512), (OK, vec![9; 512]));
}

#[test]
fn what_was_begun_with_a_file_ends_before_it_goes() {
    let (block, mut other_end) = pipe_disk();
    let image = image();
    let mut guest = Guest::boot(block);
    let pieces = [piece(guest.data_gpa(), 512, true)];
    let gpa = guest.data_gpa();
    let chain = guest.offer(VIRTIO_BLK_T_IN, 0, &pieces);
    guest.kick();
    assert_eq!(guest.status(chain), UNTOUCHED);
    std::io::Write::write_all(&mut other_end, &[5; 512]).unwrap();
    let update = DeviceUpdate::Block {
        file: Some(DiskFile::open(image.path(), true).unwrap()),
        rate_limiter: RateLimiterConfig::default(),
    };
    guest.driver.transport.update(update).unwrap();
    assert_eq!(guest.driver.take_used(0), Some((chain, 513)));
    assert_eq!(guest.status(chain), OK);
    assert_eq!(guest.driver.bytes(gpa, 512), vec![5; 512]);
    assert_eq!(guest.read(0, 512), (OK, pattern(1)));
}

fn limit(size: u64) -> RateLimiterConfig {
    RateLimiterConfig {
        bandwidth: None,
        ops: Some(TokenBucketConfig {
            size,
            one_time_burst: None,
            refill_time_ms: 3_600_000,
        }),
    }
}

#[test]
fn requests_that_wait_go_on_under_other_limits() {
    let image = image();
    let mut guest = Guest::boot(disk(&image));
    let change = |guest: &mut Guest, rate_limiter| {
        let update = DeviceUpdate::Block {
            file: None,
            rate_limiter,
        };
        guest.driver.transport.update(update).unwrap();
    };
    // A disk that had none gets one.
    change(&mut guest, limit(1));
    assert_eq!(guest.read(0, 512).0, OK);
    let pieces = [piece(guest.data_gpa(), 512, true)];
    let chain = guest.offer(VIRTIO_BLK_T_IN, 1, &pieces);
    guest.kick();
    assert_eq!(guest.status(chain), UNTOUCHED);
    change(&mut guest, limit(0));
    assert_eq!(guest.wait(), (chain, 513));
    assert_eq!(guest.status(chain), OK);
}
