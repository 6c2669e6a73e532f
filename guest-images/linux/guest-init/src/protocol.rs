//! Requests to the guest: one line of JSON each, and a line for the answer.
//!
//! ```text
//! {"op":"memory_digest","pages":256,"seed":7}
//! {"ok":true,"op":"memory_digest","result":{"sha256":"…"}}
//! ```
//!
//! or `"ok":false` with an `"error"`. That is the reply of the built-in guest too, so that
//! `reapvm invoke` can call either.

use serde::{Deserialize, Serialize};

/// The vsock port on which the guest serves.
pub const PORT: u32 = 5000;
/// The line by which it says that it does.
pub const READY_LINE: &str = "ready";
/// What the kernel's log says when [`Request::NetUp`] has been done, before it is answered.
pub const NET_UP_LOG: &str = "guest-init: eth0 is up";
/// Longest request, in bytes.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Most requests in a sequence.
pub const MAX_SEQUENCE: usize = 16;
/// Most datagrams that are sent at once.
pub const MAX_DATAGRAMS: u32 = 1024;
/// Largest piece of memory, of a disk or of an HTTP body that is worked on at once, in bytes.
pub const MAX_WORK_BYTES: u64 = 256 << 20;

/// What the guest is asked to do. Sizes and offsets are bytes unless they say otherwise.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Does one request after the other, up to the first that fails; the results in a list. For those
    /// who can make but one, as for the warm-up of a snapshot.
    Sequence {
        /// At most [`MAX_SEQUENCE`], and none of them a sequence.
        requests: Vec<Request>,
    },
    /// Gives `value` back.
    Echo {
        /// Anything.
        value: serde_json::Value,
    },
    /// CLOCK_REALTIME, CLOCK_MONOTONIC and CLOCK_BOOTTIME, in ns, and the clock source.
    Clock {},
    /// Sleeps by a timer and says how long it took by CLOCK_MONOTONIC.
    Sleep {
        /// How long.
        ms: u64,
    },
    /// 16 bytes of getrandom.
    Random {},
    /// How many CPUs are online, that each of them runs a thread, and how the kernel groups them in
    /// packages and cores.
    Cpus {},
    /// `/proc/meminfo`, in KiB.
    Memory {},
    /// Waits until the kernel counts at most this much memory in all, as when a balloon has taken
    /// the rest; `/proc/meminfo` then. The longest wait is a minute.
    MemoryShrunk {
        /// In KiB.
        total_kib: u64,
    },
    /// The digest of `pages` pages of seeded bytes that the guest keeps from then on: the same
    /// `pages` and `seed` again read what is kept. With it, where the highest of the pages is in
    /// guest-physical memory, or null if the kernel does not say.
    MemoryDigest {
        /// How many pages of 4 KiB.
        pages: u64,
        /// Seed of the bytes.
        seed: u64,
    },
    /// The digest of a part of the disk, read past the page cache.
    BlockDigest {
        /// Start: a multiple of 4096.
        offset: u64,
        /// Length: a multiple of 4096.
        bytes: u64,
    },
    /// Writes seeded bytes to the disk, past the page cache, and flushes.
    BlockWrite {
        /// Start: a multiple of 4096.
        offset: u64,
        /// Length: a multiple of 4096.
        bytes: u64,
        /// Seed of the bytes: those of a part of the disk follow from its offset.
        seed: u64,
    },
    /// As `block_write`, but answers when the first piece is written and goes on with the rest.
    BlockWriteStart {
        /// Start: a multiple of 4096.
        offset: u64,
        /// Length: a multiple of 4096.
        bytes: u64,
        /// Seed of the bytes.
        seed: u64,
    },
    /// Waits until what `block_write_start` has begun is done; how much was done before.
    BlockWriteWait {},
    /// Size of the disk, and whether it can only be read.
    BlockInfo {},
    /// Gives eth0 an address and brings it up, and says so in the kernel's log.
    NetUp {
        /// An IPv4 address.
        address: std::net::Ipv4Addr,
        /// Length of the network's prefix, in bits.
        prefix_bits: u8,
    },
    /// Address and counters of eth0; `tx_in_flight_bytes` is what the driver has given to the device
    /// and not got back, `tx_timeouts` how often the kernel's watchdog found a queue standing still.
    NetInfo {},
    /// Sends UDP datagrams to the broadcast address of a network, one right after the other: their
    /// number, from 0 on, as 4 bytes in network order.
    NetBroadcast {
        /// Where to, which must be a broadcast address.
        to: std::net::SocketAddrV4,
        /// How many, at most [`MAX_DATAGRAMS`].
        datagrams: u32,
    },
    /// Fetches `path` by HTTP and gives the body's length and digest.
    HttpGet {
        /// Where the server is.
        server: std::net::SocketAddrV4,
        /// What to ask for.
        path: String,
    },
    /// Serves seeded bytes by HTTP on a port from now on, whatever is asked for.
    HttpServe {
        /// TCP port.
        port: u16,
        /// Length of the body.
        bytes: u64,
        /// Seed of the body.
        seed: u64,
    },
    /// The kernel's log.
    Dmesg {},
    /// Makes the kernel panic; there is no answer.
    Panic {},
    /// Resets the machine by the keyboard controller (`reboot=k`); there is no answer.
    Reboot {},
}
