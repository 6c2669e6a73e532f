//! Model-specific registers: which are saved, and in what order they are restored.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

/// IA32_TSC.
const MSR_TSC: u32 = 0x10;
/// IA32_MISC_ENABLE.
const MSR_MISC_ENABLE: u32 = 0x1a0;
/// IA32_TSC_DEADLINE.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// IA32_MTRRdefType.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;

/// KVM takes at most this many in one call (KVM's MAX_IO_MSRS).
const MAX_MSRS_A_CALL: usize = 256;

/// The MSRs that a stock kernel expects its firmware to have set before it boots.
///
/// # Errors
/// The errno of KVM_SET_MSRS.
pub fn set_boot_msrs(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    // Fast strings on; MTRRs on, write-back by default: all RAM is ordinary cached memory.
    for (index, data) in [(MSR_MISC_ENABLE, 1), (MSR_MTRR_DEF_TYPE, 1 << 11 | 6)] {
        set_one(vcpu, index, data)?;
    }
    Ok(())
}

fn set_one(vcpu: &VcpuFd, index: u32, data: u64) -> Result<bool, kvm_ioctls::Error> {
    set_some(
        vcpu,
        &[kvm_msr_entry {
            index,
            data,
            ..Default::default()
        }],
    )
    .map(|set| set == 1)
}

fn set_some(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<usize, kvm_ioctls::Error> {
    let msrs = Msrs::from_entries(entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
    vcpu.set_msrs(&msrs)
}

/// Reads every MSR of KVM's index list that this vCPU lets us read.
///
/// The result is in restore order: IA32_TSC_DEADLINE stands last, because KVM arms the timer
/// by the TSC of that moment, so the TSC must have been restored before it.
///
/// # Errors
/// The errno of KVM_GET_MSR_INDEX_LIST or KVM_GET_MSRS.
pub fn save(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>, kvm_ioctls::Error> {
    let mut wanted: Vec<u32> = kvm.get_msr_index_list()?.as_slice().to_vec();
    wanted.sort_by_key(|&index| (index == MSR_TSC_DEADLINE, index != MSR_TSC));
    let mut saved = Vec::with_capacity(wanted.len());
    let mut rest = &wanted[..];
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(MAX_MSRS_A_CALL)];
        let entries: Vec<_> = chunk
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let mut msrs =
            Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        let read = vcpu.get_msrs(&mut msrs)?.min(chunk.len());
        saved.extend_from_slice(&msrs.as_slice()[..read]);
        rest = &rest[read..];
        if read < chunk.len() {
            // KVM stops at the first MSR that this vCPU does not have.
            tracing::debug!(
                msr = format_args!("{:#x}", rest[0]),
                "MSR cannot be read: not saved"
            );
            rest = &rest[1..];
        }
    }
    Ok(saved)
}

/// The same registers with the time-stamp counter `ticks` further.
pub fn with_tsc_advanced(saved: &[kvm_msr_entry], ticks: u64) -> Vec<kvm_msr_entry> {
    let mut msrs = saved.to_vec();
    for entry in &mut msrs {
        if entry.index == MSR_TSC {
            entry.data = entry.data.wrapping_add(ticks);
        }
    }
    msrs
}

/// Writes back what [`save`] read, in its order. An MSR that this host refuses is skipped with
/// a log line: KVM lists some that only a newer processor lets one set.
///
/// # Errors
/// The errno of KVM_SET_MSRS.
pub fn restore(vcpu: &VcpuFd, saved: &[kvm_msr_entry]) -> Result<(), kvm_ioctls::Error> {
    let mut rest = saved;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(MAX_MSRS_A_CALL)];
        let set = set_some(vcpu, chunk)?.min(chunk.len());
        rest = &rest[set..];
        if set < chunk.len() {
            tracing::debug!(
                msr = format_args!("{:#x}", rest[0].index),
                value = format_args!("{:#x}", rest[0].data),
                "MSR cannot be set on this host: skipped"
            );
            rest = &rest[1..];
        }
    }
    Ok(())
}
