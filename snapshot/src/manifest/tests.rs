//! Manifests that are right, and every way to be wrong.

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
