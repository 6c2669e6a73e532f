//! Devices of a virtual machine: the bus, the legacy serial port and i8042, and the virtio
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
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
