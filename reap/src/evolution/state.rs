//! The state of an evolving working set, beside it in the snapshot's directory.
//!
//! # Format, version 1
//! All numbers are little-endian. A header of 48 bytes:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `REAPVMEV` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | whether the next start records: 0 no, 1 for misses, 2 for unused pages, 3 as a check |
//! | 16 | 16 | id of the snapshot |
//! | 32 | 4 | fingerprint of the working set that it describes: the CRC32C in that one's header |
//! | 36 | 4 | CRC32C of all bytes but these four |
//! | 40 | 4 | number of pages of the set |
//! | 44 | 4 | recordings since the last prefetch, at most 65535 |
//!
//! Then, of each page of the set in the order of installation, how many recordings in a row did not
//! touch it, 2 bytes each. The file ends there.
//!
//! A state that describes another set than the one that is there says nothing: somebody has replaced
//! the set, or died between the writing of the two files, the set first.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use reapvm_snapshot::SnapshotId;
use reapvm_snapshot::checksum::Crc32c;
use reapvm_snapshot::files::{self, ReplaceFileError};

use super::RecordReason;
use crate::PAGE_SIZE_BYTES;
use crate::regular_file;
use crate::wire::{array_at, u16_at, u32_at};

const MAGIC: [u8; 8] = *b"REAPVMEV";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 48;
const CRC_OFFSET: usize = 36;
const PAGE_BYTES: usize = 2;

/// **Unstable.** Why the state of a working set was not read, not written or is refused.
#[derive(Debug, thiserror::Error)]
pub enum WorkingSetStateError {
    /// It cannot be read.
    #[error("cannot read the working set's state {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It was not written; an older one is untouched.
    #[error("cannot write the working set's state {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReplaceFileError,
    },
    /// It is of another version.
    #[error(
        "the working set's state {path} is of version {version}, this program reads version \
         {VERSION}: begin it anew with --reset-working-set-state"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// It belongs to another snapshot.
    #[error(
        "the working set's state {path} belongs to snapshot {found}, not to this one \
         ({expected}): begin it anew with --reset-working-set-state"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The snapshot it belongs to.
        found: SnapshotId,
        /// The snapshot it was read for.
        expected: SnapshotId,
    },
    /// It ends too early.
    #[error(
        "the working set's state {path} is truncated: begin it anew with --reset-working-set-state"
    )]
    Truncated {
        /// The file.
        path: PathBuf,
    },
    /// It is damaged, or is no such file.
    #[error(
        "the working set's state {path} is damaged ({reason}): begin it anew with \
         --reset-working-set-state"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        reason: &'static str,
    },
}

impl WorkingSetStateError {
    /// Whether a state of the file's own is at fault, so that beginning anew is a remedy.
    #[must_use]
    pub fn is_of_contents(&self) -> bool {
        !matches!(self, Self::Read { .. } | Self::Write { .. })
    }
}

/// What is wrong with the bytes of a state; [`WorkingSetStateError`] adds the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Defect {
    Version(u32),
    Foreign(SnapshotId),
    Truncated,
    Corrupt(&'static str),
}

/// **Unstable.** What is known of a working set beyond its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkingSetState {
    /// [`WorkingSet::fingerprint`](crate::WorkingSet::fingerprint) of the set that it describes.
    pub fingerprint: u32,
    /// Why the next start records, if it does: misses, unused pages, or because it is to be
    /// known whether there are any.
    pub record_next: Option<RecordReason>,
    /// How many recordings there were since the last prefetch.
    pub recordings_in_a_row: u16,
    /// Of each page of the set, in the order of installation, how many recordings in a row did not
    /// touch it.
    pub untouched_in_a_row: Vec<u16>,
}

impl WorkingSetState {
    /// Reads the state `path` of a working set of the snapshot `id`, whose guest memory has
    /// `memory_bytes`. `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read, is of another version, another snapshot, truncated or damaged.
    pub fn read(
        path: &Path,
        id: &SnapshotId,
        memory_bytes: u64,
    ) -> Result<Option<Self>, WorkingSetStateError> {
        let unreadable = |source| WorkingSetStateError::Read {
            path: path.to_owned(),
            source,
        };
        let (file, _) = match regular_file::open(path) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
        };
        // No set has more pages than guest memory, so no state is longer; one byte more shows that
        // one is.
        let longest = HEADER_BYTES as u64 + memory_bytes / PAGE_SIZE_BYTES * PAGE_BYTES as u64;
        let mut bytes = Vec::new();
        file.take(longest + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        Self::decode(&bytes, id)
            .map(Some)
            .map_err(|defect| match defect {
                Defect::Version(version) => WorkingSetStateError::Version {
                    path: path.to_owned(),
                    version,
                },
                Defect::Foreign(found) => WorkingSetStateError::Foreign {
                    path: path.to_owned(),
                    found,
                    expected: *id,
                },
                Defect::Truncated => WorkingSetStateError::Truncated {
                    path: path.to_owned(),
                },
                Defect::Corrupt(reason) => WorkingSetStateError::Corrupt {
                    path: path.to_owned(),
                    reason,
                },
            })
    }

    /// Writes it to `path`, replacing an older one at once.
    ///
    /// # Errors
    /// When it cannot be written; an older one is then untouched.
    pub fn write(&self, path: &Path, id: &SnapshotId) -> Result<(), WorkingSetStateError> {
        files::replace_file(path, |file| file.write_all(&self.encode(id))).map_err(|source| {
            WorkingSetStateError::Write {
                path: path.to_owned(),
                source,
            }
        })
    }

    pub(super) fn encode(&self, id: &SnapshotId) -> Vec<u8> {
        let record_next: u32 = match self.record_next {
            Some(RecordReason::Misses) => 1,
            Some(RecordReason::Unused) => 2,
            Some(RecordReason::Unchecked) => 3,
            // The others are not about what a run found.
            Some(RecordReason::NoSet | RecordReason::Always) | None => 0,
        };
        let pages = self.untouched_in_a_row.len();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + pages * PAGE_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&record_next.to_le_bytes());
        bytes.extend_from_slice(id.as_bytes());
        bytes.extend_from_slice(&self.fingerprint.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(pages as u32).to_le_bytes());
        bytes.extend_from_slice(&u32::from(self.recordings_in_a_row).to_le_bytes());
        for untouched in &self.untouched_in_a_row {
            bytes.extend_from_slice(&untouched.to_le_bytes());
        }
        let crc32c = checksum(&bytes);
        bytes[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc32c.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8], expected: &SnapshotId) -> Result<Self, Defect> {
        let magic: [u8; 8] = array_at(bytes, 0).ok_or(Defect::Truncated)?;
        if magic != MAGIC {
            return Err(Defect::Corrupt("it does not begin as a state does"));
        }
        let version = u32_at(bytes, 8).ok_or(Defect::Truncated)?;
        if version != VERSION {
            return Err(Defect::Version(version));
        }
        let record_next = u32_at(bytes, 12).ok_or(Defect::Truncated)?;
        let id = SnapshotId::from_bytes(array_at(bytes, 16).ok_or(Defect::Truncated)?);
        let fingerprint = u32_at(bytes, 32).ok_or(Defect::Truncated)?;
        let crc32c = u32_at(bytes, CRC_OFFSET).ok_or(Defect::Truncated)?;
        let pages = u32_at(bytes, 40).ok_or(Defect::Truncated)?;
        let recordings_in_a_row = u32_at(bytes, 44).ok_or(Defect::Truncated)?;
        if id != *expected {
            return Err(Defect::Foreign(id));
        }
        let table = bytes.get(HEADER_BYTES..).ok_or(Defect::Truncated)?;
        let table_bytes = u64::from(pages) * PAGE_BYTES as u64;
        if (table.len() as u64) < table_bytes {
            return Err(Defect::Truncated);
        }
        if table.len() as u64 > table_bytes {
            return Err(Defect::Corrupt("it is longer than its header says"));
        }
        if checksum(bytes) != crc32c {
            return Err(Defect::Corrupt("checksum"));
        }
        Ok(Self {
            fingerprint,
            record_next: match record_next {
                0 => None,
                1 => Some(RecordReason::Misses),
                2 => Some(RecordReason::Unused),
                3 => Some(RecordReason::Unchecked),
                _ => return Err(Defect::Corrupt("an unknown reason to record")),
            },
            recordings_in_a_row: u16::try_from(recordings_in_a_row)
                .map_err(|_| Defect::Corrupt("more recordings than are counted"))?,
            untouched_in_a_row: table
                .chunks_exact(PAGE_BYTES)
                .map(|untouched| u16_at(untouched, 0))
                .collect::<Option<_>>()
                .ok_or(Defect::Truncated)?,
        })
    }
}

/// CRC32C of all bytes but the checksum's own. `bytes` has at least a header.
fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc32c::new();
    crc.update(&bytes[..CRC_OFFSET]);
    crc.update(&bytes[CRC_OFFSET + 4..]);
    crc.finish()
}
