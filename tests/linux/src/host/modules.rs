//! Kernel modules with what they depend on, uncompressed, in the order in which they load.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::tools::{self, ToolError};

/// Modules could not be collected.
#[derive(Debug, Error)]
pub enum ModulesError {
    /// The kernel has no such module.
    #[error("the kernel of {} has no module {name}", folder.display())]
    Unknown {
        /// The module.
        name: String,
        /// The folder of modules.
        folder: PathBuf,
    },
    /// A file or folder cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// xz failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// A module's name and its file, uncompressed.
pub struct Module {
    /// The name, with `_` for `-`.
    pub name: String,
    /// The file.
    pub bytes: Vec<u8>,
}

/// Collects `wanted` of the kernel whose modules are in `folder`, each behind those that it depends
/// on. What is built into the kernel is left out.
///
/// # Errors
/// See [`ModulesError`].
pub fn collect(folder: &Path, wanted: &[&str]) -> Result<Vec<Module>, ModulesError> {
    let mut files = BTreeMap::new();
    find(folder, &mut files)?;
    let builtin_list = folder.join("modules.builtin");
    let builtin: BTreeSet<String> = fs::read_to_string(&builtin_list)
        .map_err(read_error(&builtin_list))?
        .lines()
        .filter_map(|line| module_name(Path::new(line)))
        .collect();
    let mut modules = Vec::new();
    for name in wanted {
        add(
            &name.replace('-', "_"),
            folder,
            &files,
            &builtin,
            &mut modules,
        )?;
    }
    Ok(modules)
}

fn read_error(path: &Path) -> impl Fn(io::Error) -> ModulesError {
    move |source| ModulesError::Read {
        path: path.to_owned(),
        source,
    }
}

/// `virtio_rng` for `virtio-rng.ko` or `virtio-rng.ko.xz`.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let stem = name
        .strip_suffix(".xz")
        .unwrap_or(name)
        .strip_suffix(".ko")?;
    Some(stem.replace('-', "_"))
}

fn find(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), ModulesError> {
    for entry in fs::read_dir(folder).map_err(read_error(folder))? {
        let entry = entry.map_err(read_error(folder))?;
        let path = entry.path();
        if entry.file_type().map_err(read_error(&path))?.is_dir() {
            find(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

fn add(
    name: &str,
    folder: &Path,
    files: &BTreeMap<String, PathBuf>,
    builtin: &BTreeSet<String>,
    modules: &mut Vec<Module>,
) -> Result<(), ModulesError> {
    if builtin.contains(name) || modules.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let path = files.get(name).ok_or_else(|| ModulesError::Unknown {
        name: name.to_owned(),
        folder: folder.to_owned(),
    })?;
    let bytes = if path.extension().is_some_and(|extension| extension == "xz") {
        tools::run(
            "xz",
            [
                "--decompress".as_ref(),
                "--stdout".as_ref(),
                path.as_os_str(),
            ],
        )?
    } else {
        fs::read(path).map_err(read_error(path))?
    };
    // A module cannot depend on itself: the kernel's build would not have linked it.
    for dependency in dependencies(&bytes) {
        add(&dependency, folder, files, builtin, modules)?;
    }
    modules.push(Module {
        name: name.to_owned(),
        bytes,
    });
    Ok(())
}

/// What a module's `.modinfo` says in `depends=`: that section is a row of strings, each with a
/// zero behind it.
fn dependencies(module: &[u8]) -> Vec<String> {
    module
        .split(|&byte| byte == 0)
        .filter_map(|string| std::str::from_utf8(string).ok()?.strip_prefix("depends="))
        .flat_map(|list| list.split(','))
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn module(folder: &Path, name: &str, depends: &str) {
        let text = format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0");
        fs::write(folder.join(name), text).unwrap();
    }

    #[test]
    fn modules_come_behind_what_they_depend_on_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("kernel/drivers");
        fs::create_dir_all(&deep).unwrap();
        fs::write(folder.path().join("modules.builtin"), "kernel/b.ko\n").unwrap();
        module(&deep, "top-one.ko", "base-one,b,middle");
        module(&deep, "middle.ko", "base-one");
        module(&deep, "base-one.ko", "");
        let names = |wanted: &[&str]| -> Vec<String> {
            let modules = collect(folder.path(), wanted).unwrap();
            modules.into_iter().map(|module| module.name).collect()
        };
        assert_eq!(
            names(&["top-one", "middle"]),
            ["base_one", "middle", "top_one"]
        );
        assert_eq!(names(&["b"]), [""; 0]);
        assert!(matches!(
            collect(folder.path(), &["nonesuch"]),
            Err(ModulesError::Unknown { .. })
        ));
    }
}
