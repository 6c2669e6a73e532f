//! Ring 0: the assembly that holds it (`machine.S`), and its services as ring 3 calls them.
//!
//! The way in is `int3` through a gate that ring 3 may use: `int n` and `syscall` are not
//! delivered everywhere that this image runs, a breakpoint is.

use core::arch::{asm, global_asm};

global_asm!(include_str!("machine.S"), options(att_syntax));

const WAIT: u64 = 0;
const WRITE_STRING: u64 = 1;
const WRITE_PORT: u64 = 2;
const LOAD_PAGE_TABLES: u64 = 3;

/// Waits until an interrupt has come since the last wait ended. One that came between the two is
/// not lost: the wait is over at once.
pub(crate) fn wait_for_interrupt() {
    // SAFETY: the service changes no memory but its own flag, and keeps every register.
    unsafe { asm!("int3", in("rax") WAIT) }
}

/// Writes all bytes to an I/O port, one after the other, in one visit to ring 0.
pub(crate) fn write_port_bytes(port: u16, bytes: &[u8]) {
    // SAFETY: the service reads `bytes` and writes only to the port; ports in this guest belong to
    // the serial line, the PIC and the keyboard controller, none of which touches memory.
    unsafe {
        asm!(
            "int3",
            in("rax") WRITE_STRING,
            in("dx") port,
            inout("rsi") bytes.as_ptr() => _,
            inout("rcx") bytes.len() => _,
        );
    }
}

/// Writes one byte to an I/O port.
pub(crate) fn write_port(port: u16, byte: u8) {
    // SAFETY: as for `write_port_bytes`.
    unsafe {
        asm!(
            "int3",
            inout("rax") WRITE_PORT => _,
            in("dx") port,
            in("rsi") u64::from(byte),
        );
    }
}

/// Makes the page tables at `root` (guest-physical, page-aligned) the current ones.
///
/// # Safety
/// They map everything in use at its own address, for ring 3 too.
pub(crate) unsafe fn load_page_tables(root: u64) {
    // SAFETY: the caller vouches for the tables.
    unsafe { asm!("int3", in("rax") LOAD_PAGE_TABLES, in("rdi") root) }
}

/// Ends the machine by the keyboard controller's reset line, as a VMM expects it.
pub(crate) fn reset() -> ! {
    loop {
        write_port(0x64, 0xfe);
        wait_for_interrupt();
    }
}
