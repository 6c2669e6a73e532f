//! One touch of one page.

use serde::Serialize;

use crate::PAGE_SIZE_BYTES;
use crate::phase::Phase;
use crate::wire::{array_at, u32_at, u64_at};

/// Length of a record in a file, in bytes.
pub const RECORD_BYTES: usize = 64;

/// How a page was touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Access {
    /// It was read, or its instructions executed.
    #[default]
    Read = 0,
    /// It was written.
    Write = 1,
    /// It was there, and was written for the first time since it was protected against that.
    WriteProtect = 2,
    /// The source does not say.
    Unknown = 3,
}

impl Access {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::WriteProtect, Self::Unknown];

    /// The name that exports and reports use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteProtect => "write-protect",
            Self::Unknown => "unknown",
        }
    }
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Outcome {
    /// The page had to come from the snapshot.
    #[default]
    Miss = 0,
    /// A page of zeroes was put in place, without a read.
    Zero = 1,
    /// The page was in place already when the fault was served: another fault, or an installation,
    /// had brought it.
    Hit = 2,
    /// The source does not say.
    Unknown = 3,
}

impl Outcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Miss, Self::Zero, Self::Hit, Self::Unknown];

    /// The name that exports and reports use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Miss => "miss",
            Self::Zero => "zero",
            Self::Hit => "hit",
            Self::Unknown => "unknown",
        }
    }
}

/// One touch of one page. In a file it has 64 bytes:
///
/// | offset | bytes | what |
/// |---|---|---|
/// | 0 | 8 | [`sequence`](Self::sequence) |
/// | 8 | 8 | [`ns_since_resume`](Self::ns_since_resume), signed |
/// | 16 | 8 | [`gpa`](Self::gpa) |
/// | 24 | 8 | [`hva`](Self::hva) |
/// | 32 | 8 | [`service_ns`](Self::service_ns) |
/// | 40 | 8 | [`rip`](Self::rip), zero if it is not known |
/// | 48 | 4 | [`thread_id`](Self::thread_id) |
/// | 52 | 4 | [`queue_depth`](Self::queue_depth) |
/// | 56 | 1 | access: 0 read, 1 write, 2 write-protect, 3 unknown |
/// | 57 | 1 | phase: 0 restore, 1 connection, 2 request, 3 idle |
/// | 58 | 1 | outcome: 0 miss, 1 zero, 2 hit, 3 unknown |
/// | 59 | 1 | bit 0: first touch of the page; bit 1: the rip is known |
/// | 60 | 4 | zero |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TraceRecord {
    /// Number of the touch, from 0, in the order in which the source saw them. It grows from record
    /// to record; a gap is what was dropped.
    pub sequence: u64,
    /// When the source saw the touch, in nanoseconds since the guest resumed; negative before.
    pub ns_since_resume: i64,
    /// Guest-physical address of the page.
    pub gpa: u64,
    /// Host-virtual address of the page.
    pub hva: u64,
    /// From reading the fault to the page being there, in nanoseconds; 0 where the source does not
    /// serve faults.
    pub service_ns: u64,
    /// The guest's instruction that touched the page, where the source says so.
    pub rip: Option<u64>,
    /// The host thread that touched it (`gettid`): a vCPU's, a device's, or one of the kernel that
    /// works for KVM. 0 if the source does not say, or the thread is not visible from here.
    pub thread_id: u32,
    /// Faults that were read and not yet served when this one was read, itself included; 0 where
    /// the source does not serve faults.
    pub queue_depth: u32,
    /// How it was touched.
    pub access: Access,
    /// What the virtual machine was doing.
    pub phase: Phase,
    /// What became of it.
    pub outcome: Outcome,
    /// Whether the page had not been touched before in this trace.
    pub is_first_touch: bool,
}

impl TraceRecord {
    pub(super) fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let words = [
            self.sequence,
            self.ns_since_resume.cast_unsigned(),
            self.gpa,
            self.hva,
            self.service_ns,
            self.rip.unwrap_or_default(),
        ];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes[48..52].copy_from_slice(&self.thread_id.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.queue_depth.to_le_bytes());
        bytes[56..60].copy_from_slice(&[
            self.access as u8,
            self.phase as u8,
            self.outcome as u8,
            u8::from(self.is_first_touch) | u8::from(self.rip.is_some()) << 1,
        ]);
        bytes
    }

    /// The record in `bytes`, `None` if it makes no sense by itself.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let flags = *bytes.get(59)?;
        let rip = u64_at(bytes, 40)?;
        let has_rip = flags & 2 != 0;
        let gpa = u64_at(bytes, 16)?;
        let is_valid = gpa.is_multiple_of(PAGE_SIZE_BYTES)
            && flags < 4
            && (has_rip || rip == 0)
            && u32_at(bytes, 60)? == 0;
        if !is_valid {
            return None;
        }
        Some(Self {
            sequence: u64_at(bytes, 0)?,
            ns_since_resume: i64::from_le_bytes(array_at(bytes, 8)?),
            gpa,
            hva: u64_at(bytes, 24)?,
            service_ns: u64_at(bytes, 32)?,
            rip: has_rip.then_some(rip),
            thread_id: u32_at(bytes, 48)?,
            queue_depth: u32_at(bytes, 52)?,
            access: *Access::ALL.get(usize::from(*bytes.get(56)?))?,
            phase: Phase::from_u8(*bytes.get(57)?)?,
            outcome: *Outcome::ALL.get(usize::from(*bytes.get(58)?))?,
            is_first_touch: flags & 1 != 0,
        })
    }
}
