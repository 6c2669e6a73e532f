//! How guest memory comes back when a snapshot is restored.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How guest memory comes back when a snapshot is restored.
///
/// A mode that cannot run is an error: no mode stands in for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryRestoreMode {
    /// The whole memory file is read before the first instruction; nothing faults afterwards.
    Copy,
    /// The memory file is mapped privately and the kernel serves the faults: the baseline of the
    /// REAP paper. What the kernel serves is not verified against its checksum.
    File,
    /// The pager serves each page at its first touch.
    OnDemand,
    /// As [`OnDemand`](Self::OnDemand), and the pager keeps the order of the first touches.
    Record,
    /// The working set is installed before the first instruction, the pager serves what it misses.
    Prefetch,
}

/// A name that is none of the restore modes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown memory restore mode \"{name}\": use one of copy, file, ondemand, record or prefetch"
)]
pub struct ParseMemoryRestoreModeError {
    /// The name as it was given.
    pub name: String,
}

impl MemoryRestoreMode {
    /// All modes, in the order in which they are documented.
    pub const ALL: [Self; 5] = [
        Self::Copy,
        Self::File,
        Self::OnDemand,
        Self::Record,
        Self::Prefetch,
    ];

    /// The name that the command line, the API and the results use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::File => "file",
            Self::OnDemand => "ondemand",
            Self::Record => "record",
            Self::Prefetch => "prefetch",
        }
    }

    /// Whether a [`Pager`](crate::Pager) serves faults in this mode.
    #[must_use]
    pub fn uses_pager(self) -> bool {
        matches!(self, Self::OnDemand | Self::Record | Self::Prefetch)
    }

    /// Whether the pager records the first touches in this mode.
    #[must_use]
    pub fn records(self) -> bool {
        self == Self::Record
    }
}

impl fmt::Display for MemoryRestoreMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for MemoryRestoreMode {
    type Err = ParseMemoryRestoreModeError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.as_str() == name)
            .ok_or_else(|| ParseMemoryRestoreModeError {
                name: name.to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_agree_with_serde() {
        for mode in MemoryRestoreMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
            let json = serde_json::to_string(&mode).unwrap();
            assert_eq!(json, format!("\"{mode}\""));
            assert_eq!(
                serde_json::from_str::<MemoryRestoreMode>(&json).unwrap(),
                mode
            );
        }
    }

    #[test]
    fn an_unknown_name_is_refused_and_the_message_lists_the_modes() {
        let error = "lazy".parse::<MemoryRestoreMode>().unwrap_err();
        for mode in MemoryRestoreMode::ALL {
            assert!(error.to_string().contains(mode.as_str()), "{error}");
        }
    }
}
