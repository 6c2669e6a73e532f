//! Entering pages in the guest's page tables before it touches them (KVM_PRE_FAULT_MEMORY, Linux
//! 6.11). What is installed is mapped in this process, but the guest still leaves for each page that
//! it touches first; with this it does not.
//!
//! Source: Linux, `Documentation/virt/kvm/api.rst`, 4.143.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use kvm_bindings::{KVMIO, kvm_pre_fault_memory};
use kvm_ioctls::{VcpuFd, VmFd};
use reapvm_snapshot::PAGE_SIZE;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::build::{BuildError, open_kvm};
use crate::clock;
use crate::memory::MemoryManager;

/// `linux/kvm.h`.
const KVM_CAP_PRE_FAULT_MEMORY: u64 = 236;

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// Whether this host's KVM can enter pages before they are touched. With shadow paging it cannot.
///
/// # Errors
/// [`BuildError::OpenKvm`].
pub fn can_pre_fault() -> Result<bool, BuildError> {
    Ok(open_kvm()?.check_extension_raw(KVM_CAP_PRE_FAULT_MEMORY) > 0)
}

/// What was entered in a guest's page tables before its first instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PreFaulted {
    /// Pages.
    pub pages: u64,
    /// How long that took, in nanoseconds.
    pub took_ns: u64,
}

/// Enters pages in the page tables of a virtual machine.
pub(super) struct PreFault {
    /// A descriptor of its own of a vCPU, which a thread has by the time that pages are installed:
    /// what is entered by one is there for all.
    vcpu: OwnedFd,
}

impl PreFault {
    /// By the first of the vCPUs of `vm`.
    pub(super) fn new(vm: &VmFd, vcpus: &[VcpuFd]) -> Result<Self, BuildError> {
        let vcpu = vcpus.first().ok_or(BuildError::NoPreFault)?;
        if vm.check_extension_raw(KVM_CAP_PRE_FAULT_MEMORY) <= 0 {
            return Err(BuildError::NoPreFault);
        }
        // SAFETY: the vCPU's descriptor is open for as long as `vcpu` is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let vcpu = fd.try_clone_to_owned().map_err(BuildError::Descriptor)?;
        Ok(Self { vcpu })
    }

    /// Enters all pages that are installed by now, and none of the others, which would be waited
    /// for.
    pub(super) fn enter_installed(self, memory: &MemoryManager) -> Result<PreFaulted, BuildError> {
        let begin_ns = clock::monotonic_ns();
        let mut pages = 0;
        for (gpa, size_bytes) in memory.installed_ranges() {
            pre_fault_range(gpa, size_bytes, |request| {
                // SAFETY: the vCPU's descriptor is open, and the call takes this structure, which
                // it writes the rest of its work to.
                let result =
                    unsafe { ioctl_with_mut_ref(&self.vcpu, KVM_PRE_FAULT_MEMORY(), request) };
                match result {
                    0 => Ok(()),
                    _ => Err(errno::Error::last()),
                }
            })
            .map_err(|source| BuildError::Kvm {
                call: "KVM_PRE_FAULT_MEMORY",
                source,
            })?;
            pages += size_bytes / PAGE_SIZE as u64;
        }
        Ok(PreFaulted {
            pages,
            took_ns: clock::monotonic_ns().saturating_sub(begin_ns),
        })
    }
}

/// Has `call` enter `size_bytes` from `gpa` on, however often it is interrupted: it moves what is
/// left in its request on.
fn pre_fault_range(
    gpa: u64,
    size_bytes: u64,
    mut call: impl FnMut(&mut kvm_pre_fault_memory) -> Result<(), errno::Error>,
) -> Result<(), errno::Error> {
    let mut request = kvm_pre_fault_memory {
        gpa,
        size: size_bytes,
        ..kvm_pre_fault_memory::default()
    };
    while request.size > 0 {
        match call(&mut request) {
            Ok(()) => {}
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_is_interrupted_goes_on_where_it_was() {
        let mut calls = 0;
        let mut entered = Vec::new();
        pre_fault_range(0x10_000, 0x5000, |request| {
            calls += 1;
            match calls {
                1 => return Err(errno::Error::new(libc::EINTR)),
                3 => return Err(errno::Error::new(libc::EAGAIN)),
                _ => {}
            }
            let done = request.size.min(0x2000);
            entered.push((request.gpa, done));
            request.gpa += done;
            request.size -= done;
            Ok(())
        })
        .unwrap();
        assert_eq!(
            entered,
            [(0x10_000, 0x2000), (0x12_000, 0x2000), (0x14_000, 0x1000)]
        );
    }

    #[test]
    fn another_failure_ends_it() {
        let refused = pre_fault_range(0, 4096, |_| Err(errno::Error::new(libc::EOPNOTSUPP)));
        assert_eq!(refused.unwrap_err().errno(), libc::EOPNOTSUPP);
    }
}
