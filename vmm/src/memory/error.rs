//! What can go wrong with guest memory.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use reapvm_reap::{
    InstallError, MemoryRestoreMode, PageSourceError, PagerError, TouchProbeError, WorkingSetError,
    WriteTrackerError,
};
use reapvm_snapshot::{CreateError, MemoryReadError, ReadError, SnapshotId};
use thiserror::Error;

/// Guest memory cannot be made, restored or saved.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The host does not give the address space or memory.
    #[error("cannot map {size_bytes} bytes of guest memory: {reason}")]
    Map {
        /// Size of the region.
        size_bytes: u64,
        /// What the system said.
        reason: String,
    },
    /// The snapshot's memory regions are not those of its machine.
    #[error(
        "the snapshot's memory regions do not fit its machine of {memory_bytes} bytes: \
         the manifest was made by another program or changed by hand"
    )]
    Regions {
        /// What the machine's configuration says.
        memory_bytes: u64,
    },
    /// The snapshot does not hold all of guest memory.
    #[error(
        "{dir} is a diff, which cannot be restored by itself: merge it with its base, snapshot \
         {base}: reapvm snapshot merge --base DIR --diff {dir} -o DIR"
    )]
    Diff {
        /// Its directory.
        dir: PathBuf,
        /// The id of its base.
        base: SnapshotId,
    },
    /// KVM refused a memslot.
    #[error("KVM refused the memory region at {gpa:#x}")]
    Memslot {
        /// Its guest-physical address.
        gpa: u64,
        /// The errno of KVM_SET_USER_MEMORY_REGION.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM does not say which pages were written.
    #[error("KVM does not say which pages of the memory region at {gpa:#x} were written")]
    DirtyLog {
        /// Its guest-physical address.
        gpa: u64,
        /// The errno of KVM_GET_DIRTY_LOG.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A file of the snapshot cannot be read.
    #[error(transparent)]
    Snapshot(#[from] ReadError),
    /// The memory of the snapshot cannot be read, or a page of it is not what was saved.
    #[error(transparent)]
    Page(#[from] MemoryReadError),
    /// The page source cannot be opened.
    #[error(transparent)]
    Source(#[from] PageSourceError),
    /// The pager cannot be started or has failed.
    #[error(transparent)]
    Pager(#[from] PagerError),
    /// The working set cannot be used.
    #[error(transparent)]
    WorkingSet(#[from] WorkingSetError),
    /// It cannot be said which pages the guest touched.
    #[error(transparent)]
    TouchProbe(#[from] TouchProbeError),
    /// The thread that installs the working set cannot be started or has died.
    #[error("the thread that installs the working set failed")]
    Thread(#[source] io::Error),
    /// The working set cannot be installed.
    #[error(transparent)]
    Install(#[from] Arc<InstallError>),
    /// The mode has no pager that hooks could be hung into.
    #[error(
        "a page source, fault policy or fault listener needs a pager, which memory mode {mode} has \
         not: use ondemand, record or prefetch"
    )]
    HooksNeedPager {
        /// The mode that was asked for.
        mode: MemoryRestoreMode,
    },
    /// Faults are served, so that not all of memory is in place.
    #[error(
        "writes cannot be tracked where a pager serves faults: KVM asks for a missing page to write \
         to it, also if the guest only reads; use memory mode copy"
    )]
    WritesWithPager,
    /// Writes cannot be tracked, or not all of them were.
    #[error("cannot track writes to guest memory")]
    Writes(#[from] WriteTrackerError),
    /// A policy would keep touches from a recording.
    #[error(
        "a recording with a fault policy would lack the pages that the policy brings: record \
         without one"
    )]
    PolicyRecords,
    /// Guest memory cannot be accessed.
    #[error("cannot access guest memory")]
    Access(#[from] vm_memory::GuestMemoryError),
    /// The snapshot cannot be written.
    #[error(transparent)]
    Write(#[from] CreateError),
}
