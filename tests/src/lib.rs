//! What the integration tests of reapvm share: scratch directories on a real disk, the launcher's
//! binary, snapshots to restore and to damage, tiny guests, and a watch on tests that hang.
//!
//! The tests run real machines: they need `/dev/kvm` and `/dev/userfaultfd`. Those that take a
//! device away do it in a mount namespace of their own, for which they must run as root.
#![allow(clippy::unwrap_used, clippy::panic)]

pub mod disk_guest;
pub mod fuzzed;
pub mod guest;
pub mod launcher;
pub mod namespace;
pub mod reports;
pub mod scratch;
pub mod server;
pub mod snapshots;
pub mod socket;
pub mod watchdog;
