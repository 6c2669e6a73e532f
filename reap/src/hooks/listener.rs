//! Who hears of faults while they happen.
//!
//! The pager puts records in a bounded ring and goes on, whatever becomes of them. The listener looks
//! for them by itself, every millisecond: so the pager never makes a system call to wake it, and
//! never waits for a lock that it holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::page_bitmap::PageBitmap;
use crate::trace::TraceRecord;

/// How long a listener sleeps that has found nothing.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A ring for the records of faults: the pager's end, for
/// [`PagerHooks::listener`](crate::PagerHooks::listener), and the listener's.
///
/// It holds `capacity` records, of 72 bytes, at most, and one at least. All of it is allocated at once.
#[must_use]
pub fn fault_channel(capacity: usize) -> (FaultSender, FaultListener) {
    let (sender, receiver) = sync_channel(capacity.max(1));
    let dropped = Arc::new(AtomicU64::new(0));
    (
        FaultSender {
            sender,
            dropped: Arc::clone(&dropped),
        },
        FaultListener { receiver, dropped },
    )
}

/// The pager's end of a [`fault_channel`].
#[derive(Debug)]
pub struct FaultSender {
    sender: SyncSender<TraceRecord>,
    dropped: Arc<AtomicU64>,
}

/// Why a [`FaultListener`] has no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// None came in time; there may be more.
    #[error("no fault was served in time")]
    Timeout,
    /// The pager is gone, and all that it had put into the ring was taken out.
    #[error("the pager has ended")]
    Ended,
}

/// The records of the faults that a pager serves, while it serves them.
///
/// They are those of a [trace](crate::trace), with one difference: the time of a fault before the
/// guest's first instruction counts from the start of the pager, for nobody knows yet when that
/// instruction will be. Numbers are those of all faults from 0, so that a gap is what was dropped.
///
/// As an iterator it waits for the next record, and ends with the pager.
#[derive(Debug)]
pub struct FaultListener {
    receiver: Receiver<TraceRecord>,
    dropped: Arc<AtomicU64>,
}

impl FaultListener {
    /// The next record, if there is one already.
    ///
    /// # Errors
    /// [`ListenError::Timeout`] if there is none, [`ListenError::Ended`] if there will be none.
    pub fn try_recv(&self) -> Result<TraceRecord, ListenError> {
        self.receiver.try_recv().map_err(|error| match error {
            TryRecvError::Empty => ListenError::Timeout,
            TryRecvError::Disconnected => ListenError::Ended,
        })
    }

    /// Waits for the next record, up to `timeout`.
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<TraceRecord, ListenError> {
        // `None`: longer than the clock goes.
        let deadline = Instant::now().checked_add(timeout);
        loop {
            match self.try_recv() {
                Err(ListenError::Timeout) => {}
                result => return result,
            }
            let left = deadline.map_or(LOOK_AGAIN, |deadline| {
                deadline.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return Err(ListenError::Timeout);
            }
            thread::sleep(left.min(LOOK_AGAIN));
        }
    }

    /// Faults up to now that found the ring full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Iterator for FaultListener {
    type Item = TraceRecord;

    fn next(&mut self) -> Option<TraceRecord> {
        self.recv_timeout(Duration::MAX).ok()
    }
}

/// What the pager keeps to feed a listener.
pub(crate) struct LiveFeed {
    /// `None` when the listener is gone.
    sender: Option<FaultSender>,
    seen: PageBitmap,
    next_sequence: u64,
}

impl LiveFeed {
    /// A feed for guest memory of `page_count` pages.
    pub(crate) fn new(sender: FaultSender, page_count: u64) -> Self {
        Self {
            sender: Some(sender),
            seen: PageBitmap::new(page_count),
            next_sequence: 0,
        }
    }

    /// Hands on `record`, a touch of the page with number `page_index`, if there is room. Its time
    /// becomes one since `resumed_ns`.
    pub(crate) fn touch(&mut self, page_index: u64, record: TraceRecord, resumed_ns: i64) {
        let Some(FaultSender { sender, dropped }) = &self.sender else {
            return;
        };
        let record = TraceRecord {
            sequence: self.next_sequence,
            is_first_touch: self.seen.insert(page_index),
            ns_since_resume: record.ns_since_resume.saturating_sub(resumed_ns),
            ..record
        };
        self.next_sequence += 1;
        match sender.try_send(record) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                dropped.fetch_add(1, Ordering::Relaxed);
            }
            Err(TrySendError::Disconnected(_)) => self.sender = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_drops_counts_and_never_waits() {
        for capacity in [0, 1, 4] {
            let (sender, listener) = fault_channel(capacity);
            let mut feed = LiveFeed::new(sender, 16);
            let kept = capacity.max(1) as u64;
            for page in 0..10 {
                feed.touch(page, TraceRecord::default(), 0);
            }
            assert_eq!(listener.dropped(), 10 - kept);
            for sequence in 0..kept {
                assert_eq!(listener.try_recv().unwrap().sequence, sequence);
            }
            // There is room again, and the numbers tell of the gap.
            feed.touch(3, TraceRecord::default(), 0);
            let record = listener.try_recv().unwrap();
            assert_eq!((record.sequence, record.is_first_touch), (10, false));
            assert_eq!(listener.try_recv(), Err(ListenError::Timeout));
            let waited = listener.recv_timeout(Duration::from_millis(3));
            assert_eq!(waited, Err(ListenError::Timeout));
            feed.touch(12, TraceRecord::default(), 0);
            drop(feed);
            let rest: Vec<_> = listener.map(|record| record.is_first_touch).collect();
            assert_eq!(rest, [true]);
        }
    }

    #[test]
    fn a_listener_that_is_gone_is_forgotten() {
        let (sender, listener) = fault_channel(4);
        let mut feed = LiveFeed::new(sender, 16);
        drop(listener);
        for page in 0..10 {
            feed.touch(page, TraceRecord::default(), 0);
        }
        assert!(feed.sender.is_none());
    }

    #[test]
    fn times_count_from_the_first_instruction() {
        let (sender, listener) = fault_channel(4);
        let mut feed = LiveFeed::new(sender, 16);
        let record = TraceRecord {
            ns_since_resume: 700,
            ..TraceRecord::default()
        };
        feed.touch(0, record, 500);
        assert_eq!(listener.try_recv().unwrap().ns_since_resume, 200);
    }
}
