//! Stock Linux guests under the processor mode that users have, on any machine: QEMU emulates a
//! processor with SVM, a Debian kernel with its own `kvm_amd` runs on it, and reapvm runs inside.
//!
//! [`host`] is outside: it makes the disk and the initial RAM disks, starts QEMU for each job and
//! judges its console. [`nested`] is inside: the first program of the nested host, and the jobs.

pub mod host;
pub mod nested;
pub mod verdict;
