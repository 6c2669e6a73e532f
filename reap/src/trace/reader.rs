//! Reading a trace, a block at a time.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use reapvm_snapshot::SnapshotId;
use reapvm_snapshot::checksum::Crc32c;
use serde::de::DeserializeOwned;

use super::{
    BLOCK_HEAD_BYTES, END_KIND, MAGIC, MAX_HEADER_BYTES, MAX_RECORDS_BYTES, MAX_SUMMARY_BYTES,
    PROLOGUE_BYTES, RECORD_BYTES, RECORDS_KIND, TraceError, TraceHeader, TraceRecord, TraceSummary,
    VERSION, block_checksum,
};
use crate::regular_file;
use crate::wire::{array_at, u32_at};

/// What is wrong with a trace; [`TraceError`] adds the file.
#[derive(Debug)]
enum Defect {
    Io(io::Error),
    Version(u32),
    Truncated,
    Corrupt(&'static str),
}

impl From<io::Error> for Defect {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Io(error),
        }
    }
}

/// Reads a trace, record by record, and holds one block of it, at most 1 MiB.
///
/// When it is opened, header and summary are read and checked, and the lengths of all blocks:
/// whoever has a reader knows that the trace is not truncated. The records are checked as they are
/// read: none is given whose block is damaged.
pub struct TraceReader<R> {
    input: R,
    path: PathBuf,
    header: TraceHeader,
    summary: TraceSummary,
    header_crc32c: u32,
    /// Blocks of records that are still to be read.
    blocks_left: u64,
    next_block: u64,
    /// The records of the present block, and how far they were given out.
    payload: Vec<u8>,
    payload_at: usize,
    next_sequence: u64,
}

impl TraceReader<BufReader<File>> {
    /// Opens the trace `path`, which must belong to the snapshot `expected`, if one is given.
    ///
    /// # Errors
    /// When there is none, it cannot be read, is of another version, another snapshot, truncated or
    /// damaged.
    pub fn open(path: &Path, expected: Option<&SnapshotId>) -> Result<Self, TraceError> {
        let (file, _) = regular_file::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => TraceError::Missing {
                path: path.to_owned(),
            },
            _ => TraceError::Read {
                path: path.to_owned(),
                source,
            },
        })?;
        Self::new(BufReader::with_capacity(16 << 10, file), path, expected)
    }
}

impl<R: Read + Seek> TraceReader<R> {
    /// Reads a trace from the start of `input`; errors name it `path`.
    ///
    /// # Errors
    /// As [`open`](TraceReader::open).
    pub fn new(
        mut input: R,
        path: &Path,
        expected: Option<&SnapshotId>,
    ) -> Result<Self, TraceError> {
        let parts = read_parts(&mut input).map_err(|defect| with_path(defect, path))?;
        if let Some(expected) = expected
            && parts.header.snapshot != *expected
        {
            return Err(TraceError::Foreign {
                path: path.to_owned(),
                found: parts.header.snapshot,
                expected: *expected,
            });
        }
        Ok(Self {
            input,
            path: path.to_owned(),
            header: parts.header,
            summary: parts.summary,
            header_crc32c: parts.header_crc32c,
            blocks_left: parts.record_blocks,
            next_block: 0,
            payload: Vec::new(),
            payload_at: 0,
            next_sequence: 0,
        })
    }

    /// What the trace says of itself.
    #[must_use]
    pub fn header(&self) -> &TraceHeader {
        &self.header
    }

    /// What was known at the end of the trace.
    #[must_use]
    pub fn summary(&self) -> &TraceSummary {
        &self.summary
    }

    /// The next record, `None` after the last one.
    ///
    /// # Errors
    /// When the block that it is in cannot be read or is damaged.
    pub fn next_record(&mut self) -> Result<Option<TraceRecord>, TraceError> {
        if self.payload_at == self.payload.len() {
            if self.blocks_left == 0 {
                return Ok(None);
            }
            self.read_records()
                .map_err(|defect| with_path(defect, &self.path))?;
        }
        let bytes = &self.payload[self.payload_at..self.payload_at + RECORD_BYTES];
        self.payload_at += RECORD_BYTES;
        let record = TraceRecord::decode(bytes)
            .filter(|record| record.sequence >= self.next_sequence)
            .ok_or_else(|| {
                // Nothing after it is given out.
                self.blocks_left = 0;
                self.payload_at = self.payload.len();
                with_path(Defect::Corrupt("a record of it makes no sense"), &self.path)
            })?;
        self.next_sequence = record.sequence.saturating_add(1);
        Ok(Some(record))
    }

    fn read_records(&mut self) -> Result<(), Defect> {
        self.payload.clear();
        self.payload_at = 0;
        let number = self.next_block;
        self.blocks_left -= 1;
        self.next_block += 1;
        let read = read_head(&mut self.input).and_then(|head| {
            self.payload.resize(head.payload_bytes, 0);
            self.input.read_exact(&mut self.payload)?;
            head.check(self.header_crc32c, number, &self.payload)
        });
        if read.is_err() {
            self.payload.clear();
            self.blocks_left = 0;
        }
        read
    }
}

impl<R: Read + Seek> Iterator for TraceReader<R> {
    type Item = Result<TraceRecord, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_record().transpose()
    }
}

struct Parts {
    header: TraceHeader,
    header_crc32c: u32,
    summary: TraceSummary,
    record_blocks: u64,
}

/// Reads header and summary, checks the lengths of all blocks, and leaves `input` at the first one.
fn read_parts(input: &mut (impl Read + Seek)) -> Result<Parts, Defect> {
    let (header, header_crc32c) = read_header(input)?;
    let first_block_at = input.stream_position()?;
    let mut record_blocks = 0;
    let mut records = 0;
    let summary: TraceSummary = loop {
        let head = read_head(input)?;
        if head.is_end {
            let mut text = vec![0; head.payload_bytes];
            input.read_exact(&mut text)?;
            head.check(header_crc32c, record_blocks, &text)?;
            break from_json(&text)?;
        }
        record_blocks += 1;
        records += (head.payload_bytes / RECORD_BYTES) as u64;
        input.seek_relative(head.payload_bytes as i64)?;
    };
    if input.read(&mut [0])? != 0 {
        return Err(Defect::Corrupt("something follows its end"));
    }
    if summary.records != records {
        return Err(Defect::Corrupt("it has not as many records as it says"));
    }
    input.seek(SeekFrom::Start(first_block_at))?;
    Ok(Parts {
        header,
        header_crc32c,
        summary,
        record_blocks,
    })
}

fn read_header(input: &mut impl Read) -> Result<(TraceHeader, u32), Defect> {
    let mut prologue = [0; PROLOGUE_BYTES];
    // Magic and version first: an older trace may be shorter than this prologue.
    input.read_exact(&mut prologue[..12])?;
    if prologue[..8] != MAGIC {
        return Err(Defect::Corrupt("it does not begin as a trace does"));
    }
    let field = |bytes: &[u8], offset| u32_at(bytes, offset).ok_or(Defect::Truncated);
    let version = field(&prologue, 8)?;
    if version != VERSION {
        return Err(Defect::Version(version));
    }
    input.read_exact(&mut prologue[12..])?;
    let text_bytes = field(&prologue, 12)? as usize;
    if text_bytes > MAX_HEADER_BYTES || !text_bytes.is_multiple_of(8) {
        return Err(Defect::Corrupt("its header cannot be so long"));
    }
    let mut text = vec![0; text_bytes];
    input.read_exact(&mut text)?;
    let mut crc = Crc32c::new();
    crc.update(&prologue[..20]);
    crc.update(&text);
    let crc32c = crc.finish();
    if field(&prologue, 20)? != crc32c {
        return Err(Defect::Corrupt("the checksum of its header does not match"));
    }
    if field(&prologue, 16)? as usize != RECORD_BYTES {
        return Err(Defect::Corrupt("its records have another length"));
    }
    Ok((from_json(&text)?, crc32c))
}

/// The head of a block.
struct BlockHead {
    is_end: bool,
    payload_bytes: usize,
    bytes: [u8; BLOCK_HEAD_BYTES],
}

impl BlockHead {
    fn check(&self, header_crc32c: u32, number: u64, payload: &[u8]) -> Result<(), Defect> {
        let crc32c = block_checksum(header_crc32c, number, &self.bytes[..8], payload);
        if u32_at(&self.bytes, 8) != Some(crc32c) {
            return Err(Defect::Corrupt("the checksum of a block does not match"));
        }
        Ok(())
    }
}

fn read_head(input: &mut impl Read) -> Result<BlockHead, Defect> {
    let mut bytes = [0; BLOCK_HEAD_BYTES];
    input.read_exact(&mut bytes)?;
    let kind: [u8; 4] = array_at(&bytes, 0).ok_or(Defect::Truncated)?;
    let payload_bytes = u32_at(&bytes, 4).ok_or(Defect::Truncated)? as usize;
    let is_end = kind == END_KIND;
    let has_valid_length = if is_end {
        payload_bytes <= MAX_SUMMARY_BYTES
    } else {
        payload_bytes != 0
            && payload_bytes <= MAX_RECORDS_BYTES
            && payload_bytes.is_multiple_of(RECORD_BYTES)
    };
    if !(is_end || kind == RECORDS_KIND) || !has_valid_length || bytes[12..] != [0; 4] {
        return Err(Defect::Corrupt("the head of a block makes no sense"));
    }
    Ok(BlockHead {
        is_end,
        payload_bytes,
        bytes,
    })
}

fn from_json<T: DeserializeOwned>(text: &[u8]) -> Result<T, Defect> {
    serde_json::from_slice(text).map_err(|_| Defect::Corrupt("its text is not what it should be"))
}

fn with_path(defect: Defect, path: &Path) -> TraceError {
    let path = path.to_owned();
    match defect {
        Defect::Io(source) => TraceError::Read { path, source },
        Defect::Version(version) => TraceError::Version { path, version },
        Defect::Truncated => TraceError::Truncated { path },
        Defect::Corrupt(reason) => TraceError::Corrupt { path, reason },
    }
}
