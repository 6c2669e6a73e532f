//! What the tests of several crates share. It depends on none of them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod failing_disk;
mod refused;

pub use failing_disk::FailingDisk;
pub use refused::{Refused, without};
