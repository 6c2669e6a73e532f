//! A guest of a few instructions that works a disk: the first virtio-mmio device, by polling. It
//! does what it is told by single characters on its console, and answers there.

use std::io::{self, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use reapvm::config::{DriveSettings, VmConfig};
use reapvm::machine::Console;

use crate::guest::Image;

/// Reads sector 0. Answers with the status (`0`: done, `1`: I/O error) and the sector's first byte.
pub const READ: u8 = b'r';
/// Answers with the disk's capacity in sectors, as the character `'0'` + capacity.
pub const CAPACITY: u8 = b'c';
/// Takes the pending interrupts. Answers with `'0'` + the bits: 1 for buffers, 2 for a changed
/// configuration.
pub const INTERRUPTS: u8 = b'i';
/// Panics: says so to the pvpanic device, and resets the machine right after it.
pub const PANIC: u8 = b'p';
/// Says to the pvpanic device that a crash kernel takes over.
pub const CRASH_LOADED: u8 = b'k';
/// What the guest says when its disk is set up. It takes no input before.
pub const READY: u8 = b'+';

// 32 bits, without paging, anywhere in memory. The rings are at 17 MiB, which is zero at boot.
std::arch::global_asm!(
    r"
    .pushsection .rodata
    .globl reapvm_disk_guest_start
    .globl reapvm_disk_guest_end
    .code32
reapvm_disk_guest_start:
    mov esi, 0xd0000000
    mov edi, 0x1100000
    mov dword ptr [esi + 0x70], 0        # Status: reset
    mov dword ptr [esi + 0x70], 1        # ACKNOWLEDGE
    mov dword ptr [esi + 0x70], 3        # DRIVER
    mov dword ptr [esi + 0x24], 1        # DriverFeaturesSel
    mov dword ptr [esi + 0x20], 1        # DriverFeatures: VERSION_1
    mov dword ptr [esi + 0x70], 0xb      # FEATURES_OK
    mov dword ptr [esi + 0x30], 0        # QueueSel
    mov dword ptr [esi + 0x38], 8        # QueueNum
    mov dword ptr [esi + 0x80], 0x1100000
    mov dword ptr [esi + 0x84], 0
    mov dword ptr [esi + 0x90], 0x1101000
    mov dword ptr [esi + 0x94], 0
    mov dword ptr [esi + 0xa0], 0x1102000
    mov dword ptr [esi + 0xa4], 0
    mov dword ptr [esi + 0x44], 1        # QueueReady
    mov dword ptr [esi + 0x70], 0xf      # DRIVER_OK
    # Three descriptors: a header of zeroes, which reads sector 0, the sector, the status.
    mov dword ptr [edi], 0x1103000
    mov dword ptr [edi + 8], 16
    mov dword ptr [edi + 12], 0x10001    # NEXT, 1
    mov dword ptr [edi + 16], 0x1104000
    mov dword ptr [edi + 24], 512
    mov dword ptr [edi + 28], 0x20003    # NEXT and WRITE, 2
    mov dword ptr [edi + 32], 0x1105000
    mov dword ptr [edi + 40], 1
    mov dword ptr [edi + 44], 2          # WRITE
    mov al, '+'
    mov dx, 0x3f8
    out dx, al
2:  mov dx, 0x3fd                        # a character?
    in al, dx
    test al, 1
    jz 2b
    mov dx, 0x3f8
    in al, dx
    cmp al, 'r'
    je 3f
    cmp al, 'c'
    je 5f
    cmp al, 'i'
    je 6f
    cmp al, 'p'
    je 7f
    cmp al, 'k'
    jne 2b
    mov byte ptr [0xd0100000], 2
    jmp 2b
3:  inc word ptr [edi + 0x1002]          # the avail ring's index; its entries are all 0
    mov dword ptr [esi + 0x50], 0        # QueueNotify
4:  mov ax, [edi + 0x2002]               # the used ring's index
    cmp ax, [edi + 0x1002]
    jne 4b
    mov al, [edi + 0x5000]
    add al, '0'
    out dx, al
    mov al, [edi + 0x4000]
    out dx, al
    jmp 2b
5:  mov eax, [esi + 0x100]
    add al, '0'
    out dx, al
    jmp 2b
6:  mov eax, [esi + 0x60]                # InterruptStatus
    mov [esi + 0x64], eax                # InterruptACK
    add al, '0'
    out dx, al
    jmp 2b
7:  mov byte ptr [0xd0100000], 1
    mov al, 0xfe
    out 0x64, al
    jmp 2b
reapvm_disk_guest_end:
    .code64
    .popsection
    "
);

unsafe extern "C" {
    static reapvm_disk_guest_start: u8;
    static reapvm_disk_guest_end: u8;
}

/// The guest's image.
pub fn image() -> Image {
    // SAFETY: the two symbols are the ends of one object, the bytes assembled above, which nobody
    // writes.
    let code = unsafe {
        let start = &raw const reapvm_disk_guest_start;
        let len = (&raw const reapvm_disk_guest_end).offset_from_unsigned(start);
        std::slice::from_raw_parts(start, len)
    };
    Image::pvh(code)
}

/// A machine with 32 MiB for the guest `kernel`, which has to be the file of [`image`], and `disk`
/// under the id `disk`.
pub fn config(kernel: &Path, disk: &Path) -> VmConfig {
    let mut config = VmConfig::for_kernel(kernel.to_owned());
    config.machine_config.mem_size_mib = 32;
    config.drives = vec![DriveSettings::new("disk".into(), disk.to_owned())];
    config
}

/// The other end of the guest's console.
pub struct Talk {
    input: PipeWriter,
    output: Receiver<u8>,
}

struct Output(Sender<u8>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Nobody may listen any more.
        for &byte in bytes {
            let _ = self.0.send(byte);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Talk {
    /// A console for the guest, and its other end.
    ///
    /// # Panics
    /// If there is no pipe.
    pub fn console() -> (Console, Self) {
        let (read, input) = io::pipe().unwrap();
        let (sender, output) = channel();
        (
            Console {
                output: Box::new(Output(sender)),
                input: Some(OwnedFd::from(read)),
            },
            Self { input, output },
        )
    }

    /// The next character of the guest.
    ///
    /// # Panics
    /// If there is none.
    pub fn hear(&mut self) -> u8 {
        self.output.recv_timeout(Duration::from_secs(300)).unwrap()
    }

    /// Tells the guest to do `what`; its answer of `N` characters.
    ///
    /// # Panics
    /// If there is none.
    pub fn ask<const N: usize>(&mut self, what: u8) -> [u8; N] {
        self.input.write_all(&[what]).unwrap();
        std::array::from_fn(|_| self.hear())
    }
}
