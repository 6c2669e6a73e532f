//! What the boot loader leaves for the image: the command line and the map of memory.
//!
//! Two protocols are understood, told apart by their magic numbers: the 64-bit Linux boot protocol
//! (`Documentation/arch/x86/boot.rst` and `zero-page.rst`: `struct boot_params`) and PVH
//! (`xen/include/public/arch-x86/hvm/start_info.h`: `struct hvm_start_info`).

use core::ops::Range;

/// Reads guest-physical memory. An implementation returns `None` where there is none to read.
pub trait PhysicalMemory {
    /// The byte at `address`.
    fn byte(&self, address: u64) -> Option<u8>;

    /// The little-endian number of `N` bytes at `address`, as an array.
    fn bytes<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut out = [0; N];
        for (offset, byte) in (0u64..).zip(out.iter_mut()) {
            *byte = self.byte(address.checked_add(offset)?)?;
        }
        Some(out)
    }
}

/// What was handed over, in either protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootInfo {
    /// Guest-physical address of the command line, a C string; 0 when there is none.
    pub cmdline_address: u64,
    /// The usable memory around the image, in guest-physical addresses: the whole region of the
    /// memory map that holds it, cut before an initial ram disk.
    pub memory: Range<u64>,
}

/// Why what the boot loader left could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// Neither magic number is there.
    UnknownProtocol,
    /// A structure reaches out of readable memory.
    Unreadable,
    /// No usable region of the memory map holds the image.
    NoMemory,
}

impl core::fmt::Display for BootError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::UnknownProtocol => {
                "the boot loader left neither Linux boot_params nor a PVH start info"
            }
            Self::Unreadable => "the boot loader's structures reach out of readable memory",
            Self::NoMemory => "no usable region of the memory map holds the image",
        })
    }
}

const PVH_MAGIC: u32 = 0x336e_c578;
const LINUX_MAGIC: [u8; 4] = *b"HdrS";
const USABLE_RAM: u32 = 1;
/// More entries than any memory map has; a hostile count does not make a long loop.
const MAX_MEMORY_MAP_ENTRIES: u64 = 128;
/// The longest command line that is read, in bytes (Linux's own limit on x86 is 2048).
pub const MAX_CMDLINE_BYTES: usize = 4096;

/// Reads the structure at `address`; `image` is an address inside the running image.
///
/// # Errors
/// See [`BootError`].
pub fn read(memory: &impl PhysicalMemory, address: u64, image: u64) -> Result<BootInfo, BootError> {
    let reader = Reader(memory);
    if reader.u32(address)? == PVH_MAGIC {
        read_pvh(&reader, address, image)
    } else if memory.bytes(address.wrapping_add(0x202)) == Some(LINUX_MAGIC) {
        read_linux(&reader, address, image)
    } else {
        Err(BootError::UnknownProtocol)
    }
}

/// Copies the C string at `address` into `buffer` and returns its text; anything that is no UTF-8,
/// like the rest of a line that is too long, is left out.
pub fn read_cmdline<'a>(
    memory: &impl PhysicalMemory,
    address: u64,
    buffer: &'a mut [u8; MAX_CMDLINE_BYTES],
) -> &'a str {
    let mut length = 0;
    if address != 0 {
        for (offset, slot) in (0u64..).zip(buffer.iter_mut()) {
            match address.checked_add(offset).and_then(|at| memory.byte(at)) {
                Some(byte) if byte != 0 => *slot = byte,
                _ => break,
            }
            length += 1;
        }
    }
    match core::str::from_utf8(&buffer[..length]) {
        Ok(text) => text,
        Err(error) => core::str::from_utf8(&buffer[..error.valid_up_to()]).unwrap_or_default(),
    }
}

struct Reader<'a, M>(&'a M);

impl<M: PhysicalMemory> Reader<'_, M> {
    fn u32(&self, address: u64) -> Result<u32, BootError> {
        let bytes = self.0.bytes(address).ok_or(BootError::Unreadable)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&self, address: u64) -> Result<u64, BootError> {
        let bytes = self.0.bytes(address).ok_or(BootError::Unreadable)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

fn read_linux<M: PhysicalMemory>(
    reader: &Reader<'_, M>,
    zero_page: u64,
    image: u64,
) -> Result<BootInfo, BootError> {
    let at = |offset: u64| zero_page.wrapping_add(offset);
    let cmdline_address =
        u64::from(reader.u32(at(0x228))?) | u64::from(reader.u32(at(0x0c8))?) << 32;
    let entries = u64::from(reader.0.byte(at(0x1e8)).ok_or(BootError::Unreadable)?);
    let mut memory = region_with(reader, at(0x2d0), entries, 20, image)?;
    let ramdisk = u64::from(reader.u32(at(0x218))?) | u64::from(reader.u32(at(0x0c0))?) << 32;
    let ramdisk_size = reader.u32(at(0x21c))?;
    if ramdisk_size != 0 && ramdisk > image {
        memory.end = memory.end.min(ramdisk);
    }
    Ok(BootInfo {
        cmdline_address,
        memory,
    })
}

fn read_pvh<M: PhysicalMemory>(
    reader: &Reader<'_, M>,
    start_info: u64,
    image: u64,
) -> Result<BootInfo, BootError> {
    let at = |offset: u64| start_info.wrapping_add(offset);
    // The memory map came with version 1 of the structure.
    if reader.u32(at(4))? < 1 {
        return Err(BootError::NoMemory);
    }
    let modules = reader.u32(at(12))?;
    let module_list = reader.u64(at(16))?;
    let cmdline_address = reader.u64(at(24))?;
    let map_address = reader.u64(at(40))?;
    let entries = u64::from(reader.u32(at(48))?);
    let mut memory = region_with(reader, map_address, entries, 24, image)?;
    if modules != 0 {
        let ramdisk = reader.u64(module_list)?;
        if ramdisk > image {
            memory.end = memory.end.min(ramdisk);
        }
    }
    Ok(BootInfo {
        cmdline_address,
        memory,
    })
}

/// The usable region that holds `image`. Both protocols' entries begin with a 64-bit address, a
/// 64-bit size and a 32-bit type, with the same numbers for the types.
fn region_with<M: PhysicalMemory>(
    reader: &Reader<'_, M>,
    map: u64,
    entries: u64,
    entry_bytes: u64,
    image: u64,
) -> Result<Range<u64>, BootError> {
    for index in 0..entries.min(MAX_MEMORY_MAP_ENTRIES) {
        let entry = map.wrapping_add(index * entry_bytes);
        let start = reader.u64(entry)?;
        let end = start.saturating_add(reader.u64(entry.wrapping_add(8))?);
        if reader.u32(entry.wrapping_add(16))? == USABLE_RAM && (start..end).contains(&image) {
            return Ok(start..end);
        }
    }
    Err(BootError::NoMemory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Memory(Vec<u8>);

    impl PhysicalMemory for Memory {
        fn byte(&self, address: u64) -> Option<u8> {
            self.0.get(usize::try_from(address).ok()?).copied()
        }
    }

    impl Memory {
        fn put(&mut self, at: usize, bytes: &[u8]) {
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    const IMAGE: u64 = 0x100_0000;

    fn linux() -> Memory {
        let mut memory = Memory(vec![0; 0x9000]);
        memory.put(0x7202, b"HdrS");
        memory.put(0x7228, &0x8000u32.to_le_bytes());
        memory.put(0x71e8, &[2]);
        memory.put(0x72d0 + 8, &0x9_fc00u64.to_le_bytes());
        memory.put(0x72d0 + 16, &1u32.to_le_bytes());
        memory.put(0x72d0 + 20, &0x10_0000u64.to_le_bytes());
        memory.put(0x72d0 + 28, &0x7f0_0000u64.to_le_bytes());
        memory.put(0x72d0 + 36, &1u32.to_le_bytes());
        memory.put(0x8000, b"function=x\0");
        memory
    }

    #[test]
    fn the_zero_page_is_read() {
        let memory = linux();
        let info = read(&memory, 0x7000, IMAGE).unwrap();
        assert_eq!(info.memory, 0x10_0000..0x800_0000);
        let mut buffer = [0; MAX_CMDLINE_BYTES];
        assert_eq!(
            read_cmdline(&memory, info.cmdline_address, &mut buffer),
            "function=x"
        );
    }

    #[test]
    fn memory_ends_before_a_ram_disk() {
        let mut memory = linux();
        memory.put(0x7218, &0x700_0000u32.to_le_bytes());
        memory.put(0x721c, &1u32.to_le_bytes());
        let info = read(&memory, 0x7000, IMAGE).unwrap();
        assert_eq!(info.memory, 0x10_0000..0x700_0000);
    }

    #[test]
    fn the_pvh_start_info_is_read() {
        let mut memory = Memory(vec![0; 0x9000]);
        memory.put(0x6000, &PVH_MAGIC.to_le_bytes());
        memory.put(0x6004, &1u32.to_le_bytes());
        memory.put(0x6018, &0x8000u64.to_le_bytes());
        memory.put(0x6028, &0x6100u64.to_le_bytes());
        memory.put(0x6030, &1u32.to_le_bytes());
        memory.put(0x6100, &0x10_0000u64.to_le_bytes());
        memory.put(0x6108, &0xff0_0000u64.to_le_bytes());
        memory.put(0x6110, &1u32.to_le_bytes());
        let info = read(&memory, 0x6000, IMAGE).unwrap();
        assert_eq!(info.memory, 0x10_0000..0x1000_0000);
        assert_eq!(info.cmdline_address, 0x8000);
    }

    #[test]
    fn each_error_is_told() {
        let memory = linux();
        assert_eq!(
            read(&memory, 0x6000, IMAGE),
            Err(BootError::UnknownProtocol)
        );
        assert_eq!(read(&memory, 0x7000, 0x900_0000), Err(BootError::NoMemory));
        assert_eq!(
            read(&memory, u64::MAX - 1, IMAGE),
            Err(BootError::Unreadable)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn no_zero_page_panics(noise in proptest::collection::vec(any::<u8>(), 0x1000)) {
            let mut memory = Memory(noise);
            let _ = read(&memory, 0, IMAGE);
            memory.put(0x202, b"HdrS");
            let _ = read(&memory, 0, IMAGE);
            memory.put(0, &PVH_MAGIC.to_le_bytes());
            let _ = read(&memory, 0, IMAGE);
            let mut buffer = [0; MAX_CMDLINE_BYTES];
            let _ = read_cmdline(&memory, 0x10, &mut buffer);
        }
    }
}
