//! The guests whose functions are measured.

use std::path::{Path, PathBuf};

use reapvm::config::{ConfigError, DriveSettings, VmConfig, VsockSettings};
use reapvm::function_vm::ReadyWhen;
use reapvm::invocation::FUNCTION_PORT;

use crate::cli::{ImageArguments, ImageKind};

/// Guest memory of a Linux guest: an interpreter with its libraries, and room for what they load.
const LINUX_MEMORY_MIB: u64 = 512;

/// Where the functions come from.
#[derive(Clone, Debug)]
pub(crate) enum BenchImage {
    /// The guest that is embedded in this program.
    Builtin,
    /// A Linux guest with the same functions in Python.
    Linux(LinuxImage),
}

/// The files of a Linux guest.
#[derive(Clone, Debug)]
pub(crate) struct LinuxImage {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    rootfs: PathBuf,
}

impl LinuxImage {
    /// What `make linux-images` has made in `folder`, or another kernel with its initrd.
    fn new(folder: &Path, kernel: Option<&Path>, initrd: Option<&Path>) -> Result<Self, String> {
        let rootfs = folder.join("rootfs.ext4");
        let kernel = kernel.map_or_else(|| folder.join("kernel/vmlinuz"), Path::to_owned);
        for file in [&rootfs, &kernel] {
            if !file.exists() {
                return Err(format!(
                    "there is no '{}': make the images first (make linux-images), or say where \
                     they are with --image-dir",
                    file.display()
                ));
            }
        }
        Ok(Self {
            kernel,
            initrd: initrd.map(Path::to_owned),
            rootfs,
        })
    }
}

impl BenchImage {
    /// The one that the command line asks for.
    pub(crate) fn of(arguments: &ImageArguments) -> Result<Self, String> {
        Ok(match arguments.image {
            ImageKind::Builtin => Self::Builtin,
            ImageKind::Linux => Self::Linux(LinuxImage::new(
                &arguments.image_dir.clone().unwrap_or_else(default_folder),
                arguments.kernel.as_deref(),
                arguments.initrd.as_deref(),
            )?),
        })
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Builtin => "builtin",
            Self::Linux(_) => "linux",
        }
    }

    /// The machine that serves `function`. Both images have the same functions.
    pub(crate) fn config(&self, function: &str) -> Result<VmConfig, ConfigError> {
        let builtin = VmConfig::for_function(function)?;
        let Self::Linux(image) = self else {
            return Ok(builtin);
        };
        let mut config = VmConfig::for_kernel(image.kernel.clone());
        config.boot_source.initrd.clone_from(&image.initrd);
        config.boot_source.cmdline =
            format!("console=ttyS0 quiet panic=-1 reboot=k function={function}");
        config.machine_config.mem_size_mib = LINUX_MEMORY_MIB;
        config.drives = vec![DriveSettings {
            is_root_device: true,
            is_read_only: true,
            ..DriveSettings::new("rootfs".to_owned(), image.rootfs.clone())
        }];
        config.vsock = Some(VsockSettings::default());
        Ok(config)
    }

    /// By what its guest shows that it serves.
    pub(crate) fn ready(&self) -> ReadyWhen {
        match self {
            Self::Builtin => ReadyWhen::default(),
            Self::Linux(_) => ReadyWhen::VsockPort(FUNCTION_PORT),
        }
    }

    /// Files beside the snapshot that a cold start may read.
    pub(crate) fn disks(&self) -> Vec<&Path> {
        match self {
            Self::Builtin => Vec::new(),
            Self::Linux(image) => vec![&image.rootfs],
        }
    }
}

/// Where `make linux-images` puts them: `$XDG_CACHE_HOME/reapvm/linux/images`.
fn default_folder() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_default();
    cache.join("reapvm/linux/images")
}
