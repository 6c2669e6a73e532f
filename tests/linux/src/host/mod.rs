//! Outside the nested host.

pub mod disk;
pub mod initrd;
pub mod kernels;
pub mod modules;
pub mod monitor;
pub mod programs;
pub mod qemu;
pub mod selection;
pub mod tools;
