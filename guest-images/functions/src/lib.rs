//! The ten functions of the built-in guest and the protocol it serves them with.
//!
//! The names are FunctionBench's (Kim and Lee, CLOUD 2019), which the REAP paper (Ustiugov et al.,
//! ASPLOS 2021) measures; the work behind each name is real and its result can be checked by an
//! independent computation (feature `reference`, which is for the host and needs std).
//!
//! Without that feature the crate is `no_std` with `alloc`, so that the freestanding guest and the
//! host use the very same code: the host reads [`FUNCTIONS`] for names, memory sizes and default
//! inputs, the guest calls [`initialise`] once and [`protocol::handle_request`] for every line.
//!
//! Two more ([`EXTRA_FUNCTIONS`]) only read memory, so that working sets of any size can be measured
//! behind a guest.
//!
//! Every one of the ten functions is served by a small interpreter with an imported library
//! (`runtime`), as the Python of the original suite serves them: a booted function holds far more
//! than one request touches, and what a request touches lies scattered over that heap.

#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

extern crate alloc;
#[cfg(feature = "reference")]
extern crate std;

// The alias lets the workspace pin the crate twice: with std for the host's crates, without here.
use serde_json_alloc as serde_json;

mod digest;
mod error;
mod function;
mod functions;
mod parameters;
pub mod protocol;
mod random;
#[cfg(feature = "reference")]
pub mod reference;
mod runtime;
mod template;

pub use error::FunctionError;
pub use function::{EXTRA_FUNCTIONS, FUNCTIONS, Function, FunctionInfo, find, initialise};
pub use parameters::SizeParameter;
