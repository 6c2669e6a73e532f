//! Saving and restoring a vCPU's registers.

use std::time::Duration;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave, kvm_xsave2,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_sys_util::fam::FamStruct;

use crate::arch::msr;

/// Everything that KVM knows of a vCPU.
#[derive(Clone, Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: CpuId,
    tsc_khz: u32,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    mp_state: kvm_mp_state,
    events: kvm_vcpu_events,
}

/// Why a vCPU's registers could not be saved or restored.
#[derive(Debug, Error)]
pub enum VcpuStateError {
    /// KVM refused a call.
    #[error("cannot {action} of vCPU {index}: {call} failed")]
    Kvm {
        /// "save the state" or "restore the state".
        action: &'static str,
        /// Which vCPU.
        index: u8,
        /// The KVM call.
        call: &'static str,
        /// Its errno.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The XSAVE area is not of the size that this host's KVM reads.
    #[error(
        "the snapshot's XSAVE area of {saved_bytes} bytes does not fit this host's processor, \
         which has {host_bytes} bytes: restore it on a host of the processor it was made on"
    )]
    XsaveSize {
        /// In the snapshot.
        saved_bytes: usize,
        /// On this host.
        host_bytes: usize,
    },
}

/// Number of extra entries that an [`Xsave`] needs on this host, beyond the 4 KiB every
/// `kvm_xsave` has.
fn xsave_extra_entries(vm: &VmFd) -> usize {
    let bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
    bytes
        .saturating_sub(size_of::<kvm_xsave>())
        .div_ceil(size_of::<<kvm_xsave2 as FamStruct>::Entry>())
}

fn xsave_bytes(entries: usize) -> usize {
    size_of::<kvm_xsave>() + entries * size_of::<<kvm_xsave2 as FamStruct>::Entry>()
}

/// Reads the state of vCPU `index`, which must not be running and must have no I/O to complete.
///
/// # Errors
/// The first KVM call that fails.
pub(super) fn save(
    kvm: &Kvm,
    vm: &VmFd,
    vcpu: &VcpuFd,
    index: u8,
) -> Result<VcpuState, VcpuStateError> {
    let failed = |call: &'static str| {
        move |source| VcpuStateError::Kvm {
            action: "save the state",
            index,
            call,
            source,
        }
    };
    // First the mp state: reading it makes KVM take in a pending INIT or SIPI, which changes
    // what the other calls return.
    let mp_state = vcpu.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
    let regs = vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?;
    let sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    let xcrs = vcpu.get_xcrs().map_err(failed("KVM_GET_XCRS"))?;
    let debug_regs = vcpu.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?;
    let lapic = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    let extra = xsave_extra_entries(vm);
    let mut xsave = Xsave::new(extra)
        .map_err(|_| failed("KVM_GET_XSAVE2")(kvm_ioctls::Error::new(libc::ENOMEM)))?;
    if extra == 0 {
        let fixed = vcpu.get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
        // SAFETY: only the fixed part is replaced; the length of the flexible array stays.
        unsafe { xsave.as_mut_fam_struct() }.xsave = fixed;
    } else {
        // SAFETY: `xsave` was made with the entries that KVM_CAP_XSAVE2 asks for on this VM, and
        // reapvm enables no further dynamic feature by arch_prctl after that.
        unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(failed("KVM_GET_XSAVE2"))?;
    }
    let tsc_khz = vcpu.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?;
    let cpuid = vcpu
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("KVM_GET_CPUID2"))?;
    let msrs = msr::save(kvm, vcpu).map_err(failed("KVM_GET_MSRS"))?;
    let events = vcpu
        .get_vcpu_events()
        .map_err(failed("KVM_GET_VCPU_EVENTS"))?;
    Ok(VcpuState {
        cpuid,
        tsc_khz,
        regs,
        sregs,
        xsave,
        xcrs,
        debug_regs,
        lapic,
        msrs,
        mp_state,
        events,
    })
}

/// Writes `state` into a fresh vCPU. Its time-stamp counter has gone on by `age`, the time since
/// the state was saved, as kvmclock has: timers that are due fire, and time is right by either.
///
/// # Errors
/// The first KVM call that fails, or an XSAVE area that does not fit this host.
pub fn restore(
    vm: &VmFd,
    vcpu: &VcpuFd,
    index: u8,
    state: &VcpuState,
    age: Duration,
) -> Result<(), VcpuStateError> {
    let failed = |call: &'static str| {
        move |source| VcpuStateError::Kvm {
            action: "restore the state",
            index,
            call,
            source,
        }
    };
    // CPUID first: KVM checks every later register against the features it grants.
    vcpu.set_cpuid2(&state.cpuid)
        .map_err(failed("KVM_SET_CPUID2"))?;
    // The TSC frequency before anything that KVM converts with it. Setting the frequency that
    // the host has anyway is left out: hosts without TSC scaling refuse even that.
    let host_khz = vcpu.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?;
    if differs_beyond_tolerance(host_khz, state.tsc_khz) {
        vcpu.set_tsc_khz(state.tsc_khz)
            .map_err(failed("KVM_SET_TSC_KHZ"))?;
    }
    // Special registers carry the LAPIC base and its mode, which decide how KVM reads the LAPIC
    // page; EFER and CR0 also decide which registers are valid.
    vcpu.set_sregs(&state.sregs)
        .map_err(failed("KVM_SET_SREGS"))?;
    vcpu.set_regs(&state.regs).map_err(failed("KVM_SET_REGS"))?;
    let host_entries = xsave_extra_entries(vm);
    let saved_entries = state.xsave.as_slice().len();
    if saved_entries != host_entries {
        return Err(VcpuStateError::XsaveSize {
            saved_bytes: xsave_bytes(saved_entries),
            host_bytes: xsave_bytes(host_entries),
        });
    }
    // SAFETY: the area has the length that KVM_CAP_XSAVE2 gives for this VM, as checked above,
    // so that KVM reads nothing beyond it.
    unsafe { vcpu.set_xsave2(&state.xsave) }.map_err(failed("KVM_SET_XSAVE"))?;
    vcpu.set_xcrs(&state.xcrs).map_err(failed("KVM_SET_XCRS"))?;
    vcpu.set_debug_regs(&state.debug_regs)
        .map_err(failed("KVM_SET_DEBUGREGS"))?;
    // The LAPIC before the MSRs: IA32_TSC_DEADLINE is only taken while the LVT timer is in
    // TSC-deadline mode. Within the MSRs the TSC stands before IA32_TSC_DEADLINE.
    vcpu.set_lapic(&state.lapic)
        .map_err(failed("KVM_SET_LAPIC"))?;
    let msrs = msr::with_tsc_advanced(&state.msrs, tsc_ticks(age, state.tsc_khz));
    msr::restore(vcpu, &msrs).map_err(failed("KVM_SET_MSRS"))?;
    vcpu.set_mp_state(state.mp_state)
        .map_err(failed("KVM_SET_MP_STATE"))?;
    // Pending events last: several of the calls above clear or re-evaluate them.
    vcpu.set_vcpu_events(&state.events)
        .map_err(failed("KVM_SET_VCPU_EVENTS"))?;
    // Tells the guest that it was stopped, so that its soft-lockup watchdog does not blame it.
    // A guest without kvmclock makes KVM answer EINVAL: nothing to tell then.
    if let Err(source) = vcpu.kvmclock_ctrl()
        && source.errno() != libc::EINVAL
    {
        return Err(failed("KVM_KVMCLOCK_CTRL")(source));
    }
    Ok(())
}

/// Ticks of a counter of `khz` in `time`.
fn tsc_ticks(time: Duration, khz: u32) -> u64 {
    (time.as_nanos() * u128::from(khz) / 1_000_000) as u64
}

/// KVM tolerates 250 parts per million before it scales (its `tsc_tolerance_ppm`); within
/// that, a restored guest's clock runs as true as it did.
fn differs_beyond_tolerance(host_khz: u32, saved_khz: u32) -> bool {
    let tolerance = u64::from(saved_khz) * 250 / 1_000_000;
    u64::from(host_khz.abs_diff(saved_khz)) > tolerance
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_xcr;

    use super::*;
    use crate::arch::cpuid;
    use crate::interrupts;

    /// XCR0 of a guest that uses AVX: x87, SSE and AVX state.
    const X87_SSE_AVX: u64 = 0b111;
    /// Offset of XSTATE_BV in an XSAVE area, which says what the area holds (Intel SDM 1, 13.4.2).
    const XSTATE_BV: usize = 512;
    /// Offset of the low halves of the YMM registers, which are the XMM registers (13.4.1).
    const XMM: usize = 160;
    /// Bytes of the halves of 16 registers.
    const HALVES: usize = 16 * 16;

    /// A vCPU as a booted machine has it.
    fn new_vcpu(kvm: &Kvm) -> (VmFd, VcpuFd) {
        let vm = kvm.create_vm().unwrap();
        interrupts::create(&vm).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let base = cpuid::base(kvm).unwrap();
        vcpu.set_cpuid2(&cpuid::for_vcpu(&base, 0, 1)).unwrap();
        (vm, vcpu)
    }

    /// Where the high halves of the YMM registers are in an XSAVE area (CPUID leaf 0xd).
    fn ymm_high_offset(cpuid: &CpuId) -> usize {
        let avx = cpuid
            .as_slice()
            .iter()
            .find(|e| (e.function, e.index) == (0xd, 2));
        avx.unwrap().ebx as usize
    }

    /// The area that KVM has, as bytes.
    fn xsave_area(vm: &VmFd, vcpu: &VcpuFd) -> Xsave {
        let mut xsave = Xsave::new(xsave_extra_entries(vm)).unwrap();
        // SAFETY: the area has the entries that KVM_CAP_XSAVE2 asks for on this VM.
        unsafe { vcpu.get_xsave2(&mut xsave) }.unwrap();
        xsave
    }

    fn set_bytes(xsave: &mut Xsave, at: usize, bytes: &[u8]) {
        // SAFETY: only numbers are changed; the length of the flexible array stays.
        let region = unsafe { &mut xsave.as_mut_fam_struct().xsave.region };
        for (word, bytes) in region[at / 4..].iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
    }

    fn bytes(xsave: &Xsave, at: usize, len: usize) -> Vec<u8> {
        let region = &xsave.as_fam_struct_ref().xsave.region;
        let words = &region[at / 4..(at + len) / 4];
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn avx_registers_are_saved_and_restored() {
        let kvm = Kvm::new().unwrap();
        let (vm, vcpu) = new_vcpu(&kvm);
        let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
        let has_avx = cpuid
            .as_slice()
            .iter()
            .any(|entry| entry.function == 1 && entry.ecx & 1 << 28 != 0);
        if !has_avx {
            eprintln!("skipped: KVM offers no AVX on this host");
            return;
        }
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..kvm_xcrs::default()
        };
        xcrs.xcrs[0] = kvm_xcr {
            xcr: 0,
            value: X87_SSE_AVX,
            ..kvm_xcr::default()
        };
        vcpu.set_xcrs(&xcrs).unwrap();
        let high = ymm_high_offset(&cpuid);
        let pattern = |seed: u8| -> Vec<u8> {
            let halves = 0..HALVES;
            halves.map(|at| (at as u8).wrapping_mul(7) ^ seed).collect()
        };
        let mut area = xsave_area(&vm, &vcpu);
        set_bytes(&mut area, XSTATE_BV, &X87_SSE_AVX.to_le_bytes());
        set_bytes(&mut area, XMM, &pattern(0x35));
        set_bytes(&mut area, high, &pattern(0xc1));
        // SAFETY: the area has the length that KVM_CAP_XSAVE2 gives for this VM.
        unsafe { vcpu.set_xsave2(&area) }.unwrap();

        let saved = save(&kvm, &vm, &vcpu, 0).unwrap();
        // As a snapshot has it.
        let mut file = reapvm_snapshot::StateFile::new();
        file.push("vcpu", 1, &saved).unwrap();
        let saved: VcpuState = file.get("vcpu", 1).unwrap();
        drop((vcpu, vm));

        let (vm, vcpu) = new_vcpu(&kvm);
        assert_ne!(bytes(&xsave_area(&vm, &vcpu), high, HALVES), pattern(0xc1));
        restore(&vm, &vcpu, 0, &saved, Duration::ZERO).unwrap();
        let restored = xsave_area(&vm, &vcpu);
        assert_eq!(bytes(&restored, XMM, HALVES), pattern(0x35));
        assert_eq!(bytes(&restored, high, HALVES), pattern(0xc1));
        let held = bytes(&restored, XSTATE_BV, 8);
        assert_eq!(held[0] & 0b110, 0b110, "SSE and AVX state");
        let xcr0 = vcpu.get_xcrs().unwrap().xcrs[0];
        assert_eq!((xcr0.xcr, xcr0.value), (0, X87_SSE_AVX));
    }

    #[test]
    fn a_counter_goes_on_by_its_frequency() {
        assert_eq!(tsc_ticks(Duration::from_secs(3), 2_450_000), 7_350_000_000);
        assert_eq!(tsc_ticks(Duration::from_nanos(1), 2_450_000), 2);
        let year = Duration::from_secs(365 * 86400);
        assert_eq!(tsc_ticks(year, 3_000_000), 365 * 86400 * 3_000_000_000);
    }

    #[test]
    fn a_small_difference_of_frequency_is_left_to_the_guest() {
        assert!(!differs_beyond_tolerance(2_450_100, 2_450_000));
        assert!(differs_beyond_tolerance(2_600_000, 2_450_000));
    }
}
