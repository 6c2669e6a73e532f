//! **Unstable.** Loading a kernel into guest memory and preparing what its boot protocol asks for.
//!
//! An ELF kernel that carries a PVH note is started by PVH, any other, and a bzImage, by Linux's
//! 64-bit boot protocol (Documentation/arch/x86/boot.rst).

mod acpi;
mod bzimage;
mod mp_table;
mod protocol;

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::PathBuf;

use linux_loader::cmdline::Cmdline;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{Elf, KernelLoader, PvhBootCapability};
use reapvm_devices::GuestMemory;
use reapvm_devices::announce;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, ReadVolatile};

use crate::arch::layout;
use crate::arch::segments::EntryMode;
use crate::config::{Kernel, VmConfig};
use crate::generation_id::{self, GenerationIdError};

/// Why a kernel could not be made ready to start.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel or initrd file cannot be opened or read.
    #[error("cannot read the {what} '{}'", path.display())]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a kernel that can be loaded.
    #[error(
        "cannot load the kernel {name}: {reason}; give an x86-64 bzImage (vmlinuz) or an \
         uncompressed ELF image (vmlinux)"
    )]
    Kernel {
        /// The kernel's path or "(built-in)".
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel does not fit into guest memory.
    #[error(
        "the kernel {name} does not fit into guest memory of {memory_mib} MiB; \
         give the VM more memory with --mem"
    )]
    KernelTooLarge {
        /// The kernel's path or "(built-in)".
        name: String,
        /// Guest memory.
        memory_mib: u64,
    },
    /// The initrd does not fit between the kernel and the end of low memory.
    #[error(
        "the initrd of {initrd_bytes} bytes does not fit into guest memory above the kernel; \
         give the VM more memory with --mem"
    )]
    InitrdTooLarge {
        /// Size of the initrd.
        initrd_bytes: u64,
    },
    /// The command line is too long or holds characters that no kernel would read.
    #[error("the kernel command line is not usable: {0}")]
    Cmdline(String),
    /// Boot parameters could not be written.
    #[error("cannot write the boot parameters into guest memory: {0}")]
    BootParams(String),
    /// The generation id.
    #[error(transparent)]
    GenerationId(#[from] GenerationIdError),
    /// Guest memory refused a write of boot tables.
    #[error("cannot write the boot tables into guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Where and how the boot vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPoint {
    /// Address of the first instruction.
    pub gpa: u64,
    /// Processor mode at that address.
    pub mode: EntryMode,
}

/// Where the initrd lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Initrd {
    gpa: u64,
    size_bytes: u64,
}

/// A kernel in guest memory.
struct LoadedKernel {
    entry: EntryPoint,
    /// First address behind all that it uses before it reads its memory map.
    end_gpa: u64,
    /// Of a bzImage.
    setup_header: Option<setup_header>,
}

/// Where a virtio-mmio device lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioWindow {
    /// First guest-physical address of its registers.
    pub gpa: u64,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Its interrupt line.
    pub gsi: u32,
}

/// Loads kernel, initrd, command line, memory map, MP table and ACPI tables.
///
/// `devices` are announced behind the user's command line, for kernels without ACPI, and in the
/// ACPI tables. A kernel that reads both takes each device once.
///
/// # Errors
/// See [`BootError`].
pub fn load(
    memory: &GuestMemory,
    config: &VmConfig,
    devices: &[MmioWindow],
) -> Result<EntryPoint, BootError> {
    let source = &config.boot_source;
    let memory_bytes = config.memory_bytes();
    let vcpus = config.machine_config.vcpu_count;
    let (name, kernel) = load_kernel(memory, &source.kernel, memory_bytes)?;
    tracing::debug!(
        kernel = name,
        entry = format_args!("{:#x}", kernel.entry.gpa),
        mode = ?kernel.entry.mode,
        end = format_args!("{:#x}", kernel.end_gpa),
        "kernel loaded"
    );
    let initrd = match &source.initrd {
        None => None,
        Some(path) => Some(load_initrd(
            memory,
            path.clone(),
            kernel.end_gpa,
            memory_bytes,
        )?),
    };
    let cmdline = compose_cmdline(&config.cmdline(), devices)?;
    linux_loader::loader::load_cmdline(memory, layout::CMDLINE, &cmdline)
        .map_err(|error| BootError::Cmdline(error.to_string()))?;
    mp_table::write(memory, vcpus)?;
    let rsdp_gpa = acpi::write(memory, vcpus, devices)?;
    generation_id::write_new(memory)?;

    let cmdline_bytes = cmdline
        .as_cstring()
        .map_err(|e| BootError::Cmdline(e.to_string()))?
        .as_bytes()
        .len();
    let parameters = protocol::Parameters {
        cmdline_bytes,
        initrd,
        memory_bytes,
        rsdp_gpa,
    };
    match kernel.entry.mode {
        EntryMode::Protected => protocol::write_pvh(memory, &parameters)?,
        EntryMode::Long => {
            protocol::write_linux64(memory, &parameters, kernel.setup_header)?;
        }
    }
    Ok(kernel.entry)
}

fn load_kernel(
    memory: &GuestMemory,
    kernel: &Kernel,
    memory_bytes: u64,
) -> Result<(String, LoadedKernel), BootError> {
    match kernel {
        Kernel::Path(path) => {
            let name = format!("'{}'", path.display());
            let read = |source| BootError::Read {
                what: "kernel",
                path: path.clone(),
                source,
            };
            let mut file = File::open(path).map_err(read)?;
            let metadata = file.metadata().map_err(read)?;
            if !metadata.is_file() {
                return Err(BootError::Kernel {
                    name,
                    reason: "it is not a regular file".into(),
                });
            }
            let is_bzimage = bzimage::is_bzimage(&mut file).map_err(read)?;
            let result = if is_bzimage {
                bzimage::load(memory, &mut file, &name, memory_bytes)?
            } else {
                load_elf(memory, &mut file, &name, metadata.len(), memory_bytes)?
            };
            Ok((name, result))
        }
        Kernel::Builtin => {
            let image = reapvm_guest_images::image();
            let name = "(built-in)".to_owned();
            let mut cursor = Cursor::new(image);
            let result = load_elf(memory, &mut cursor, &name, image.len() as u64, memory_bytes)?;
            Ok((name, result))
        }
    }
}

fn load_elf<F: Read + ReadVolatile + Seek>(
    memory: &GuestMemory,
    image: &mut F,
    name: &str,
    image_bytes: u64,
    memory_bytes: u64,
) -> Result<LoadedKernel, BootError> {
    let too_large = || BootError::KernelTooLarge {
        name: name.to_owned(),
        memory_mib: memory_bytes >> 20,
    };
    let result = Elf::load(memory, None, image, Some(layout::HIGH_RAM_START)).map_err(|error| {
        // The loader says "unable to read the kernel image" both for a segment that the file
        // does not hold and for one that memory does not hold.
        if image_bytes > memory_bytes || segments_end(image) > Some(memory_bytes) {
            too_large()
        } else {
            BootError::Kernel {
                name: name.to_owned(),
                reason: error.to_string(),
            }
        }
    })?;
    let low_end = memory_bytes.min(layout::MMIO_HOLE_START);
    // The loader leaves uninitialised data (.bss) unwritten and unchecked.
    if result.kernel_end > low_end {
        return Err(too_large());
    }
    if result.kernel_end == 0 || result.kernel_load.0 >= result.kernel_end {
        return Err(BootError::Kernel {
            name: name.to_owned(),
            reason: "its entry point lies outside its segments".into(),
        });
    }
    Ok(LoadedKernel {
        entry: match result.pvh_boot_cap {
            PvhBootCapability::PvhEntryPresent(GuestAddress(gpa)) => EntryPoint {
                gpa,
                mode: EntryMode::Protected,
            },
            PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => {
                EntryPoint {
                    gpa: result.kernel_load.0,
                    mode: EntryMode::Long,
                }
            }
        },
        end_gpa: result.kernel_end,
        setup_header: None,
    })
}

/// Where the highest segment of an ELF image ends in guest memory; none if it has no segments.
fn segments_end<F: Read + Seek>(image: &mut F) -> Option<u64> {
    const PROGRAM_HEADER_BYTES: usize = 56;
    const PT_LOAD: u64 = 1;
    fn number(bytes: &[u8]) -> u64 {
        bytes
            .iter()
            .rev()
            .fold(0, |n, &byte| n << 8 | u64::from(byte))
    }
    let mut header = [0; 64];
    image.rewind().ok()?;
    image.read_exact(&mut header).ok()?;
    image.seek(SeekFrom::Start(number(&header[32..40]))).ok()?;
    let mut end = None;
    for _ in 0..number(&header[56..58]) {
        let mut segment = [0; PROGRAM_HEADER_BYTES];
        image.read_exact(&mut segment).ok()?;
        if number(&segment[..4]) == PT_LOAD {
            let gpa = number(&segment[24..32]);
            end = end.max(Some(gpa.saturating_add(number(&segment[40..48]))));
        }
    }
    end
}

fn load_initrd(
    memory: &GuestMemory,
    path: PathBuf,
    kernel_end: u64,
    memory_bytes: u64,
) -> Result<Initrd, BootError> {
    let read = |source| BootError::Read {
        what: "initrd",
        path: path.clone(),
        source,
    };
    let mut file = File::open(&path).map_err(read)?;
    let size_bytes = file.metadata().map_err(read)?.len();
    // As high as possible, where the kernel's decompression does not reach it.
    let top = memory_bytes.min(layout::MMIO_HOLE_START);
    let gpa = top
        .checked_sub(size_bytes)
        .map(|gpa| gpa & !0xfff)
        .filter(|&gpa| gpa >= kernel_end)
        .ok_or(BootError::InitrdTooLarge {
            initrd_bytes: size_bytes,
        })?;
    let length = usize::try_from(size_bytes).map_err(|_| BootError::InitrdTooLarge {
        initrd_bytes: size_bytes,
    })?;
    memory
        .read_exact_volatile_from(GuestAddress(gpa), &mut file, length)
        .map_err(|error| read(std::io::Error::other(error)))?;
    Ok(Initrd { gpa, size_bytes })
}

fn compose_cmdline(user: &str, devices: &[MmioWindow]) -> Result<Cmdline, BootError> {
    let error = |error: linux_loader::cmdline::Error| BootError::Cmdline(error.to_string());
    let mut cmdline = Cmdline::new(layout::CMDLINE_MAX_BYTES).map_err(error)?;
    if !user.trim().is_empty() {
        cmdline.insert_str(user).map_err(error)?;
    }
    for device in devices {
        let announcement =
            announce::virtio_mmio_parameter(device.gpa, device.size_bytes, device.gsi);
        cmdline.insert_str(announcement).map_err(error)?;
    }
    Ok(cmdline)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(size_mib: usize) -> GuestMemory {
        crate::memory::of_bytes((size_mib as u64) << 20)
    }

    fn config(kernel: &str) -> VmConfig {
        let mut config = VmConfig::for_kernel(kernel.into());
        config.machine_config.mem_size_mib = 64;
        config
    }

    #[test]
    fn a_file_that_is_no_elf_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7_u8; 8192]).unwrap();
        let error = load(&memory(64), &config(file.path().to_str().unwrap()), &[]).unwrap_err();
        assert!(matches!(error, BootError::Kernel { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains(&file.path().display().to_string())
        );
    }

    #[test]
    fn an_empty_kernel_file_and_a_missing_one_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(load(&memory(64), &config(file.path().to_str().unwrap()), &[]).is_err());
        let error = load(&memory(64), &config("/nonexistent/vmlinux"), &[]).unwrap_err();
        assert!(
            matches!(error, BootError::Read { what: "kernel", .. }),
            "{error}"
        );
    }

    #[test]
    fn the_built_in_image_does_not_fit_into_17_mib() {
        let mut boot = VmConfig::for_function("helloworld").unwrap();
        boot.machine_config.mem_size_mib = 16;
        let error = load(&memory(16), &boot, &[]).unwrap_err();
        assert!(matches!(error, BootError::KernelTooLarge { .. }), "{error}");
    }

    #[test]
    fn a_command_line_beyond_its_limit_is_refused() {
        assert!(compose_cmdline(&"a".repeat(layout::CMDLINE_MAX_BYTES), &[]).is_err());
        assert!(compose_cmdline("naïve", &[]).is_err());
        let device = MmioWindow {
            gpa: 0xd000_0000,
            size_bytes: 0x1000,
            gsi: 5,
        };
        let line = compose_cmdline("quiet", &[device]).unwrap();
        assert_eq!(
            line.as_cstring().unwrap().to_str().unwrap(),
            "quiet virtio_mmio.device=4K@0xd0000000:5"
        );
    }
}
