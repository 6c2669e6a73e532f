//! A table as Apache Parquet: plain types, no compression beside the encodings. Every column may be
//! without a value.

use std::fmt::Write as _;
use std::io::Write;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::{Cell, Dataset, Kind};

pub(super) fn write(dataset: &Dataset, output: impl Write + Send) -> Result<(), ParquetError> {
    let mut schema = format!("message {} {{\n", dataset.name);
    for column in dataset.columns {
        let kind = match column.kind {
            Kind::Text => "BINARY",
            Kind::Count => "INT64",
            Kind::Number(_) => "DOUBLE",
        };
        let annotation = match column.kind {
            Kind::Text => " (UTF8)",
            Kind::Count => " (INTEGER(64,false))",
            Kind::Number(_) => "",
        };
        // Writing to a string does not fail.
        let _ = writeln!(schema, "  OPTIONAL {kind} {}{annotation};", column.name);
    }
    schema.push('}');
    let schema = Arc::new(parse_message_type(&schema)?);
    let properties = WriterProperties::builder()
        .set_created_by(concat!("reapvm ", env!("CARGO_PKG_VERSION")).to_owned())
        .build();
    let mut writer = SerializedFileWriter::new(output, schema, Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    let mut number = 0;
    while let Some(mut column) = group.next_column()? {
        let cells = || dataset.rows.iter().map(|row| &row[number]);
        let levels: Vec<i16> = cells().map(|cell| i16::from(*cell != Cell::None)).collect();
        let levels = Some(&levels[..]);
        match dataset.columns[number].kind {
            Kind::Text => {
                let text = |cell: &Cell| match cell {
                    Cell::Text(text) => Some(ByteArray::from(text.as_str())),
                    _ => None,
                };
                let values: Vec<ByteArray> = cells().filter_map(text).collect();
                column
                    .typed::<ByteArrayType>()
                    .write_batch(&values, levels, None)?;
            }
            Kind::Count => {
                let count = |cell: &Cell| match cell {
                    Cell::Count(count) => Some(count.cast_signed()),
                    _ => None,
                };
                let values: Vec<i64> = cells().filter_map(count).collect();
                column
                    .typed::<Int64Type>()
                    .write_batch(&values, levels, None)?;
            }
            Kind::Number(_) => {
                let float = |cell: &Cell| match cell {
                    Cell::Number(number) => Some(*number),
                    _ => None,
                };
                let values: Vec<f64> = cells().filter_map(float).collect();
                column
                    .typed::<DoubleType>()
                    .write_batch(&values, levels, None)?;
            }
        }
        column.close()?;
        number += 1;
    }
    group.close()?;
    writer.close()?;
    Ok(())
}
