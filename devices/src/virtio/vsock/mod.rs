//! The socket device (5.10). Its host side is Unix sockets, as Firecracker has them, and streams
//! that the process itself hands in.
//!
//! - A client connects to the socket `uds_path`, sends `CONNECT <port>\n`, and reads
//!   `OK <assigned host port>\n` once the guest has accepted; from then on it talks to the guest.
//!   A guest that refuses closes the client's socket.
//! - A guest that connects to port `p` of the host reaches the socket `<uds_path>_<p>`.
//! - [`VsockHandle::connect`] connects a stream of this process, with no socket file and no
//!   handshake.

mod connection;
mod device;
mod handle;
mod handshake;
mod listener;
mod muxer;
mod packet;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use device::Vsock;
pub use handle::{VsockConnectError, VsockHandle};

/// The CID of the host (5.10.4).
pub const HOST_CID: u64 = 2;
/// The CID that a guest has if it is not told otherwise.
pub const DEFAULT_GUEST_CID: u32 = 3;
/// Connections that a device has at most. Handshakes that are not done are bounded by themselves.
pub const MAX_CONNECTIONS: usize = 1023;

/// How a socket device is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockConfig {
    /// CID of the guest: 3 to 0xffff_fffe.
    pub guest_cid: u32,
    /// Where the host's clients connect. Without it there is no socket file, the guest cannot
    /// connect to the host, and connections come by the [`VsockHandle`] only.
    pub uds_path: Option<PathBuf>,
}

impl Default for VsockConfig {
    fn default() -> Self {
        Self {
            guest_cid: DEFAULT_GUEST_CID,
            uds_path: None,
        }
    }
}

/// Why a socket device could not be made.
#[derive(Debug, Error)]
pub enum VsockError {
    /// The CID is reserved.
    #[error("the guest CID {0} is reserved: choose one from 3 to 4294967294")]
    ReservedCid(u32),
    /// Something is where the socket should be.
    #[error(
        "the vsock path {} exists: remove it if no other virtual machine uses it, or choose another",
        path.display()
    )]
    PathExists {
        /// The path.
        path: PathBuf,
    },
    /// The socket could not be made.
    #[error("cannot listen at the vsock path {}", path.display())]
    Listen {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host has no descriptor for the device's events.
    #[error("cannot set up the events of the vsock device")]
    Events(#[source] io::Error),
}

/// What a snapshot keeps of a socket device. Connections do not survive: their other end is a
/// socket of a process that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// CID of the guest.
    pub guest_cid: u32,
    /// The next port of the host that a connection gets: one that the guest may remember is not
    /// used again soon.
    pub next_host_port: u32,
    /// Whether the guest may believe in connections that are gone: it is told by a transport
    /// reset event (5.10.6.7) then.
    pub reset_needed: bool,
}
