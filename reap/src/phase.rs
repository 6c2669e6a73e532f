//! What the virtual machine is doing when a page is touched for the first time.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

/// What the virtual machine is doing when a page is touched: a trace record carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Phase {
    /// From the start of the pager until the host connects to the guest.
    #[default]
    Restore = 0,
    /// While the connection to the guest is set up.
    Connection = 1,
    /// From the request until its response.
    Request = 2,
    /// After the response.
    Idle = 3,
}

impl Phase {
    /// The phase that a file stores as `value`, `None` if there is none.
    pub(crate) fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Restore),
            1 => Some(Self::Connection),
            2 => Some(Self::Request),
            3 => Some(Self::Idle),
            _ => None,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Restore => "restore",
            Self::Connection => "connection",
            Self::Request => "request",
            Self::Idle => "idle",
        })
    }
}

/// The current [`Phase`], set by whoever drives the invocation and read by the pager.
#[derive(Debug)]
pub struct PhaseCell(AtomicU8);

impl PhaseCell {
    /// A cell that holds `phase`.
    #[must_use]
    pub fn new(phase: Phase) -> Self {
        Self(AtomicU8::new(phase as u8))
    }

    /// Enters `phase`.
    pub fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Relaxed);
    }

    /// The current phase.
    #[must_use]
    pub fn get(&self) -> Phase {
        // Only `new` and `set` write, and they write a `Phase`.
        Phase::from_u8(self.0.load(Ordering::Relaxed)).unwrap_or(Phase::Restore)
    }
}

impl Default for PhaseCell {
    fn default() -> Self {
        Self::new(Phase::Restore)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cell_returns_what_was_set() {
        let cell = PhaseCell::default();
        assert_eq!(cell.get(), Phase::Restore);
        for phase in [
            Phase::Connection,
            Phase::Request,
            Phase::Idle,
            Phase::Restore,
        ] {
            cell.set(phase);
            assert_eq!(cell.get(), phase);
        }
    }

    #[test]
    fn stored_values_round_trip_and_others_are_refused() {
        for value in 0..=u8::MAX {
            match Phase::from_u8(value) {
                Some(phase) => assert_eq!(phase as u8, value),
                None => assert!(value > 3),
            }
        }
    }
}
