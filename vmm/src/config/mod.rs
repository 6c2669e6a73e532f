//! The one description of a machine: command line, configuration file and snapshot all use it.
//!
//! In JSON it has the vocabulary of Firecracker's API (`boot-source`, `drives`,
//! `network-interfaces`, `machine-config`, `vsock`, `balloon`, `entropy`), so that a configuration
//! file of that hypervisor which names only what reapvm has is one for reapvm too.

mod devices;
mod error;
mod memory_size;
mod overrides;
mod updates;

use std::path::{Path, PathBuf};

use reapvm_guest_images::{EXTRA_FUNCTIONS, FUNCTIONS};
use serde::{Deserialize, Serialize};

pub use devices::{
    BalloonSettings, DEFAULT_GUEST_CID, DriveSettings, EntropySettings, NetworkSettings,
    VsockSettings,
};
pub use error::ConfigError;
pub use memory_size::parse_memory_mib;
pub(crate) use overrides::no_such_device;
pub use overrides::{DriveOverride, NetworkOverride, Overrides};
pub use updates::{BalloonStatsUpdate, BalloonUpdate, DriveUpdate, NetworkUpdate};

use crate::arch::layout;

/// Most vCPUs a machine may have.
pub const MAX_VCPUS: u8 = 32;
/// Least guest memory: what the boot tables and the smallest kernels need.
pub const MIN_MEMORY_MIB: u64 = 16;
/// Guest memory of a machine for which nobody says how much.
pub const DEFAULT_MEMORY_MIB: u64 = 256;
/// Most virtio devices: one interrupt line each, from the first to the one of the generation id.
pub const MAX_VIRTIO_DEVICES: usize =
    (layout::GENERATION_ID_GSI - layout::VIRTIO_MMIO_FIRST_GSI) as usize;
/// Kernel command line of a guest for which nobody gives one.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0";
/// Longest configuration file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where the kernel comes from. In JSON: a path, or nothing for the built-in image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Option<PathBuf>", into = "Option<PathBuf>")]
pub enum Kernel {
    /// The image that is embedded in this program.
    #[default]
    Builtin,
    /// A bzImage or an ELF file.
    Path(PathBuf),
}

impl From<Option<PathBuf>> for Kernel {
    fn from(path: Option<PathBuf>) -> Self {
        path.map_or(Self::Builtin, Self::Path)
    }
}

impl From<Kernel> for Option<PathBuf> {
    fn from(kernel: Kernel) -> Self {
        match kernel {
            Kernel::Builtin => None,
            Kernel::Path(path) => Some(path),
        }
    }
}

/// What is booted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel.
    #[serde(rename = "kernel_image_path", default)]
    pub kernel: Kernel,
    /// An initial RAM disk.
    #[serde(
        rename = "initrd_path",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub initrd: Option<PathBuf>,
    /// The kernel command line, without what reapvm adds for its devices.
    #[serde(rename = "boot_args", default)]
    pub cmdline: String,
}

/// Processors and memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs.
    #[serde(default = "one")]
    pub vcpu_count: u8,
    /// Guest memory in MiB.
    #[serde(default = "default_memory_mib")]
    pub mem_size_mib: u64,
    /// Keep which pages are written, so that snapshots can hold only those. The guest pays: each
    /// first write to a page after a save is an exit.
    #[serde(default, skip_serializing_if = "is_false")]
    pub track_dirty_pages: bool,
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn one() -> u8 {
    1
}

fn default_memory_mib() -> u64 {
    DEFAULT_MEMORY_MIB
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: one(),
            mem_size_mib: DEFAULT_MEMORY_MIB,
            track_dirty_pages: false,
        }
    }
}

/// A whole machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmConfig {
    /// What is booted.
    #[serde(default)]
    pub boot_source: BootSource,
    /// Processors and memory.
    #[serde(default)]
    pub machine_config: MachineConfig,
    /// Block devices, in the order in which the guest finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drives: Vec<DriveSettings>,
    /// Network devices, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_interfaces: Vec<NetworkSettings>,
    /// The vsock device, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockSettings>,
    /// The balloon, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonSettings>,
    /// The entropy device, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropySettings>,
    /// The function that the built-in guest serves, if it is the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
}

impl VmConfig {
    /// A machine for the built-in function `name`: one vCPU, memory as the function needs it.
    ///
    /// # Errors
    /// [`ConfigError::UnknownFunction`].
    pub fn for_function(name: &str) -> Result<Self, ConfigError> {
        let function = reapvm_guest_images::find(name).ok_or_else(|| {
            let known = FUNCTIONS.iter().chain(&EXTRA_FUNCTIONS);
            let known: Vec<_> = known.map(|function| function.name).collect();
            ConfigError::UnknownFunction {
                name: name.to_owned(),
                known: known.join(", "),
            }
        })?;
        Ok(Self {
            boot_source: BootSource {
                kernel: Kernel::Builtin,
                initrd: None,
                cmdline: function_cmdline(name),
            },
            machine_config: MachineConfig {
                vcpu_count: 1,
                mem_size_mib: u64::from(function.mem_mib),
                track_dirty_pages: false,
            },
            vsock: Some(VsockSettings::default()),
            function: Some(name.to_owned()),
            ..Self::default()
        })
    }

    /// A machine for the kernel `path`, with [`DEFAULT_CMDLINE`] and no devices.
    pub fn for_kernel(path: PathBuf) -> Self {
        Self {
            boot_source: BootSource {
                kernel: Kernel::Path(path),
                initrd: None,
                cmdline: DEFAULT_CMDLINE.to_owned(),
            },
            ..Self::default()
        }
    }

    /// The machine that the JSON file `path` describes. A file that names a function of the
    /// built-in guest need not say more.
    ///
    /// # Errors
    /// The file cannot be read, is no JSON, has unknown fields or values of the wrong type.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let read = |source: std::io::Error| ConfigError::Read {
            path: path.to_owned(),
            reason: source.to_string(),
        };
        let metadata = std::fs::metadata(path).map_err(read)?;
        // A configuration is short; a device or a disk image that was given by mistake is not.
        if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
            return Err(ConfigError::NotAConfig {
                path: path.to_owned(),
            });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let syntax = |reason: String| ConfigError::Syntax {
            path: path.to_owned(),
            reason,
        };
        // An array would be taken for the fields in their order.
        if text.trim_start().starts_with('[') {
            return Err(syntax("it is an array, not an object".to_owned()));
        }
        let mut config: Self =
            serde_json::from_str(&text).map_err(|error| syntax(error.to_string()))?;
        if let Some(name) = &config.function {
            let of_function = Self::for_function(name)?;
            if config.boot_source.cmdline.is_empty() {
                config.boot_source.cmdline = of_function.boot_source.cmdline;
            }
            config.vsock = config.vsock.or(of_function.vsock);
        }
        Ok(config)
    }

    /// How many virtio devices it has.
    pub fn virtio_device_count(&self) -> usize {
        self.drives.len()
            + self.network_interfaces.len()
            + usize::from(self.vsock.is_some())
            + usize::from(self.balloon.is_some())
            + usize::from(self.entropy.is_some())
    }

    /// Which of the virtio devices, in their order, is the balloon.
    pub(crate) fn balloon_index(&self) -> Option<usize> {
        self.balloon.map(|_| {
            self.drives.len() + self.network_interfaces.len() + usize::from(self.vsock.is_some())
        })
    }

    /// The kernel command line with what the root drive adds to it.
    pub fn cmdline(&self) -> String {
        let mut cmdline = self.boot_source.cmdline.clone();
        let root = self.drives.iter().position(|drive| drive.is_root_device);
        if let Some(index) = root {
            let mode = if self.drives[index].is_read_only {
                "ro"
            } else {
                "rw"
            };
            // The guest names its drives in the order in which it finds them.
            let letter = char::from(b'a' + index.min(25) as u8);
            cmdline.push_str(&format!(" root=/dev/vd{letter} {mode}"));
        }
        cmdline
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
            track_dirty_pages: _,
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
        if self.function.is_some() == self.has_acpi() {
            return Err(ConfigError::KernelOrFunction);
        }
        if let Some(vsock) = &self.vsock
            && (vsock.guest_cid < 3 || vsock.guest_cid == u32::MAX)
        {
            return Err(ConfigError::GuestCid(vsock.guest_cid));
        }
        if let Some(balloon) = &self.balloon
            && u64::from(balloon.amount_mib) > mem_size_mib
        {
            return Err(ConfigError::BalloonTooLarge {
                amount_mib: balloon.amount_mib,
                mem_size_mib,
            });
        }
        let count = self.virtio_device_count();
        if count > MAX_VIRTIO_DEVICES {
            return Err(ConfigError::TooManyDevices(count));
        }
        unique("drive", self.drives.iter().map(|drive| &drive.drive_id))?;
        unique(
            "network interface",
            self.network_interfaces.iter().map(|net| &net.iface_id),
        )?;
        let roots = self.drives.iter().filter(|drive| drive.is_root_device);
        if roots.count() > 1 {
            return Err(ConfigError::SeveralRootDrives);
        }
        Ok(())
    }
}

fn function_cmdline(name: &str) -> String {
    format!("{DEFAULT_CMDLINE} function={name}")
}

fn unique<'a>(
    what: &'static str,
    ids: impl Iterator<Item = &'a String>,
) -> Result<(), ConfigError> {
    let mut seen = std::collections::BTreeSet::new();
    for id in ids {
        if id.is_empty() || id.len() > devices::MAX_ID_BYTES {
            return Err(ConfigError::BadId {
                what,
                id: id.clone(),
            });
        }
        if !seen.insert(id) {
            return Err(ConfigError::DuplicateId {
                what,
                id: id.clone(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn from_json(text: &str) -> Result<VmConfig, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        VmConfig::from_file(file.path())
    }

    const FULL: &str = r#"{
        "boot-source": {
            "kernel_image_path": "vmlinux", "initrd_path": "initrd", "boot_args": "quiet"
        },
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 512, "track_dirty_pages": true},
        "drives": [
            {"drive_id": "rootfs", "path_on_host": "root.ext4", "is_root_device": true,
             "is_read_only": true},
            {"drive_id": "data", "path_on_host": "data.raw",
             "rate_limiter": {"bandwidth": {"size": 1000000, "refill_time": 1000}}}
        ],
        "network-interfaces": [
            {"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:ac:10:00:02"}
        ],
        "vsock": {"guest_cid": 5, "uds_path": "vm.sock"},
        "balloon": {"amount_mib": 64, "deflate_on_oom": true, "stats_polling_interval_s": 1},
        "entropy": {}
    }"#;

    #[test]
    fn a_file_with_firecrackers_vocabulary_is_read_and_written_back() {
        let config = from_json(FULL).unwrap();
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.virtio_device_count(), 6);
        assert_eq!(config.cmdline(), "quiet root=/dev/vda ro");
        assert!(config.has_acpi() && !config.drives[1].is_read_only);
        assert!(config.machine_config.track_dirty_pages);
        let plain = serde_json::to_string(&VmConfig::default()).unwrap();
        assert!(!plain.contains("track"), "{plain}");
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<VmConfig>(&text).unwrap(), config);
    }

    #[test]
    fn a_file_that_names_a_function_need_not_say_more() {
        let config = from_json(r#"{"function": "helloworld"}"#).unwrap();
        let mut expected = VmConfig::for_function("helloworld").unwrap();
        expected.machine_config.mem_size_mib = DEFAULT_MEMORY_MIB;
        assert_eq!(config, expected);
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named() {
        for (text, named) in [
            ("", "line 1"),
            ("[]", "object"),
            (r#"{"machine-config": {"vcpu_count": "two"}}"#, "two"),
            (r#"{"machine-config": {"vcpu_count": 300}}"#, "300"),
            (r#"{"kernel": "vmlinux"}"#, "kernel"),
            (r#"{"drives": [{"drive_id": "a"}]}"#, "path_on_host"),
            (r#"{"vsock": {"guest_cid": 3, "path": "x"}}"#, "path"),
            (
                r#"{"network-interfaces": [
                    {"iface_id": "a", "host_dev_name": "t", "guest_mac": "06:00"}]}"#,
                "06:00",
            ),
        ] {
            let error = from_json(text).unwrap_err();
            assert!(error.to_string().contains(named), "{text}: {error}");
        }
        assert!(matches!(
            VmConfig::from_file(Path::new("/dev/zero")),
            Err(ConfigError::NotAConfig { .. })
        ));
        assert!(matches!(
            VmConfig::from_file(Path::new("/nonexistent")),
            Err(ConfigError::Read { .. })
        ));
    }

    #[test]
    fn machines_that_contradict_themselves_are_refused() {
        let with = |change: fn(&mut VmConfig)| {
            let mut config = from_json(FULL).unwrap();
            change(&mut config);
            config.validate().unwrap_err()
        };
        assert!(matches!(
            with(|c| c.drives[1].drive_id = "rootfs".into()),
            ConfigError::DuplicateId { .. }
        ));
        assert!(matches!(
            with(|c| c.network_interfaces[0].iface_id.clear()),
            ConfigError::BadId { .. }
        ));
        assert_eq!(
            with(|c| c.drives[1].is_root_device = true),
            ConfigError::SeveralRootDrives
        );
        assert_eq!(
            with(|c| c.boot_source.kernel = Kernel::Builtin),
            ConfigError::KernelOrFunction
        );
        assert_eq!(
            with(|c| c.function = Some("helloworld".into())),
            ConfigError::KernelOrFunction
        );
        assert!(matches!(
            with(|c| c.balloon.as_mut().unwrap().amount_mib = 513),
            ConfigError::BalloonTooLarge { .. }
        ));
        assert!(matches!(
            with(|c| {
                c.drives = (0..20)
                    .map(|n| DriveSettings::new(n.to_string(), "disk".into()))
                    .collect();
            }),
            ConfigError::TooManyDevices(24)
        ));
    }
}
