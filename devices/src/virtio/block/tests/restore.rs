//! Disks that were saved.

use super::*;
use crate::rate_limiter::{RateLimiterState, TokenBucketConfig, TokenBucketState};
use crate::test_driver::evt;
use crate::virtio::block::BlockState;
use crate::virtio::mmio::{MmioTransportState, TransportError};
use crate::virtio::{MmioTransport, RestoreDeviceError, Rng, VirtioDeviceState};

fn saved(guest: &mut Guest) -> MmioTransportState {
    guest.driver.transport.prepare_save().unwrap();
    guest.driver.transport.save().unwrap()
}

/// The guest of `old` on another disk, in the same memory.
fn restored(
    old: &Guest,
    state: &MmioTransportState,
    block: Block,
) -> Result<Guest, TransportError> {
    let irq = evt();
    let irq_copy = irq.try_clone().unwrap();
    let mem = old.driver.mem.clone();
    let transport = MmioTransport::restore(mem.clone(), Box::new(block), irq_copy, state)?;
    let mut driver = Driver::over(mem, transport, irq);
    driver.rings = old.driver.rings.clone();
    Ok(Guest { driver })
}

fn block_state(state: &MmioTransportState) -> &BlockState {
    match &state.device {
        VirtioDeviceState::Block(state) => state,
        other => panic!("{other:?} is not a disk's"),
    }
}

#[test]
fn a_restored_disk_goes_on() {
    let (first, second) = (image(), image());
    let mut guest = Guest::boot(disk(&first));
    assert_eq!(guest.write(4, &[4; 512]), OK);
    let state = saved(&mut guest);
    assert_eq!(
        block_state(&state),
        &BlockState {
            nsectors: NSECTORS,
            read_only: false,
            requests_waiting: false,
            rate_limiter: RateLimiterState::default(),
        }
    );
    std::fs::copy(first.path(), second.path()).unwrap();
    let mut clone = restored(&guest, &state, disk(&second)).unwrap();
    assert_eq!(clone.read(4, 512), (OK, vec![4; 512]));
    assert_eq!(clone.write(5, &[5; 512]), OK);
    assert_eq!(std::fs::read(second.path()).unwrap()[5 * 512], 5);
    assert_eq!(std::fs::read(first.path()).unwrap(), {
        let mut expected = pattern(NSECTORS);
        expected[4 * 512..5 * 512].fill(4);
        expected
    });
}

#[test]
fn another_disk_is_refused() {
    let image = image();
    let mut guest = Guest::boot(disk(&image));
    let state = saved(&mut guest);
    let other = NamedTempFile::new().unwrap();
    for sectors in [NSECTORS - 1, NSECTORS + 1] {
        std::fs::write(other.path(), pattern(sectors)).unwrap();
        let Err(err) = restored(&guest, &state, disk(&other)) else {
            panic!("a disk of {sectors} sectors");
        };
        let TransportError::Device(RestoreDeviceError::Invalid { reason, .. }) = err else {
            panic!("{err:?}");
        };
        let named = format!(
            "had 64 sectors of 512 bytes, but '{}' has {sectors}",
            other.path().display()
        );
        assert!(reason.contains(&named), "{reason}");
    }
    // The features of a read-only one are others, and its own check is there for the rest.
    std::fs::write(other.path(), pattern(NSECTORS)).unwrap();
    let read_only = || {
        Block::new(&BlockConfig {
            read_only: true,
            ..config(&other)
        })
        .unwrap()
    };
    assert!(restored(&guest, &state, read_only()).is_err());
    use crate::virtio::VirtioDevice;
    let err = read_only().restore(&state.device).unwrap_err();
    assert!(err.to_string().contains("its disk was writable"), "{err}");
    assert!(matches!(
        Rng::new().restore(&state.device),
        Err(RestoreDeviceError::OtherDevice { .. })
    ));
    let rng = Rng::new().save().unwrap();
    assert!(matches!(
        disk(&other).restore(&rng),
        Err(RestoreDeviceError::OtherDevice { expected: "block" })
    ));
}

#[test]
fn requests_that_wait_at_a_save_are_taken_up_after_the_restore() {
    let (first, second) = (image(), image());
    let hour = 3_600_000;
    let bucket = TokenBucketConfig {
        size: 1024,
        one_time_burst: None,
        refill_time_ms: hour,
    };
    let limited = |image| BlockConfig {
        rate_limiter: RateLimiterConfig {
            bandwidth: Some(bucket),
            ops: None,
        },
        ..config(image)
    };
    let mut guest = Guest::boot(Block::new(&limited(&first)).unwrap());
    for sector in 0..3 {
        let pieces = [piece(guest.data_gpa(), 512, true)];
        guest.offer(VIRTIO_BLK_T_IN, sector, &pieces);
    }
    guest.kick();
    for _ in 0..2 {
        let (chain, _) = guest.wait();
        assert_eq!(guest.status(chain), OK);
    }
    // The third is beyond the limit, also when the driver insists.
    guest.kick();
    assert_eq!(guest.driver.take_used(0), None);
    assert_eq!(guest.status(2), UNTOUCHED);
    let state = saved(&mut guest);
    assert_eq!(state.queues[0].next_avail, 2);
    assert!(block_state(&state).requests_waiting);
    let bandwidth = block_state(&state).rate_limiter.bandwidth.unwrap();
    assert!(bandwidth.budget < 512, "{bandwidth:?}");

    // The clone keeps to the limit as its original did.
    let mut clone = restored(&guest, &state, Block::new(&limited(&second)).unwrap()).unwrap();
    clone.driver.run();
    assert_eq!(clone.driver.take_used(0), None);
    // Without one it goes on, and nobody has to notify it.
    drop(clone);
    let mut clone = restored(&guest, &state, disk(&second)).unwrap();
    assert_eq!(clone.wait(), (2, 513));
    assert_eq!(clone.status(2), OK);
}

#[test]
fn states_that_no_disk_can_be_in_are_refused() {
    let image = image();
    let mut guest = Guest::boot(disk(&image));
    let mut state = saved(&mut guest);
    let VirtioDeviceState::Block(block) = &mut state.device else {
        panic!("not a disk's state");
    };
    block.rate_limiter.ops = Some(TokenBucketState {
        budget: i64::MIN,
        burst: 0,
    });
    drop(guest.driver.transport);
    use crate::virtio::VirtioDevice;
    let limits = RateLimiterConfig {
        ops: Some(TokenBucketConfig {
            size: 1,
            one_time_burst: None,
            refill_time_ms: 1,
        }),
        bandwidth: None,
    };
    let mut new = Block::new(&BlockConfig {
        rate_limiter: limits,
        ..config(&image)
    })
    .unwrap();
    assert!(matches!(
        new.restore(&state.device),
        Err(RestoreDeviceError::Invalid { .. })
    ));
}
