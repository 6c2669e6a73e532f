//! **Unstable.** The in-kernel interrupt controllers and timer: PIC, IOAPIC, LAPIC, PIT, kvmclock.

use std::time::Duration;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY,
    kvm_clock_data, kvm_irqchip, kvm_lapic_state, kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::arch::layout;
use crate::clock;

/// A KVM call about interrupts or the clock failed.
#[derive(Debug, Error)]
#[error("cannot {action}: {call} failed")]
pub struct InterruptError {
    action: &'static str,
    call: &'static str,
    #[source]
    source: kvm_ioctls::Error,
}

fn failed(
    action: &'static str,
    call: &'static str,
) -> impl Fn(kvm_ioctls::Error) -> InterruptError {
    move |source| InterruptError {
        action,
        call,
        source,
    }
}

/// State of the machine's interrupt controllers, timer and clock.
#[derive(Clone, Serialize, Deserialize)]
pub struct InterruptState {
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    ioapic: kvm_irqchip,
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
    /// The host's wall clock when `clock` was read, in ns since 1970.
    realtime_ns: u64,
}

impl InterruptState {
    /// How long ago it was saved, by the host's wall clock. No time if that has been set back.
    pub fn age(&self) -> Duration {
        Duration::from_nanos(clock::realtime_ns().saturating_sub(self.realtime_ns))
    }
}

/// Creates irqchip and PIT. Before any vCPU: KVM gives a vCPU its LAPIC only if the irqchip is
/// there when it is created.
///
/// # Errors
/// The KVM call that fails.
pub fn create(vm: &VmFd) -> Result<(), InterruptError> {
    const ACTION: &str = "create the interrupt controllers";
    vm.set_tss_address(layout::KVM_TSS_BASE)
        .map_err(failed(ACTION, "KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip()
        .map_err(failed(ACTION, "KVM_CREATE_IRQCHIP"))?;
    // The dummy speaker answers port 0x61, by which kernels calibrate their timers.
    let config = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(config)
        .map_err(failed(ACTION, "KVM_CREATE_PIT2"))
}

/// Reads the state; vCPUs must be paused.
///
/// # Errors
/// The KVM call that fails.
pub fn save(vm: &VmFd) -> Result<InterruptState, InterruptError> {
    const ACTION: &str = "save the interrupt controllers";
    let chip = |chip_id| {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        vm.get_irqchip(&mut chip)
            .map_err(failed(ACTION, "KVM_GET_IRQCHIP"))?;
        Ok(chip)
    };
    let pit = vm.get_pit2().map_err(failed(ACTION, "KVM_GET_PIT2"))?;
    let mut clock = vm.get_clock().map_err(failed(ACTION, "KVM_GET_CLOCK"))?;
    let realtime_ns = clock::realtime_ns();
    // What KVM_GET_CLOCK reports in its flags, KVM_SET_CLOCK does not take.
    clock.flags = 0;
    Ok(InterruptState {
        pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
        pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
        ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
        pit,
        clock,
        realtime_ns,
    })
}

/// Writes the state into a fresh machine, after its vCPUs: KVM hands a pending interrupt to a
/// LAPIC at once, which must have its state by then. kvmclock has gone on by `age`, the time since
/// the state was saved: a guest's wall clock is right when it wakes.
///
/// # Errors
/// The KVM call that fails.
pub fn restore(vm: &VmFd, state: &InterruptState, age: Duration) -> Result<(), InterruptError> {
    const ACTION: &str = "restore the interrupt controllers";
    // The clock first: the PIT's counters and kvmclock both run on it.
    let mut clock = state.clock;
    clock.clock = clock.clock.saturating_add(age.as_nanos() as u64);
    vm.set_clock(&clock)
        .map_err(failed(ACTION, "KVM_SET_CLOCK"))?;
    vm.set_pit2(&state.pit)
        .map_err(failed(ACTION, "KVM_SET_PIT2"))?;
    for chip in [&state.pic_master, &state.pic_slave, &state.ioapic] {
        vm.set_irqchip(chip)
            .map_err(failed(ACTION, "KVM_SET_IRQCHIP"))?;
    }
    Ok(())
}

/// Offsets in the LAPIC page, and delivery modes (Intel SDM vol. 3, 11.4 and 11.5.1).
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const DELIVERY_EXTINT: u32 = 0x7;
const DELIVERY_NMI: u32 = 0x4;

/// Wires LINT0 to the 8259 and LINT1 to NMI, as firmware does (virtual wire mode).
///
/// # Errors
/// The KVM call that fails.
pub fn configure_lint(vcpu: &VcpuFd) -> Result<(), InterruptError> {
    const ACTION: &str = "configure the local APIC";
    let mut lapic = vcpu.get_lapic().map_err(failed(ACTION, "KVM_GET_LAPIC"))?;
    set_delivery_mode(&mut lapic, APIC_LVT0, DELIVERY_EXTINT);
    set_delivery_mode(&mut lapic, APIC_LVT1, DELIVERY_NMI);
    vcpu.set_lapic(&lapic)
        .map_err(failed(ACTION, "KVM_SET_LAPIC"))
}

fn set_delivery_mode(lapic: &mut kvm_lapic_state, offset: usize, mode: u32) {
    // `regs` is declared in C as char: each element is one byte of the page.
    let bytes = [0, 1, 2, 3].map(|n| lapic.regs[offset + n] as u8);
    let value = (u32::from_le_bytes(bytes) & !0x700) | mode << 8;
    for (n, byte) in value.to_le_bytes().into_iter().enumerate() {
        lapic.regs[offset + n] = byte as _;
    }
}
