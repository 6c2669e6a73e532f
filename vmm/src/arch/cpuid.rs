//! CPUID of a vCPU: what KVM supports, with topology, and without what would hurt.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};

const LEAF_FEATURES: u32 = 0x1;
const LEAF_CORES: u32 = 0x4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;

/// CPUID leaf 1, ECX: the LAPIC timer has a TSC-deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;

/// KVM_FEATURE_ASYNC_PF, _ASYNC_PF_VMEXIT and _ASYNC_PF_INT (Documentation/virt/kvm/x86/cpuid.rst).
/// Asynchronous page faults make a restored guest schedule away on every host fault and lose
/// interrupts across a snapshot; a vCPU that waits is what a fault trace must see.
const KVM_ASYNC_PF_BITS: u32 = 1 << 4 | 1 << 10 | 1 << 14;

/// The CPUID that every vCPU starts from.
///
/// # Errors
/// The errno of KVM_GET_SUPPORTED_CPUID, or E2BIG if it leaves no room for the topology.
pub fn base(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    // KVM's own LAPIC has this timer mode on every processor, and leaves it to its user to say so:
    // without it a guest has to calibrate another mode against a timer that it may not have.
    if kvm.check_extension(Cap::TscDeadlineTimer) {
        for entry in cpuid.as_mut_slice() {
            if entry.function == LEAF_FEATURES {
                entry.ecx |= TSC_DEADLINE;
            }
        }
    }
    add_core_level(&mut cpuid)?;
    Ok(cpuid)
}

/// Adds the second level of the topology where KVM has the first. KVM lists that alone, and leaves
/// it to its user to say what is in it; a guest that finds no level of cores takes every processor
/// for a package of its own (Intel SDM, volume 2, CPUID leaf 0xb).
fn add_core_level(cpuid: &mut CpuId) -> Result<(), kvm_ioctls::Error> {
    for function in [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2] {
        let has = |index| {
            let entries = cpuid.as_slice().iter();
            entries
                .filter(|entry| entry.function == function)
                .any(|entry| entry.index == index)
        };
        if has(0) && !has(1) {
            let level = kvm_cpuid_entry2 {
                function,
                index: 1,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                ..Default::default()
            };
            cpuid
                .push(level)
                .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        }
    }
    Ok(())
}

/// `base` for the vCPU `index` of `count`: one socket, one thread a core.
pub fn for_vcpu(base: &CpuId, index: u8, count: u8) -> CpuId {
    let mut cpuid = base.clone();
    for entry in cpuid.as_mut_slice() {
        apply_topology(entry, u32::from(index), u32::from(count));
    }
    cpuid
}

fn apply_topology(entry: &mut kvm_cpuid_entry2, index: u32, count: u32) {
    let id_bits = count.next_power_of_two().trailing_zeros();
    match entry.function {
        LEAF_FEATURES => {
            // EBX: initial APIC id, logical processors a package, CLFLUSH line in 8 bytes.
            entry.ebx = (entry.ebx & 0x0000_ffff) | index << 24 | count << 16;
            // The hypervisor bit, and HTT only where there is more than one processor.
            entry.ecx |= 1 << 31;
            if count > 1 {
                entry.edx |= 1 << 28;
            } else {
                entry.edx &= !(1 << 28);
            }
        }
        LEAF_CORES if entry.eax & 0x1f != 0 => {
            entry.eax = (entry.eax & 0x3fff) | (count - 1) << 26;
        }
        LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => {
            entry.edx = index;
            match entry.index {
                // Thread level: one thread a core.
                0 => (entry.eax, entry.ebx, entry.ecx) = (0, 1, 1 << 8),
                // Core level: all vCPUs.
                1 => (entry.eax, entry.ebx, entry.ecx) = (id_bits, count, 2 << 8 | 1),
                n => (entry.eax, entry.ebx, entry.ecx) = (0, 0, n),
            }
        }
        LEAF_AMD_SIZES => {
            entry.ecx = (entry.ecx & !0xf0ff) | id_bits << 12 | (count - 1);
        }
        LEAF_KVM_FEATURES => entry.eax &= !KVM_ASYNC_PF_BITS,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        }
    }

    #[test]
    fn apic_id_and_count_are_in_leaf_1() {
        let mut e = entry(LEAF_FEATURES, 0);
        apply_topology(&mut e, 3, 4);
        assert_eq!(e.ebx >> 24, 3);
        assert_eq!(e.ebx >> 16 & 0xff, 4);
        assert_eq!(e.edx >> 28 & 1, 1);
        apply_topology(&mut e, 0, 1);
        assert_eq!(e.edx >> 28 & 1, 0);
    }

    #[test]
    fn three_vcpus_need_two_bits_of_apic_id() {
        let mut e = entry(LEAF_TOPOLOGY, 1);
        apply_topology(&mut e, 2, 3);
        assert_eq!((e.eax, e.ebx, e.edx), (2, 3, 2));
    }

    #[test]
    fn the_topology_has_a_level_of_cores_where_kvm_lists_the_first_level_only() {
        let first = entry(LEAF_TOPOLOGY, 0);
        let mut base = CpuId::from_entries(&[entry(LEAF_FEATURES, 0), first]).unwrap();
        add_core_level(&mut base).unwrap();
        add_core_level(&mut base).unwrap();
        let cpuid = for_vcpu(&base, 2, 4);
        let levels: Vec<_> = cpuid.as_slice()[1..]
            .iter()
            .map(|e| (e.function, e.index, e.eax, e.ebx, e.ecx, e.edx))
            .collect();
        assert_eq!(
            levels,
            [(0xb, 0, 0, 1, 0x100, 2), (0xb, 1, 2, 4, 0x201, 2)],
            "thread and core level, and neither of a leaf that KVM does not have"
        );
        let flags = cpuid.as_slice()[2].flags;
        assert_eq!(flags, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
    }

    #[test]
    fn asynchronous_page_faults_are_hidden() {
        let mut e = entry(LEAF_KVM_FEATURES, 0);
        apply_topology(&mut e, 0, 1);
        assert_eq!(e.eax & KVM_ASYNC_PF_BITS, 0);
        assert_ne!(e.eax & 1 << 3, 0, "kvmclock stays");
    }
}
