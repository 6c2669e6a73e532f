//! The trace: which pages were touched first, when, how, by whom, and how long the page took.
//!
//! # Format, version 1
//! All numbers are little-endian. A header of 48 bytes:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `REAPVMTR` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | zero |
//! | 16 | 16 | id of the snapshot that the trace belongs to |
//! | 32 | 8 | number of records |
//! | 40 | 4 | CRC32C of all other bytes of the file |
//! | 44 | 4 | zero |
//!
//! Then the records, 40 bytes each, in the order of first touch:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | sequence: the record's position, from 0 |
//! | 8 | 8 | nanoseconds since the guest resumed, signed |
//! | 16 | 8 | guest-physical address of the page |
//! | 24 | 8 | service time in nanoseconds |
//! | 32 | 4 | thread that touched the page |
//! | 36 | 1 | access: 0 read, 1 write |
//! | 37 | 1 | phase: 0 restore, 1 connection, 2 request, 3 idle |
//! | 38 | 2 | zero |

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use reapvm_snapshot::SnapshotId;
use reapvm_snapshot::checksum::Crc32c;
use reapvm_snapshot::files::{self, ReplaceFileError};
use serde::Serialize;

use crate::PAGE_SIZE_BYTES;
use crate::phase::Phase;
use crate::regular_file;
use crate::wire::{array_at, u32_at, u64_at};

const MAGIC: [u8; 8] = *b"REAPVMTR";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 48;
const CRC_OFFSET: usize = 40;
const RECORD_BYTES: usize = 40;

/// Records that a trace may have at most: the first touches of 64 GiB of guest memory. A bound,
/// because a file that claims more would make its reader allocate without end.
pub const MAX_RECORDS: u64 = 1 << 24;

/// How a page was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Access {
    /// It was read, or its instructions executed.
    Read = 0,
    /// It was written.
    Write = 1,
}

/// The first touch of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TraceRecord {
    /// Position in the order of first touch, from 0.
    pub sequence: u64,
    /// When the pager read the fault, in nanoseconds since the guest resumed; negative before.
    pub ns_since_resume: i64,
    /// Guest-physical address of the page.
    pub gpa: u64,
    /// How it was touched.
    pub access: Access,
    /// The host thread that touched it (`gettid`): a vCPU's or a device's.
    pub thread_id: u32,
    /// What the virtual machine was doing.
    pub phase: Phase,
    /// From reading the fault to the page being there, in nanoseconds.
    pub service_ns: u64,
}

/// Why a trace was not written or not read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// There is no trace.
    #[error("there is no trace {path}: invoke once with memory mode record to make one")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read the trace {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file was not written.
    #[error("cannot write the trace {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReplaceFileError,
    },
    /// There are more records than a trace may have.
    #[error("a trace of {records} records is too long to write: at most {MAX_RECORDS} fit")]
    TooLong {
        /// How many there are.
        records: u64,
    },
    /// The file is of another version.
    #[error(
        "the trace {path} is of version {version}, this program reads version {VERSION}: record again"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The trace was recorded from another snapshot.
    #[error(
        "the trace {path} belongs to snapshot {found}, not to this one ({expected}): record again"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The snapshot it belongs to.
        found: SnapshotId,
        /// The snapshot it was read for.
        expected: SnapshotId,
    },
    /// The file ends too early.
    #[error("the trace {path} is truncated: record again")]
    Truncated {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged, or is no trace.
    #[error("the trace {path} is damaged ({reason}): record again")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        reason: &'static str,
    },
}

/// What is wrong with the bytes of a trace; [`TraceError`] adds the file.
#[derive(Debug, PartialEq, Eq)]
enum Defect {
    Version(u32),
    Foreign(SnapshotId),
    Truncated,
    Corrupt(&'static str),
}

/// Writes `records` to `path` as the trace of the snapshot `id`, replacing an older one at once.
///
/// # Errors
/// When there are more than [`MAX_RECORDS`] records, or the file cannot be written; an older trace
/// then stays as it was.
pub fn write(path: &Path, id: &SnapshotId, records: &[TraceRecord]) -> Result<(), TraceError> {
    if records.len() as u64 > MAX_RECORDS {
        return Err(TraceError::TooLong {
            records: records.len() as u64,
        });
    }
    let bytes = encode(id, records);
    files::replace_file(path, |file| file.write_all(&bytes)).map_err(|source| TraceError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Reads the trace `path` of the snapshot `id`, in the order of first touch.
///
/// # Errors
/// When there is none, it cannot be read, is of another version, another snapshot, truncated or
/// damaged.
pub fn read(path: &Path, id: &SnapshotId) -> Result<Vec<TraceRecord>, TraceError> {
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => TraceError::Missing {
            path: path.to_owned(),
        },
        _ => TraceError::Read {
            path: path.to_owned(),
            source,
        },
    };
    let longest = HEADER_BYTES as u64 + MAX_RECORDS * RECORD_BYTES as u64;
    let (file, len_bytes) = regular_file::open(path).map_err(unreadable)?;
    if len_bytes > longest {
        return Err(TraceError::Corrupt {
            path: path.to_owned(),
            reason: "it is longer than a trace can be",
        });
    }
    let mut bytes = Vec::with_capacity(len_bytes as usize);
    // The limit holds even if the file grows while it is read.
    file.take(longest)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    decode(&bytes, id).map_err(|defect| {
        let path = path.to_owned();
        match defect {
            Defect::Version(version) => TraceError::Version { path, version },
            Defect::Foreign(found) => TraceError::Foreign {
                path,
                found,
                expected: *id,
            },
            Defect::Truncated => TraceError::Truncated { path },
            Defect::Corrupt(reason) => TraceError::Corrupt { path, reason },
        }
    })
}

fn encode(id: &SnapshotId, records: &[TraceRecord]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + records.len() * RECORD_BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(id.as_bytes());
    bytes.extend_from_slice(&(records.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&[0; HEADER_BYTES - CRC_OFFSET]);
    for (sequence, record) in (0u64..).zip(records) {
        bytes.extend_from_slice(&sequence.to_le_bytes());
        bytes.extend_from_slice(&record.ns_since_resume.to_le_bytes());
        bytes.extend_from_slice(&record.gpa.to_le_bytes());
        bytes.extend_from_slice(&record.service_ns.to_le_bytes());
        bytes.extend_from_slice(&record.thread_id.to_le_bytes());
        bytes.extend_from_slice(&[record.access as u8, record.phase as u8, 0, 0]);
    }
    let crc32c = checksum(&bytes);
    bytes[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc32c.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8], id: &SnapshotId) -> Result<Vec<TraceRecord>, Defect> {
    let magic: [u8; 8] = array_at(bytes, 0).ok_or(Defect::Truncated)?;
    if magic != MAGIC {
        return Err(Defect::Corrupt("it does not begin as a trace does"));
    }
    let version = u32_at(bytes, 8).ok_or(Defect::Truncated)?;
    if version != VERSION {
        return Err(Defect::Version(version));
    }
    let found = SnapshotId::from_bytes(array_at(bytes, 16).ok_or(Defect::Truncated)?);
    if found != *id {
        return Err(Defect::Foreign(found));
    }
    let count = u64_at(bytes, 32).ok_or(Defect::Truncated)?;
    let crc32c = u32_at(bytes, CRC_OFFSET).ok_or(Defect::Truncated)?;
    let body = bytes.get(HEADER_BYTES..).ok_or(Defect::Truncated)?;
    let body_bytes = count
        .checked_mul(RECORD_BYTES as u64)
        .filter(|_| count <= MAX_RECORDS)
        .ok_or(Defect::Corrupt(
            "it claims more records than a trace can have",
        ))?;
    if (body.len() as u64) < body_bytes {
        return Err(Defect::Truncated);
    }
    if body.len() as u64 != body_bytes {
        return Err(Defect::Corrupt("it is longer than its header says"));
    }
    if checksum(bytes) != crc32c {
        return Err(Defect::Corrupt("its checksum does not match"));
    }
    (0u64..)
        .zip(body.chunks_exact(RECORD_BYTES))
        .map(|(sequence, record)| decode_record(sequence, record))
        .collect::<Option<_>>()
        .ok_or(Defect::Corrupt("a record of it makes no sense"))
}

fn decode_record(sequence: u64, bytes: &[u8]) -> Option<TraceRecord> {
    let record = TraceRecord {
        sequence: u64_at(bytes, 0)?,
        ns_since_resume: i64::from_le_bytes(array_at(bytes, 8)?),
        gpa: u64_at(bytes, 16)?,
        service_ns: u64_at(bytes, 24)?,
        thread_id: u32_at(bytes, 32)?,
        access: match bytes.get(36)? {
            0 => Access::Read,
            1 => Access::Write,
            _ => return None,
        },
        phase: Phase::from_u8(*bytes.get(37)?)?,
    };
    let is_valid = record.sequence == sequence && record.gpa.is_multiple_of(PAGE_SIZE_BYTES);
    is_valid.then_some(record)
}

/// CRC32C of all bytes but the checksum's own. `bytes` has at least a header.
fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc32c::new();
    crc.update(&bytes[..CRC_OFFSET]);
    crc.update(&bytes[CRC_OFFSET + 4..]);
    crc.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(byte: u8) -> SnapshotId {
        SnapshotId::from_bytes([byte; 16])
    }

    fn records() -> impl Strategy<Value = Vec<TraceRecord>> {
        let record = (
            any::<i64>(),
            0..u64::MAX / PAGE_SIZE_BYTES,
            any::<bool>(),
            any::<u32>(),
            0u8..4,
            any::<u64>(),
        );
        prop::collection::vec(record, 0..20).prop_map(|records| {
            (0u64..)
                .zip(records)
                .map(
                    |(sequence, (ns, page, is_write, thread_id, phase, service_ns))| TraceRecord {
                        sequence,
                        ns_since_resume: ns,
                        gpa: page * PAGE_SIZE_BYTES,
                        access: if is_write {
                            Access::Write
                        } else {
                            Access::Read
                        },
                        thread_id,
                        phase: Phase::from_u8(phase).unwrap(),
                        service_ns,
                    },
                )
                .collect()
        })
    }

    fn one_record() -> TraceRecord {
        TraceRecord {
            sequence: 0,
            ns_since_resume: -5,
            gpa: 0x3000,
            access: Access::Write,
            thread_id: 77,
            phase: Phase::Request,
            service_ns: 900,
        }
    }

    proptest! {
        #[test]
        fn round_trips(records in records()) {
            prop_assert_eq!(decode(&encode(&id(1), &records), &id(1)), Ok(records));
        }

        #[test]
        fn any_flipped_bit_is_refused(records in records(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = encode(&id(1), &records);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes, &id(1)).is_err());
        }

        #[test]
        fn any_truncation_is_refused(records in records(), at in any::<prop::sample::Index>()) {
            let bytes = encode(&id(1), &records);
            let cut = &bytes[..at.index(bytes.len())];
            prop_assert_eq!(decode(cut, &id(1)), Err(Defect::Truncated));
        }

        #[test]
        fn arbitrary_bytes_are_refused_without_a_panic(
            tail in prop::collection::vec(any::<u8>(), 0..200), begins_right in any::<bool>(),
        ) {
            let mut bytes = if begins_right { encode(&id(1), &[])[..32].to_vec() } else { vec![] };
            bytes.extend(tail);
            prop_assert!(decode(&bytes, &id(1)).is_err());
        }
    }

    #[test]
    fn a_file_is_read_back_and_belongs_to_one_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        assert!(matches!(
            read(&path, &id(1)),
            Err(TraceError::Missing { .. })
        ));
        write(&path, &id(1), &[one_record()]).unwrap();
        assert_eq!(read(&path, &id(1)).unwrap(), [one_record()]);

        let foreign = read(&path, &id(2)).unwrap_err();
        assert!(matches!(foreign, TraceError::Foreign { .. }));
        assert!(foreign.to_string().contains("record again"), "{foreign}");
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = encode(&id(1), &[]);
        bytes[8] = 9;
        assert_eq!(decode(&bytes, &id(1)), Err(Defect::Version(9)));
    }

    #[test]
    fn records_that_make_no_sense_are_refused_even_with_a_right_checksum() {
        for (offset, value) in [(0, 1u8), (16, 1), (36, 2), (37, 4)] {
            let mut bytes = encode(&id(1), &[one_record()]);
            bytes[HEADER_BYTES + offset] = value;
            let crc32c = checksum(&bytes);
            bytes[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc32c.to_le_bytes());
            assert!(
                matches!(decode(&bytes, &id(1)), Err(Defect::Corrupt(_))),
                "{offset}"
            );
        }
    }

    #[test]
    fn what_is_no_file_is_refused_without_reading_it() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("trace");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        for path in [pipe, dir.path().to_owned(), PathBuf::from("/dev/zero")] {
            let (sender, receiver) = std::sync::mpsc::channel();
            // A pipe that is waited for would hang the test.
            std::thread::spawn(move || sender.send(read(&path, &id(1))));
            let error = receiver
                .recv_timeout(std::time::Duration::from_secs(20))
                .unwrap()
                .unwrap_err();
            assert!(matches!(error, TraceError::Read { .. }), "{error:?}");
        }
    }

    #[test]
    fn a_sparse_giant_is_refused_without_reading_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        assert!(matches!(
            read(&path, &id(1)),
            Err(TraceError::Corrupt { .. })
        ));
    }
}
