//! What may be changed of a machine that lives, in the vocabulary of Firecracker's `PATCH`
//! requests.

use std::path::PathBuf;

use reapvm_devices::rate_limiter::RateLimiterConfig;
use serde::{Deserialize, Serialize};

/// Changes of a drive. What is not named stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveUpdate {
    /// The drive's id.
    pub drive_id: String,
    /// Another file. The same path again: the file is measured anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Buckets that take the place of those there are. One whose size or refill time is 0 is no
    /// limit; one that is not named stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterConfig>,
}

/// Changes of a network device. What is not named stays; buckets as in [`DriveUpdate`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkUpdate {
    /// The device's id.
    pub iface_id: String,
    /// Limits of what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiterConfig>,
    /// Limits of what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiterConfig>,
}

/// Another target of the balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// How much memory the guest is to give back in all, in MiB.
    pub amount_mib: u32,
}

/// Another interval of the balloon's statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatsUpdate {
    /// How often the guest reports, in seconds. Whether it does is settled when it boots.
    pub stats_polling_interval_s: u16,
}
