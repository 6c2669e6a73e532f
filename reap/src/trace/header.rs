//! What a trace says of itself before its records: where they come from and how to read them.

use reapvm_snapshot::SnapshotId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::mode::MemoryRestoreMode;

/// What saw the touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TraceSource {
    /// The pager: each fault on a missing page that it served.
    UffdPager,
    /// The kernel's tracepoint `kvm:kvm_page_fault`: each exit of a vCPU for a page fault.
    KvmTracepoints,
    /// The page tables of this process, looked at between the phases of an invocation.
    PageTables,
    /// Faults of the first write to a page that userfaultfd protects against it.
    UffdWriteProtect,
    /// KVM's log of written pages, read between the phases of an invocation.
    KvmDirtyLog,
}

impl TraceSource {
    /// The name that files, exports and reports use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UffdPager => "uffd-pager",
            Self::KvmTracepoints => "kvm-tracepoints",
            Self::PageTables => "page-tables",
            Self::UffdWriteProtect => "uffd-write-protect",
            Self::KvmDirtyLog => "kvm-dirty-log",
        }
    }

    /// What this source cannot see in `mode`.
    #[must_use]
    pub fn limits(self, mode: MemoryRestoreMode) -> Vec<Limit> {
        let mut limits = match self {
            Self::UffdPager => vec![Limit::NoRepeatedTouches, Limit::KvmWorkers, Limit::NoRip],
            Self::KvmTracepoints => vec![Limit::VcpusOnly, Limit::NoServiceTime],
            Self::PageTables => vec![
                Limit::NoRepeatedTouches,
                Limit::OrderByPhase,
                Limit::NoThread,
                Limit::NoAccess,
                Limit::NoServiceTime,
                Limit::NoRip,
                Limit::Neighbours,
            ],
            Self::UffdWriteProtect => vec![
                Limit::WritesOnly,
                Limit::NoRepeatedTouches,
                Limit::KvmWorkers,
                Limit::NoRip,
            ],
            Self::KvmDirtyLog => vec![
                Limit::WritesOnly,
                Limit::VcpusOnly,
                Limit::NoRepeatedTouches,
                Limit::OrderByPhase,
                Limit::NoThread,
                Limit::NoServiceTime,
                Limit::NoRip,
            ],
        };
        if self == Self::UffdPager && mode == MemoryRestoreMode::Prefetch {
            limits.push(Limit::Prefetched);
        }
        limits
    }
}

/// Something that the source of a trace cannot see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// A page that is in place and touched again leaves no record.
    NoRepeatedTouches,
    /// Pages that were installed before the guest ran leave no record.
    Prefetched,
    /// The thread and the access may be those of a kernel worker that fetches pages for KVM.
    KvmWorkers,
    /// The guest's instruction is not known.
    NoRip,
    /// Only what vCPUs touch is seen, not what devices do.
    VcpusOnly,
    /// How long the page took is not known.
    NoServiceTime,
    /// Within a phase the order is that of addresses.
    OrderByPhase,
    /// Who touched the page is not known.
    NoThread,
    /// How the page was touched is not known.
    NoAccess,
    /// Pages that the kernel mapped beside a touched one are taken for touched.
    Neighbours,
    /// Only writes are seen.
    WritesOnly,
}

impl Limit {
    /// A sentence for people.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::NoRepeatedTouches => "a page that is in place leaves no further record",
            Self::Prefetched => {
                "pages that were installed before the guest ran leave no record: these are the misses"
            }
            Self::KvmWorkers => {
                "where KVM lets a kernel worker fetch the page of a vCPU, thread and access are the \
                 worker's, and a worker always asks to write"
            }
            Self::NoRip => "the guest's instruction is not known",
            Self::VcpusOnly => "only touches of vCPUs are seen, not those of devices",
            Self::NoServiceTime => "how long a page took is not known",
            Self::OrderByPhase => {
                "pages are in order of the phase; within one, in order of their addresses"
            }
            Self::NoThread => "who touched a page is not known",
            Self::NoAccess => "whether a page was read or written is not known",
            Self::Neighbours => {
                "pages that the kernel mapped beside a touched one count as touched"
            }
            Self::WritesOnly => "only writes are seen",
        }
    }
}

/// What the times of a trace are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// The moment from which [`ns_since_resume`](super::TraceRecord::ns_since_resume) counts, on
    /// CLOCK_MONOTONIC, in nanoseconds: the guest's first instruction.
    pub zero_monotonic_ns: u64,
    /// The same moment in milliseconds since 1970.
    pub zero_unix_ms: u64,
}

/// A region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRegion {
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// Host-virtual address of its first byte.
    pub hva: u64,
    /// Its length.
    pub size_bytes: u64,
}

/// What a trace says of itself before its records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceHeader {
    /// The snapshot that the guest was restored from.
    #[serde(serialize_with = "id_as_text", deserialize_with = "id_from_text")]
    pub snapshot: SnapshotId,
    /// What saw the touches.
    pub source: TraceSource,
    /// What that source cannot see.
    pub limits: Vec<Limit>,
    /// How guest memory came back.
    pub mode: MemoryRestoreMode,
    /// What the times count from.
    pub clock: Clock,
    /// The function's name, or another label.
    pub function: Option<String>,
    /// The function's input, or another label.
    pub input: Option<String>,
    /// Guest memory.
    pub regions: Vec<TraceRegion>,
    /// The program that made the trace, and its version.
    pub creator: String,
}

fn id_as_text<S: Serializer>(id: &SnapshotId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn id_from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SnapshotId, D::Error> {
    String::deserialize(deserializer)?
        .parse()
        .map_err(serde::de::Error::custom)
}
