//! What a vCPU's thread does.

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
            match step(&mut vcpu, index, context) {
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
}
