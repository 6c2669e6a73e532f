//! ACPI tables, by which a stock kernel finds its processors, interrupt lines and devices (ACPI
//! Specification 6.5; chapter numbers in this module are that document's).
//!
//! The machine is hardware-reduced (4.1): no fixed hardware but a sleep register and a reset
//! register. Kernels without ACPI find the same devices through the MP table and the command line.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use reapvm_devices::GuestMemory;
use reapvm_devices::legacy::i8042::I8042_BASE_PORT;
use reapvm_devices::legacy::pvpanic::PVPANIC_SIZE_BYTES;
use reapvm_devices::legacy::serial::{SERIAL_BASE_PORT, SERIAL_GSI, SERIAL_PORT_COUNT};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, MmioWindow};
use crate::arch::layout;
use crate::machine::SOFT_OFF_SLEEP_TYPE;

const OEM_ID: [u8; 6] = *b"REAPVM";
const OEM_TABLE_ID: [u8; 8] = *b"REAPVM  ";
const OEM_REVISION: u32 = 1;
/// Length of a table's header (5.2.6).
const HEADER_BYTES: u32 = 36;
/// Revision of a DSDT whose integers have 64 bits (5.2.11.1).
const DSDT_REVISION: u8 = 2;
/// Where each table begins is a multiple of this: the RSDP has to (5.2.5.1), the others may.
const ALIGNMENT: u64 = 16;

/// IA-PC boot architecture flags (5.2.9.3): there is no VGA, and no CMOS clock.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_RTC: u16 = 1 << 5;
/// The keyboard controller's command port, and the command that resets the machine.
const RESET_PORT: u64 = I8042_BASE_PORT + 4;
const RESET_COMMAND: u8 = 0xfe;

/// Writes tables for `vcpus` and `devices`; returns the address of the RSDP.
pub(super) fn write(
    memory: &GuestMemory,
    vcpus: u8,
    devices: &[MmioWindow],
) -> Result<u64, BootError> {
    let rsdp_gpa = layout::ACPI_TABLES.0;
    let mut tables = Tables {
        memory,
        next: (rsdp_gpa + Rsdp::len() as u64).next_multiple_of(ALIGNMENT),
    };
    let dsdt = tables.add(&dsdt(devices))?;
    let fadt = tables.add(&fadt(dsdt))?;
    let madt = tables.add(&madt(vcpus))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = tables.add(&bytes_of(&xsdt))?;
    memory.write_slice(&bytes_of(&Rsdp::new(OEM_ID, xsdt)), GuestAddress(rsdp_gpa))?;
    Ok(rsdp_gpa)
}

/// Puts tables one behind the other.
struct Tables<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Tables<'_> {
    fn add(&mut self, table: &[u8]) -> Result<u64, BootError> {
        let gpa = self.next;
        let end = gpa + table.len() as u64;
        if end > layout::GENERATION_ID.0 {
            return Err(BootError::BootParams(
                "the ACPI tables are longer than the room for them".to_owned(),
            ));
        }
        self.memory.write_slice(table, GuestAddress(gpa))?;
        self.next = end.next_multiple_of(ALIGNMENT);
        Ok(gpa)
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let port = |port: u64| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port);
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_RTC).into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_COMMAND;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    bytes_of(&fadt.finalize())
}

fn madt(vcpus: u8) -> Vec<u8> {
    let mut madt = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LAPIC_BASE),
    );
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vcpus, layout::IOAPIC_BASE, 0));
    bytes_of(&madt)
}

/// An edge-triggered, active-high interrupt line of one device.
fn line(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn dsdt(devices: &[MmioWindow]) -> Vec<u8> {
    let mut dsdt = Sdt::new(
        *b"DSDT",
        HEADER_BYTES,
        DSDT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    let mut body = Vec::new();
    serial(&mut body);
    for (index, device) in (0_u8..).zip(devices) {
        virtio(index, device, &mut body);
    }
    generation_id(&mut body);
    generic_events(&mut body);
    pvpanic(&mut body);
    dsdt.append_slice(&Scope::raw("_SB_".into(), body));
    // Soft off (7.4.2.6): the type to write into the sleep control register.
    let soft_off = [SOFT_OFF_SLEEP_TYPE; 2];
    let package = Package::new(soft_off.iter().map(|kind| kind as &dyn Aml).collect());
    dsdt.append_slice(&bytes_of(&Name::new("_S5_".into(), &package)));
    dsdt.as_slice().to_vec()
}

fn serial(body: &mut Vec<u8>) {
    let port = SERIAL_BASE_PORT as u16;
    let ports = IO::new(port, port, 1, SERIAL_PORT_COUNT as u8);
    let line = line(SERIAL_GSI);
    let resources = ResourceTemplate::new(vec![&ports, &line]);
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0_u8),
            &Name::new("_CRS".into(), &resources),
        ],
    )
    .to_aml_bytes(body);
}

/// A virtio-mmio device, as Linux's driver knows it by its id.
fn virtio(index: u8, device: &MmioWindow, body: &mut Vec<u8>) {
    let window = Memory32Fixed::new(true, device.gpa as u32, device.size_bytes as u32);
    let line = line(device.gsi);
    let resources = ResourceTemplate::new(vec![&window, &line]);
    Device::new(
        Path::new(&format!("VR{index:02}")),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &index),
            // The device sees what the processor's caches hold.
            &Name::new("_CCA".into(), &aml::ONE),
            &Name::new("_CRS".into(), &resources),
        ],
    )
    .to_aml_bytes(body);
}

/// The generation id (Microsoft, "Virtual Machine Generation ID"): where it lies in memory.
fn generation_id(body: &mut Vec<u8>) {
    let low = layout::GENERATION_ID.0 as u32;
    Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"VMGENCTR"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &0_u32])),
        ],
    )
    .to_aml_bytes(body);
}

/// The generic event device (5.6.9): its interrupt says that the generation id has changed.
fn generic_events(body: &mut Vec<u8>) {
    let line = line(layout::GENERATION_ID_GSI);
    let resources = ResourceTemplate::new(vec![&line]);
    let generation_id = Path::new("\\_SB_.VGEN");
    let notify = Notify::new(&generation_id, &0x80_u8);
    Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &0_u8),
            &Name::new("_CRS".into(), &resources),
            &Method::new("_EVT".into(), 1, true, vec![&notify]),
        ],
    )
    .to_aml_bytes(body);
}

/// pvpanic (QEMU, "PVPANIC DEVICE"), as Linux's driver `pvpanic-mmio` knows it by its id.
fn pvpanic(body: &mut Vec<u8>) {
    let register = Memory32Fixed::new(true, layout::PVPANIC as u32, PVPANIC_SIZE_BYTES as u32);
    let resources = ResourceTemplate::new(vec![&register]);
    Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_CRS".into(), &resources),
        ],
    )
    .to_aml_bytes(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(count: u32) -> Vec<MmioWindow> {
        (0..count)
            .map(|index| MmioWindow {
                gpa: layout::VIRTIO_MMIO_BASE + u64::from(index) * 0x1000,
                size_bytes: 0x1000,
                gsi: layout::VIRTIO_MMIO_FIRST_GSI + index,
            })
            .collect()
    }

    fn memory() -> GuestMemory {
        crate::memory::of_bytes(2 << 20)
    }

    fn number(memory: &GuestMemory, gpa: u64, bytes: usize) -> u64 {
        let mut value = [0; 8];
        memory
            .read_slice(&mut value[..bytes], GuestAddress(gpa))
            .unwrap();
        u64::from_le_bytes(value)
    }

    fn table(memory: &GuestMemory, gpa: u64, signature: &[u8; 4]) -> Vec<u8> {
        let mut bytes = vec![0; number(memory, gpa + 4, 4) as usize];
        memory.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        assert_eq!(&bytes[..4], signature);
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "checksum of {signature:?}");
        bytes
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp_and_its_checksum_is_right() {
        let memory = memory();
        let rsdp = write(&memory, 4, &devices(3)).unwrap();
        let mut bytes = [0; 36];
        memory.read_slice(&mut bytes, GuestAddress(rsdp)).unwrap();
        assert_eq!(&bytes[..8], b"RSD PTR ");
        for part in [&bytes[..20], &bytes[..]] {
            assert_eq!(part.iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)), 0);
        }
        let xsdt_gpa = number(&memory, rsdp + 24, 8);
        assert_eq!(table(&memory, xsdt_gpa, b"XSDT").len(), 36 + 2 * 8);
        let fadt_gpa = number(&memory, xsdt_gpa + 36, 8);
        let fadt = table(&memory, fadt_gpa, b"FACP");
        // HW_REDUCED_ACPI.
        assert_ne!(
            u32::from_le_bytes(fadt[112..116].try_into().unwrap()) & 1 << 20,
            0
        );
        let madt = table(&memory, number(&memory, xsdt_gpa + 44, 8), b"APIC");
        assert_eq!(madt.len(), 44 + 4 * 8 + 12);
        let dsdt = table(&memory, number(&memory, fadt_gpa + 140, 8), b"DSDT");
        for name in [
            &b"VR00"[..],
            b"VR02",
            b"LNRO0005",
            b"VMGENCTR",
            b"ACPI0013",
            b"QEMU0001",
            b"_S5_",
        ] {
            assert!(
                dsdt.windows(name.len()).any(|part| part == name),
                "{name:?}"
            );
        }
        assert!(!dsdt.windows(4).any(|part| part == b"VR03"));
    }

    #[test]
    fn the_largest_machine_fits() {
        let most = layout::GENERATION_ID_GSI - layout::VIRTIO_MMIO_FIRST_GSI;
        write(&memory(), crate::config::MAX_VCPUS, &devices(most)).unwrap();
    }
}
