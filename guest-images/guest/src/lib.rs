//! The parts of the built-in guest that need no machine: what the boot loader left, the kernel
//! command line, the heap, and the vsock server. They are plain `no_std` code with unit tests on
//! the host; the binary beside them (`main.rs`, feature `freestanding`) puts them on a machine.

#![cfg_attr(not(test), no_std)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

extern crate alloc;

pub mod boot;
pub mod cmdline;
pub mod heap;
pub mod packet;
pub mod server;

// The binary's, included to be tested on the host, under names of their own.
#[cfg(test)]
mod intrinsics;
