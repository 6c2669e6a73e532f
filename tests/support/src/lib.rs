//! What the tests of several crates share. It depends on none of them.

mod refused;

pub use refused::{Refused, without};
