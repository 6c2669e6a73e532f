//! Writing a trace, a block at a time.

use std::io::{self, Write};

use reapvm_snapshot::checksum::Crc32c;
use serde::Serialize;

use super::{
    BLOCK_HEAD_BYTES, END_KIND, MAGIC, MAX_HEADER_BYTES, MAX_RECORDS_BYTES, MAX_SUMMARY_BYTES,
    RECORD_BYTES, RECORDS_KIND, TraceHeader, TraceRecord, TraceSummary, VERSION, block_checksum,
};

/// Writes a trace to anything that takes bytes in order, a pipe for one. Holds one block, 64 KiB.
///
/// A trace is whole only when [`finish`](Self::finish) has returned: without its end block it reads
/// as truncated.
pub struct TraceWriter<W: Write> {
    output: W,
    header_crc32c: u32,
    blocks: u64,
    records: u64,
    next_sequence: u64,
    /// Encoded records of the block to come.
    pending: Vec<u8>,
}

impl<W: Write> TraceWriter<W> {
    /// Begins a trace in `output`.
    ///
    /// # Errors
    /// When `output` fails, or the header is longer than a trace can have.
    pub fn new(mut output: W, header: &TraceHeader) -> io::Result<Self> {
        let mut text = to_json(header, MAX_HEADER_BYTES)?;
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut prologue = MAGIC.to_vec();
        for number in [VERSION, text.len() as u32, RECORD_BYTES as u32] {
            prologue.extend_from_slice(&number.to_le_bytes());
        }
        let mut crc = Crc32c::new();
        crc.update(&prologue);
        crc.update(&text);
        let header_crc32c = crc.finish();
        prologue.extend_from_slice(&header_crc32c.to_le_bytes());
        output.write_all(&prologue)?;
        output.write_all(&text)?;
        Ok(Self {
            output,
            header_crc32c,
            blocks: 0,
            records: 0,
            next_sequence: 0,
            pending: Vec::with_capacity(MAX_RECORDS_BYTES),
        })
    }

    /// Adds a record.
    ///
    /// # Errors
    /// When the output fails, or the record's sequence is not after the last one's.
    pub fn push(&mut self, record: &TraceRecord) -> io::Result<()> {
        if record.sequence < self.next_sequence {
            return Err(invalid("the records of a trace must be in order"));
        }
        self.next_sequence = record.sequence.saturating_add(1);
        self.pending.extend_from_slice(&record.encode());
        self.records += 1;
        if self.pending.len() == MAX_RECORDS_BYTES {
            self.write_pending()?;
        }
        Ok(())
    }

    /// Ends the trace with `summary`, whose number of records is replaced by how many there are.
    /// Returns the output, flushed.
    ///
    /// # Errors
    /// When the output fails, or the summary is longer than a trace can have.
    pub fn finish(mut self, summary: TraceSummary) -> io::Result<W> {
        self.write_pending()?;
        let records = self.records;
        let text = to_json(&TraceSummary { records, ..summary }, MAX_SUMMARY_BYTES)?;
        self.write_block(END_KIND, &text)?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn write_pending(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut payload = std::mem::take(&mut self.pending);
        self.write_block(RECORDS_KIND, &payload)?;
        payload.clear();
        self.pending = payload;
        Ok(())
    }

    fn write_block(&mut self, kind: [u8; 4], payload: &[u8]) -> io::Result<()> {
        let mut head = [0; BLOCK_HEAD_BYTES];
        head[..4].copy_from_slice(&kind);
        head[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        let crc32c = block_checksum(self.header_crc32c, self.blocks, &head[..8], payload);
        head[8..12].copy_from_slice(&crc32c.to_le_bytes());
        self.blocks += 1;
        self.output.write_all(&head)?;
        self.output.write_all(payload)
    }
}

fn to_json(value: &impl Serialize, max_bytes: usize) -> io::Result<Vec<u8>> {
    let text = serde_json::to_vec(value).map_err(io::Error::other)?;
    if text.len() > max_bytes {
        return Err(invalid(
            "the text of a trace is too long: shorten its labels",
        ));
    }
    Ok(text)
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}
