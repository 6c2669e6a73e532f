//! The network device (5.1) on a tap interface of the host: frames, checksum and TCP segmentation
//! offloads, mergeable receive buffers, and a rate limit for each direction.
//!
//! The tap does the offloads: a frame goes through with its virtio header (`IFF_VNET_HDR`), and
//! `TUNSETOFFLOAD` tells the host which of them the guest took. UDP fragmentation offload is not
//! offered: Linux has had it in software only since 4.14.

mod device;
mod header;
mod mac;
mod rx;
mod tap;
#[cfg(test)]
mod tests;
mod tx;

use std::io;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::rate_limiter::{RateLimiterConfig, RateLimiterError, RateLimiterState};

pub use device::Net;
pub use mac::{MacAddress, MacAddressError};

/// Frames for the guest.
const RX_QUEUE: usize = 0;
/// Frames of the guest.
const TX_QUEUE: usize = 1;

/// The longest frame, in bytes, either way: 64 KiB of a segmented packet with an Ethernet header,
/// a VLAN tag and some room.
const MAX_FRAME_BYTES: usize = 65562;

/// What a network device is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// The device's name in the configuration and in a snapshot.
    pub id: String,
    /// Name of the host's tap interface. One that exists is used; otherwise it is made, and goes
    /// with the device. Addresses, bridges and `up` are the host's business.
    pub tap: String,
    /// The guest's MAC address. `None`: a new device gets a random, locally administered one, and
    /// a restored device the saved one. `Some` on a restore takes the place of the saved one in
    /// the configuration space; a guest that runs does not read it again, and goes on with the
    /// address that it has until its driver starts anew.
    pub mac: Option<MacAddress>,
    /// Limit of what the guest receives.
    pub rx_rate_limiter: RateLimiterConfig,
    /// Limit of what the guest sends.
    pub tx_rate_limiter: RateLimiterConfig,
}

/// Why there is no network device.
#[derive(Debug, Error)]
pub enum NetError {
    /// No interface can have this name.
    #[error("'{name}' is not the name of a tap interface: {reason}")]
    TapName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The host has no tun driver.
    #[error("there is no /dev/net/tun for tap '{name}': load the module with 'modprobe tun'")]
    NoTunDriver {
        /// The interface's name.
        name: String,
    },
    /// `/dev/net/tun` may not be opened.
    #[error(
        "no permission to open /dev/net/tun for tap '{name}': make it readable and writable for \
         this user"
    )]
    TunPermission {
        /// The interface's name.
        name: String,
    },
    /// The interface may not be used or made.
    #[error(
        "no permission for tap '{name}': run with CAP_NET_ADMIN, or make it for this user with 'ip \
         tuntap add dev {name} mode tap vnet_hdr user USER'"
    )]
    TapPermission {
        /// The interface's name.
        name: String,
    },
    /// The interface is in use.
    #[error("tap '{name}' is in use by another process: give every virtual machine its own")]
    TapBusy {
        /// The interface's name.
        name: String,
    },
    /// The interface is something else.
    #[error(
        "interface '{name}' is not a tap with one queue: use another name, or make it anew with \
         'ip tuntap add dev {name} mode tap vnet_hdr'"
    )]
    NotATap {
        /// The interface's name.
        name: String,
    },
    /// The host failed.
    #[error("cannot {operation} tap '{name}'")]
    Tap {
        /// The interface's name.
        name: String,
        /// What could not be done.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A rate limiter cannot be made.
    #[error("cannot make the {direction} rate limiter of network device '{id}'")]
    RateLimiter {
        /// The device's name.
        id: String,
        /// "receive" or "transmit".
        direction: &'static str,
        /// Why.
        source: RateLimiterError,
    },
    /// There is no random MAC address.
    #[error("cannot make a random mac address for network device '{id}': {reason}; configure one")]
    RandomMac {
        /// The device's name.
        id: String,
        /// Why.
        reason: String,
    },
}

/// What a snapshot keeps of a network device. A frame that waits for a buffer of the guest is not
/// kept: networks lose frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The device's name.
    pub id: String,
    /// The tap interface that it had. It does not need to be there again: the restored device has
    /// the tap of its own configuration.
    pub tap: String,
    /// The guest's MAC address.
    pub mac: MacAddress,
    /// What the receive limiter had left.
    pub rx_rate_limiter: RateLimiterState,
    /// What the transmit limiter had left.
    pub tx_rate_limiter: RateLimiterState,
    /// Whether frames of the guest wait for the transmit limiter.
    pub tx_waits: bool,
}
