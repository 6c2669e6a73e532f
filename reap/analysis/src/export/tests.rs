use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::RowAccessor;
use reapvm_reap::Phase;
use reapvm_reap::trace::{Access, Outcome};
use serde_json::Value;

use super::*;
use crate::test_traces::{HVA, Trace, header, record};

fn trace() -> Trace {
    let mut records: Vec<_> = (0..3).map(|n| record(n, n * 3, Phase::Request)).collect();
    records[1].access = Access::Write;
    records[1].outcome = Outcome::Zero;
    records[1].thread_id = 77;
    records[1].ns_since_resume = -5;
    records[2].rip = Some(0xffff_ffff_8100_0000);
    Trace::new(records)
}

fn exported(trace: &Trace, format: Format) -> Vec<u8> {
    let mut bytes = Vec::new();
    export(&mut trace.reader(), format, &mut bytes).unwrap();
    bytes
}

#[test]
fn lines_of_text_say_the_same_and_quote_what_must_be_quoted() {
    let csv = exported(&trace(), Format::Csv);
    let mut reader = csv::Reader::from_reader(&csv[..]);
    let names = reader.headers().unwrap().clone();
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    let json = String::from_utf8(exported(&trace(), Format::JsonLines)).unwrap();
    let lines: Vec<Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((rows.len(), lines.len()), (3, 3));
    for (row, line) in rows.iter().zip(&lines) {
        let object = line.as_object().unwrap();
        assert_eq!(object.len(), names.len());
        for (name, text) in names.iter().zip(row) {
            let value = match &object[name] {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            assert_eq!(value, text, "{name}");
        }
    }
    assert_eq!(lines[0]["thread"], "vcpu-0, \"the first\"");
    assert_eq!(lines[0]["vcpu"], 0);
    assert_eq!(lines[1]["thread"], "(not known)");
    assert_eq!(lines[1]["ns_since_resume"], -5);
    assert_eq!(lines[2]["rip"], 0xffff_ffff_8100_0000_u64);
    assert_eq!(lines[2]["gpa"], 6 << 12);
}

#[test]
fn an_empty_trace_has_its_columns_in_each_format() {
    let empty = Trace::new(vec![]);
    let csv = String::from_utf8(exported(&empty, Format::Csv)).unwrap();
    assert!(
        csv.starts_with("sequence,ns_since_resume,gpa,hva,"),
        "{csv}"
    );
    assert_eq!(csv.lines().count(), 1);
    assert!(exported(&empty, Format::JsonLines).is_empty());
    let chrome: Value = serde_json::from_slice(&exported(&empty, Format::Chrome)).unwrap();
    assert_eq!(chrome["traceEvents"].as_array().unwrap().len(), 2);
    let bytes = ::parquet::data_type::ByteArray::from(exported(&empty, Format::Parquet));
    let reader = SerializedFileReader::new(bytes.data().to_vec().into_reader()).unwrap();
    assert_eq!(reader.metadata().file_metadata().num_rows(), 0);
}

/// What the Parquet reader reads from.
trait IntoReader {
    fn into_reader(self) -> std::fs::File;
}

impl IntoReader for Vec<u8> {
    fn into_reader(self) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&self).unwrap();
        file
    }
}

#[test]
fn parquet_is_read_back_by_another_reader() {
    // More than one row group.
    let count = 300_000;
    let records = (0..count).map(|n| record(n, n % 1000, Phase::Idle));
    let mut records: Vec<_> = records.collect();
    records[299_999].rip = Some(u64::MAX);
    records[299_999].thread_id = 77;
    let bytes = exported(&Trace::new(records), Format::Parquet);
    let reader = SerializedFileReader::new(bytes.into_reader()).unwrap();
    let metadata = reader.metadata();
    assert_eq!(metadata.file_metadata().num_rows(), count as i64);
    assert!(metadata.num_row_groups() > 1);
    let pairs = metadata.file_metadata().key_value_metadata().unwrap();
    let told = pairs
        .iter()
        .find(|pair| pair.key == "reapvm.header")
        .unwrap();
    let told: reapvm_reap::trace::TraceHeader =
        serde_json::from_str(told.value.as_ref().unwrap()).unwrap();
    assert_eq!(told, header());

    let mut seen = 0;
    for (row, n) in reader.get_row_iter(None).unwrap().zip(0_u64..) {
        let row = row.unwrap();
        let page = (n % 1000) << 12;
        assert_eq!(row.get_ulong(0).unwrap(), n);
        assert_eq!(row.get_long(1).unwrap(), n as i64 * 1000);
        assert_eq!(row.get_ulong(2).unwrap(), page);
        assert_eq!(row.get_ulong(3).unwrap(), HVA + page);
        assert_eq!(row.get_string(4).unwrap(), "read");
        assert_eq!(row.get_string(5).unwrap(), "idle");
        assert_eq!(row.get_string(6).unwrap(), "miss");
        assert!(row.get_bool(7).unwrap());
        assert_eq!(row.get_ulong(8).unwrap(), 20_000 + n % 1000 * 50);
        assert_eq!(row.get_uint(9).unwrap(), 1);
        let is_last = n == count - 1;
        assert_eq!(row.get_uint(10).unwrap(), if is_last { 77 } else { 42 });
        assert_eq!(row.get_uint(13).is_ok(), !is_last);
        assert_eq!(row.get_ulong(14).ok(), is_last.then_some(u64::MAX));
        seen += 1;
    }
    assert_eq!(seen, count);
}

#[test]
fn spans_lie_on_the_hosts_clock_and_threads_have_names() {
    let chrome: Value = serde_json::from_slice(&exported(&trace(), Format::Chrome)).unwrap();
    let events = chrome["traceEvents"].as_array().unwrap();
    assert_eq!(events.len(), 2 + 3);
    assert_eq!(events[1]["args"]["name"], "vcpu-0, \"the first\"");
    let fault = &events[2];
    assert_eq!(
        (&fault["ph"], &fault["name"]),
        (&"X".into(), &"miss".into())
    );
    assert_eq!(fault["ts"], 1_000_000.0);
    assert_eq!(fault["dur"], 20.0);
    assert_eq!(events[3]["ts"], 999_999.995);
    assert_eq!(events[4]["args"]["rip"], "0xffffffff81000000");
    assert_eq!(chrome["otherData"]["summary"]["dropped"], 2);
}

#[test]
fn names_of_formats_round_trip() {
    for format in Format::ALL {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    let error = "xlsx".parse::<Format>().unwrap_err().to_string();
    assert!(Format::ALL.iter().all(|f| error.contains(f.as_str())));
}

/// Takes a few bytes, then is closed as a pipe without a reader is.
struct Closed(usize);

impl Write for Closed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk that is full.
struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_closed_output_is_told_from_one_that_fails() {
    let records = (0..5000).map(|n| record(n, n, Phase::Request)).collect();
    let trace = Trace::new(records);
    for format in Format::ALL {
        let closed = export(&mut trace.reader(), format, Closed(100)).unwrap_err();
        assert!(closed.is_closed_output(), "{format}: {closed:?}");
        let full = export(&mut trace.reader(), format, Full).unwrap_err();
        assert!(!full.is_closed_output(), "{format}: {full:?}");
    }
}
