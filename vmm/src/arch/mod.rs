//! **Unstable.** What is particular to x86-64: the guest-physical layout, CPUID, MSRs, segments, tables.

pub mod cpuid;
pub mod layout;
pub mod msr;
pub mod segments;
