//! The Intel MultiProcessor table, by which a kernel without ACPI finds its processors and the
//! IOAPIC (MultiProcessor Specification 1.4, chapter 4).

use reapvm_devices::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::arch::layout;

const SPEC_REVISION: u8 = 4;
const APIC_VERSION: u8 = 0x14;
/// ISA bus id in this table.
const BUS_ID: u8 = 0;
/// Interrupt lines of the IOAPIC that are wired to the ISA bus.
const ISA_IRQS: u8 = 16;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;
const INTERRUPT_INT: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTINT: u8 = 3;

fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

/// The bytes of the floating pointer and the table behind it, for a table at `gpa`.
fn bytes(gpa: u32, vcpus: u8) -> Vec<u8> {
    let ioapic_id = vcpus;
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for id in 0..vcpus {
        // Bit 0: usable; bit 1: the boot processor.
        let flags = 1 | u8::from(id == 0) << 1;
        let mut entry = vec![ENTRY_PROCESSOR, id, APIC_VERSION, flags];
        entry.extend_from_slice(&0x600_u32.to_le_bytes());
        entry.extend_from_slice(&0x201_u32.to_le_bytes());
        entry.extend_from_slice(&[0; 8]);
        entries.push(entry);
    }
    entries.push([&[ENTRY_BUS, BUS_ID][..], b"ISA   "].concat());
    entries.push(
        [
            &[ENTRY_IOAPIC, ioapic_id, APIC_VERSION, 1][..],
            &layout::IOAPIC_BASE.to_le_bytes(),
        ]
        .concat(),
    );
    for irq in 0..ISA_IRQS {
        entries.push(vec![
            ENTRY_IO_INTERRUPT,
            INTERRUPT_INT,
            0,
            0,
            BUS_ID,
            irq,
            ioapic_id,
            irq,
        ]);
    }
    // LINT0 carries the 8259's interrupts on every processor, LINT1 the NMI.
    entries.push(vec![
        ENTRY_LOCAL_INTERRUPT,
        INTERRUPT_EXTINT,
        0,
        0,
        BUS_ID,
        0,
        0xff,
        0,
    ]);
    entries.push(vec![
        ENTRY_LOCAL_INTERRUPT,
        INTERRUPT_NMI,
        0,
        0,
        BUS_ID,
        0,
        0xff,
        1,
    ]);

    let body: Vec<u8> = entries.concat();
    let mut table = Vec::with_capacity(44 + body.len());
    table.extend_from_slice(b"PCMP");
    table.extend_from_slice(&(44 + body.len() as u16).to_le_bytes());
    table.extend_from_slice(&[SPEC_REVISION, 0]);
    table.extend_from_slice(b"REAPVM  ");
    table.extend_from_slice(b"REAPVM      ");
    table.extend_from_slice(&[0; 6]);
    table.extend_from_slice(&(entries.len() as u16).to_le_bytes());
    table.extend_from_slice(&layout::LAPIC_BASE.to_le_bytes());
    table.extend_from_slice(&[0; 4]);
    table.extend_from_slice(&body);
    table[7] = checksum(&table);

    let mut pointer = Vec::with_capacity(16 + table.len());
    pointer.extend_from_slice(b"_MP_");
    pointer.extend_from_slice(&(gpa + 16).to_le_bytes());
    pointer.extend_from_slice(&[1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);
    pointer.extend_from_slice(&table);
    pointer
}

/// Writes the table of a machine with `vcpus` processors.
///
/// # Errors
/// Guest memory ends below 640 KiB.
pub(super) fn write(memory: &GuestMemory, vcpus: u8) -> Result<(), GuestMemoryError> {
    let GuestAddress(gpa) = layout::MP_TABLE;
    memory.write_slice(&bytes(gpa as u32, vcpus), layout::MP_TABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_checksums_are_right_and_the_length_is_true() {
        for vcpus in [1, 4, 32] {
            let bytes = bytes(0x9_fc00, vcpus);
            assert_eq!(bytes[..16].iter().fold(0_u8, |s, b| s.wrapping_add(*b)), 0);
            assert_eq!(bytes[16..].iter().fold(0_u8, |s, b| s.wrapping_add(*b)), 0);
            assert_eq!(
                u16::from_le_bytes([bytes[20], bytes[21]]) as usize,
                bytes.len() - 16
            );
            assert!(bytes.len() <= 1024, "fits in the KiB below 640 KiB");
        }
    }
}
