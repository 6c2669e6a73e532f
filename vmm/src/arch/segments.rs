//! Segments, control registers and boot page tables of the boot vCPU.

use kvm_bindings::{kvm_segment, kvm_sregs};
use reapvm_devices::GuestMemory;
use vm_memory::{Bytes, GuestMemoryError};

use super::layout;

/// CR0: protection, extension type, numeric error, paging.
pub(crate) const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Present, writable page-table entry.
const PTE_PRESENT_WRITABLE: u64 = 0b11;
/// Page-directory entry that maps 2 MiB.
const PDE_LARGE: u64 = 1 << 7;

/// The mode in which a kernel's entry point expects the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryMode {
    /// 64-bit, paging on, first GiB mapped one to one: Linux's 64-bit boot protocol.
    Long,
    /// 32-bit protected, paging off: PVH.
    Protected,
}

/// A flat descriptor: flags as in bits 40 to 55 of a descriptor (Intel SDM vol. 3, 3.4.5).
const fn descriptor(flags: u64, base: u64, limit: u64) -> u64 {
    (base & 0xff00_0000) << 32
        | (flags & 0xf0ff) << 40
        | (limit & 0x000f_0000) << 32
        | (base & 0x00ff_ffff) << 16
        | (limit & 0xffff)
}

fn gdt(mode: EntryMode) -> [u64; 4] {
    match mode {
        EntryMode::Long => [
            0,
            descriptor(0xa09b, 0, 0xf_ffff),
            descriptor(0xc093, 0, 0xf_ffff),
            descriptor(0x808b, 0, 0xf_ffff),
        ],
        EntryMode::Protected => [
            0,
            descriptor(0xc09b, 0, 0xffff_ffff),
            descriptor(0xc093, 0, 0xffff_ffff),
            descriptor(0x008b, 0, 0x67),
        ],
    }
}

fn segment(entry: u64, index: u16) -> kvm_segment {
    let granular = entry >> 55 & 1 == 1;
    let limit = ((entry >> 32 & 0xf_0000) | (entry & 0xffff)) as u32;
    let present = (entry >> 47 & 1) as u8;
    kvm_segment {
        base: (entry >> 32 & 0xff00_0000) | (entry >> 16 & 0x00ff_ffff),
        limit: if granular { limit << 12 | 0xfff } else { limit },
        selector: index * 8,
        type_: (entry >> 40 & 0xf) as u8,
        present,
        dpl: (entry >> 45 & 3) as u8,
        db: (entry >> 54 & 1) as u8,
        s: (entry >> 44 & 1) as u8,
        l: (entry >> 53 & 1) as u8,
        g: u8::from(granular),
        avl: (entry >> 52 & 1) as u8,
        unusable: 1 - present,
        padding: 0,
    }
}

/// Writes GDT, IDT and, for [`EntryMode::Long`], the identity map into guest memory, and sets
/// `sregs` to use them.
///
/// # Errors
/// Guest memory is too small to hold the tables (below 640 KiB).
pub fn configure(
    memory: &GuestMemory,
    sregs: &mut kvm_sregs,
    mode: EntryMode,
) -> Result<(), GuestMemoryError> {
    let gdt = gdt(mode);
    for (index, entry) in gdt.iter().enumerate() {
        memory.write_obj(
            *entry,
            vm_memory::GuestAddress(layout::BOOT_GDT.0 + index as u64 * 8),
        )?;
    }
    memory.write_obj(0_u64, layout::BOOT_IDT)?;
    sregs.gdt.base = layout::BOOT_GDT.0;
    sregs.gdt.limit = (size_of_val(&gdt) - 1) as u16;
    sregs.idt.base = layout::BOOT_IDT.0;
    sregs.idt.limit = 7;
    sregs.cs = segment(gdt[1], 1);
    let data = segment(gdt[2], 2);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(gdt[3], 3);

    match mode {
        EntryMode::Protected => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
        }
        EntryMode::Long => {
            memory.write_obj(
                layout::BOOT_PDPT.0 | PTE_PRESENT_WRITABLE,
                layout::BOOT_PML4,
            )?;
            memory.write_obj(layout::BOOT_PD.0 | PTE_PRESENT_WRITABLE, layout::BOOT_PDPT)?;
            for index in 0..512_u64 {
                memory.write_obj(
                    index << 21 | PTE_PRESENT_WRITABLE | PDE_LARGE,
                    vm_memory::GuestAddress(layout::BOOT_PD.0 + index * 8),
                )?;
            }
            sregs.cr3 = layout::BOOT_PML4.0;
            sregs.cr4 |= CR4_PAE;
            sregs.cr0 |= CR0_PE | CR0_ET | CR0_PG;
            sregs.efer |= EFER_LME | EFER_LMA;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_segment_is_64_bit_in_long_mode_and_flat_32_bit_in_protected_mode() {
        let long = segment(gdt(EntryMode::Long)[1], 1);
        assert_eq!((long.l, long.db, long.present, long.selector), (1, 0, 1, 8));
        let protected = segment(gdt(EntryMode::Protected)[1], 1);
        assert_eq!(
            (protected.l, protected.db, protected.limit),
            (0, 1, u32::MAX)
        );
    }

    #[test]
    fn the_pvh_task_segment_has_the_limit_the_protocol_asks_for() {
        let tss = segment(gdt(EntryMode::Protected)[3], 3);
        assert_eq!((tss.limit, tss.type_, tss.s), (0x67, 0xb, 0));
    }

    #[test]
    fn the_first_gib_is_mapped_one_to_one() {
        let memory = crate::memory::of_bytes(1 << 20);
        let mut sregs = kvm_sregs::default();
        configure(&memory, &mut sregs, EntryMode::Long).unwrap();
        let last: u64 = memory
            .read_obj(vm_memory::GuestAddress(layout::BOOT_PD.0 + 511 * 8))
            .unwrap();
        assert_eq!(last & !0xfff, 511 << 21);
        assert_eq!(sregs.cr3, layout::BOOT_PML4.0);
    }
}
