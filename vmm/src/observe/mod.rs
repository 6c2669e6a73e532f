//! Observing which pages a guest touches, and writing it down as a trace.

mod pager_trace;

pub(crate) use pager_trace::write_first_touches;
pub use pager_trace::{TraceOptions, TraceReport, write_pager_trace};
