//! The side of a vCPU that the machine holds.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{
    Once,
    atomic::{AtomicU8, Ordering},
};
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::run_loop::{self, Command, VcpuContext};
use super::state::{VcpuState, VcpuStateError};

/// A vCPU's thread cannot be started or reached.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// No thread.
    #[error("cannot start the thread of vCPU {index}")]
    Spawn {
        /// Which vCPU.
        index: u8,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The signal that takes a vCPU out of the guest cannot be set up.
    #[error("cannot set up the signal that kicks vCPUs")]
    Signal(#[source] vmm_sys_util::errno::Error),
    /// The thread has ended.
    #[error("the thread of vCPU {0} has ended")]
    Gone(u8),
    /// Its state cannot be read.
    #[error(transparent)]
    State(#[from] VcpuStateError),
}

/// Points at `immediate_exit` in a vCPU's `kvm_run` page.
struct ImmediateExit(*const AtomicU8);

// SAFETY: the pointee is a byte of a page shared with the kernel, accessed atomically only; the
// page stays mapped as long as the handle holds the thread (see `VcpuHandle::kick`).
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

/// A vCPU and its thread `vcpu-N`.
pub struct VcpuHandle {
    index: u8,
    commands: Sender<Command>,
    immediate_exit: ImmediateExit,
    thread: Option<JoinHandle<VcpuFd>>,
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // Nothing to do: the signal's only work is to end KVM_RUN with EINTR.
}

fn install_kick_handler() -> Result<(), VcpuError> {
    static INSTALLED: Once = Once::new();
    let mut result = Ok(());
    INSTALLED.call_once(|| result = register_signal_handler(SIGRTMIN(), on_kick));
    result.map_err(VcpuError::Signal)
}

impl VcpuHandle {
    /// Starts the thread, paused.
    ///
    /// # Errors
    /// [`VcpuError::Spawn`] or [`VcpuError::Signal`].
    pub fn spawn(mut vcpu: VcpuFd, index: u8, context: VcpuContext) -> Result<Self, VcpuError> {
        install_kick_handler()?;
        let immediate_exit = ImmediateExit(
            (&raw mut vcpu.get_kvm_run().immediate_exit)
                .cast::<AtomicU8>()
                .cast_const(),
        );
        let (commands, receiver): (_, Receiver<Command>) = channel();
        let thread = std::thread::Builder::new()
            .name(format!("vcpu-{index}"))
            .stack_size(256 << 10)
            .spawn(move || run_loop::run(vcpu, index, &context, &receiver))
            .map_err(|source| VcpuError::Spawn { index, source })?;
        Ok(Self {
            index,
            commands,
            immediate_exit,
            thread: Some(thread),
        })
    }

    fn send(&self, command: Command) -> Result<(), VcpuError> {
        self.commands
            .send(command)
            .map_err(|_| VcpuError::Gone(self.index))
    }

    /// Takes the vCPU out of the guest, so that it looks at its commands.
    fn kick(&self) {
        let Some(thread) = &self.thread else { return };
        // SAFETY: the `kvm_run` page belongs to the VcpuFd, which the thread returns when it
        // ends; the JoinHandle in `self.thread` keeps that return value, so the page is mapped.
        unsafe { &*self.immediate_exit.0 }.store(1, Ordering::SeqCst);
        // The thread cannot have been joined, so its id is valid; if it has ended, the
        // signal has nobody to reach.
        let _ = thread.kill(SIGRTMIN());
    }

    /// Lets the vCPU enter the guest.
    ///
    /// # Errors
    /// [`VcpuError::Gone`].
    pub fn resume(&self) -> Result<(), VcpuError> {
        self.send(Command::Resume)
    }

    /// Takes the vCPU out of the guest; the receiver hears when it is out.
    ///
    /// # Errors
    /// [`VcpuError::Gone`].
    pub fn request_pause(&self) -> Result<Receiver<()>, VcpuError> {
        let (done, receiver) = channel();
        self.send(Command::Pause(done))?;
        self.kick();
        Ok(receiver)
    }

    /// Reads the registers of a paused vCPU.
    ///
    /// # Errors
    /// [`VcpuError::Gone`] or what KVM refused.
    pub fn save(&self) -> Result<VcpuState, VcpuError> {
        let (reply, receiver) = channel();
        self.send(Command::Save(reply))?;
        let state = receiver.recv().map_err(|_| VcpuError::Gone(self.index))?;
        Ok(state?)
    }

    /// Which vCPU this is.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Asks the thread to end, without waiting for it.
    pub fn request_stop(&self) {
        if self.send(Command::Stop).is_ok() {
            self.kick();
        }
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        self.request_stop();
        if let Some(thread) = self.thread.take() {
            // A panicked thread has said so itself.
            let _ = thread.join();
        }
    }
}
