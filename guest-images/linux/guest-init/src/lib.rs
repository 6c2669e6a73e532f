//! The first program (`init`) of a Linux guest in tests, and what other such programs share with
//! it: pseudo file systems, kernel modules, network interfaces, and seeded bytes with their digest,
//! so that a host can say beforehand what a guest has to answer.
//!
//! The program itself prints `ready` on the console and serves lines of JSON on vsock port 5000:
//! see [`protocol`].

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod filesystems;
pub mod http;
pub mod interface;
pub mod kernel_modules;
pub mod protocol;
pub mod seeded;
