//! A record with its names resolved: a line of a text export.

use reapvm_reap::trace::TraceRecord;
use serde::Serialize;

use super::ThreadNames;

/// A record of a trace. The names are those of the columns, in every format.
#[derive(Serialize)]
pub(super) struct Row<'a> {
    sequence: u64,
    ns_since_resume: i64,
    gpa: u64,
    hva: u64,
    access: &'static str,
    phase: &'static str,
    outcome: &'static str,
    first_touch: bool,
    service_ns: u64,
    queue_depth: u32,
    thread_id: u32,
    thread: &'a str,
    thread_kind: &'static str,
    vcpu: Option<u32>,
    rip: Option<u64>,
}

/// The name of a phase.
pub(super) fn phase_name(phase: reapvm_reap::Phase) -> &'static str {
    use reapvm_reap::Phase;
    match phase {
        Phase::Restore => "restore",
        Phase::Connection => "connection",
        Phase::Request => "request",
        Phase::Idle => "idle",
    }
}

impl<'a> Row<'a> {
    pub(super) fn new(record: &TraceRecord, names: &'a ThreadNames) -> Self {
        let (thread, thread_kind, vcpu) = names.of(record.thread_id);
        Self {
            sequence: record.sequence,
            ns_since_resume: record.ns_since_resume,
            gpa: record.gpa,
            hva: record.hva,
            access: record.access.as_str(),
            phase: phase_name(record.phase),
            outcome: record.outcome.as_str(),
            first_touch: record.is_first_touch,
            service_ns: record.service_ns,
            queue_depth: record.queue_depth,
            thread_id: record.thread_id,
            thread,
            thread_kind,
            vcpu,
            rip: record.rip,
        }
    }
}
