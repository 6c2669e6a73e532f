//! What can be wrong with a machine's description.

use std::path::PathBuf;

use thiserror::Error;

use super::{MAX_VCPUS, MAX_VIRTIO_DEVICES, MIN_MEMORY_MIB};

/// What is wrong with a [`VmConfig`](super::VmConfig).
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// No vCPU, or more than [`MAX_VCPUS`].
    #[error("{0} vCPUs cannot be had: give 1 to {MAX_VCPUS} with --vcpus")]
    Vcpus(u8),
    /// Too little memory.
    #[error("{0} MiB of guest memory is too little: give at least {MIN_MEMORY_MIB} MiB with --mem")]
    MemoryTooSmall(u64),
    /// More memory than the host has.
    #[error(
        "{wanted_mib} MiB of guest memory is more than this host's {host_mib} MiB: give less with --mem"
    )]
    MemoryBeyondHost {
        /// Asked for.
        wanted_mib: u64,
        /// The host's RAM.
        host_mib: u64,
    },
    /// A text that is no memory size.
    #[error("'{0}' is no memory size: give a whole number of MiB or GiB, such as 256M or 1G")]
    MemorySyntax(String),
    /// A reserved context id.
    #[error("guest CID {0} is reserved: give one from 3 to 4294967294")]
    GuestCid(u32),
    /// A function that the built-in guest does not have.
    #[error("there is no built-in function '{name}'; there are: {known}")]
    UnknownFunction {
        /// Asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A configuration file that cannot be read.
    #[error("cannot read the configuration '{}': {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file that cannot be a configuration.
    #[error(
        "'{}' is no configuration: it is not a regular file of at most 1 MiB",
        path.display()
    )]
    NotAConfig {
        /// The file.
        path: PathBuf,
    },
    /// A configuration file with something that does not belong there.
    #[error("the configuration '{}' is not valid: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// Neither a kernel nor a function, or both.
    #[error("a machine has either a kernel (kernel_image_path) or a built-in function")]
    KernelOrFunction,
    /// More devices than interrupt lines.
    #[error("{0} virtio devices are too many: at most {MAX_VIRTIO_DEVICES} can be had")]
    TooManyDevices(usize),
    /// Two devices of one name.
    #[error("two devices of the kind {what} have the id '{id}': give each its own")]
    DuplicateId {
        /// The kind.
        what: &'static str,
        /// The id.
        id: String,
    },
    /// A name that is none.
    #[error("'{id}' is no id for a {what}: give 1 to 64 characters")]
    BadId {
        /// The kind.
        what: &'static str,
        /// The id.
        id: String,
    },
    /// Two drives cannot both hold the root file system.
    #[error("several drives are root devices: one can be")]
    SeveralRootDrives,
    /// A balloon that takes more than there is.
    #[error("a balloon of {amount_mib} MiB does not fit into {mem_size_mib} MiB of guest memory")]
    BalloonTooLarge {
        /// Asked for.
        amount_mib: u32,
        /// Guest memory.
        mem_size_mib: u64,
    },
    /// A change of a device that the machine does not have.
    #[error("the machine has no {what} '{id}'; it has: {known}")]
    NoSuchDevice {
        /// The kind.
        what: &'static str,
        /// Asked for.
        id: String,
        /// The ids there are, or "none".
        known: String,
    },
    /// An override for a vsock device that the snapshot does not have.
    #[error("the snapshot's machine has no vsock device: a socket path is of no use")]
    NoVsock,
}
