//! The parameter blocks of the two boot protocols.

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use reapvm_devices::GuestMemory;

use super::{BootError, Initrd};
use crate::arch::layout;

/// "HdrS", the magic of the setup header.
const SETUP_HEADER_MAGIC: u32 = 0x5372_6448;
/// The header's `boot_flag`.
const BOOT_FLAG: u16 = 0xaa55;
/// A loader without an assigned id.
const LOADER_UNDEFINED: u8 = 0xff;
/// XEN_HVM_START_MAGIC_VALUE.
const PVH_MAGIC: u32 = 0x336e_c578;
/// E820_RAM, and the same in a PVH memory map.
const MEMORY_RAM: u32 = 1;
/// E820_RESERVED, likewise.
const MEMORY_RESERVED: u32 = 2;

/// What both protocols tell a kernel.
pub(super) struct Parameters {
    pub(super) cmdline_bytes: usize,
    pub(super) initrd: Option<Initrd>,
    pub(super) memory_bytes: u64,
    /// Address of the ACPI tables' root pointer.
    pub(super) rsdp_gpa: u64,
}

/// Memory as a kernel sees it, as (start, length, type): between 640 KiB and 1 MiB, where MP table
/// and ACPI tables lie, is no RAM.
fn memory_map(memory_bytes: u64) -> Vec<(u64, u64, u32)> {
    let firmware_bytes = layout::HIGH_RAM_START.0 - layout::FIRMWARE_START;
    let mut map = vec![
        (0, layout::LOW_RAM_END, MEMORY_RAM),
        (layout::FIRMWARE_START, firmware_bytes, MEMORY_RESERVED),
    ];
    for range in layout::ram_ranges(memory_bytes) {
        let start = range.gpa.max(layout::HIGH_RAM_START.0);
        let end = range.gpa + range.size_bytes;
        if end > start {
            map.push((start, end - start, MEMORY_RAM));
        }
    }
    map
}

/// `setup_header` is that of a bzImage; an ELF image has none.
pub(super) fn write_linux64(
    memory: &GuestMemory,
    parameters: &Parameters,
    setup_header: Option<setup_header>,
) -> Result<(), BootError> {
    let mut params = boot_params {
        hdr: setup_header.unwrap_or(setup_header_of_elf()),
        acpi_rsdp_addr: parameters.rsdp_gpa,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::CMDLINE.0 as u32;
    params.hdr.cmdline_size = parameters.cmdline_bytes as u32;
    if let Some(initrd) = parameters.initrd {
        params.hdr.ramdisk_image = initrd.gpa as u32;
        params.hdr.ramdisk_size = initrd.size_bytes as u32;
    }
    let map = memory_map(parameters.memory_bytes);
    params.e820_entries = map.len() as u8;
    for (slot, (addr, size, r#type)) in params.e820_table.iter_mut().zip(map) {
        *slot = boot_e820_entry { addr, size, r#type };
    }
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, layout::ZERO_PAGE), memory)
        .map_err(|error| BootError::BootParams(error.to_string()))
}

fn setup_header_of_elf() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: SETUP_HEADER_MAGIC,
        kernel_alignment: 0x100_0000,
        ..Default::default()
    }
}

pub(super) fn write_pvh(memory: &GuestMemory, parameters: &Parameters) -> Result<(), BootError> {
    let map: Vec<_> = memory_map(parameters.memory_bytes)
        .into_iter()
        .map(|(addr, size, type_)| hvm_memmap_table_entry {
            addr,
            size,
            type_,
            ..Default::default()
        })
        .collect();
    let mut info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        cmdline_paddr: layout::CMDLINE.0,
        rsdp_paddr: parameters.rsdp_gpa,
        memmap_paddr: layout::PVH_MEMORY_MAP.0,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut modules = Vec::new();
    if let Some(initrd) = parameters.initrd {
        info.nr_modules = 1;
        info.modlist_paddr = layout::PVH_MODULES.0;
        modules.push(hvm_modlist_entry {
            paddr: initrd.gpa,
            size: initrd.size_bytes,
            ..Default::default()
        });
    }
    let mut params = BootParams::new(&info, layout::PVH_START_INFO);
    params.set_sections(&map, layout::PVH_MEMORY_MAP);
    params.set_modules(&modules, layout::PVH_MODULES);
    PvhBootConfigurator::write_bootparams(&params, memory)
        .map_err(|error| BootError::BootParams(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_leaves_out_the_legacy_hole_and_the_mmio_hole() {
        let map = memory_map(4 << 30);
        let high = layout::MMIO_HOLE_START - 0x10_0000;
        assert_eq!(map[0], (0, layout::LOW_RAM_END, MEMORY_RAM));
        assert_eq!(map[1], (0xe_0000, 0x2_0000, MEMORY_RESERVED));
        assert_eq!(map[2], (0x10_0000, high, MEMORY_RAM));
        let above = (4 << 30) - layout::MMIO_HOLE_START;
        assert_eq!(map[3], (1 << 32, above, MEMORY_RAM));
    }
}
