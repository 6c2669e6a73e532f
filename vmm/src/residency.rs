//! **Unstable.** What this process holds in memory.

use std::fs;
use std::io;

use rustix::param::page_size;
use serde::Serialize;

/// Pages of a range that one mincore call looks at.
const PAGES_A_CALL: usize = 64 << 10;

/// Bytes of the address `ranges` (start, end) that are resident. A range that is not mapped
/// counts as nothing.
pub fn resident_bytes(ranges: &[(u64, u64)]) -> u64 {
    let page_bytes = page_size();
    let mut vector = vec![0_u8; PAGES_A_CALL];
    let mut pages = 0_u64;
    for &(start, end) in ranges {
        let mut at = start;
        while at < end {
            let length = (end - at).min((PAGES_A_CALL * page_bytes) as u64);
            // SAFETY: mincore reads no memory of the range and writes one byte a page into
            // `vector`, which has PAGES_A_CALL of them; an unmapped range is ENOMEM.
            let result = unsafe {
                libc::mincore(
                    at as *mut libc::c_void,
                    length as usize,
                    vector.as_mut_ptr(),
                )
            };
            if result == 0 {
                let looked_at = (length as usize).div_ceil(page_bytes);
                pages += vector[..looked_at]
                    .iter()
                    .filter(|&&byte| byte & 1 == 1)
                    .count() as u64;
            }
            at += length;
        }
    }
    pages * page_bytes as u64
}

/// Memory of this process, guest and rest apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProcessMemory {
    /// Resident guest memory, in KiB.
    pub guest_kib: u64,
    /// Everything else that is resident, in KiB: code, heap, stacks, buffers.
    pub vmm_kib: u64,
}

/// Reads `/proc/self/smaps` and tells guest memory, which lies in `guest_ranges`, from the rest.
///
/// # Errors
/// The file cannot be read.
pub fn process_memory(guest_ranges: &[(u64, u64)]) -> io::Result<ProcessMemory> {
    Ok(parse_smaps(
        &fs::read_to_string("/proc/self/smaps")?,
        guest_ranges,
    ))
}

fn parse_smaps(smaps: &str, guest_ranges: &[(u64, u64)]) -> ProcessMemory {
    let mut result = ProcessMemory::default();
    let mut in_guest = false;
    for line in smaps.lines() {
        if let Some(range) = mapping_range(line) {
            in_guest = guest_ranges
                .iter()
                .any(|guest| range.0 >= guest.0 && range.1 <= guest.1);
        } else if let Some(rest) = line.strip_prefix("Rss:") {
            let kib: u64 = rest
                .trim()
                .trim_end_matches("kB")
                .trim()
                .parse()
                .unwrap_or_default();
            if in_guest {
                result.guest_kib += kib;
            } else {
                result.vmm_kib += kib;
            }
        }
    }
    result
}

/// The address range of a mapping's first line, such as `7f00-7f10 rw-p ...`.
fn mapping_range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    Some((
        u64::from_str_radix(start, 16).ok()?,
        u64::from_str_radix(end, 16).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_told_from_the_rest() {
        let smaps = "1000-3000 rw-p 00000000 00:00 0 \nRss:                   8 kB\n\
                     5000-9000 r-xp 00000000 fe:00 12 /bin/x\nRss:       12 kB\nVmFlags: rd\n";
        let memory = parse_smaps(smaps, &[(0x1000, 0x3000)]);
        assert_eq!(
            memory,
            ProcessMemory {
                guest_kib: 8,
                vmm_kib: 12
            }
        );
    }

    #[test]
    fn only_touched_pages_are_resident() {
        let map = vm_memory::MmapRegion::<()>::new(64 << 12).unwrap();
        let start = map.as_ptr() as u64;
        let range = [(start, start + (64 << 12))];
        assert_eq!(resident_bytes(&range), 0);
        // SAFETY: the page is mapped and writable.
        unsafe { map.as_ptr().add(5 << 12).write_volatile(1) };
        assert_eq!(resident_bytes(&range), 4096);
    }
}
