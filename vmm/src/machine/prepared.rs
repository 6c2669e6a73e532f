//! A machine of a snapshot before it has its memory: what can be made ahead of a request.
//!
//! KVM binds a virtual machine to the address space that made it, so that a prepared machine can
//! only be used by the process that prepared it.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use reapvm_reap::{InstallOptions, MemoryRestoreMode};
use reapvm_snapshot::{Snapshot, StateFile};
use rustix::io::fcntl_dupfd_cloexec;

use super::Machine;
use super::build::{BuildError, PagerFailureHook, Parts, RestoreOptions, config_of, exit_events};
use super::console::Console;
use super::device_set::DeviceSet;
use super::exits::ExitEvents;
use super::pre_fault::PreFault;
use super::save::{INTERRUPTS_KIND, INTERRUPTS_VERSION, VCPU_KIND, VCPU_VERSION};
use crate::clock;
use crate::config::{Overrides, VmConfig};
use crate::generation_id::{self, GenerationIdError};
use crate::interrupts::{self, InterruptState};
use crate::memory::{Backing, MemoryHooks, MemoryManager, Observation};
use crate::vcpu::{GuestExit, VcpuState, restore_state};

/// How a machine is prepared.
pub struct PrepareOptions {
    /// How its memory is to come back: by this mode, or another one that
    /// [`PreparedMachine::can_restore`] says.
    pub mode: MemoryRestoreMode,
    /// The serial port.
    pub console: Console,
    /// What this instance has other than the machine that was saved.
    pub overrides: Overrides,
    /// Track dirty pages, so that diffs can be saved, also if the machine that was saved did not.
    pub track_dirty_pages: bool,
}

impl PrepareOptions {
    /// Memory by `mode`, no console, no socket file.
    pub fn new(mode: MemoryRestoreMode) -> Self {
        Self {
            mode,
            console: Console::none(),
            overrides: Overrides::default(),
            track_dirty_pages: false,
        }
    }
}

/// A machine of a snapshot that has everything but its memory's contents and its registers: the
/// state is read and parsed, guest memory is address space that KVM knows of, and virtual machine,
/// vCPUs and devices are there. [`restore`](Self::restore) does the rest.
pub struct PreparedMachine {
    // Before `memory`, which KVM is told of and devices look at.
    hardware: Hardware,
    snapshot: Arc<Snapshot>,
    config: VmConfig,
    state: StateFile,
    memory: MemoryManager,
    exits: Arc<ExitEvents>,
    backing: Backing,
}

/// What KVM and the devices make of it.
struct Hardware {
    vcpus: Vec<VcpuFd>,
    devices: DeviceSet,
    parts: Parts,
}

/// What is known before anything is made.
struct Plan {
    snapshot: Arc<Snapshot>,
    config: VmConfig,
    state: StateFile,
    exits: Arc<ExitEvents>,
    memory: MemoryManager,
    backing: Backing,
}

impl fmt::Debug for PreparedMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedMachine")
            .field("config", &self.config)
            .field("backing", &self.backing)
            .finish_non_exhaustive()
    }
}

impl Plan {
    fn new(
        snapshot: &Arc<Snapshot>,
        overrides: &Overrides,
        track_dirty_pages: bool,
        mode: MemoryRestoreMode,
    ) -> Result<Self, BuildError> {
        let mut config = config_of(snapshot)?;
        overrides.apply(&mut config)?;
        config.machine_config.track_dirty_pages |= track_dirty_pages;
        config.validate()?;
        let state = snapshot.read_state()?;
        let backing = Backing::from(mode);
        let memory = MemoryManager::reserve(
            snapshot,
            config.memory_bytes(),
            config.machine_config.track_dirty_pages,
            backing,
        )?;
        Ok(Self {
            snapshot: Arc::clone(snapshot),
            config,
            state,
            exits: exit_events()?,
            memory,
            backing,
        })
    }

    fn build(
        self,
        vm_fd_place: Option<OwnedFd>,
        console: Console,
    ) -> Result<PreparedMachine, BuildError> {
        let parts = Parts::new(Arc::clone(&self.exits), &self.memory, vm_fd_place)?;
        let vcpus = parts.create_vcpus(self.config.machine_config.vcpu_count)?;
        let devices = parts.devices(&self.config, &self.memory, console, Some(&self.state))?;
        Ok(PreparedMachine {
            hardware: Hardware {
                vcpus,
                devices,
                parts,
            },
            snapshot: self.snapshot,
            config: self.config,
            state: self.state,
            memory: self.memory,
            exits: self.exits,
            backing: self.backing,
        })
    }
}

/// Begins to bring back memory by `mode`.
fn restore_memory(
    memory: &mut MemoryManager,
    snapshot: &Arc<Snapshot>,
    exits: &Arc<ExitEvents>,
    mode: MemoryRestoreMode,
    install: InstallOptions,
    on_pager_failure: Option<PagerFailureHook>,
) -> Result<(), BuildError> {
    let exits = Arc::clone(exits);
    Ok(memory.restore(
        snapshot,
        mode,
        install,
        Box::new(move |error| {
            exits.end(GuestExit::PagerFailed(error.clone()));
            if let Some(on_failure) = on_pager_failure {
                on_failure(&error);
            }
        }),
    )?)
}

/// A paused machine that stands where `snapshot` was taken, made at once.
pub(super) fn restore(
    snapshot: &Arc<Snapshot>,
    options: RestoreOptions,
) -> Result<Machine, BuildError> {
    let RestoreOptions {
        mode,
        install,
        console,
        overrides,
        track_dirty_pages,
        observation,
        trace_records,
        hooks,
        on_pager_failure,
    } = options;
    if install.pre_fault && observation.touches {
        return Err(BuildError::PreFaultHidesTouches);
    }
    let mut plan = Plan::new(snapshot, &overrides, track_dirty_pages, mode)?;
    if let Some(max_records) = trace_records {
        plan.memory.trace_faults(max_records);
    }
    plan.memory.observe(observation);
    plan.memory.set_hooks(hooks);
    let vm_fd_place = reserve_fd(&plan.exits)?;
    // The working set is being installed from here on, while KVM is set up.
    restore_memory(
        &mut plan.memory,
        &plan.snapshot,
        &plan.exits,
        mode,
        install,
        on_pager_failure,
    )?;
    plan.build(Some(vm_fd_place), console)?
        .finish(mode, install)
}

/// Takes a descriptor number for the virtual machine, lower than that of the userfaultfd which is
/// opened next.
///
/// When a process is killed, the kernel releases its files in the order of their descriptors,
/// highest first: `close_files` goes through them upwards, but each is put on the front of the
/// list of deferred work that is then run from its front (`__fput_deferred`, `task_work_add`). The
/// release of a virtual machine's last file waits for KVM's worker that looks for a page on behalf
/// of a vCPU (asynchronous page faults), and that worker waits in `handle_userfault` until somebody
/// serves the page or the userfaultfd is released. With the userfaultfd below, a killed process
/// would wait for itself for ever. vCPUs, above, do not matter: they are not the last to hold the
/// virtual machine.
fn reserve_fd(any: &Arc<ExitEvents>) -> Result<OwnedFd, BuildError> {
    fcntl_dupfd_cloexec(any.as_fd(), 0).map_err(|errno| BuildError::EventFd(errno.into()))
}

impl PreparedMachine {
    /// Prepares a machine of `snapshot`.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn new(snapshot: &Arc<Snapshot>, options: PrepareOptions) -> Result<Self, BuildError> {
        let mut plan = Plan::new(
            snapshot,
            &options.overrides,
            options.track_dirty_pages,
            options.mode,
        )?;
        if plan.backing == Backing::Anonymous {
            plan.memory.open_source(snapshot)?;
        }
        // The userfaultfd will be opened after the virtual machine.
        plan.build(None, options.console)
    }

    /// The snapshot that it is of.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Keeps so many faults for a trace at most, in the modes that serve faults.
    pub fn trace_faults(&mut self, max_records: u64) {
        self.memory.trace_faults(max_records);
    }

    /// Hangs `hooks` into the pager. A mode that has none refuses them.
    pub fn set_hooks(&mut self, hooks: MemoryHooks) {
        self.memory.set_hooks(hooks);
    }

    /// Whether memory can come back by `mode`: `file` needs a machine that was prepared for it, the
    /// others one that was prepared for any of them.
    pub fn can_restore(&self, mode: MemoryRestoreMode) -> bool {
        self.backing == Backing::from(mode)
    }

    /// In prefetch mode, record which pages the working set misses. Which pages of it are touched
    /// cannot be measured of a machine that was prepared: KVM has been told of its memory.
    pub fn record_misses(&mut self, record: bool) {
        self.memory.observe(Observation {
            touches: false,
            misses: record,
        });
    }

    /// A paused machine that stands where the snapshot was taken.
    ///
    /// # Errors
    /// See [`BuildError`]. A mode that cannot run is an error; no other takes its place.
    pub fn restore(
        mut self,
        mode: MemoryRestoreMode,
        install: InstallOptions,
        on_pager_failure: Option<PagerFailureHook>,
    ) -> Result<Machine, BuildError> {
        if !self.can_restore(mode) {
            return Err(BuildError::PreparedForOther { mode });
        }
        restore_memory(
            &mut self.memory,
            &self.snapshot,
            &self.exits,
            mode,
            install,
            on_pager_failure,
        )?;
        self.finish(mode, install)
    }

    /// The registers, when memory is served or about to be.
    fn finish(
        self,
        mode: MemoryRestoreMode,
        install: InstallOptions,
    ) -> Result<Machine, BuildError> {
        let Self {
            hardware:
                Hardware {
                    vcpus,
                    mut devices,
                    parts,
                },
            snapshot: _,
            config,
            state,
            mut memory,
            exits: _,
            backing: _,
        } = self;
        let interrupt_state: InterruptState = state.get(INTERRUPTS_KIND, INTERRUPTS_VERSION)?;
        // What follows makes KVM and devices look at guest memory.
        memory.allow_touches()?;
        // Once for all vCPUs: their time-stamp counters stay together.
        let age = interrupt_state.age();
        for (index, vcpu) in (0_u8..).zip(&vcpus) {
            let saved: VcpuState =
                state.get_instance(VCPU_KIND, usize::from(index), VCPU_VERSION)?;
            restore_state(&parts.vm, vcpu, index, &saved, age)?;
        }
        interrupts::restore(&parts.vm, &interrupt_state, age)?;
        devices.connect_interrupts(&parts.vm)?;
        // Whatever the mode: who asks for what KVM cannot do is told.
        let pre_fault = match install.pre_fault {
            true => Some(PreFault::new(&parts.vm, &vcpus)?),
            false => None,
        };
        let mut machine = parts.assemble(config, memory, devices, vcpus)?;
        machine.restore_marks.state_loaded_ns = clock::monotonic_ns();
        machine.memory.wait_until_served()?;
        machine.memory.begin_measurement();
        if let (MemoryRestoreMode::Prefetch, Some(pre_fault)) = (mode, pre_fault) {
            machine.pre_faulted = Some(pre_fault.enter_installed(&machine.memory)?);
        }
        if let Some(irq) = &machine.devices.generation_id_irq {
            // Before the guest runs: no instruction of this copy finds the old id.
            generation_id::write_new(machine.memory.guest_memory())?;
            irq.write(1).map_err(GenerationIdError::Notify)?;
        }
        machine.restore_marks.memory_ready_ns = clock::monotonic_ns();
        Ok(machine)
    }
}
