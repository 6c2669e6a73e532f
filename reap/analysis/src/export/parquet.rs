//! Apache Parquet: a column a field, plain types, no compression beside the encodings.

use std::io::{Read, Seek, Write};
use std::sync::Arc;

use parquet::basic::Encoding;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use reapvm_reap::trace::{TraceReader, TraceRecord};

use super::row::phase_name;
use super::{ExportError, ThreadNames};

/// The columns. Unsigned numbers keep their bits in the signed types that Parquet has.
const SCHEMA: &str = "
message fault_trace {
  REQUIRED INT64 sequence (INTEGER(64,false));
  REQUIRED INT64 ns_since_resume;
  REQUIRED INT64 gpa (INTEGER(64,false));
  REQUIRED INT64 hva (INTEGER(64,false));
  REQUIRED BINARY access (UTF8);
  REQUIRED BINARY phase (UTF8);
  REQUIRED BINARY outcome (UTF8);
  REQUIRED BOOLEAN first_touch;
  REQUIRED INT64 service_ns (INTEGER(64,false));
  REQUIRED INT32 queue_depth (INTEGER(32,false));
  REQUIRED INT32 thread_id (INTEGER(32,false));
  REQUIRED BINARY thread (UTF8);
  REQUIRED BINARY thread_kind (UTF8);
  OPTIONAL INT32 vcpu (INTEGER(32,false));
  OPTIONAL INT64 rip (INTEGER(64,false));
}";

/// Records of a row group: 9 MiB of them are held at once.
const GROUP_RECORDS: usize = 128 << 10;

/// Columns whose numbers grow or stay near each other.
const DELTA_COLUMNS: [&str; 3] = ["sequence", "ns_since_resume", "service_ns"];

pub(super) fn write<R: Read + Seek, W: Write + Send>(
    reader: &mut TraceReader<R>,
    output: W,
) -> Result<u64, ExportError> {
    let names = ThreadNames::new(reader.summary());
    let text = |key: &str, value: String| KeyValue::new(key.to_owned(), value);
    let metadata = vec![
        text("reapvm.header", serde_json::to_string(reader.header())?),
        text("reapvm.summary", serde_json::to_string(reader.summary())?),
    ];
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("reapvm ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(metadata));
    for column in DELTA_COLUMNS {
        let path = ColumnPath::from(column);
        properties = properties
            .set_column_dictionary_enabled(path.clone(), false)
            .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
    }
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let mut writer = SerializedFileWriter::new(output, schema, Arc::new(properties.build()))?;
    let mut group = Vec::with_capacity(GROUP_RECORDS);
    let mut records = 0;
    loop {
        let record = reader.next_record()?;
        let is_end = record.is_none();
        group.extend(record);
        if group.len() == GROUP_RECORDS || (is_end && !group.is_empty()) {
            write_group(&mut writer, &group, &names)?;
            records += group.len() as u64;
            group.clear();
        }
        if is_end {
            break;
        }
    }
    writer.close()?;
    Ok(records)
}

fn write_group<W: Write + Send>(
    writer: &mut SerializedFileWriter<W>,
    records: &[TraceRecord],
    names: &ThreadNames,
) -> Result<(), ParquetError> {
    let mut group = writer.next_row_group()?;
    let mut number = 0;
    while let Some(column) = group.next_column()? {
        write_column(column, number, records, names)?;
        number += 1;
    }
    group.close()?;
    Ok(())
}

/// Writes the column with this `number` in [`SCHEMA`].
fn write_column(
    mut column: SerializedColumnWriter<'_>,
    number: usize,
    records: &[TraceRecord],
    names: &ThreadNames,
) -> Result<(), ParquetError> {
    match number {
        0 => longs(&mut column, records, |r| r.sequence.cast_signed())?,
        1 => longs(&mut column, records, |r| r.ns_since_resume)?,
        2 => longs(&mut column, records, |r| r.gpa.cast_signed())?,
        3 => longs(&mut column, records, |r| r.hva.cast_signed())?,
        4 => texts(&mut column, records, |r| r.access.as_str())?,
        5 => texts(&mut column, records, |r| phase_name(r.phase))?,
        6 => texts(&mut column, records, |r| r.outcome.as_str())?,
        7 => {
            let values: Vec<bool> = records.iter().map(|r| r.is_first_touch).collect();
            column
                .typed::<BoolType>()
                .write_batch(&values, None, None)?;
        }
        8 => longs(&mut column, records, |r| r.service_ns.cast_signed())?,
        9 => ints(&mut column, records, |r| r.queue_depth)?,
        10 => ints(&mut column, records, |r| r.thread_id)?,
        11 => texts(&mut column, records, |r| names.of(r.thread_id).0)?,
        12 => texts(&mut column, records, |r| names.of(r.thread_id).1)?,
        13 => {
            let vcpu = |r: &TraceRecord| names.of(r.thread_id).2;
            let levels = presence(records, |r| vcpu(r).is_some());
            let values: Vec<i32> = records
                .iter()
                .filter_map(|r| Some(vcpu(r)?.cast_signed()))
                .collect();
            column
                .typed::<Int32Type>()
                .write_batch(&values, Some(&levels), None)?;
        }
        _ => {
            let levels = presence(records, |r| r.rip.is_some());
            let values: Vec<i64> = records
                .iter()
                .filter_map(|r| Some(r.rip?.cast_signed()))
                .collect();
            column
                .typed::<Int64Type>()
                .write_batch(&values, Some(&levels), None)?;
        }
    }
    column.close()
}

fn longs(
    column: &mut SerializedColumnWriter<'_>,
    records: &[TraceRecord],
    of: impl Fn(&TraceRecord) -> i64,
) -> Result<(), ParquetError> {
    let values: Vec<i64> = records.iter().map(of).collect();
    column
        .typed::<Int64Type>()
        .write_batch(&values, None, None)?;
    Ok(())
}

fn ints(
    column: &mut SerializedColumnWriter<'_>,
    records: &[TraceRecord],
    of: impl Fn(&TraceRecord) -> u32,
) -> Result<(), ParquetError> {
    let values: Vec<i32> = records.iter().map(|r| of(r).cast_signed()).collect();
    column
        .typed::<Int32Type>()
        .write_batch(&values, None, None)?;
    Ok(())
}

fn texts<'a>(
    column: &mut SerializedColumnWriter<'_>,
    records: &'a [TraceRecord],
    of: impl Fn(&'a TraceRecord) -> &'a str,
) -> Result<(), ParquetError> {
    let ColumnWriter::ByteArrayColumnWriter(_) = column.untyped() else {
        return Err(ParquetError::General("this column has no text".to_owned()));
    };
    let values: Vec<ByteArray> = records.iter().map(|r| ByteArray::from(of(r))).collect();
    column
        .typed::<ByteArrayType>()
        .write_batch(&values, None, None)?;
    Ok(())
}

/// Definition levels of an optional column.
fn presence(records: &[TraceRecord], is_there: impl Fn(&TraceRecord) -> bool) -> Vec<i16> {
    records.iter().map(|r| i16::from(is_there(r))).collect()
}
