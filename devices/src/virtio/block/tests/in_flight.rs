//! Requests that are with the kernel when something else comes.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;

use super::*;
use crate::rate_limiter::TokenBucketConfig;
use crate::virtio::mmio::TransportError;

/// A guest with a read of two sectors that the kernel does not finish yet.
fn reading() -> (Guest, u16, File) {
    let (block, pipe) = pipe_disk();
    let mut guest = Guest::boot(block);
    let pieces = [piece(guest.data_gpa(), 1024, true)];
    let chain = guest.offer(VIRTIO_BLK_T_IN, 0, &pieces);
    guest.kick();
    assert_eq!(guest.driver.take_used(0), None);
    assert_eq!(guest.status(chain), UNTOUCHED);
    (guest, chain, pipe)
}

/// Writes to the pipe a little later, and says so right before.
fn later(mut pipe: File, parts: &'static [&'static [u8]]) -> (JoinHandle<File>, Arc<AtomicBool>) {
    let written = Arc::new(AtomicBool::new(false));
    let says = Arc::clone(&written);
    let thread = std::thread::spawn(move || {
        for part in parts {
            std::thread::sleep(Duration::from_millis(30));
            says.store(true, Ordering::SeqCst);
            pipe.write_all(part).unwrap();
        }
        pipe
    });
    (thread, written)
}

#[test]
fn a_read_that_comes_in_parts_is_put_together() {
    let (mut guest, chain, pipe) = reading();
    let (thread, _) = later(pipe, &[&[1; 100], &[2; 412], &[3; 512]]);
    assert_eq!(guest.wait(), (chain, 1025));
    assert_eq!(guest.status(chain), OK);
    let data = guest.driver.bytes(buffer_gpa(0, chain) + DATA_OFFSET, 1024);
    assert_eq!(data, [&[1; 100][..], &[2; 412], &[3; 512]].concat());
    assert_eq!(guest.driver.interrupts(), 1);
    thread.join().unwrap();
}

#[test]
fn an_end_in_the_middle_of_a_read_is_an_io_error() {
    let (mut guest, chain, mut pipe) = reading();
    pipe.write_all(&[1; 700]).unwrap();
    drop(pipe);
    assert_eq!(guest.wait(), (chain, 700));
    assert_eq!(guest.status(chain), IOERR);
}

#[test]
fn a_save_waits_for_what_is_in_flight() {
    let (mut guest, chain, pipe) = reading();
    assert!(matches!(
        guest.driver.transport.save(),
        Err(TransportError::Save(_))
    ));
    let (thread, written) = later(pipe, &[&[5; 1000], &[5; 24]]);
    guest.driver.transport.prepare_save().unwrap();
    assert!(written.load(Ordering::SeqCst));
    // All of it is in memory and in the rings, and the driver is told.
    let state = guest.driver.transport.save().unwrap();
    assert_eq!(
        (state.queues[0].next_avail, state.queues[0].next_used),
        (1, 1)
    );
    assert_eq!(state.interrupt_status, 1);
    assert_eq!(guest.driver.take_used(0), Some((chain, 1025)));
    assert_eq!(guest.status(chain), OK);
    assert_eq!(guest.driver.interrupts(), 1);
    thread.join().unwrap();
}

#[test]
fn a_machine_that_goes_on_after_a_save_takes_up_what_waits() {
    let (block, mut pipe) = pipe_disk();
    let mut guest = Guest::boot(block);
    // More requests than there is room for: the driver makes each chain available many times.
    const REQUESTS: usize = 80;
    for _ in 0..REQUESTS {
        let pieces = [piece(guest.data_gpa(), 512, true)];
        guest.offer(VIRTIO_BLK_T_IN, 0, &pieces);
        // A hostile driver does not wait for a chain to come back.
        if guest.driver.rings[0].avail_idx.is_multiple_of(16) {
            guest.kick();
        }
    }
    guest.kick();
    assert_eq!(guest.driver.take_used(0), None);
    pipe.write_all(&[7; 512 * 64]).unwrap();
    guest.driver.transport.prepare_save().unwrap();
    let state = guest.driver.transport.save().unwrap();
    let taken = usize::from(state.queues[0].next_avail);
    assert!((64..REQUESTS).contains(&taken), "{taken}");
    for _ in 0..taken {
        assert!(guest.driver.take_used(0).is_some());
    }
    // Without a notification of the driver.
    pipe.write_all(&[7; 512 * (REQUESTS - 64)]).unwrap();
    for _ in taken..REQUESTS {
        guest.wait();
    }
}

#[test]
fn a_reset_waits_for_what_is_in_flight_and_forgets_it() {
    let (mut guest, chain, pipe) = reading();
    let (thread, written) = later(pipe, &[&[9; 1024], &[4; 512]]);
    guest.driver.write(VIRTIO_MMIO_STATUS, 0);
    assert!(written.load(Ordering::SeqCst));
    assert_eq!(guest.status(chain), UNTOUCHED);
    guest.driver.run();
    assert_eq!(guest.driver.take_used(0), None);
    // The next driver has a disk that works, and gets nothing of what was asked for before.
    guest.driver.boot(0);
    assert_eq!(guest.driver.interrupts(), 0);
    assert_eq!(guest.read(0, 512), (OK, vec![4; 512]));
    thread.join().unwrap();
}

#[test]
fn a_disk_that_goes_waits_for_what_is_in_flight() {
    let (guest, _, pipe) = reading();
    let (thread, written) = later(pipe, &[&[9; 1024]]);
    drop(guest);
    assert!(written.load(Ordering::SeqCst));
    thread.join().unwrap();
}

fn limited(size: u64, refill_time_ms: u64) -> RateLimiterConfig {
    RateLimiterConfig {
        bandwidth: Some(TokenBucketConfig {
            size,
            one_time_burst: None,
            refill_time_ms,
        }),
        ops: None,
    }
}

#[test]
fn a_limited_disk_goes_on_by_itself_when_it_may() {
    let image = image();
    let mut guest = Guest::boot(
        Block::new(&BlockConfig {
            rate_limiter: limited(1024, 20),
            ..config(&image)
        })
        .unwrap(),
    );
    for sector in 0..8 {
        let pieces = [piece(guest.data_gpa(), 512, true)];
        guest.offer(VIRTIO_BLK_T_IN, sector, &pieces);
    }
    guest.kick();
    for _ in 0..8 {
        let (chain, _) = guest.wait();
        assert_eq!(guest.status(chain), OK);
    }
}
