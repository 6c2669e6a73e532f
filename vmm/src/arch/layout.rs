//! The guest-physical address space.
//!
//! ```text
//! 0x0000_0500  boot GDT and IDT
//! 0x0000_6000  PVH start info, module list and memory map
//! 0x0000_7000  zero page (`boot_params`)
//! 0x0000_9000  boot page tables (identity map of the first GiB)
//! 0x0002_0000  kernel command line
//! 0x0009_fc00  end of low RAM: MP table
//! 0x000e_0000  ACPI tables, and the generation id in the last page before 0xf_0000
//! 0x0010_0000  high RAM: kernel, initrd
//! 0xd000_0000  MMIO hole: virtio-mmio devices, pvpanic, then IOAPIC and LAPIC
//! 0x1_0000_0000 RAM that did not fit below the hole
//! ```

use vm_memory::GuestAddress;

/// Where the boot GDT lies.
pub const BOOT_GDT: GuestAddress = GuestAddress(0x500);
/// Where the (empty) boot IDT lies.
pub const BOOT_IDT: GuestAddress = GuestAddress(0x520);
/// PVH `hvm_start_info`.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// PVH module list: one entry, the initrd.
pub const PVH_MODULES: GuestAddress = GuestAddress(0x6080);
/// PVH memory map.
pub const PVH_MEMORY_MAP: GuestAddress = GuestAddress(0x6100);
/// `boot_params` of the Linux 64-bit boot protocol.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Initial stack pointer of the boot vCPU.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Boot page tables: PML4, PDPT, PD, a page each.
pub const BOOT_PML4: GuestAddress = GuestAddress(0x9000);
/// See [`BOOT_PML4`].
pub const BOOT_PDPT: GuestAddress = GuestAddress(0xa000);
/// See [`BOOT_PML4`].
pub const BOOT_PD: GuestAddress = GuestAddress(0xb000);
/// Where the command line lies.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Longest command line with its terminating zero, in bytes (Linux's `COMMAND_LINE_SIZE`).
pub const CMDLINE_MAX_BYTES: usize = 2048;
/// End of the RAM that real-mode firmware would leave to an operating system.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// Intel MP table, in the last KiB below 640 KiB, where Linux looks for it.
pub const MP_TABLE: GuestAddress = GuestAddress(LOW_RAM_END);
/// ACPI tables: in the range that Linux also searches if it is not told where they are.
pub const ACPI_TABLES: GuestAddress = GuestAddress(0xe_0000);
/// The generation id, 16 bytes, at the end of the tables' range.
pub const GENERATION_ID: GuestAddress = GuestAddress(0xe_f000);
/// What the memory map reserves: the tables, the generation id, and the BIOS's range behind them.
pub const FIRMWARE_START: u64 = ACPI_TABLES.0;
/// Start of high RAM; kernels are loaded at or above.
pub const HIGH_RAM_START: GuestAddress = GuestAddress(0x10_0000);

/// Start of the hole below 4 GiB in which no RAM lies.
pub const MMIO_HOLE_START: u64 = 0xd000_0000;
/// First address after the hole.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;

/// First virtio-mmio window.
pub const VIRTIO_MMIO_BASE: u64 = MMIO_HOLE_START;
/// pvpanic's register: behind all the windows that there can be.
pub const PVPANIC: u64 = MMIO_HOLE_START + 0x10_0000;
/// Interrupt line of the first virtio-mmio device; the n-th has this plus n.
pub const VIRTIO_MMIO_FIRST_GSI: u32 = 5;
/// Interrupt line that tells of a new generation id: the IOAPIC's last. Virtio devices have those
/// before it.
pub const GENERATION_ID_GSI: u32 = 23;
/// ACPI sleep control register, an I/O port.
pub const SLEEP_CONTROL_PORT: u64 = 0x600;
/// ACPI sleep status register, an I/O port.
pub const SLEEP_STATUS_PORT: u64 = 0x601;
/// IOAPIC address.
pub const IOAPIC_BASE: u32 = 0xfec0_0000;
/// LAPIC address.
pub const LAPIC_BASE: u32 = 0xfee0_0000;
/// Three pages that Intel's VMX needs for real mode; must not be RAM.
pub const KVM_TSS_BASE: usize = 0xfffb_d000;

/// A range of RAM: its guest-physical address and size, both in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// Length in bytes.
    pub size_bytes: u64,
}

/// The RAM ranges of a VM with `size_bytes` of memory: one below the MMIO hole, and what does
/// not fit there from 4 GiB upwards.
pub fn ram_ranges(size_bytes: u64) -> Vec<RamRange> {
    let low = size_bytes.min(MMIO_HOLE_START);
    let mut ranges = vec![RamRange {
        gpa: 0,
        size_bytes: low,
    }];
    if size_bytes > low {
        ranges.push(RamRange {
            gpa: MMIO_HOLE_END,
            size_bytes: size_bytes - low,
        });
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_that_fits_below_the_hole_is_one_range() {
        assert_eq!(
            ram_ranges(256 << 20),
            [RamRange {
                gpa: 0,
                size_bytes: 256 << 20
            }]
        );
    }

    #[test]
    fn ram_beyond_the_hole_goes_above_4_gib_and_none_is_lost() {
        let ranges = ram_ranges(6 << 30);
        assert_eq!(ranges.len(), 2);
        assert_eq!(ranges[0].size_bytes, MMIO_HOLE_START);
        assert_eq!(ranges[1].gpa, MMIO_HOLE_END);
        assert_eq!(ranges.iter().map(|r| r.size_bytes).sum::<u64>(), 6 << 30);
    }
}
