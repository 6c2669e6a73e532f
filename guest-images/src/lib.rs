//! The built-in function guest: its image, ready to boot, and what is known of its functions.
//!
//! The image is built by this crate's build script from the crate `reapvm-guest`, with the
//! functions of `reapvm-functions`, and is embedded here: a binary that has this crate needs no
//! other file to boot a function. See the README beside it for the protocols that it speaks.

pub use reapvm_functions::{
    EXTRA_FUNCTIONS, FUNCTIONS, FunctionInfo, SizeParameter, find, protocol,
};

/// The guest's image: a static ELF executable for x86-64, linked at guest-physical 0x100_0000.
///
/// Its ELF entry is that of the 64-bit Linux boot protocol; a note gives the one for PVH. The
/// kernel command line has to name one of [`FUNCTIONS`] or [`EXTRA_FUNCTIONS`] (`function=NAME`) and
/// to announce a virtio-mmio socket device (`virtio_mmio.device=`).
pub fn image() -> &'static [u8] {
    include_bytes!(env!("REAPVM_GUEST_IMAGE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK_ADDRESS: u64 = 16 << 20;
    const PT_LOAD: u64 = 1;
    const PT_DYNAMIC: u64 = 2;
    const PT_INTERP: u64 = 3;
    const PT_NOTE: u64 = 4;
    const ET_EXEC: u64 = 2;
    const EM_X86_64: u64 = 62;
    const XEN_ELFNOTE_PHYS32_ENTRY: u64 = 18;

    fn number(at: usize, bytes: usize) -> u64 {
        image()[at..at + bytes]
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Offset in the image of each program header of `kind`.
    fn program_headers(kind: u64) -> Vec<usize> {
        let table = number(32, 8) as usize;
        (0..number(56, 2) as usize)
            .map(|index| table + index * 56)
            .filter(|header| number(*header, 4) == kind)
            .collect()
    }

    fn loaded(address: u64) -> bool {
        program_headers(PT_LOAD).iter().any(|header| {
            let start = number(header + 24, 8);
            (start..start + number(header + 32, 8)).contains(&address)
        })
    }

    #[test]
    fn the_image_is_a_static_executable_at_16_mib() {
        assert_eq!(&image()[..6], b"\x7fELF\x02\x01");
        assert_eq!(number(16, 2), ET_EXEC);
        assert_eq!(number(18, 2), EM_X86_64);
        assert!(program_headers(PT_DYNAMIC).is_empty());
        assert!(program_headers(PT_INTERP).is_empty());
        let headers = program_headers(PT_LOAD);
        let lowest = headers.iter().map(|header| number(header + 24, 8)).min();
        assert_eq!(lowest, Some(LINK_ADDRESS));
        for header in headers {
            // It runs where it is loaded: before paging, too.
            assert_eq!(number(header + 16, 8), number(header + 24, 8));
        }
        assert!(loaded(number(24, 8)), "the 64-bit entry is in the image");
    }

    #[test]
    fn the_image_has_an_entry_for_pvh() {
        let notes = program_headers(PT_NOTE);
        assert_eq!(notes.len(), 1);
        let note = number(notes[0] + 8, 8) as usize;
        assert_eq!(number(note, 4), 4);
        assert_eq!(number(note + 4, 4), 8);
        assert_eq!(number(note + 8, 4), XEN_ELFNOTE_PHYS32_ENTRY);
        assert_eq!(&image()[note + 12..note + 16], b"Xen\0");
        let entry = number(note + 16, 8);
        assert!(loaded(entry));
        assert_ne!(entry, number(24, 8));
    }

    #[test]
    fn the_image_holds_the_name_of_every_function() {
        for function in FUNCTIONS.iter().chain(&EXTRA_FUNCTIONS) {
            let name = function.name.as_bytes();
            assert!(image().windows(name.len()).any(|window| window == name));
        }
    }
}
