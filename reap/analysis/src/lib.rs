//! **Unstable.** What a fault trace tells: statistics, exports and reports.
//!
//! | part | what it does |
//! |---|---|
//! | [`Statistics`] | counts, distributions and curves of a trace, in one pass |
//! | [`Comparison`] | which pages two traces share, and how alike their orders are |
//! | [`TouchesBySymbol`] | touches by the guest's functions, where the trace has its instructions |
//! | [`export`] | CSV, JSON lines, Apache Parquet, Chrome's trace-event JSON |
//! | [`report`](mod@report) | one HTML file with figures, their tables, and no need of a network |
//! | [`study`] | the same on what `reapvm study` has measured of several functions |
//!
//! Everything reads a trace record by record. What is kept grows with the pages that were touched,
//! at most a few tens of bytes each, and not with the records.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::panic,
        reason = "a test fails by panicking"
    )
)]

pub mod command;
mod comparison;
mod dataset;
pub mod export;
mod histogram;
mod page_set;
mod plot;
pub mod report;
mod space;
mod statistics;
pub mod study;
mod symbols;
#[cfg(test)]
mod test_studies;
#[cfg(test)]
mod test_traces;

pub use comparison::Comparison;
pub use histogram::{Bucket, Histogram};
pub use page_set::PageSet;
pub use space::{AddressBin, AddressMap};
pub use statistics::{CurvePoint, PhaseCounts, Statistics, ThreadCounts};
pub use symbols::{SymbolTable, SymbolTouches, SymbolsError, TouchesBySymbol};

/// Length of a page of guest memory, in bytes.
pub(crate) const PAGE_BYTES: u64 = reapvm_snapshot::PAGE_SIZE as u64;
