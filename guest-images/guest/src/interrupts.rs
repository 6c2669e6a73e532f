//! Interrupts and exceptions: the gates, the interrupt controller, and the report of an exception.

use crate::serial::println;
use crate::supervisor::{self, write_port};

/// The PIC's lines are delivered from this vector on, behind the processor's exceptions.
const FIRST_IRQ_VECTOR: usize = 32;
const VECTORS: usize = 48;
const SERVICE_VECTOR: usize = 3;

const MASTER_COMMAND: u16 = 0x20;
const MASTER_DATA: u16 = 0x21;
const SLAVE_COMMAND: u16 = 0xa0;
const SLAVE_DATA: u16 = 0xa1;

unsafe extern "C" {
    static mut idt: [[u64; 2]; VECTORS];
    static exception_entries: [[u8; 16]; 32];
    static exception_frame: [u64; 5];
    fn interrupt_entry();
}

/// Fills in the gates of all exceptions and of the PIC's lines.
///
/// # Safety
/// Called once, before the first interrupt.
pub(crate) unsafe fn install_gates() {
    for vector in (0..VECTORS).filter(|vector| *vector != SERVICE_VECTOR) {
        let handler = if vector < FIRST_IRQ_VECTOR {
            // SAFETY: only the address is taken.
            (&raw const exception_entries) as u64 + vector as u64 * 16
        } else {
            interrupt_entry as *const () as u64
        };
        // SAFETY: the table has `VECTORS` gates and nothing else writes to it.
        unsafe { (&raw mut idt[vector]).write(interrupt_gate(handler)) };
    }
}

/// An interrupt gate to ring 0's code that only the processor may use.
fn interrupt_gate(handler: u64) -> [u64; 2] {
    let attributes = 0x8e00 << 32 | 0x08 << 16;
    let low = handler & 0xffff | (handler & 0xffff_0000) << 32;
    [low | attributes, handler >> 32]
}

/// Sets both PICs up, with one line open and the others masked.
///
/// They end interrupts by themselves (automatic EOI): with one source and a handler that only sets
/// a flag, nested interrupts do no harm, and the handler has nothing to write. `irq` is below 16.
pub(crate) fn enable_line(irq: u32) {
    let line = 1u16 << irq;
    let open = if irq >= 8 { line | 1 << 2 } else { line };
    let [master_mask, slave_mask] = (!open).to_le_bytes();
    for (port, byte) in [
        (MASTER_COMMAND, 0x11), // begin; edge-triggered; a fourth word follows
        (MASTER_DATA, FIRST_IRQ_VECTOR as u8),
        (MASTER_DATA, 1 << 2), // the slave is on line 2
        (MASTER_DATA, 0x03),   // automatic EOI; 8086 mode
        (SLAVE_COMMAND, 0x11),
        (SLAVE_DATA, FIRST_IRQ_VECTOR as u8 + 8),
        (SLAVE_DATA, 2),
        (SLAVE_DATA, 0x03),
        (MASTER_DATA, master_mask),
        (SLAVE_DATA, slave_mask),
    ] {
        write_port(port, byte);
    }
}

/// Ring 3's end of an exception: says what and where, and ends the machine.
#[unsafe(no_mangle)]
extern "C" fn exception_main() -> ! {
    // SAFETY: ring 0 wrote the frame before it came here, and writes it only once.
    let [number, error, rip, rsp, cr2] = unsafe { (&raw const exception_frame).read() };
    let name = match number {
        0 => "division by zero",
        2 => "non-maskable interrupt",
        6 => "invalid instruction",
        8 => "double fault",
        12 => "stack fault",
        13 => "general protection fault",
        14 => "page fault",
        16 | 19 => "floating-point exception",
        17 => "alignment check",
        18 => "machine check",
        _ => "exception",
    };
    println!(
        "reapvm-guest: {name} (vector {number}, error code {error:#x}) at {rip:#x}, \
         stack {rsp:#x}, fault address {cr2:#x}; resetting"
    );
    supervisor::reset()
}
