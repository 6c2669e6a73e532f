//! How guest memory comes back from a snapshot.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use reapvm_devices::GuestMemory;
use reapvm_reap::{
    DEFAULT_SPIN, Install, InstallOptions, InstallReport, MemoryRestoreMode, Pager, PagerConfig,
    WorkingSet, error_chain,
};
use reapvm_snapshot::{MemoryReader, PAGE_SIZE, Snapshot};
use vm_memory::{Bytes, GuestAddress};

use super::hooks::PageOrigin;
use super::{CHUNK_BYTES, MemoryError, MemoryManager, OnPagerFailure};

impl MemoryManager {
    /// Opens what a pager will read and reads its index, which otherwise the first fault waits for.
    /// Before [`MemoryManager::restore`] with the same snapshot.
    ///
    /// # Errors
    /// The snapshot's memory or its index cannot be read, or is damaged.
    pub(crate) fn open_source(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), MemoryError> {
        let source = MemoryReader::open(Arc::clone(snapshot))?;
        source.index()?;
        self.source = Some(PageOrigin::Snapshot(Arc::new(source)));
        Ok(())
    }

    /// Brings back the memory of `snapshot` into what [`MemoryManager::reserve`] has mapped for it,
    /// in the way that `mode` says. With a mode that serves faults they are served from here on,
    /// and in prefetch mode threads install the working set as `options` say while the caller sets
    /// up KVM. [`MemoryManager::allow_touches`] must follow before anything touches the memory, and
    /// [`MemoryManager::wait_until_served`] before the guest runs.
    ///
    /// # Errors
    /// See [`MemoryError`]. A mode that cannot run is an error; no other takes its place.
    pub(crate) fn restore(
        &mut self,
        snapshot: &Arc<Snapshot>,
        mode: MemoryRestoreMode,
        options: InstallOptions,
        on_failure: OnPagerFailure,
    ) -> Result<(), MemoryError> {
        let hooks = std::mem::take(&mut self.hooks);
        hooks.check(mode)?;
        match mode {
            MemoryRestoreMode::Copy => {
                self.copy_from(&MemoryReader::open(Arc::clone(snapshot))?)?;
                self.forget_own_writes();
                Ok(())
            }
            // The kernel serves it.
            MemoryRestoreMode::File => Ok(()),
            MemoryRestoreMode::OnDemand
            | MemoryRestoreMode::Record
            | MemoryRestoreMode::Prefetch => {
                let options = InstallOptions {
                    // By whose marks it is measured.
                    own_zero_pages: options.own_zero_pages || self.is_measuring_touches(),
                    ..options
                };
                // Opened first: a working set that is missing or foreign fails before any work.
                let working_set = (mode == MemoryRestoreMode::Prefetch)
                    .then(|| open_working_set(snapshot, self.size_bytes(), options));
                let (other_source, hooks) = hooks.split(snapshot);
                let source = match (other_source, self.source.take()) {
                    (Some(other), _) => PageOrigin::Other(other),
                    (None, Some(opened)) => opened,
                    (None, None) => {
                        let memory = MemoryReader::open(Arc::clone(snapshot))?;
                        PageOrigin::Snapshot(Arc::new(memory))
                    }
                };
                let config = PagerConfig {
                    regions: self.regions.clone(),
                    source: source.source(),
                    record: mode.records() || self.observation.misses,
                    trace_records: self.trace_records,
                    phase: Arc::clone(&self.phase),
                    spin: DEFAULT_SPIN,
                    hooks,
                    on_failure,
                };
                // SAFETY: the regions are private anonymous mappings that `self.memory` owns;
                // the field order of `MemoryManager` drops the pager before them. The thread of a
                // direct install has the pager and a clone of `memory`, dropped in that order.
                // Devices and vCPUs, which hold clones too, only keep them mapped longer.
                let mut pager = unsafe { Pager::new_unregistered(config) }?;
                let install = match working_set.transpose()? {
                    Some(Opened::Install(mut install)) => {
                        install.memory = source.memory().cloned();
                        Some(install)
                    }
                    Some(Opened::FallenBack(report)) => {
                        self.install = Some(report);
                        None
                    }
                    None => None,
                };
                self.source = Some(source);
                self.prefetched = install
                    .as_ref()
                    .map(|install| Arc::clone(&install.working_set));
                match install {
                    Some(install) if install.options.method.needs_unregistered_memory() => {
                        let memory = self.memory.clone();
                        let direct = DirectInstall::start(pager, memory, install)?;
                        self.direct_install = Some(direct);
                    }
                    install => {
                        // Before the caller sets up KVM, which touches guest memory itself: its
                        // clock, its steal time, its end of interrupt.
                        pager.start()?;
                        if let Some(install) = install {
                            pager.begin_install(install).map_err(Arc::new)?;
                        }
                        self.pager = Some(pager);
                    }
                }
                Ok(())
            }
        }
    }

    /// Waits until KVM and devices may touch guest memory.
    ///
    /// # Errors
    /// What was read straight into guest memory cannot be read, or is not what was recorded; or
    /// the pager cannot be started.
    pub(crate) fn allow_touches(&mut self) -> Result<(), MemoryError> {
        if let Some(direct) = self.direct_install.take() {
            let (pager, report) = direct.finish()?;
            self.pager = Some(pager);
            self.install = Some(report);
        }
        Ok(())
    }

    /// Waits until the working set is installed, or as much of it as the guest needs to begin, in
    /// prefetch mode, and makes sure that faults are served, in the modes that do. Nothing to do in
    /// the others.
    ///
    /// # Errors
    /// The working set cannot be read, is not what was recorded, or cannot be installed; or the
    /// pager has failed already.
    pub(crate) fn wait_until_served(&mut self) -> Result<(), MemoryError> {
        self.allow_touches()?;
        let Some(pager) = &self.pager else {
            return Ok(());
        };
        if self.observation.touches {
            // What is to be observed begins when all of it is there.
            pager.finish_install()?;
        } else {
            pager.wait_until_installed()?;
        }
        match pager.failure() {
            Some(failure) => Err(failure.into()),
            None => Ok(()),
        }
    }

    /// Reads all data pages and checks each.
    fn copy_from(&self, source: &MemoryReader) -> Result<(), MemoryError> {
        let index = source.index()?;
        let mut buffer = vec![0_u8; CHUNK_BYTES];
        for region in &self.regions {
            let mut done = 0;
            while done < region.size_bytes {
                let offset = region.file_offset + done;
                let length = (region.size_bytes - done).min(CHUNK_BYTES as u64) as usize;
                let first_page = offset / PAGE_SIZE as u64;
                let pages = (length / PAGE_SIZE) as u64;
                // A chunk of zero pages only is what the fresh mapping already holds.
                if (first_page..first_page + pages).any(|page| !index.is_zero(page)) {
                    let chunk = &mut buffer[..length];
                    source.read_pages(first_page, chunk)?;
                    for (page, bytes) in (first_page..).zip(chunk.chunks_exact(PAGE_SIZE)) {
                        if !index.is_zero(page) {
                            let gpa = region.gpa + (page * PAGE_SIZE as u64 - region.file_offset);
                            self.memory.write_slice(bytes, GuestAddress(gpa))?;
                        }
                    }
                }
                done += length as u64;
            }
        }
        Ok(())
    }
}

/// What became of the opening of a working set.
enum Opened {
    Install(Install),
    /// It cannot be used, and need not be.
    FallenBack(InstallReport),
}

fn open_working_set(
    snapshot: &Snapshot,
    memory_bytes: u64,
    options: InstallOptions,
) -> Result<Opened, MemoryError> {
    let path = snapshot.working_set_path();
    match WorkingSet::open(&path, &snapshot.id(), memory_bytes) {
        Ok(working_set) => Ok(Opened::Install(Install {
            working_set: Arc::new(working_set),
            memory: None,
            options,
        })),
        Err(error) if options.may_fall_back => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "serving on demand"
            );
            Ok(Opened::FallenBack(InstallReport {
                method: options.method,
                fell_back: Some(error_chain(&error)),
                ..InstallReport::default()
            }))
        }
        Err(error) => Err(error.into()),
    }
}

/// Reads that land in guest memory, under way on the thread `working-set`, which gives the pager
/// back.
pub(super) struct DirectInstall(JoinHandle<Result<(Pager, InstallReport), MemoryError>>);

impl DirectInstall {
    fn start(pager: Pager, memory: GuestMemory, install: Install) -> Result<Self, MemoryError> {
        thread::Builder::new()
            .name("working-set".into())
            .stack_size(128 << 10)
            .spawn(move || {
                // Whoever drops this does not wait for it, so it keeps the memory that it writes
                // to. Locals are dropped in the reverse of this order.
                let _memory = memory;
                let mut pager = pager;
                // SAFETY: who restores a machine touches nothing of the memory before
                // `allow_touches` has waited for this thread.
                let report = match unsafe { pager.install_unregistered(&install) } {
                    Ok(report) => report,
                    Err(error) if install.options.may_fall_back => InstallReport {
                        method: install.options.method,
                        fell_back: Some(error_chain(&error)),
                        ..InstallReport::default()
                    },
                    Err(error) => return Err(Arc::new(error).into()),
                };
                pager.start()?;
                Ok((pager, report))
            })
            .map(Self)
            .map_err(MemoryError::Thread)
    }

    /// Waits for its end.
    fn finish(self) -> Result<(Pager, InstallReport), MemoryError> {
        let panicked = || MemoryError::Thread(io::Error::other("it panicked"));
        self.0.join().map_err(|_| panicked())?
    }
}
