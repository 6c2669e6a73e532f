//! What a vCPU's thread does.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use reapvm_devices::Bus;

use super::exit::{GuestExit, VcpuRunError};
use super::state::{self, VcpuState, VcpuStateError};
use crate::arch::segments::CR0_PE;
use crate::clock;

/// What a vCPU thread needs beside its descriptor.
#[derive(Clone)]
pub struct VcpuContext {
    /// For the list of MSRs.
    pub kvm: Arc<Kvm>,
    /// For the size of the XSAVE area.
    pub vm: Arc<VmFd>,
    /// Port I/O.
    pub pio: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
    /// Takes the reason when the guest stops by itself; the first one counts.
    pub exits: Arc<dyn Fn(GuestExit) + Send + Sync>,
    /// When the first vCPU entered the guest.
    pub first_run: Arc<FirstRun>,
}

/// The moment of the first KVM_RUN of a machine.
#[derive(Debug, Default)]
pub struct FirstRun(AtomicU64);

impl FirstRun {
    /// Monotonic time in ns, or none if no vCPU has run yet.
    pub fn monotonic_ns(&self) -> Option<u64> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            ns => Some(ns),
        }
    }

    fn mark(&self) {
        if self.0.load(Ordering::Relaxed) == 0 {
            let now = clock::monotonic_ns();
            // Another vCPU may have been first: its time stands.
            let _ = self
                .0
                .compare_exchange(0, now, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// What a vCPU thread is told.
pub(super) enum Command {
    Resume,
    /// Answered once the vCPU is out of the guest.
    Pause(Sender<()>),
    Save(Sender<Result<VcpuState, VcpuStateError>>),
    Stop,
}

/// Runs until [`Command::Stop`]. Returns the descriptor, so that its `kvm_run` page stays mapped
/// until the thread was joined: a kick may still write to it.
pub(super) fn run(
    mut vcpu: VcpuFd,
    index: u8,
    context: &VcpuContext,
    commands: &Receiver<Command>,
) -> VcpuFd {
    let mut running = false;
    // While the guest runs, commands are looked at only after a kick (EINTR), and once before the
    // guest is entered: the kick of a command that was sent right behind Resume came to nothing.
    let mut look = false;
    loop {
        let command = if running && look {
            look = false;
            vcpu.set_kvm_immediate_exit(0);
            // The sender queues its command and then sets the flag. As the flag is cleared before
            // the queue is looked at, either the command is seen here or the flag is set anew.
            fence(Ordering::SeqCst);
            match commands.try_recv() {
                Ok(command) => command,
                // A signal of somebody else's.
                Err(TryRecvError::Empty) => continue,
                Err(TryRecvError::Disconnected) => return vcpu,
            }
        } else if running {
            match guarded_step(&mut vcpu, index, context) {
                Step::Continue => continue,
                Step::Kicked => {
                    look = true;
                    continue;
                }
                Step::Ended(reason) => {
                    running = false;
                    (context.exits)(reason);
                    continue;
                }
            }
        } else {
            match commands.recv() {
                Ok(command) => command,
                Err(_) => return vcpu,
            }
        };
        match command {
            Command::Resume => {
                running = true;
                look = true;
                context.first_run.mark();
            }
            Command::Pause(done) => {
                running = false;
                // The other side may have given up waiting.
                let _ = done.send(());
            }
            Command::Save(reply) => {
                let state = state::save(&context.kvm, &context.vm, &vcpu, index);
                let _ = reply.send(state);
            }
            Command::Stop => return vcpu,
        }
    }
}

enum Step {
    Continue,
    Kicked,
    Ended(GuestExit),
}

/// As [`step`]. A device that panics ends the machine: its guest would wait for it for ever, and its
/// owner for the guest.
fn guarded_step(vcpu: &mut VcpuFd, index: u8, context: &VcpuContext) -> Step {
    panic::catch_unwind(AssertUnwindSafe(|| step(vcpu, index, context))).unwrap_or_else(|payload| {
        Step::Ended(GuestExit::DevicesFailed(format!(
            "a device panicked on the thread of vCPU {index}: {}",
            panic_text(&*payload)
        )))
    })
}

/// What a panic said.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("it did not say why")
}

fn step(vcpu: &mut VcpuFd, index: u8, context: &VcpuContext) -> Step {
    let unhandled = match vcpu.run() {
        Ok(VcpuExit::IoOut(port, data)) => {
            context.pio.write(u64::from(port), data);
            return Step::Continue;
        }
        Ok(VcpuExit::IoIn(port, data)) => {
            // A port that nobody decodes floats high.
            if !context.pio.read(u64::from(port), data) {
                data.fill(0xff);
            }
            return Step::Continue;
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            context.mmio.write(address, data);
            return Step::Continue;
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            if !context.mmio.read(address, data) {
                data.fill(0xff);
            }
            return Step::Continue;
        }
        Ok(VcpuExit::Intr) => return Step::Kicked,
        Ok(VcpuExit::Shutdown) => {
            return Step::Ended(GuestExit::TripleFault {
                rip: rip_of_shutdown(vcpu),
            });
        }
        // With the in-kernel irqchip HLT stays in KVM; where it does not, the guest has no way on.
        Ok(VcpuExit::InternalError) => None,
        Ok(other) => Some(format!("{other:?}")),
        Err(error) if error.errno() == libc::EINTR => return Step::Kicked,
        Err(error) if error.errno() == libc::EAGAIN => return Step::Continue,
        Err(error) => {
            return Step::Ended(GuestExit::Failed(VcpuRunError::Run {
                index,
                errno: error.errno(),
                rip: rip(vcpu),
            }));
        }
    };
    let what = unhandled.unwrap_or_else(|| internal_error(vcpu));
    Step::Ended(GuestExit::Failed(VcpuRunError::Unhandled {
        index,
        what,
        rip: rip(vcpu),
    }))
}

fn rip(vcpu: &VcpuFd) -> u64 {
    vcpu.get_regs().map(|regs| regs.rip).unwrap_or(0)
}

/// Where the guest was when it shut down. An intercepted shutdown leaves an AMD processor's VMCB
/// undefined (AMD64 Architecture Programmer's Manual, volume 2, 15.14.3), so that kvm_amd resets the
/// vCPU first: what it then has is where a processor begins, and nothing of the guest's.
fn rip_of_shutdown(vcpu: &VcpuFd) -> Option<u64> {
    let (regs, sregs) = (vcpu.get_regs().ok()?, vcpu.get_sregs().ok()?);
    (!is_reset(&regs, &sregs)).then_some(regs.rip)
}

/// Whether a vCPU is where INIT and RESET put it (Intel SDM, volume 3, table 10-1; AMD64 APM, volume 2,
/// table 14-1): in real mode, at 0xfffffff0.
fn is_reset(regs: &kvm_regs, sregs: &kvm_sregs) -> bool {
    const RIP: u64 = 0xfff0;
    const CS_BASE: u64 = 0xffff_0000;
    sregs.cr0 & CR0_PE == 0 && regs.rip == RIP && sregs.cs.base == CS_BASE
}

fn internal_error(vcpu: &mut VcpuFd) -> String {
    // SAFETY: the last exit was KVM_EXIT_INTERNAL_ERROR, for which KVM fills `internal`; it is
    // plain numbers, so that any content is valid.
    let internal = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal };
    match internal.suberror {
        1 => "an instruction that KVM cannot emulate".to_owned(),
        other => format!("KVM internal error {other}"),
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_userspace_memory_region;
    use reapvm_devices::BusDevice;

    use super::*;

    #[test]
    fn a_vcpu_that_was_reset_is_known_from_one_that_was_somewhere() {
        let mut regs = kvm_regs {
            rip: 0xfff0,
            ..kvm_regs::default()
        };
        let mut sregs = kvm_sregs {
            cr0: 0x6000_0010,
            ..kvm_sregs::default()
        };
        sregs.cs.base = 0xffff_0000;
        assert!(is_reset(&regs, &sregs));
        regs.rip = 0x100_0000;
        assert!(!is_reset(&regs, &sregs));
        // The same number in protected mode is an address as others are.
        regs.rip = 0xfff0;
        sregs.cr0 |= CR0_PE;
        assert!(!is_reset(&regs, &sregs));
        sregs.cr0 &= !CR0_PE;
        sregs.cs.base = 0;
        assert!(!is_reset(&regs, &sregs));
    }

    struct Panics;

    impl BusDevice for Panics {
        fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

        fn write(&mut self, offset: u64, _data: &[u8]) {
            panic!("nothing at {offset}");
        }
    }

    #[test]
    fn a_device_that_panics_ends_the_machine_and_not_its_vcpu() {
        const CODE_GPA: u64 = 0x1000;
        let kvm = Arc::new(Kvm::new().unwrap());
        let vm = Arc::new(kvm.create_vm().unwrap());
        let code = vm_memory::MmapRegion::<()>::new(0x1000).unwrap();
        // out dx, al
        // SAFETY: the region is one page, mapped and writable.
        unsafe { code.as_ptr().write_volatile(0xee) };
        let slot = kvm_userspace_memory_region {
            guest_phys_addr: CODE_GPA,
            memory_size: 0x1000,
            userspace_addr: code.as_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the region is mapped until the virtual machine is gone.
        unsafe { vm.set_user_memory_region(slot) }.unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        vcpu.set_sregs(&sregs).unwrap();
        let regs = kvm_regs {
            rip: CODE_GPA,
            rflags: 2,
            rdx: 0x77,
            ..kvm_regs::default()
        };
        vcpu.set_regs(&regs).unwrap();
        let mut pio = Bus::new();
        pio.insert(0x77, 1, Arc::new(std::sync::Mutex::new(Panics)))
            .unwrap();
        let (sender, exits) = std::sync::mpsc::channel();
        let sender = std::sync::Mutex::new(sender);
        let context = VcpuContext {
            kvm,
            vm: Arc::clone(&vm),
            pio: Arc::new(pio),
            mmio: Arc::new(Bus::new()),
            exits: Arc::new(move |exit| sender.lock().unwrap().send(exit).unwrap()),
            first_run: Arc::default(),
        };
        let handle = super::super::VcpuHandle::spawn(vcpu, 0, context).unwrap();
        handle.resume().unwrap();
        let exit = exits
            .recv_timeout(std::time::Duration::from_secs(60))
            .unwrap();
        let GuestExit::DevicesFailed(reason) = exit else {
            panic!("{exit:?}");
        };
        assert!(
            reason.contains("vCPU 0") && reason.contains("nothing at 0"),
            "{reason}"
        );
        // It still does what it is told.
        handle.request_pause().unwrap().recv().unwrap();
        drop(handle);
        drop(vm);
        drop(code);
    }
}
