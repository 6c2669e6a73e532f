//! Linux's compressed kernel image (Documentation/arch/x86/boot.rst).

use std::io::{self, Read, Seek, SeekFrom};

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bzimage::BzImage;
use reapvm_devices::GuestMemory;
use vm_memory::ReadVolatile;

use super::{BootError, EntryPoint, LoadedKernel};
use crate::arch::layout;
use crate::arch::segments::EntryMode;

/// Where the setup header's magic stands, and what it is.
const MAGIC_OFFSET: u64 = 0x202;
const MAGIC: [u8; 4] = *b"HdrS";
/// Protocol 2.12 brought `xloadflags`.
const MIN_VERSION: u16 = 0x020c;
/// XLF_KERNEL_64: the image has a 64-bit entry point, this far behind where it is loaded.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64_OFFSET: u64 = 0x200;

/// Whether the file is a bzImage. Leaves the file at its beginning.
pub(super) fn is_bzimage<F: Read + Seek>(image: &mut F) -> io::Result<bool> {
    let mut magic = [0; 4];
    image.seek(SeekFrom::Start(MAGIC_OFFSET))?;
    let is_magic = match image.read_exact(&mut magic) {
        Ok(()) => magic == MAGIC,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(error),
    };
    image.rewind()?;
    Ok(is_magic)
}

pub(super) fn load<F: Read + ReadVolatile + Seek>(
    memory: &GuestMemory,
    image: &mut F,
    name: &str,
    memory_bytes: u64,
) -> Result<LoadedKernel, BootError> {
    let low_end = memory_bytes.min(layout::MMIO_HOLE_START);
    let too_large = || BootError::KernelTooLarge {
        name: name.to_owned(),
        memory_mib: memory_bytes >> 20,
    };
    let refused = |reason: String| BootError::Kernel {
        name: name.to_owned(),
        reason,
    };
    let image_bytes = image
        .seek(SeekFrom::End(0))
        .map_err(|error| refused(error.to_string()))?;
    if image_bytes > low_end - layout::HIGH_RAM_START.0 {
        return Err(too_large());
    }
    let result = BzImage::load(memory, None, image, Some(layout::HIGH_RAM_START))
        .map_err(|error| refused(error.to_string()))?;
    let header = result
        .setup_header
        .ok_or_else(|| refused("it has no setup header".to_owned()))?;
    let (version, flags) = (header.version, header.xloadflags);
    if version < MIN_VERSION || flags & XLF_KERNEL_64 == 0 {
        return Err(refused(format!(
            "it has no 64-bit entry point (boot protocol {}.{:02}, load flags {flags:#x})",
            version >> 8,
            version & 0xff
        )));
    }
    // It unpacks itself to its preferred address, and needs `init_size` bytes there, before it
    // knows of anything else in memory.
    let unpacked_end = header
        .pref_address
        .max(result.kernel_load.0)
        .saturating_add(u64::from(header.init_size));
    let end_gpa = result.kernel_end.max(unpacked_end);
    if end_gpa > low_end {
        return Err(too_large());
    }
    Ok(LoadedKernel {
        entry: EntryPoint {
            gpa: result.kernel_load.0 + ENTRY_64_OFFSET,
            mode: EntryMode::Long,
        },
        end_gpa,
        setup_header: Some(header),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    /// A bzImage of one setup sector and a page of code.
    fn image(version: u16, xloadflags: u16, init_size: u32) -> Vec<u8> {
        let mut image = vec![0_u8; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(&MAGIC);
        image[0x206..0x208].copy_from_slice(&version.to_le_bytes());
        image[0x211] = 1;
        image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
        image[0x236..0x238].copy_from_slice(&xloadflags.to_le_bytes());
        image[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&init_size.to_le_bytes());
        image.extend_from_slice(&[0x5a; 4096]);
        image
    }

    fn memory() -> GuestMemory {
        crate::memory::of_bytes(64 << 20)
    }

    fn load_bytes(bytes: Vec<u8>) -> Result<(LoadedKernel, GuestMemory), BootError> {
        let memory = memory();
        let kernel = load(&memory, &mut Cursor::new(&bytes[..]), "k", 64 << 20)?;
        Ok((kernel, memory))
    }

    #[test]
    fn the_protected_mode_part_is_loaded_and_entered_at_its_64_bit_entry() {
        let bytes = image(0x020f, 1, 0x20_0000);
        assert!(is_bzimage(&mut Cursor::new(&bytes)).unwrap());
        let (kernel, memory) = load_bytes(bytes).unwrap();
        assert_eq!(
            (kernel.entry.gpa, kernel.entry.mode),
            (0x10_0200, EntryMode::Long)
        );
        assert_eq!(kernel.end_gpa, 0x120_0000);
        assert_eq!(
            memory.read_obj::<u8>(GuestAddress(0x10_0fff)).unwrap(),
            0x5a
        );
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x10_1000)).unwrap(), 0);
    }

    #[test]
    fn what_cannot_be_entered_or_does_not_fit_is_refused() {
        for (version, flags) in [(0x020b, 1), (0x020f, 0)] {
            let error = load_bytes(image(version, flags, 0)).err().unwrap();
            assert!(error.to_string().contains("64-bit entry"), "{error}");
        }
        for init_size in [49 << 20, u32::MAX] {
            let error = load_bytes(image(0x020f, 1, init_size)).err().unwrap();
            assert!(matches!(error, BootError::KernelTooLarge { .. }), "{error}");
        }
        let mut truncated = image(0x020f, 1, 0);
        truncated.truncate(700);
        assert!(load_bytes(truncated).is_err());
    }

    #[test]
    fn short_and_other_files_are_none() {
        for bytes in [&b""[..], b"\x7fELF", &[0; 4096]] {
            assert!(!is_bzimage(&mut Cursor::new(bytes)).unwrap());
        }
    }
}
