//! **Unstable.** Devices of a virtual machine: the bus, the legacy serial port and i8042, and the virtio
//! devices over the virtio-mmio transport.
//!
//! Every byte that a guest or a saved state hands in is untrusted: it is checked, bounded, and
//! never panics the process.

// A test may end by a panic: that is how it fails.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod announce;
pub mod bus;
pub mod legacy;
pub mod persist;
pub mod rate_limiter;
pub mod virtio;

pub use announce::virtio_mmio_parameter;
pub use bus::{Bus, BusDevice, BusInsertError};
pub use rate_limiter::{RateLimiter, RateLimiterConfig, RateLimiterError, TokenBucketConfig};

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(any(test, feature = "fuzzing"))]
mod test_driver;

/// Guest memory as the devices see it. Cloning it is cheap: the regions are shared.
pub type GuestMemory = vm_memory::GuestMemoryMmap<DirtyBitmap>;

/// The pages of a region that this process has written, or dropped, one bit a page; none where
/// nobody asks for them. Writes by `vm-memory` mark themselves; who lets the kernel write, or
/// drops pages, has to mark them.
pub type DirtyBitmap = Option<vm_memory::bitmap::AtomicBitmap>;

/// A piece of guest memory that lies in one piece on the host.
pub type GuestSlice<'a> = vm_memory::VolatileSlice<'a, vm_memory::bitmap::BS<'a, DirtyBitmap>>;
