//! The memory balloon device (5.5): takes pages from the guest, so that the host gets their memory
//! back, and tells what the guest says of its memory.
//!
//! What "getting the memory back" is depends on how guest memory is mapped, so the device is given
//! a [`PageRelease`]: [`release_anonymous`] for private anonymous memory, under a userfaultfd too.
//! In a private mapping of a file the same call lets the file's old content come back, and frees
//! only what the guest had written since: whoever mapped memory decides.

mod device;
mod handle;
mod pages;
mod stats;
#[cfg(test)]
mod tests;

use std::io;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use device::Balloon;
pub use handle::{BalloonHandle, BalloonStats};
pub use pages::{PageRelease, release_anonymous};
pub use stats::GuestMemoryStats;

/// Pages of the device in a MiB: they have 4096 bytes, whatever the guest's have (5.5.6).
const PAGES_PER_MIB: u32 = 256;
/// The largest target, in MiB: its pages are counted in 32 bits.
const MAX_TARGET_MIB: u32 = u32::MAX / PAGES_PER_MIB;

/// Pages that the guest gives up.
const INFLATE_QUEUE: usize = 0;
/// Pages that the guest takes back.
const DEFLATE_QUEUE: usize = 1;
/// Statistics of the guest, if the device has them.
const STATS_QUEUE: usize = 2;

/// What a balloon device is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// MiB that the guest is asked to give up at first. The device does not compare it with the
    /// guest's memory.
    pub amount_mib: u32,
    /// Whether the guest may take pages back on its own before it runs out of memory.
    pub deflate_on_oom: bool,
    /// Seconds between two requests for the guest's statistics; 0 for none, ever.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
}

/// Why a balloon could not be made or set.
#[derive(Debug, Error)]
pub enum BalloonError {
    /// The pages cannot be counted.
    #[error("a balloon of {0} MiB is too large: at most {MAX_TARGET_MIB} MiB")]
    TargetTooLarge(u32),
    /// The host failed.
    #[error("cannot make or use an eventfd or a timerfd for the balloon")]
    Io(#[source] io::Error),
}

/// What a snapshot keeps of a balloon device. Statistics are asked for anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// Pages of 4 KiB that the guest is to give up.
    pub target_pages: u32,
    /// Pages of 4 KiB that the guest says it has given up.
    pub actual_pages: u32,
    /// Whether the guest is still to be told of the target.
    pub target_is_news: bool,
}

/// The pages in `mib` MiB.
fn pages_of(mib: u32) -> Result<u32, BalloonError> {
    mib.checked_mul(PAGES_PER_MIB)
        .ok_or(BalloonError::TargetTooLarge(mib))
}
