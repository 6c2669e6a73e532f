//! Lines of text: comma-separated values and JSON.

use std::io::{BufWriter, Read, Seek, Write};

use reapvm_reap::trace::TraceReader;

use super::row::Row;
use super::{ExportError, ThreadNames};

pub(super) fn csv<R: Read + Seek>(
    reader: &mut TraceReader<R>,
    output: impl Write,
) -> Result<u64, ExportError> {
    const COLUMNS: [&str; 15] = [
        "sequence",
        "ns_since_resume",
        "gpa",
        "hva",
        "access",
        "phase",
        "outcome",
        "first_touch",
        "service_ns",
        "queue_depth",
        "thread_id",
        "thread",
        "thread_kind",
        "vcpu",
        "rip",
    ];
    let names = ThreadNames::new(reader.summary());
    // The names come first also where there is no record to take them from.
    let mut writer = csv::WriterBuilder::new()
        .has_headers(false)
        .from_writer(output);
    writer.write_record(COLUMNS)?;
    let mut records = 0;
    while let Some(record) = reader.next_record()? {
        writer.serialize(Row::new(&record, &names))?;
        records += 1;
    }
    writer.flush()?;
    Ok(records)
}

pub(super) fn json_lines<R: Read + Seek>(
    reader: &mut TraceReader<R>,
    output: impl Write,
) -> Result<u64, ExportError> {
    let names = ThreadNames::new(reader.summary());
    let mut output = BufWriter::new(output);
    let mut records = 0;
    while let Some(record) = reader.next_record()? {
        serde_json::to_writer(&mut output, &Row::new(&record, &names))?;
        output.write_all(b"\n")?;
        records += 1;
    }
    output.flush()?;
    Ok(records)
}
