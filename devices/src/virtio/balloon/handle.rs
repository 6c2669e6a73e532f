//! The host's handle on a balloon: for any thread.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{BalloonError, GuestMemoryStats, PAGES_PER_MIB, pages_of};

/// What there is to know of a balloon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonStats {
    /// Pages of 4 KiB that the guest is to give up.
    pub target_pages: u32,
    /// Pages of 4 KiB that the guest says it has given up.
    pub actual_pages: u32,
    /// [`target_pages`](Self::target_pages) in MiB.
    pub target_mib: u32,
    /// [`actual_pages`](Self::actual_pages) in whole MiB.
    pub actual_mib: u32,
    /// What the guest said last of its memory; `None` if it has not, or statistics are off.
    pub guest: Option<GuestMemoryStats>,
}

/// What the device and its handles share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) target_pages: AtomicU32,
    pub(super) actual_pages: AtomicU32,
    guest: Mutex<Option<GuestMemoryStats>>,
    /// Tells the event loop that the target changed.
    pub(super) evt: EventFd,
}

impl Shared {
    pub(super) fn new(target_pages: u32) -> io::Result<Self> {
        Ok(Self {
            target_pages: AtomicU32::new(target_pages),
            actual_pages: AtomicU32::new(0),
            guest: Mutex::new(None),
            evt: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    pub(super) fn set_guest_stats(&self, stats: Option<GuestMemoryStats>) {
        *self.guest.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// Has the event loop tell the guest of the target.
    pub(super) fn announce(&self) -> io::Result<()> {
        match self.evt.write(1) {
            // Full: the event loop has enough to read.
            Err(err) if err.kind() != io::ErrorKind::WouldBlock => Err(err),
            _ => Ok(()),
        }
    }
}

/// Sets and reads a balloon, from any thread.
#[derive(Clone, Debug)]
pub struct BalloonHandle(pub(super) Arc<Shared>);

impl BalloonHandle {
    /// Asks the guest to give up `mib` MiB in all: to inflate or to deflate, as it may be. The
    /// guest comes to it when it wants, and not further than it can.
    ///
    /// # Errors
    /// When the pages of so much memory cannot be counted in 32 bits, or the event loop cannot be
    /// told.
    pub fn set_target_mib(&self, mib: u32) -> Result<(), BalloonError> {
        let pages = pages_of(mib)?;
        self.0.target_pages.store(pages, Ordering::SeqCst);
        self.0.announce().map_err(BalloonError::Io)
    }

    /// What there is to know now. What comes from the guest is what it chose to say.
    pub fn stats(&self) -> BalloonStats {
        let target_pages = self.0.target_pages.load(Ordering::SeqCst);
        let actual_pages = self.0.actual_pages.load(Ordering::SeqCst);
        BalloonStats {
            target_pages,
            actual_pages,
            target_mib: target_pages / PAGES_PER_MIB,
            actual_mib: actual_pages / PAGES_PER_MIB,
            guest: *self.0.guest.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}
