//! Disk images for the nested host, made without root rights.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::initrd;
use super::kernels::Kernel;
use super::modules::{self, ModulesError};
use super::tools::{self, ToolError};
use crate::nested::vm::SMALL_KERNEL;
use crate::nested::{CORPUS_FOLDER, INTEGRATION_FOLDER};

/// The modules of a Linux guest.
const GUEST_MODULES: [&str; 7] = [
    "virtio_mmio",
    "vmw_vsock_virtio_transport",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "pvpanic_mmio",
];
/// The modules of the nested host.
const NESTED_HOST_MODULES: [&str; 4] = ["virtio_blk", "irqbypass", "kvm_amd", "tun"];

/// A disk image could not be made.
#[derive(Debug, Error)]
pub enum DiskError {
    /// A file cannot be read or written.
    #[error("cannot write {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Modules.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// mke2fs failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// The programs that go inside, all of them static.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `reapvm`, with `reapvm-trace` beside it, which it runs.
    pub reapvm: PathBuf,
    /// The first program of the nested host, with the jobs.
    pub nested_host: PathBuf,
    /// The first program of the guests.
    pub guest_init: PathBuf,
}

fn error(path: &Path) -> impl Fn(io::Error) -> DiskError {
    move |source| DiskError::File {
        path: path.to_owned(),
        source,
    }
}

fn module_folder(kernel: &Kernel) -> PathBuf {
    kernel.folder.join("modules")
}

fn copy(from: &Path, to: &Path) -> Result<(), DiskError> {
    fs::copy(from, to).map(|_| ()).map_err(error(from))
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), DiskError> {
    fs::create_dir(to).map_err(error(to))?;
    for entry in fs::read_dir(from).map_err(error(from))? {
        let entry = entry.map_err(error(from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy_tree(&source, &target)?;
        } else {
            copy(&source, &target)?;
        }
    }
    Ok(())
}

/// The initial RAM disk of the nested host, whose kernel is `kernel`, as a file in `folder`.
///
/// # Errors
/// See [`DiskError`].
pub fn nested_host_initrd(
    kernel: &Kernel,
    programs: &Programs,
    folder: &Path,
) -> Result<PathBuf, DiskError> {
    let init = fs::read(&programs.nested_host).map_err(error(&programs.nested_host))?;
    let modules = modules::collect(&module_folder(kernel), &NESTED_HOST_MODULES)?;
    let path = folder.join("nested-host.initrd");
    fs::write(&path, initrd::build(&init, &modules)).map_err(error(&path))?;
    Ok(path)
}

/// What a job disk holds besides the programs and Debian's kernels, as far as it is there.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// Where the Linux images were built: of there is an initrd that mounts a root file system, for
    /// each of Debian's kernels.
    pub images: Option<PathBuf>,
    /// A folder with `vmlinux` and `vmlinuz` of the small kernel.
    pub small_kernel: Option<PathBuf>,
    /// The programs of the integration tests, by the names of the tests.
    pub integration: Vec<(String, PathBuf)>,
    /// The fuzz targets' corpus, which one of those reads.
    pub corpus: Option<PathBuf>,
}

/// The disk that all jobs read: reapvm, and of each kernel vmlinux, vmlinuz and an initrd.
///
/// # Errors
/// See [`DiskError`].
pub fn job_disk(
    kernels: &[Kernel],
    programs: &Programs,
    extras: &Extras,
    folder: &Path,
) -> Result<PathBuf, DiskError> {
    let tree = folder.join("job-disk");
    if tree.exists() {
        fs::remove_dir_all(&tree).map_err(error(&tree))?;
    }
    fs::create_dir_all(&tree).map_err(error(&tree))?;
    copy(&programs.reapvm, &tree.join("reapvm"))?;
    let trace = programs.reapvm.with_file_name("reapvm-trace");
    copy(&trace, &tree.join("reapvm-trace"))?;
    let init = fs::read(&programs.guest_init).map_err(error(&programs.guest_init))?;
    for kernel in kernels {
        let at = tree.join(&kernel.series);
        fs::create_dir(&at).map_err(error(&at))?;
        for name in ["vmlinux", "vmlinuz"] {
            copy(&kernel.folder.join(name), &at.join(name))?;
        }
        let modules = modules::collect(&module_folder(kernel), &GUEST_MODULES)?;
        let initrd = at.join("initrd");
        fs::write(&initrd, initrd::build(&init, &modules)).map_err(error(&initrd))?;
        if let Some(images) = &extras.images {
            let of_images = images.join(format!("initrd-{}", kernel.series));
            copy(&of_images, &at.join("initrd-root"))?;
        }
    }
    if let Some(small_kernel) = &extras.small_kernel {
        let at = tree.join(SMALL_KERNEL);
        fs::create_dir(&at).map_err(error(&at))?;
        for name in ["vmlinux", "vmlinuz"] {
            copy(&small_kernel.join(name), &at.join(name))?;
        }
        // It has everything built in.
        let initrd = at.join("initrd");
        fs::write(&initrd, initrd::build(&init, &[])).map_err(error(&initrd))?;
    }
    let integration = tree.join(INTEGRATION_FOLDER);
    fs::create_dir(&integration).map_err(error(&integration))?;
    for (name, program) in &extras.integration {
        copy(program, &integration.join(name))?;
    }
    if let Some(corpus) = &extras.corpus {
        copy_tree(corpus, &integration.join(CORPUS_FOLDER))?;
    }
    let image = folder.join("job-disk.ext4");
    make_file_system(&image, 1 << 30, Some(&tree))?;
    fs::remove_dir_all(&tree).map_err(error(&tree))?;
    Ok(image)
}

/// An empty disk for one job's snapshots.
///
/// # Errors
/// See [`DiskError`].
pub fn scratch_disk(path: &Path) -> Result<(), DiskError> {
    make_file_system(path, 4 << 30, None)
}

fn make_file_system(image: &Path, bytes: u64, tree: Option<&Path>) -> Result<(), DiskError> {
    // A new file: what an older one held would take space that the new file system does not need.
    let _ = fs::remove_file(image);
    File::create(image)
        .and_then(|file| file.set_len(bytes))
        .map_err(error(image))?;
    let mut arguments = vec!["-q", "-F", "-t", "ext4", "-O", "^has_journal"];
    let tree = tree.map(|tree| tree.display().to_string());
    if let Some(tree) = &tree {
        arguments.extend(["-d", tree]);
    }
    let image = image.display().to_string();
    arguments.push(&image);
    tools::run("mke2fs", arguments)?;
    Ok(())
}
