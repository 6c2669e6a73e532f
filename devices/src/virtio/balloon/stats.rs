//! What a guest tells of its memory (5.5.6.3).

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemory as _, Permissions};

use crate::GuestMemory;

/// Bytes of one statistic: `le16 tag`, `le64 val`, packed.
const STAT_BYTES: usize = 10;
/// Statistics of one buffer that are read. The specification has ten of them, Linux sixteen.
const MAX_STATS: usize = 64;

/// The guest's memory in its own words; `None` is what it did not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestMemoryStats {
    /// Bytes swapped in since boot.
    pub swap_in_bytes: Option<u64>,
    /// Bytes swapped out since boot.
    pub swap_out_bytes: Option<u64>,
    /// Page faults since boot that needed the disk.
    pub major_faults: Option<u64>,
    /// Page faults since boot that did not.
    pub minor_faults: Option<u64>,
    /// Bytes not used at all.
    pub free_bytes: Option<u64>,
    /// Bytes in all.
    pub total_bytes: Option<u64>,
    /// Bytes that programs can get without swapping.
    pub available_bytes: Option<u64>,
    /// Bytes of the file cache.
    pub disk_caches_bytes: Option<u64>,
    /// Huge pages allocated since boot.
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be allocated.
    pub hugetlb_failures: Option<u64>,
}

impl GuestMemoryStats {
    /// The field of a tag, of those that the specification has.
    fn field(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swap_in_bytes,
            1 => &mut self.swap_out_bytes,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free_bytes,
            5 => &mut self.total_bytes,
            6 => &mut self.available_bytes,
            7 => &mut self.disk_caches_bytes,
            8 => &mut self.hugetlb_allocations,
            9 => &mut self.hugetlb_failures,
            _ => return None,
        })
    }

    /// Reads the statistics in the chain. Unknown ones are for later devices (5.5.6.3.1).
    pub(super) fn read(mem: &GuestMemory, chain: DescriptorChain<&GuestMemory>) -> Self {
        let mut bytes = Vec::new();
        for desc in chain.readable() {
            let at = bytes.len();
            let len = (desc.len() as usize).min(MAX_STATS * STAT_BYTES - at);
            if !mem.check_range(desc.addr(), len, Permissions::Read) {
                break;
            }
            bytes.resize(at + len, 0);
            if mem.read_slice(&mut bytes[at..], desc.addr()).is_err() {
                bytes.truncate(at);
                break;
            }
        }
        let mut stats = Self::default();
        for stat in bytes.as_chunks::<STAT_BYTES>().0 {
            let [t0, t1, value @ ..] = *stat;
            if let Some(field) = stats.field(u16::from_le_bytes([t0, t1])) {
                *field = Some(u64::from_le_bytes(value));
            }
        }
        stats
    }
}
