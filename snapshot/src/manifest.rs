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
    MAX_STATE_BYTES, PAGE_BYTES, TRACE_FILE, WORKING_SET_FILE,
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
    let reserved = [".", "..", MANIFEST_FILE, WORKING_SET_FILE, TRACE_FILE];
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::Index;

    fn file(name: &str, len_bytes: u64, crc32c: Option<u32>) -> FileInfo {
        FileInfo {
            name: name.to_owned(),
            len_bytes,
            crc32c,
        }
    }

    /// A manifest for regions of so many pages, in the order of the memory file, a page apart.
    fn manifest_of(region_pages: &[u64], vm: serde_json::Value) -> Manifest {
        let (mut gpa, mut file_offset) = (0, 0);
        let mut regions = Vec::new();
        for pages in region_pages {
            let size_bytes = pages * PAGE_BYTES;
            regions.push(RegionInfo {
                gpa,
                size_bytes,
                file_offset,
            });
            gpa += size_bytes + PAGE_BYTES;
            file_offset += size_bytes;
        }
        let pages = file_offset / PAGE_BYTES;
        Manifest {
            format_version: FORMAT_VERSION,
            id: SnapshotId::from_bytes([0x3c; 16]),
            created_unix_s: 1_700_000_000,
            creator: "a test 1.0".to_owned(),
            vm,
            host: HostInfo {
                cpu_vendor: "AuthenticAMD".to_owned(),
                cpu_model: "AMD \"EPYC\"".to_owned(),
                kernel_release: "6.12.0".to_owned(),
            },
            memory: MemoryInfo {
                regions,
                zero_pages: pages / 3,
                data_pages: pages - pages / 3,
                booted_resident_bytes: 12_345,
                base: None,
                unchanged_pages: 0,
            },
            files: Files {
                state: file("state", 100, Some(1)),
                memory: file("memory", file_offset, None),
                memory_index: file(
                    "memory-index",
                    Layout::Full.encoded_bytes(pages),
                    Some(u32::MAX),
                ),
            },
        }
    }

    fn manifest() -> Manifest {
        manifest_of(
            &[3, 5],
            serde_json::json!({"vcpus": 2, "devices": ["rng", "vsock"]}),
        )
    }

    /// The same as a diff that leaves one page to its base.
    fn diff() -> Manifest {
        let mut diff = manifest();
        diff.format_version = DIFF_FORMAT_VERSION;
        diff.memory.base = Some(SnapshotId::from_bytes([0x4d; 16]));
        diff.memory.zero_pages -= 1;
        diff.memory.unchanged_pages = 1;
        diff.files.memory_index.len_bytes = Layout::Diff.encoded_bytes(diff.memory.page_count());
        diff
    }

    fn what_is_invalid(change: impl FnOnce(&mut Manifest)) -> String {
        let mut manifest = manifest();
        change(&mut manifest);
        match manifest.encode() {
            Err(ManifestError::Invalid { what }) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        for manifest in [manifest(), diff()] {
            let mut bytes = manifest.encode().unwrap();
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    bytes[at] ^= 1_u8 << bit;
                    let result = Manifest::decode(&bytes);
                    assert!(result.is_err(), "bit {bit} of byte {at}");
                    bytes[at] ^= 1_u8 << bit;
                }
            }
            assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
        }
    }

    #[test]
    fn every_other_length_is_refused() {
        for manifest in [manifest(), diff()] {
            let mut bytes = manifest.encode().unwrap();
            for len in 0..bytes.len() {
                assert!(Manifest::decode(&bytes[..len]).is_err(), "{len} bytes");
            }
            bytes.push(b'\n');
            assert!(matches!(
                Manifest::decode(&bytes),
                Err(ManifestError::Shape { .. })
            ));
        }
    }

    #[test]
    fn a_diff_and_a_full_snapshot_are_not_taken_for_each_other() {
        let full = String::from_utf8(manifest().encode().unwrap()).unwrap();
        assert!(
            !full.contains("base") && !full.contains("unchanged"),
            "{full}"
        );
        let cases: [fn() -> Manifest; 6] = [
            || Manifest {
                format_version: DIFF_FORMAT_VERSION,
                ..manifest()
            },
            || Manifest {
                format_version: FORMAT_VERSION,
                ..diff()
            },
            || {
                let mut diff = diff();
                diff.memory.base = None;
                diff
            },
            || {
                let mut diff = diff();
                diff.memory.base = Some(diff.id);
                diff
            },
            || {
                let mut diff = diff();
                diff.memory.unchanged_pages = u64::MAX;
                diff
            },
            || {
                let mut diff = diff();
                diff.files.memory_index = manifest().files.memory_index;
                diff
            },
        ];
        for (number, case) in cases.into_iter().enumerate() {
            let result = case().encode();
            assert!(
                matches!(result, Err(ManifestError::Invalid { .. })),
                "case {number}: {result:?}"
            );
        }
    }

    #[test]
    fn the_bytes_are_for_people_too() {
        let text = String::from_utf8(manifest().encode().unwrap()).unwrap();
        assert!(text.starts_with("{\n\"crc32c\": \""), "{text}");
        assert!(text.contains("\n  \"format_version\": 1,\n"), "{text}");
        assert!(
            text.contains(&format!("\"id\": \"{}\"", "3c".repeat(16))),
            "{text}"
        );
    }

    #[test]
    fn another_version_is_said_even_when_its_fields_are_unknown() {
        let inner = r#"{"format_version": 3, "novelty": true}"#;
        let bytes = envelope(crc32c(inner.as_bytes()), inner);
        let error = Manifest::decode(bytes.as_bytes()).unwrap_err();
        assert!(
            matches!(error, ManifestError::FormatVersion { found: 3 }),
            "{error:?}"
        );
        let text = error.to_string();
        assert!(
            text.contains("version 3") && text.contains("version 1"),
            "{text}"
        );
    }

    #[test]
    fn unknown_and_missing_fields_are_refused() {
        let inner = serde_json::to_string(&manifest()).unwrap();
        let more = inner.replacen('{', "{\"novelty\": true, ", 1);
        let nested = inner.replace("\"gpa\":0,", "\"gpa\":0,\"novelty\":1,");
        let fewer = inner.replacen("\"creator\":\"a test 1.0\",", "", 1);
        for changed in [more, nested, fewer] {
            assert_ne!(changed, inner);
            let bytes = envelope(crc32c(changed.as_bytes()), &changed);
            let error = Manifest::decode(bytes.as_bytes()).unwrap_err();
            assert!(matches!(error, ManifestError::Json(_)), "{error:?}");
        }
    }

    #[test]
    fn names_stay_in_the_directory() {
        let names = [
            "",
            ".",
            "..",
            "a/b",
            "/etc/passwd",
            "../state",
            "a\0b",
            "manifest.json",
            "trace",
        ];
        for name in names {
            let what = what_is_invalid(|manifest| manifest.files.state.name = name.to_owned());
            assert!(what.contains("is no name"), "{name}: {what}");
        }
        let what = what_is_invalid(|manifest| manifest.files.state.name = "memory".to_owned());
        assert!(what.contains("two files"), "{what}");
    }

    #[test]
    fn regions_tile_the_memory_file() {
        let cases: [fn(&mut Manifest); 12] = [
            |m| m.memory.regions.clear(),
            |m| m.memory.regions[0].gpa += 1,
            |m| m.memory.regions[0].size_bytes = 0,
            |m| m.memory.regions[0].size_bytes -= 1,
            |m| m.memory.regions[1].file_offset += 8,
            |m| m.memory.regions[1].file_offset += PAGE_BYTES,
            |m| m.memory.regions[1].file_offset -= PAGE_BYTES,
            |m| m.memory.regions[1].file_offset = u64::MAX - PAGE_BYTES + 1,
            |m| m.memory.regions[1].gpa = u64::MAX - PAGE_BYTES + 1,
            |m| m.memory.regions[1].gpa = PAGE_BYTES,
            |m| m.memory.regions[1].size_bytes += PAGE_BYTES,
            |m| m.files.memory.len_bytes = MAX_MEMORY_BYTES + PAGE_BYTES,
        ];
        for change in cases {
            assert!(what_is_invalid(change).contains("memory"));
        }
        // Regions need not be in the order of the file.
        let mut swapped = manifest();
        swapped.memory.regions.reverse();
        assert_eq!(
            Manifest::decode(&swapped.encode().unwrap()).unwrap(),
            swapped
        );
    }

    #[test]
    fn counts_lengths_and_checksums_agree() {
        let cases: [fn(&mut Manifest); 8] = [
            |m| m.memory.zero_pages += 1,
            |m| {
                m.memory.zero_pages -= 1;
                m.memory.unchanged_pages += 1;
            },
            |m| m.memory.data_pages = u64::MAX,
            |m| m.files.memory_index.len_bytes += 1,
            |m| m.files.memory_index.crc32c = None,
            |m| m.files.state.crc32c = None,
            |m| m.files.memory.crc32c = Some(0),
            |m| m.files.state.len_bytes = MAX_STATE_BYTES + 1,
        ];
        for change in cases {
            what_is_invalid(change);
        }
    }

    #[test]
    fn what_cannot_be_read_back_is_not_written() {
        let mut deep = serde_json::Value::Null;
        for _ in 0..200 {
            deep = serde_json::Value::Array(vec![deep]);
        }
        let deep = manifest_of(&[1], deep).encode();
        assert!(matches!(deep, Err(ManifestError::Json(_))), "{deep:?}");
        let long = serde_json::Value::String("x".repeat(MAX_MANIFEST_BYTES as usize));
        let long = manifest_of(&[1], long).encode();
        assert!(matches!(long, Err(ManifestError::TooLong)));
    }

    #[test]
    fn addresses_and_pages_correspond() {
        let memory = manifest().memory;
        assert_eq!(memory.page_count(), 8);
        // Three pages at 0, a gap of one, five pages.
        let expected = [
            Some(0),
            Some(1),
            Some(2),
            None,
            Some(3),
            Some(4),
            Some(5),
            Some(6),
            Some(7),
            None,
        ];
        for (page, page_index) in expected.into_iter().enumerate() {
            let gpa = page as u64 * PAGE_BYTES;
            assert_eq!(memory.page_index_of_gpa(gpa), page_index);
            assert_eq!(memory.page_index_of_gpa(gpa + PAGE_BYTES - 1), page_index);
            if let Some(page_index) = page_index {
                assert_eq!(memory.gpa_of_page_index(page_index), Some(gpa));
            }
        }
        assert_eq!(memory.gpa_of_page_index(8), None);
        assert_eq!(memory.gpa_of_page_index(u64::MAX), None);
        assert_eq!(memory.page_index_of_gpa(u64::MAX), None);
    }

    #[test]
    fn the_host_is_named() {
        let host = HostInfo::detect().unwrap();
        assert!(!host.kernel_release.is_empty());
        assert!(!host.cpu_vendor.is_empty());
    }

    proptest! {
        #[test]
        fn round_trip(
            region_pages in proptest::collection::vec(1..1000_u64, 1..6),
            creator in any::<String>(),
            keys in proptest::collection::btree_map(any::<String>(), any::<i64>(), 0..6),
        ) {
            let mut manifest = manifest_of(&region_pages, serde_json::json!(keys));
            manifest.creator = creator;
            prop_assert_eq!(Manifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            prop_assert!(Manifest::decode(&bytes).is_err());
        }

        #[test]
        fn any_replaced_byte_is_refused(at in any::<Index>(), byte in any::<u8>()) {
            let mut bytes = manifest().encode().unwrap();
            let at = at.index(bytes.len());
            prop_assume!(bytes[at] != byte);
            bytes[at] = byte;
            prop_assert!(Manifest::decode(&bytes).is_err());
        }
    }
}
