//! The one description of a machine: the command line, files and snapshots all use it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most vCPUs a machine may have.
pub const MAX_VCPUS: u8 = 32;
/// Least guest memory: what the boot tables and the smallest kernels need.
pub const MIN_MEMORY_MIB: u64 = 16;
/// Guest CID of the vsock device unless another is given; 0 to 2 are reserved.
pub const DEFAULT_GUEST_CID: u32 = 3;

/// Where the kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kernel {
    /// The image that is embedded in this program.
    Builtin,
    /// An ELF file.
    Path(PathBuf),
}

/// What is booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel.
    pub kernel: Kernel,
    /// An initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel command line, without the device announcements.
    pub cmdline: String,
}

/// Processors and memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs.
    pub vcpu_count: u8,
    /// Guest memory in MiB.
    pub mem_size_mib: u64,
}

/// The vsock device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockSettings {
    /// The guest's context id.
    pub guest_cid: u32,
    /// Unix socket on which the host's programs connect; none: only the launcher itself can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uds_path: Option<PathBuf>,
}

/// A whole machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// What is booted.
    pub boot_source: BootSource,
    /// Processors and memory.
    pub machine_config: MachineConfig,
    /// The vsock device, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockSettings>,
    /// Whether there is a virtio-rng device.
    #[serde(default)]
    pub rng: bool,
    /// The function that the built-in guest serves, if it is the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
}

/// What is wrong with a [`VmConfig`].
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
}

/// Parses a memory size such as `256M`, `1G` or `262144K` into MiB.
///
/// # Errors
/// [`ConfigError::MemorySyntax`] if it is none, or not a whole number of MiB.
pub fn parse_memory_mib(text: &str) -> Result<u64, ConfigError> {
    let error = || ConfigError::MemorySyntax(text.to_owned());
    let trimmed = text.trim();
    let upper = trimmed.to_ascii_uppercase();
    let upper = upper
        .strip_suffix("IB")
        .or_else(|| upper.strip_suffix('B'))
        .unwrap_or(&upper);
    let (digits, unit_kib) = match upper.chars().last() {
        Some('K') => (&upper[..upper.len() - 1], 1),
        Some('M') => (&upper[..upper.len() - 1], 1 << 10),
        Some('G') => (&upper[..upper.len() - 1], 1 << 20),
        _ => (upper, 1 << 10),
    };
    let number: u64 = digits.trim().parse().map_err(|_| error())?;
    let kib: u64 = number.checked_mul(unit_kib).ok_or_else(error)?;
    if !kib.is_multiple_of(1024) {
        return Err(error());
    }
    Ok(kib / 1024)
}

impl VmConfig {
    /// A machine for the built-in function `name`: one vCPU, memory as the function needs it.
    ///
    /// # Errors
    /// [`ConfigError::UnknownFunction`].
    pub fn for_function(name: &str) -> Result<Self, ConfigError> {
        let functions = reapvm_guest_images::FUNCTIONS;
        let function = functions
            .iter()
            .find(|function| function.name == name)
            .ok_or_else(|| {
                let known: Vec<_> = functions.iter().map(|function| function.name).collect();
                ConfigError::UnknownFunction {
                    name: name.to_owned(),
                    known: known.join(", "),
                }
            })?;
        Ok(Self {
            boot_source: BootSource {
                kernel: Kernel::Builtin,
                initrd: None,
                cmdline: format!("console=ttyS0 function={name}"),
            },
            machine_config: MachineConfig {
                vcpu_count: 1,
                mem_size_mib: u64::from(function.mem_mib),
            },
            vsock: Some(VsockSettings {
                guest_cid: DEFAULT_GUEST_CID,
                uds_path: None,
            }),
            rng: false,
            function: Some(name.to_owned()),
        })
    }

    /// Whether the guest is one that reads ACPI tables: any but the built-in one.
    pub fn has_acpi(&self) -> bool {
        matches!(self.boot_source.kernel, Kernel::Path(_))
    }

    /// Guest memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.machine_config.mem_size_mib.saturating_mul(1 << 20)
    }

    /// Checks what can be checked without touching a file.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let MachineConfig {
            vcpu_count,
            mem_size_mib,
        } = self.machine_config;
        if vcpu_count == 0 || vcpu_count > MAX_VCPUS {
            return Err(ConfigError::Vcpus(vcpu_count));
        }
        if mem_size_mib < MIN_MEMORY_MIB {
            return Err(ConfigError::MemoryTooSmall(mem_size_mib));
        }
        let info = rustix::system::sysinfo();
        let host_mib = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit)) >> 20;
        if mem_size_mib > host_mib {
            return Err(ConfigError::MemoryBeyondHost {
                wanted_mib: mem_size_mib,
                host_mib,
            });
        }
        if let Some(vsock) = &self.vsock
            && (vsock.guest_cid < 3 || vsock.guest_cid == u32::MAX)
        {
            return Err(ConfigError::GuestCid(vsock.guest_cid));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_sizes_are_read_as_people_write_them() {
        for (text, mib) in [
            ("256M", 256),
            ("256", 256),
            ("1G", 1024),
            ("2GiB", 2048),
            ("131072k", 128),
        ] {
            assert_eq!(parse_memory_mib(text), Ok(mib), "{text}");
        }
    }

    #[test]
    fn odd_and_senseless_sizes_are_refused() {
        for text in [
            "",
            "M",
            "-1M",
            "1000K",
            "12Q",
            "1.5G",
            "99999999999999999999G",
        ] {
            assert!(parse_memory_mib(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_machine_beyond_its_bounds_is_refused() {
        let good = VmConfig::for_function("helloworld").unwrap();
        assert_eq!(good.validate(), Ok(()));
        let with = |change: fn(&mut VmConfig)| {
            let mut config = good.clone();
            change(&mut config);
            config.validate().unwrap_err()
        };
        assert_eq!(
            with(|c| c.machine_config.vcpu_count = 0),
            ConfigError::Vcpus(0)
        );
        assert_eq!(
            with(|c| c.machine_config.mem_size_mib = 0),
            ConfigError::MemoryTooSmall(0)
        );
        assert!(matches!(
            with(|c| c.machine_config.mem_size_mib = u64::MAX >> 20),
            ConfigError::MemoryBeyondHost { .. }
        ));
        assert!(matches!(
            with(|c| c.vsock = Some(VsockSettings {
                guest_cid: 2,
                uds_path: None
            })),
            ConfigError::GuestCid(2)
        ));
        assert!(
            VmConfig::for_function("nonesuch")
                .unwrap_err()
                .to_string()
                .contains("helloworld")
        );
    }
}
