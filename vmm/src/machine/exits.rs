//! How a machine learns that its guest has ended.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::OwnedFd;

use crate::vcpu::GuestExit;

/// The guest's end: a value to wait for and a descriptor to poll.
pub struct ExitEvents {
    reason: Mutex<Option<GuestExit>>,
    changed: Condvar,
    event: OwnedFd,
}

impl ExitEvents {
    /// Nothing has ended yet.
    ///
    /// # Errors
    /// No eventfd can be had.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self {
            reason: Mutex::new(None),
            changed: Condvar::new(),
            event,
        })
    }

    /// The guest has ended; the first reason stands.
    pub fn end(&self, reason: GuestExit) {
        let mut current = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if current.is_none() {
            *current = Some(reason);
            self.changed.notify_all();
            // The counter starts at zero and is written once: it cannot overflow.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// Why the guest has ended, if it has.
    pub fn reason(&self) -> Option<GuestExit> {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for the end; none if there is none after `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<GuestExit> {
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        let none = |reason: &mut Option<GuestExit>| reason.is_none();
        match timeout {
            None => self
                .changed
                .wait_while(reason, none)
                .unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                self.changed
                    .wait_timeout_while(reason, timeout, none)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        }
        .clone()
    }
}

impl AsFd for ExitEvents {
    /// Readable once the guest has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
