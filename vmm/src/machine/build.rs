//! Making a machine: from its configuration, or from a snapshot.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use reapvm_reap::{InstallOptions, MemoryRestoreMode, PagerError};
use reapvm_snapshot::{ReadError, Snapshot, StateError, StateFile};
use rustix::io::{DupFlags, dup3};
use thiserror::Error;

use super::console::Console;
use super::device_set::{self, DeviceError, DeviceSet};
use super::event_loop::{EventLoop, EventLoopError};
use super::exits::ExitEvents;
use super::{Lifecycle, Machine, RestoreMarks, prepared};
use crate::arch::segments::{self, EntryMode};
use crate::arch::{cpuid, layout, msr};
use crate::boot::{self, BootError, EntryPoint};
use crate::config::{ConfigError, Overrides, VmConfig};
use crate::generation_id::GenerationIdError;
use crate::interrupts::{self, InterruptError};
use crate::memory::{MemoryError, MemoryHooks, MemoryManager, Observation};
use crate::vcpu::{FirstRun, GuestExit, VcpuContext, VcpuError, VcpuHandle, VcpuStateError};

const KVM_PATH: &str = "/dev/kvm";
const KVM_API_VERSION: i32 = 12;

/// Why a machine cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// There is no KVM, or it may not be used.
    #[error("cannot open {KVM_PATH}: {reason}; {remedy}")]
    OpenKvm {
        /// What the system said.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// KVM lacks something.
    #[error("this host's KVM lacks {0}: a newer kernel is needed")]
    Capability(&'static str),
    /// KVM cannot enter pages before they are touched.
    #[error(
        "this host's KVM has no KVM_PRE_FAULT_MEMORY, which needs Linux 6.11 and two-dimensional \
         paging: leave out --pre-fault"
    )]
    NoPreFault,
    /// What the guest touches cannot be measured of pages that KVM has entered by itself.
    #[error(
        "which pages of the working set are touched cannot be measured where KVM enters them \
         ahead: leave out --pre-fault or --measure-unused"
    )]
    PreFaultHidesTouches,
    /// A KVM call failed.
    #[error("{call} failed")]
    Kvm {
        /// The call.
        call: &'static str,
        /// Its errno.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The snapshot holds a configuration that reapvm cannot read.
    #[error("the snapshot's machine description cannot be read")]
    SnapshotConfig(#[source] serde_json::Error),
    /// The kernel cannot be made ready.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Devices.
    #[error(transparent)]
    Devices(#[from] DeviceError),
    /// Interrupt controllers.
    #[error(transparent)]
    Interrupts(#[from] InterruptError),
    /// vCPU threads.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// vCPU registers.
    #[error(transparent)]
    VcpuState(#[from] VcpuStateError),
    /// Event loop.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// The state file cannot be read.
    #[error(transparent)]
    ReadState(#[from] ReadError),
    /// The state file holds nonsense.
    #[error(transparent)]
    State(#[from] StateError),
    /// The guest cannot be told that it is another copy.
    #[error(transparent)]
    GenerationId(#[from] GenerationIdError),
    /// No eventfd.
    #[error("cannot create an eventfd")]
    EventFd(#[source] std::io::Error),
    /// A vCPU's descriptor cannot be duplicated.
    #[error("cannot duplicate a vCPU's descriptor")]
    Descriptor(#[source] std::io::Error),
    /// The virtual machine's descriptor cannot get the number that it needs.
    #[error("cannot duplicate a descriptor")]
    MoveVm(#[source] std::io::Error),
    /// A prepared machine's address space does not do for the mode.
    #[error("the machine was not prepared for memory mode {mode}")]
    PreparedForOther {
        /// The mode that was asked for.
        mode: MemoryRestoreMode,
    },
}

/// Hears of a pager that cannot go on, on the pager's thread.
pub type PagerFailureHook = Box<dyn FnOnce(&PagerError) + Send>;

/// How a machine is restored.
pub struct RestoreOptions {
    /// How its memory comes back.
    pub mode: MemoryRestoreMode,
    /// How the working set is installed, in prefetch mode.
    pub install: InstallOptions,
    /// The serial port.
    pub console: Console,
    /// What this instance has other than the machine that was saved.
    pub overrides: Overrides,
    /// Track dirty pages, so that diffs can be saved, also if the machine that was saved did not.
    pub track_dirty_pages: bool,
    /// How many faults to keep for a trace at most, where a pager serves them; `None`: no trace.
    pub trace_records: Option<u64>,
    /// In prefetch mode, what is to be known of how well the working set fits.
    pub observation: Observation,
    /// What is hung into the pager: another page source, a fault policy, a fault listener.
    pub hooks: MemoryHooks,
    /// Called on the pager's thread when it cannot go on. The machine has been told by then
    /// ([`GuestExit::PagerFailed`]); a launcher may end the process here.
    pub on_pager_failure: Option<PagerFailureHook>,
}

impl RestoreOptions {
    /// Memory by `mode`, no console, no socket file.
    pub fn new(mode: MemoryRestoreMode) -> Self {
        Self {
            mode,
            install: InstallOptions::default(),
            console: Console::none(),
            overrides: Overrides::default(),
            track_dirty_pages: false,
            trace_records: None,
            observation: Observation::default(),
            hooks: MemoryHooks::default(),
            on_pager_failure: None,
        }
    }

    /// As these, with `hooks` in the pager.
    #[must_use]
    pub fn hooks(self, hooks: MemoryHooks) -> Self {
        Self { hooks, ..self }
    }
}

/// What [`Machine::boot`] and [`Machine::restore`] have in common.
pub(super) struct Parts {
    kvm: Arc<Kvm>,
    pub(super) vm: Arc<VmFd>,
    exits: Arc<ExitEvents>,
}

/// Opens KVM and checks what reapvm needs of it.
///
/// # Errors
/// [`BuildError::OpenKvm`] with the remedy, or [`BuildError::Capability`].
pub fn open_kvm() -> Result<Kvm, BuildError> {
    open_kvm_at(Path::new(KVM_PATH))
}

fn open_kvm_at(path: &Path) -> Result<Kvm, BuildError> {
    let open = |reason: String, remedy| BuildError::OpenKvm { reason, remedy };
    let file = File::options().read(true).write(true).open(path).map_err(|error| {
        let remedy = match error.kind() {
            std::io::ErrorKind::NotFound => {
                "load the kernel module kvm_intel or kvm_amd, and turn on virtualisation in the \
                 firmware, or nested virtualisation if this is itself a virtual machine"
            }
            std::io::ErrorKind::PermissionDenied => {
                "add your user to the group kvm (sudo usermod -aG kvm $USER, then log in again) \
                 or run as root"
            }
            _ => "check that the device works",
        };
        open(error.to_string(), remedy)
    })?;
    let is_device = file
        .metadata()
        .is_ok_and(|metadata| metadata.file_type().is_char_device());
    if !is_device {
        return Err(open(
            "it is not a device".into(),
            "let the kernel or udev make it anew",
        ));
    }
    // SAFETY: the descriptor was just opened, is given up by `into_raw_fd` and so owned by the
    // new Kvm alone; that it answers as KVM is checked by the version below.
    let kvm = unsafe {
        use std::os::fd::FromRawFd;
        Kvm::from_raw_fd(file.into_raw_fd())
    };
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION {
        return Err(open(
            format!("its API has version {version}, not {KVM_API_VERSION}"),
            "a newer kernel is needed",
        ));
    }
    for (capability, name) in [
        (Cap::Irqchip, "an in-kernel irqchip (KVM_CAP_IRQCHIP)"),
        (Cap::Pit2, "an in-kernel timer (KVM_CAP_PIT2)"),
        (Cap::Irqfd, "irqfd (KVM_CAP_IRQFD)"),
        (Cap::Ioeventfd, "ioeventfd (KVM_CAP_IOEVENTFD)"),
        (Cap::UserMemory, "user memory (KVM_CAP_USER_MEMORY)"),
        (
            Cap::ImmediateExit,
            "immediate exit (KVM_CAP_IMMEDIATE_EXIT)",
        ),
    ] {
        if !kvm.check_extension(capability) {
            return Err(BuildError::Capability(name));
        }
    }
    Ok(kvm)
}

pub(super) fn exit_events() -> Result<Arc<ExitEvents>, BuildError> {
    Ok(Arc::new(ExitEvents::new().map_err(BuildError::EventFd)?))
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, BuildError> {
    loop {
        match kvm.create_vm() {
            Ok(vm) => return Ok(vm),
            // KVM gives up its setup when a signal arrives; nothing has happened then.
            Err(error) if error.errno() == libc::EINTR => {}
            Err(source) => {
                return Err(BuildError::Kvm {
                    call: "KVM_CREATE_VM",
                    source,
                });
            }
        }
    }
}

/// Gives `vm` the descriptor number of `place`.
fn move_vm(kvm: &Kvm, vm: VmFd, mut place: OwnedFd) -> Result<VmFd, BuildError> {
    // SAFETY: `vm` is open and stays so during this block.
    let old = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
    dup3(old, &mut place, DupFlags::CLOEXEC).map_err(|errno| BuildError::MoveVm(errno.into()))?;
    // SAFETY: `place` is a descriptor of a virtual machine now, and is given up here, so that the
    // new owner is its only one.
    unsafe { kvm.create_vmfd_from_rawfd(place.into_raw_fd()) }.map_err(|source| BuildError::Kvm {
        call: "KVM_GET_VCPU_MMAP_SIZE",
        source,
    })
}

impl Parts {
    /// Makes a virtual machine that has `memory`; its descriptor takes the place of `vm_fd_place`,
    /// if there is one.
    pub(super) fn new(
        exits: Arc<ExitEvents>,
        memory: &MemoryManager,
        vm_fd_place: Option<OwnedFd>,
    ) -> Result<Self, BuildError> {
        let kvm = open_kvm()?;
        let mut vm = create_vm(&kvm)?;
        if let Some(place) = vm_fd_place {
            vm = move_vm(&kvm, vm, place)?;
        }
        // Memory before the interrupt controllers. Those go on KVM's I/O buses, and for each KVM
        // starts a grace period of the lock under which a machine's memory is looked up
        // (`kvm_io_bus_register_dev`, `call_srcu`). A change of memory waits for the end of a
        // grace period, and one that is under way goes by the timer tick: 4 ms at 250 Hz.
        memory.register(&vm)?;
        interrupts::create(&vm)?;
        Ok(Self {
            kvm: Arc::new(kvm),
            vm: Arc::new(vm),
            exits,
        })
    }

    pub(super) fn create_vcpus(&self, count: u8) -> Result<Vec<VcpuFd>, BuildError> {
        (0..count)
            .map(|index| {
                self.vm
                    .create_vcpu(u64::from(index))
                    .map_err(|source| BuildError::Kvm {
                        call: "KVM_CREATE_VCPU",
                        source,
                    })
            })
            .collect()
    }

    pub(super) fn devices(
        &self,
        config: &VmConfig,
        memory: &MemoryManager,
        console: Console,
        saved: Option<&StateFile>,
    ) -> Result<DeviceSet, BuildError> {
        Ok(DeviceSet::build(
            config,
            &self.vm,
            memory.guest_memory(),
            console,
            saved,
            &self.exits,
        )?)
    }

    /// Starts the threads and puts the machine together, paused.
    pub(super) fn assemble(
        self,
        config: VmConfig,
        memory: MemoryManager,
        mut devices: DeviceSet,
        vcpus: Vec<VcpuFd>,
    ) -> Result<Machine, BuildError> {
        let first_run = Arc::new(FirstRun::default());
        let exits = Arc::clone(&self.exits);
        let context = VcpuContext {
            kvm: Arc::clone(&self.kvm),
            vm: Arc::clone(&self.vm),
            pio: Arc::clone(&devices.pio),
            mmio: Arc::clone(&devices.mmio),
            exits: Arc::new(move |reason| exits.end(reason)),
            first_run: Arc::clone(&first_run),
        };
        let event_loop = EventLoop::start(std::mem::take(&mut devices.subscribers), {
            let exits = Arc::clone(&self.exits);
            move |reason| exits.end(GuestExit::DevicesFailed(reason))
        })?;
        let mut handles = Vec::with_capacity(vcpus.len());
        for (index, vcpu) in (0_u8..).zip(vcpus) {
            handles.push(VcpuHandle::spawn(vcpu, index, context.clone())?);
        }
        Ok(Machine {
            config,
            state: Lifecycle::Paused,
            vcpus: handles,
            exits: self.exits,
            first_run,
            memory,
            devices,
            restore_marks: RestoreMarks::default(),
            pre_faulted: None,
            _event_loop: event_loop,
            vm: self.vm,
            _kvm: self.kvm,
        })
    }
}

impl Machine {
    /// A paused machine that stands before its kernel's first instruction.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn boot(config: VmConfig, console: Console) -> Result<Self, BuildError> {
        config.validate()?;
        let memory = MemoryManager::new(
            config.memory_bytes(),
            config.machine_config.track_dirty_pages,
        )?;
        let entry = boot::load(
            memory.guest_memory(),
            &config,
            &device_set::windows(&config),
        )?;
        let parts = Parts::new(exit_events()?, &memory, None)?;
        let count = config.machine_config.vcpu_count;
        let vcpus = parts.create_vcpus(count)?;
        let base = cpuid::base(&parts.kvm).map_err(|source| BuildError::Kvm {
            call: "KVM_GET_SUPPORTED_CPUID",
            source,
        })?;
        for (index, vcpu) in (0_u8..).zip(&vcpus) {
            vcpu.set_cpuid2(&cpuid::for_vcpu(&base, index, count))
                .map_err(|source| BuildError::Kvm {
                    call: "KVM_SET_CPUID2",
                    source,
                })?;
            msr::set_boot_msrs(vcpu).map_err(|source| BuildError::Kvm {
                call: "KVM_SET_MSRS",
                source,
            })?;
            interrupts::configure_lint(vcpu)?;
        }
        // The other vCPUs wait for the boot vCPU's INIT and SIPI, as KVM creates them.
        if let Some(boot_vcpu) = vcpus.first() {
            set_entry(&memory, boot_vcpu, entry)?;
        }
        let mut devices = parts.devices(&config, &memory, console, None)?;
        devices.connect_interrupts(&parts.vm)?;
        parts.assemble(config, memory, devices, vcpus)
    }

    /// A paused machine that stands where `snapshot` was taken.
    ///
    /// # Errors
    /// See [`BuildError`]. A mode that cannot run is an error; no other takes its place.
    pub fn restore(snapshot: &Arc<Snapshot>, options: RestoreOptions) -> Result<Self, BuildError> {
        prepared::restore(snapshot, options)
    }
}

/// The configuration of the machine that `snapshot` holds.
///
/// # Errors
/// [`BuildError::SnapshotConfig`].
pub fn config_of(snapshot: &Snapshot) -> Result<VmConfig, BuildError> {
    serde_json::from_value(snapshot.manifest().vm.clone()).map_err(BuildError::SnapshotConfig)
}

fn set_entry(memory: &MemoryManager, vcpu: &VcpuFd, entry: EntryPoint) -> Result<(), BuildError> {
    let kvm = |call| move |source| BuildError::Kvm { call, source };
    let mut sregs = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
    segments::configure(memory.guest_memory(), &mut sregs, entry.mode)
        .map_err(BootError::Memory)?;
    vcpu.set_sregs(&sregs).map_err(kvm("KVM_SET_SREGS"))?;
    let mut regs = vcpu.get_regs().map_err(kvm("KVM_GET_REGS"))?;
    regs.rflags = 2;
    regs.rip = entry.gpa;
    match entry.mode {
        EntryMode::Long => {
            regs.rsi = layout::ZERO_PAGE.0;
            regs.rsp = layout::BOOT_STACK;
            regs.rbp = layout::BOOT_STACK;
        }
        EntryMode::Protected => regs.rbx = layout::PVH_START_INFO.0,
    }
    vcpu.set_regs(&regs).map_err(kvm("KVM_SET_REGS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_kvm_device_is_named_with_its_remedy() {
        let error = open_kvm_at(Path::new("/nonexistent/kvm"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/dev/kvm") && error.contains("kvm_amd"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_is_no_device_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = open_kvm_at(file.path()).unwrap_err().to_string();
        assert!(error.contains("not a device"), "{error}");
    }
}
