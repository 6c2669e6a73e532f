//! The settings of each device.

use std::path::PathBuf;

use reapvm_devices::rate_limiter::RateLimiterConfig;
use reapvm_devices::virtio::net::MacAddress;
use serde::{Deserialize, Serialize};

/// Guest CID of the vsock device unless another is given; 0 to 2 are reserved.
pub const DEFAULT_GUEST_CID: u32 = 3;
/// Longest id of a device, in bytes.
pub(super) const MAX_ID_BYTES: usize = 64;

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveSettings {
    /// Its name among the drives.
    pub drive_id: String,
    /// A raw file or a block device.
    pub path_on_host: PathBuf,
    /// Whether it holds the root file system: the kernel is told so on its command line.
    #[serde(default)]
    pub is_root_device: bool,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub is_read_only: bool,
    /// Limits of its rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterConfig>,
}

impl DriveSettings {
    /// A drive that can be written, and is not the root device.
    pub fn new(drive_id: String, path_on_host: PathBuf) -> Self {
        Self {
            drive_id,
            path_on_host,
            is_root_device: false,
            is_read_only: false,
            rate_limiter: None,
        }
    }
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSettings {
    /// Its name among the network devices.
    pub iface_id: String,
    /// The tap device of the host.
    pub host_dev_name: String,
    /// The guest's MAC address; none: one is derived from the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<MacAddress>,
    /// Limits of what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiterConfig>,
    /// Limits of what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiterConfig>,
}

impl NetworkSettings {
    /// A network device without limits, its MAC address derived.
    pub fn new(iface_id: String, host_dev_name: String) -> Self {
        Self {
            iface_id,
            host_dev_name,
            guest_mac: None,
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        }
    }
}

/// The vsock device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockSettings {
    /// The guest's context id.
    pub guest_cid: u32,
    /// Unix socket on which the host's programs connect; none: only the launcher itself can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uds_path: Option<PathBuf>,
}

impl Default for VsockSettings {
    fn default() -> Self {
        Self {
            guest_cid: DEFAULT_GUEST_CID,
            uds_path: None,
        }
    }
}

/// The balloon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonSettings {
    /// How much memory the guest is to give back, in MiB.
    #[serde(default)]
    pub amount_mib: u32,
    /// Whether the guest may take memory back before it kills a process for want of some.
    #[serde(default)]
    pub deflate_on_oom: bool,
    /// How often the guest reports statistics, in seconds; 0: never.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
}

/// The entropy device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntropySettings {}
