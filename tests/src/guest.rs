//! Guests of a few instructions, as ELF files, and the built-in one in other clothes.

use std::path::Path;

/// Where the tiny guests are loaded and begin.
pub const LOAD_GPA: u64 = 16 << 20;
const CODE_OFFSET: usize = 0x1000;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// `ud2`, with nobody to handle it: a triple fault.
pub const TRIPLE_FAULT: &[u8] = &[0x0f, 0x0b];
/// `jmp .`
pub const SPIN: &[u8] = &[0xeb, 0xfe];
/// `cli; hlt; jmp` back to the `hlt`.
pub const HALT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];
/// Writes `hi\n` to the serial port and asks for a reset.
pub const SAY_HI: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'h', 0xee, // mov al, 'h'; out dx, al
    0xb0, b'i', 0xee, //
    0xb0, b'\n', 0xee, //
    0xb0, 0xfe, 0xe6, 0x64, // mov al, 0xfe; out 0x64, al
    0xf4, 0xeb, 0xfd, // hlt; jmp back
];
/// Writes `hi\n` to the serial port and halts for ever.
pub const SAY_HI_AND_HALT: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'h', 0xee, // mov al, 'h'; out dx, al
    0xb0, b'i', 0xee, //
    0xb0, b'\n', 0xee, //
    0xfa, // cli
    0xf4, 0xeb, 0xfd, // hlt; jmp back
];
/// 32 bits: writes the ids of the devices in the first two virtio-mmio slots, each as the
/// character '0' + id, and asks for a reset.
pub const SAY_DEVICES: &[u8] = &[
    0xbe, 0x00, 0x00, 0x00, 0xd0, // mov esi, 0xd0000000
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x8b, 0x46, 0x08, // mov eax, [esi + 8]
    0x04, 0x30, 0xee, // add al, '0'; out dx, al
    0x8b, 0x86, 0x08, 0x10, 0x00, 0x00, // mov eax, [esi + 0x1008]
    0x04, 0x30, 0xee, //
    0xb0, b'\n', 0xee, //
    0xb0, 0xfe, 0xe6, 0x64, //
    0xf4, 0xeb, 0xfd, //
];
/// 32 bits, entered by PVH: writes its command line, a `|`, and the first byte of its initrd.
pub const SAY_BOOT: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x8b, 0x73, 0x18, // mov esi, [ebx + 24]: cmdline_paddr
    0xac, 0x84, 0xc0, // lodsb; test al, al
    0x74, 0x03, // jz to the end of the loop
    0xee, 0xeb, 0xf8, // out dx, al; jmp to the lodsb
    0xb0, b'|', 0xee, //
    0x8b, 0x43, 0x10, // mov eax, [ebx + 16]: modlist_paddr
    0x8b, 0x00, // mov eax, [eax]: paddr
    0x8a, 0x00, 0xee, // mov al, [eax]; out dx, al
    0xb0, b'\n', 0xee, //
    0xb0, 0xfe, 0xe6, 0x64, //
    0xf4, 0xeb, 0xfd, //
];

/// An ELF executable of one segment.
pub struct Image {
    /// What it does.
    pub code: Vec<u8>,
    /// Where the segment goes, and its entry.
    pub gpa: u64,
    /// Its length in memory.
    pub memory_bytes: u64,
    /// Whether it asks to be started by PVH.
    pub pvh: bool,
}

impl Image {
    /// Starts in 64 bits, by Linux's boot protocol.
    pub fn long_mode(code: &[u8]) -> Self {
        Self {
            code: code.to_vec(),
            gpa: LOAD_GPA,
            memory_bytes: code.len() as u64,
            pvh: false,
        }
    }

    /// Starts in 32 bits, by PVH.
    pub fn pvh(code: &[u8]) -> Self {
        Self {
            pvh: true,
            ..Self::long_mode(code)
        }
    }

    /// The file's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let header_count: u16 = if self.pvh { 2 } else { 1 };
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        elf.extend(2_u16.to_le_bytes()); // ET_EXEC
        elf.extend(62_u16.to_le_bytes()); // EM_X86_64
        elf.extend(1_u32.to_le_bytes());
        for value in [self.gpa, 64, 0] {
            elf.extend(value.to_le_bytes()); // e_entry, e_phoff, e_shoff
        }
        elf.extend(0_u32.to_le_bytes());
        for value in [64_u16, 56, header_count, 64, 0, 0] {
            elf.extend(value.to_le_bytes());
        }
        let mut segment = |kind: u32, offset: usize, gpa: u64, file: u64, memory: u64| {
            elf.extend(kind.to_le_bytes());
            elf.extend(7_u32.to_le_bytes());
            for value in [offset as u64, gpa, gpa, file, memory] {
                elf.extend(value.to_le_bytes());
            }
            // A note's alignment is that of its fields.
            let align: u64 = if kind == PT_NOTE { 4 } else { 0x1000 };
            elf.extend(align.to_le_bytes());
        };
        let code_bytes = self.code.len() as u64;
        segment(
            PT_LOAD,
            CODE_OFFSET,
            self.gpa,
            code_bytes,
            self.memory_bytes,
        );
        if self.pvh {
            segment(PT_NOTE, 0x200, 0, 20, 20);
            elf.resize(0x200, 0);
            for value in [4, 4, XEN_ELFNOTE_PHYS32_ENTRY] {
                elf.extend(value.to_le_bytes());
            }
            elf.extend(b"Xen\0");
            elf.extend((self.gpa as u32).to_le_bytes());
        }
        elf.resize(CODE_OFFSET, 0);
        elf.extend(&self.code);
        elf
    }

    /// Writes the file to `path`.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }
}

/// The built-in image without its PVH note: it is then booted by Linux's 64-bit protocol.
///
/// # Panics
/// If it has no note.
pub fn builtin_without_pvh() -> Vec<u8> {
    let mut image = reapvm_guest_images::image().to_vec();
    let count = u16::from_le_bytes([image[56], image[57]]);
    let table = u64::from_le_bytes(image[32..40].try_into().unwrap()) as usize;
    let note = (0..usize::from(count))
        .map(|index| table + index * 56)
        .find(|&at| image[at..at + 4] == PT_NOTE.to_le_bytes())
        .unwrap();
    image[note..note + 4].fill(0); // PT_NULL
    image
}
