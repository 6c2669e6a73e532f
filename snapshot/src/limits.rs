//! The names, the version and the bounds of the format, in one place.

/// The size of a guest page, in bytes: the unit of holes, of checksums and of alignment.
pub const PAGE_SIZE: usize = 4096;

/// [`PAGE_SIZE`] as the type of file offsets and guest-physical addresses.
pub(crate) const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// The version of the format of a snapshot that holds all of guest memory.
pub const FORMAT_VERSION: u32 = 1;
/// The version of the format of a diff, which holds only the pages that were written since its
/// base. A number of its own: a program that knows no diffs refuses one by it, instead of taking
/// the pages that are not there for pages of zeros.
pub const DIFF_FORMAT_VERSION: u32 = 2;

/// The name of the manifest inside a snapshot's directory.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The name under which the writer keeps the state of vCPUs, KVM and devices.
pub const STATE_FILE: &str = "state";
/// The name under which the writer keeps guest memory.
pub const MEMORY_FILE: &str = "memory";
/// The name under which the writer keeps the index of the pages of guest memory.
pub const MEMORY_INDEX_FILE: &str = "memory-index";
/// The name of the working set, made after the snapshot and bound to its id.
pub const WORKING_SET_FILE: &str = "working-set";
/// The name of the state of a working set that evolves, bound to the snapshot's id.
pub const WORKING_SET_STATE_FILE: &str = "working-set-state";
/// The name of the fault trace, made after the snapshot and bound to its id.
pub const TRACE_FILE: &str = "trace";

/// The most bytes of a manifest that are read or written: 1 MiB.
pub const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// The most bytes of a state file: 64 MiB.
pub const MAX_STATE_BYTES: u64 = 64 << 20;
/// The most bytes of one section of a state file: 4 MiB.
pub const MAX_SECTION_BYTES: usize = 4 << 20;
/// The most bytes of the name of a section's kind.
pub const MAX_KIND_BYTES: usize = 64;
/// The most sections of a state file.
pub const MAX_SECTIONS: usize = 16_384;
/// The most bytes of guest memory of a snapshot: 1 TiB. It bounds what a memory index may take.
pub const MAX_MEMORY_BYTES: u64 = 1 << 40;
