//! The trace: which pages were touched, in which order, when, how, by whom, and how long each took.
//!
//! # Format, version 2
//! `docs/trace.md` describes it for those who read it with other programs. All numbers are
//! little-endian. A prologue of 24 bytes, then the header's text:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `REAPVMTR` |
//! | 8 | 4 | version, 2 |
//! | 12 | 4 | length of the header's text, a multiple of 8, at most 64 KiB |
//! | 16 | 4 | length of a record, 64 |
//! | 20 | 4 | CRC32C of the bytes before and of the text |
//! | 24 | | the header, [`TraceHeader`], as JSON, filled up with spaces |
//!
//! Then blocks, each of a head of 16 bytes and its payload. The last one, and only that one, is the
//! end block; the file ends with it.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `RECS`: records; `TEND`: the end |
//! | 4 | 4 | length of the payload: at most 64 KiB of records, at most 1 MiB of text |
//! | 8 | 4 | CRC32C of the header's checksum (4 bytes), the block's number from 0 (8 bytes), the first 8 bytes of this head, and the payload |
//! | 12 | 4 | zero |
//! | 16 | | the payload: whole records, or a [`TraceSummary`] as JSON |
//!
//! The checksum of a block has its place and its file in it: a block that is missing, moved or
//! taken from another trace is found as one that is damaged is. The layout of a record is
//! [`TraceRecord`]'s.
//!
//! Neither writer nor reader holds more than one block: see [`TraceWriter`] and [`TraceReader`].

mod error;
mod header;
mod reader;
mod record;
mod summary;
#[cfg(test)]
mod tests;
mod threads;
mod writer;

use std::path::Path;

use reapvm_snapshot::SnapshotId;
use reapvm_snapshot::checksum::Crc32c;
use reapvm_snapshot::files;

pub use error::TraceError;
pub use header::{Clock, Limit, TraceHeader, TraceRegion, TraceSource};
pub use reader::TraceReader;
pub use record::{Access, Outcome, RECORD_BYTES, TraceRecord};
pub use summary::{ThreadKind, TraceSummary, TraceThread};
pub use threads::name_threads;
pub use writer::TraceWriter;

/// The version of the format that this program writes and reads.
pub const VERSION: u32 = 2;

/// Records that [`read`] takes at most: a bound, because whoever holds a whole trace in memory
/// needs 72 bytes a record. [`TraceReader`] has no such bound.
pub const MAX_RECORDS: u64 = 1 << 24;

const MAGIC: [u8; 8] = *b"REAPVMTR";
const PROLOGUE_BYTES: usize = 24;
const MAX_HEADER_BYTES: usize = 64 << 10;
const BLOCK_HEAD_BYTES: usize = 16;
const RECORDS_KIND: [u8; 4] = *b"RECS";
const END_KIND: [u8; 4] = *b"TEND";
const RECORDS_PER_BLOCK: usize = 1024;
const MAX_RECORDS_BYTES: usize = RECORDS_PER_BLOCK * RECORD_BYTES;
const MAX_SUMMARY_BYTES: usize = 1 << 20;

/// The checksum of a block of the trace whose header has the checksum `header_crc32c`.
fn block_checksum(header_crc32c: u32, number: u64, head: &[u8], payload: &[u8]) -> u32 {
    let mut crc = Crc32c::new();
    crc.update(&header_crc32c.to_le_bytes());
    crc.update(&number.to_le_bytes());
    crc.update(head);
    crc.update(payload);
    crc.finish()
}

/// Writes a whole trace to `path`, replacing an older one at once. The number of records in
/// `summary` is replaced by how many there are.
///
/// # Errors
/// When the file cannot be written, or header or summary are too long; an older trace then stays as
/// it was.
pub fn write<'a>(
    path: &Path,
    header: &TraceHeader,
    records: impl IntoIterator<Item = &'a TraceRecord>,
    summary: TraceSummary,
) -> Result<(), TraceError> {
    files::replace_file(path, |file| {
        let mut writer = TraceWriter::new(file, header)?;
        for record in records {
            writer.push(record)?;
        }
        writer.finish(summary).map(drop)
    })
    .map_err(|source| TraceError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Reads all records of the trace `path` of the snapshot `id`, in their order.
///
/// # Errors
/// When there is none, it cannot be read, is of another version, another snapshot, truncated or
/// damaged, or has more than [`MAX_RECORDS`] records.
pub fn read(path: &Path, id: &SnapshotId) -> Result<Vec<TraceRecord>, TraceError> {
    let mut reader = TraceReader::open(path, Some(id))?;
    let records = reader.summary().records;
    if records > MAX_RECORDS {
        return Err(TraceError::TooLong {
            path: path.to_owned(),
            records,
        });
    }
    // The reader has found blocks of so many bytes in the file: the number is no mere claim.
    let mut all = Vec::with_capacity(records as usize);
    while let Some(record) = reader.next_record()? {
        all.push(record);
    }
    Ok(all)
}
