//! The snapshot of a virtual machine on disk: format, manifest, persist trait, reader and writer.
//!
//! A snapshot is a directory:
//!
//! | file | what it holds | checked |
//! |---|---|---|
//! | `manifest.json` | format version, id, origin, shape of the memory, the list of the files | by its own CRC32C, on open |
//! | `state` | vCPU, KVM and device state, in versioned sections | by the manifest's CRC32C and one a section, when read |
//! | `memory` | guest memory, sparse: zero pages are holes, and of a diff those of its base | page by page, by who serves them; whole, by [`Snapshot::verify`] |
//! | `memory-index` | which pages are zero, or left to the base of a diff, the CRC32C of each page | by the manifest's CRC32C and its own, when read |
//! | `working-set`, `trace` | made after the snapshot, each bound to its id and checked by itself | elsewhere |
//!
//! A snapshot may be a diff: it then names another one, its base, and holds the pages that were
//! written since that was made. [`merge`] makes a full snapshot of a base and the diffs that follow.
//!
//! The manifest is written last: a directory without one is not a snapshot. The whole directory is
//! built under another name beside its destination and renamed into place, so that a writer that
//! is killed leaves an older snapshot whole and nothing that could be taken for a new one.
//!
//! A checksum finds damage and mistakes, not malice: who can write to a snapshot can make it pass.
//! Everything read from one is therefore bounded and validated as hostile input.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod checksum;
pub mod files;

mod directory;
mod id;
mod limits;
mod manifest;
mod memory_index;
mod memory_reader;
mod memory_writer;
mod merge;
mod persist;
mod reader;
mod staging;
mod state;
mod verify;
mod writer;

pub use directory::{DirectoryLock, LockError, SnapshotDirectory};
pub use id::{GenerateIdError, ParseIdError, SnapshotId};
pub use limits::{
    DIFF_FORMAT_VERSION, FORMAT_VERSION, MANIFEST_FILE, MAX_KIND_BYTES, MAX_MANIFEST_BYTES,
    MAX_MEMORY_BYTES, MAX_SECTION_BYTES, MAX_SECTIONS, MAX_STATE_BYTES, MEMORY_FILE,
    MEMORY_INDEX_FILE, PAGE_SIZE, STATE_FILE, TRACE_FILE, WORKING_SET_FILE, WORKING_SET_STATE_FILE,
};
pub use manifest::{FileInfo, Files, HostInfo, Manifest, ManifestError, MemoryInfo, RegionInfo};
pub use memory_index::{MemoryIndex, MemoryIndexError, PageError, PageKind};
pub use memory_reader::{MemoryReadError, MemoryReader};
pub use memory_writer::MemoryWriter;
pub use merge::{MergeError, MergeProgress, merge};
pub use persist::Persist;
pub use reader::{OpenError, ReadError, Snapshot};
pub use state::{StateError, StateFile};
pub use verify::{BadPage, MAX_REPORTED_BAD_PAGES, VerifyError, VerifyProgress, VerifyReport};
pub use writer::{CreateError, ManifestParts, SnapshotWriter};
