//! Trace-event JSON: each fault as a span of its thread, for Perfetto's and Chrome's viewers.
//!
//! Source: "Trace Event Format", the JSON object format with complete events (`ph` "X") and metadata
//! events (`ph` "M"). Times are microseconds of CLOCK_MONOTONIC, so that other traces of the host
//! lie beside it.

use std::io::{BufWriter, Read, Seek, Write};

use reapvm_reap::trace::{TraceReader, TraceRecord};
use serde::Serialize;
use serde_json::json;

use super::row::phase_name;
use super::{ExportError, ThreadNames};

/// The one process of the view.
const PID: u32 = 1;

#[derive(Serialize)]
struct Event {
    name: &'static str,
    cat: &'static str,
    ph: &'static str,
    ts: f64,
    dur: f64,
    pid: u32,
    tid: u32,
    args: Arguments,
}

#[derive(Serialize)]
struct Arguments {
    /// As text: viewers show numbers as decimal ones.
    gpa: String,
    access: &'static str,
    first_touch: bool,
    queue_depth: u32,
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rip: Option<String>,
}

pub(super) fn write<R: Read + Seek>(
    reader: &mut TraceReader<R>,
    output: impl Write,
) -> Result<u64, ExportError> {
    let mut output = BufWriter::new(output);
    let header = reader.header().clone();
    let names = ThreadNames::new(reader.summary());
    output.write_all(b"{\"displayTimeUnit\":\"ns\",\"otherData\":")?;
    serde_json::to_writer(
        &mut output,
        &json!({"header": header, "summary": reader.summary()}),
    )?;
    output.write_all(b",\"traceEvents\":[\n")?;
    let process = header.function.as_deref().unwrap_or("reapvm");
    serde_json::to_writer(
        &mut output,
        &json!({"ph": "M", "name": "process_name", "pid": PID, "tid": 0,
                "args": {"name": format!("{process} ({})", header.mode)}}),
    )?;
    for thread in &reader.summary().threads {
        let (label, ..) = names.of(thread.thread_id);
        output.write_all(b",\n")?;
        serde_json::to_writer(
            &mut output,
            &json!({"ph": "M", "name": "thread_name", "pid": PID, "tid": thread.thread_id,
                    "args": {"name": label}}),
        )?;
    }
    let mut records = 0;
    while let Some(record) = reader.next_record()? {
        output.write_all(b",\n")?;
        let event = event(&record, header.clock.zero_monotonic_ns);
        serde_json::to_writer(&mut output, &event)?;
        records += 1;
    }
    output.write_all(b"\n]}\n")?;
    output.flush()?;
    Ok(records)
}

fn event(record: &TraceRecord, zero_monotonic_ns: u64) -> Event {
    let at_ns = i128::from(zero_monotonic_ns) + i128::from(record.ns_since_resume);
    Event {
        name: record.outcome.as_str(),
        cat: phase_name(record.phase),
        ph: "X",
        ts: at_ns as f64 / 1e3,
        dur: record.service_ns as f64 / 1e3,
        pid: PID,
        tid: record.thread_id,
        args: Arguments {
            gpa: format!("{:#x}", record.gpa),
            access: record.access.as_str(),
            first_touch: record.is_first_touch,
            queue_depth: record.queue_depth,
            sequence: record.sequence,
            rip: record.rip.map(|rip| format!("{rip:#x}")),
        },
    }
}
