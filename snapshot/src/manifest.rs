//! The manifest: what a snapshot is, where it comes from, and the files that belong to it.
//!
//! On disk it is one JSON object that holds the manifest and the CRC32C of the manifest's bytes
//! exactly as they stand there, so that not even a changed space goes unseen:
//!
//! ```text
//! {
//! "crc32c": "9d1b0e57",
//! "manifest": { ... }
//! }
//! ```

use std::io;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::checksum::crc32c;
use crate::id::SnapshotId;
use crate::limits::{
    DIFF_FORMAT_VERSION, FORMAT_VERSION, MANIFEST_FILE, MAX_MANIFEST_BYTES, MAX_MEMORY_BYTES,
    MAX_STATE_BYTES, PAGE_BYTES, TRACE_FILE, WORKING_SET_FILE, WORKING_SET_STATE_FILE,
};
use crate::memory_index::Layout;

/// What a snapshot is, and the files that belong to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of the snapshot format: [`FORMAT_VERSION`], or [`DIFF_FORMAT_VERSION`] of a diff.
    pub format_version: u32,
    /// The snapshot's identity.
    pub id: SnapshotId,
    /// When it was created, in seconds since the Unix epoch.
    pub created_unix_s: u64,
    /// The program that created it, and its version.
    pub creator: String,
    /// The virtual machine's configuration, as the program that created it writes it.
    pub vm: serde_json::Value,
    /// The host on which it was created.
    pub host: HostInfo,
    /// The guest's memory.
    pub memory: MemoryInfo,
    /// The files.
    pub files: Files,
}

/// The host on which a snapshot was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostInfo {
    /// The processor's vendor, as CPUID names it (`AuthenticAMD`).
    pub cpu_vendor: String,
    /// The processor's model name.
    pub cpu_model: String,
    /// The release of the running kernel, as `uname -r` prints it.
    pub kernel_release: String,
}

/// The guest's memory: how much of it there is and where it lies in the memory file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryInfo {
    /// The regions. Together they cover the memory file exactly.
    pub regions: Vec<RegionInfo>,
    /// How many pages are zero, and holes in the memory file.
    pub zero_pages: u64,
    /// How many pages hold something else, and are in the memory file.
    pub data_pages: u64,
    /// The snapshot that this one is a diff against, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<SnapshotId>,
    /// How many pages are as in the base, and holes in the memory file.
    #[serde(default, skip_serializing_if = "is_none_unchanged")]
    pub unchanged_pages: u64,
    /// How much of the guest's memory was resident on the host when it was saved, in bytes.
    pub booted_resident_bytes: u64,
}

fn is_none_unchanged(pages: &u64) -> bool {
    *pages == 0
}

/// A contiguous range of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionInfo {
    /// The guest-physical address (GPA) of its first byte; page-aligned.
    pub gpa: u64,
    /// Its size in bytes: a positive multiple of the page size.
    pub size_bytes: u64,
    /// Where its first byte lies in the memory file; page-aligned.
    pub file_offset: u64,
}

/// The files that belong to a snapshot, besides the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// The state of vCPUs, KVM and devices.
    pub state: FileInfo,
    /// Guest memory.
    pub memory: FileInfo,
    /// The index of its pages.
    pub memory_index: FileInfo,
}

/// A file that belongs to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileInfo {
    /// Its name in the snapshot's directory: no path.
    pub name: String,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// The CRC32C of the whole file; none for guest memory, whose pages have one each.
    pub crc32c: Option<u32>,
}

/// Why a manifest is refused, on reading or on writing.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is longer than [`MAX_MANIFEST_BYTES`].
    #[error("it is longer than {MAX_MANIFEST_BYTES} bytes")]
    TooLong,
    /// It is not JSON, or not a manifest's: half written, damaged, or another file altogether.
    #[error("it is damaged, or not the manifest of a snapshot")]
    Json(#[source] serde_json::Error),
    /// It is not what the writer writes.
    #[error("it is damaged or was edited: {what}")]
    Shape {
        /// What differs.
        what: &'static str,
    },
    /// Its checksum does not match.
    #[error("it is damaged or was edited: crc32c {actual:08x} instead of {expected:08x}")]
    Checksum {
        /// The checksum written in it.
        expected: u32,
        /// The checksum of what is there.
        actual: u32,
    },
    /// It is of another version of the format.
    #[error(
        "it has format version {found}, this program reads version {FORMAT_VERSION} and, of a diff, {DIFF_FORMAT_VERSION}: create the snapshot again with this program, or use the program that created it"
    )]
    FormatVersion {
        /// The version found.
        found: u32,
    },
    /// It is whole, and what it says cannot be.
    #[error("it makes no sense: {what}")]
    Invalid {
        /// What is wrong.
        what: String,
    },
}

/// The object on disk.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    crc32c: &'a str,
    #[serde(borrow)]
    manifest: &'a RawValue,
}

/// The one field whose meaning every version shares: read before, and apart from, all others.
#[derive(Deserialize)]
struct VersionOnly {
    format_version: u32,
}

impl Manifest {
    /// The bytes of `manifest.json`.
    ///
    /// # Errors
    /// When [`Manifest::decode`] would not accept them.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        let inner = serde_json::to_string_pretty(self).map_err(ManifestError::Json)?;
        let bytes = envelope(crc32c(inner.as_bytes()), &inner).into_bytes();
        // What cannot be read back must not be written: a configuration nested too deep, say.
        Self::decode(&bytes)?;
        Ok(bytes)
    }

    /// The manifest in the bytes of `manifest.json`, checked.
    ///
    /// # Errors
    /// When a bit differs from what was written, the format version is another, or what it says
    /// cannot be.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLong);
        }
        let parsed: Envelope<'_> = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        let inner = parsed.manifest.get();
        let expected = parse_crc32c(parsed.crc32c).ok_or(ManifestError::Shape {
            what: "its crc32c is not 8 hexadecimal digits",
        })?;
        let actual = crc32c(inner.as_bytes());
        if actual != expected {
            return Err(ManifestError::Checksum { expected, actual });
        }
        // The checksum covers the manifest alone; this covers the few bytes around it.
        if envelope(expected, inner).as_bytes() != bytes {
            return Err(ManifestError::Shape {
                what: "there is something around the manifest",
            });
        }
        let version: VersionOnly = serde_json::from_str(inner).map_err(ManifestError::Json)?;
        if !matches!(version.format_version, FORMAT_VERSION | DIFF_FORMAT_VERSION) {
            return Err(ManifestError::FormatVersion {
                found: version.format_version,
            });
        }
        let manifest: Self = serde_json::from_str(inner).map_err(ManifestError::Json)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks what types alone do not say.
    fn check(&self) -> Result<(), ManifestError> {
        let Files {
            state,
            memory,
            memory_index,
        } = &self.files;
        let names = [&state.name, &memory.name, &memory_index.name];
        for (position, name) in names.into_iter().enumerate() {
            check_name(name)?;
            if names.iter().skip(position + 1).any(|other| *other == name) {
                return Err(invalid(format!("two files have the name `{name}`")));
            }
        }
        if state.crc32c.is_none() || memory_index.crc32c.is_none() {
            return Err(invalid(
                "the state and the memory index must have a crc32c".to_owned(),
            ));
        }
        if memory.crc32c.is_some() {
            return Err(invalid(
                "guest memory has a crc32c a page, not one in all".to_owned(),
            ));
        }
        if state.len_bytes > MAX_STATE_BYTES {
            return Err(invalid(format!(
                "the state has {} bytes, the most is {MAX_STATE_BYTES}",
                state.len_bytes
            )));
        }
        check_regions(&self.memory.regions, memory.len_bytes)?;
        let MemoryInfo {
            zero_pages,
            data_pages,
            unchanged_pages,
            base,
            ..
        } = self.memory;
        let (version, layout) = match base {
            None => (FORMAT_VERSION, Layout::Full),
            Some(_) => (DIFF_FORMAT_VERSION, Layout::Diff),
        };
        if self.format_version != version {
            return Err(invalid(format!(
                "it {} a base, which format version {} does not go with",
                if base.is_some() { "has" } else { "lacks" },
                self.format_version
            )));
        }
        if base == Some(self.id) {
            return Err(invalid("it is a diff against itself".to_owned()));
        }
        if base.is_none() && unchanged_pages != 0 {
            return Err(invalid(format!(
                "{unchanged_pages} pages are as in its base, and it has none"
            )));
        }
        let page_count = memory.len_bytes / PAGE_BYTES;
        let counted = zero_pages
            .checked_add(data_pages)
            .and_then(|pages| pages.checked_add(unchanged_pages));
        if counted != Some(page_count) {
            return Err(invalid(format!(
                "{zero_pages} zero pages, {data_pages} data pages and {unchanged_pages} unchanged pages are not the {page_count} pages of the memory file"
            )));
        }
        let index_bytes = layout.encoded_bytes(page_count);
        if memory_index.len_bytes != index_bytes {
            return Err(invalid(format!(
                "the memory index has {} bytes, {page_count} pages take {index_bytes}",
                memory_index.len_bytes
            )));
        }
        Ok(())
    }
}

impl MemoryInfo {
    /// How many pages the memory file has.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.zero_pages
            .saturating_add(self.data_pages)
            .saturating_add(self.unchanged_pages)
    }

    /// The place in the memory file, in pages, of the page that holds a guest-physical address.
    #[must_use]
    pub fn page_index_of_gpa(&self, gpa: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = gpa.checked_sub(region.gpa)?;
            (offset < region.size_bytes).then(|| (region.file_offset + offset) / PAGE_BYTES)
        })
    }

    /// The guest-physical address of the first byte of a page of the memory file.
    #[must_use]
    pub fn gpa_of_page_index(&self, page_index: u64) -> Option<u64> {
        let file_offset = page_index.checked_mul(PAGE_BYTES)?;
        self.regions.iter().find_map(|region| {
            let offset = file_offset.checked_sub(region.file_offset)?;
            (offset < region.size_bytes).then(|| region.gpa + offset)
        })
    }
}

impl HostInfo {
    /// The host on which this program runs.
    ///
    /// What `/proc/cpuinfo` does not name is `unknown`.
    ///
    /// # Errors
    /// When `/proc/cpuinfo` cannot be read.
    pub fn detect() -> io::Result<Self> {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
        let field = |name: &str| {
            cpuinfo
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.trim() == name)
                .map_or_else(
                    || "unknown".to_owned(),
                    |(_, value)| value.trim().to_owned(),
                )
        };
        Ok(Self {
            cpu_vendor: field("vendor_id"),
            cpu_model: field("model name"),
            kernel_release: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
        })
    }
}

fn envelope(crc32c: u32, inner: &str) -> String {
    format!("{{\n\"crc32c\": \"{crc32c:08x}\",\n\"manifest\": {inner}\n}}\n")
}

/// Eight lowercase digits and nothing else; the library's parser would take a sign and capitals.
fn parse_crc32c(text: &str) -> Option<u32> {
    let plain = text.len() == 8 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

fn invalid(what: String) -> ManifestError {
    ManifestError::Invalid { what }
}

/// A name that stays in the snapshot's directory and is nobody else's there.
fn check_name(name: &str) -> Result<(), ManifestError> {
    let reserved = [
        ".",
        "..",
        MANIFEST_FILE,
        WORKING_SET_FILE,
        WORKING_SET_STATE_FILE,
        TRACE_FILE,
    ];
    let plain = (1..=255).contains(&name.len()) && !name.contains(['/', '\0']);
    if !plain || reserved.contains(&name) {
        return Err(invalid(format!(
            "`{}` is no name for one of its files",
            name.escape_debug()
        )));
    }
    Ok(())
}

/// Regions that are aligned, apart in guest-physical space, and tile the memory file.
fn check_regions(regions: &[RegionInfo], memory_bytes: u64) -> Result<(), ManifestError> {
    if regions.is_empty() {
        return Err(invalid("it has no memory region".to_owned()));
    }
    if memory_bytes > MAX_MEMORY_BYTES {
        return Err(invalid(format!(
            "the memory file has {memory_bytes} bytes, the most is {MAX_MEMORY_BYTES}"
        )));
    }
    for RegionInfo {
        gpa,
        size_bytes,
        file_offset,
    } in regions
    {
        let aligned = [gpa, size_bytes, file_offset]
            .into_iter()
            .all(|n| n % PAGE_BYTES == 0);
        let ends = [gpa, file_offset]
            .into_iter()
            .all(|n| n.checked_add(*size_bytes).is_some());
        if !aligned || !ends || *size_bytes == 0 {
            return Err(invalid(format!(
                "the memory region of {size_bytes} bytes at {gpa:#x}, file offset {file_offset:#x}, is empty, not page-aligned, or passes the end of the address space"
            )));
        }
    }
    // No sum here can overflow: every end was checked above.
    let mut by_file_offset: Vec<&RegionInfo> = regions.iter().collect();
    by_file_offset.sort_unstable_by_key(|region| region.file_offset);
    let mut end = 0;
    for region in by_file_offset {
        if region.file_offset != end {
            return Err(invalid(format!(
                "memory regions overlap or leave a gap in the memory file at offset {end:#x}"
            )));
        }
        end += region.size_bytes;
    }
    if end != memory_bytes {
        return Err(invalid(format!(
            "memory regions cover {end} bytes, the memory file has {memory_bytes}"
        )));
    }
    let mut by_gpa: Vec<&RegionInfo> = regions.iter().collect();
    by_gpa.sort_unstable_by_key(|region| region.gpa);
    for pair in by_gpa.windows(2) {
        if let [first, second] = pair
            && first.gpa + first.size_bytes > second.gpa
        {
            return Err(invalid(format!(
                "memory regions overlap at guest-physical address {:#x}",
                second.gpa
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
