use std::io::Cursor;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::mode::MemoryRestoreMode;
use crate::phase::Phase;

fn id(byte: u8) -> SnapshotId {
    SnapshotId::from_bytes([byte; 16])
}

fn header() -> TraceHeader {
    TraceHeader {
        snapshot: id(1),
        source: TraceSource::UffdPager,
        limits: TraceSource::UffdPager.limits(MemoryRestoreMode::Prefetch),
        mode: MemoryRestoreMode::Prefetch,
        clock: Clock {
            zero_monotonic_ns: 5_000_000,
            zero_unix_ms: 1_700_000_000_000,
        },
        function: Some("helloworld".to_owned()),
        input: Some(r#"{"seed":1}"#.to_owned()),
        regions: vec![TraceRegion {
            gpa: 0,
            hva: 0x7f00_0000_0000,
            size_bytes: 128 << 20,
        }],
        creator: "reapvm 0.1.0".to_owned(),
    }
}

fn summary(records: u64) -> TraceSummary {
    TraceSummary {
        records,
        dropped: 3,
        threads: vec![TraceThread {
            thread_id: 42,
            kind: ThreadKind::Vcpu,
            vcpu: Some(0),
            name: Some("vcpu-0".to_owned()),
        }],
        notes: vec!["a note".to_owned()],
    }
}

fn records() -> impl Strategy<Value = Vec<TraceRecord>> {
    let numbers = (any::<i64>(), any::<u64>(), any::<u64>(), any::<u32>());
    let record = (
        1..9u64,
        numbers,
        0..u64::MAX / 4096,
        any::<Option<u64>>(),
        (0..4usize, 0..4usize, 0..4u8),
        any::<bool>(),
    );
    // Some of more than one block.
    let len = prop_oneof![0..20usize, 1020..1030usize];
    len.prop_flat_map(move |len| prop::collection::vec(record.clone(), len))
        .prop_map(|records| {
            let mut sequence = 0;
            records
                .into_iter()
                .map(
                    |(step, (ns, hva, service_ns, number), page, rip, kinds, is_first_touch)| {
                        sequence += step;
                        TraceRecord {
                            sequence,
                            ns_since_resume: ns,
                            gpa: page * 4096,
                            hva,
                            service_ns,
                            rip,
                            thread_id: number,
                            queue_depth: number.rotate_left(7),
                            access: Access::ALL[kinds.0],
                            phase: Phase::from_u8(kinds.2).unwrap(),
                            outcome: Outcome::ALL[kinds.1],
                            is_first_touch,
                        }
                    },
                )
                .collect()
        })
}

fn encode(records: &[TraceRecord]) -> Vec<u8> {
    encode_with(&header(), records)
}

fn encode_with(header: &TraceHeader, records: &[TraceRecord]) -> Vec<u8> {
    let mut writer = TraceWriter::new(Vec::new(), header).unwrap();
    for record in records {
        writer.push(record).unwrap();
    }
    writer.finish(summary(0)).unwrap()
}

fn decode(bytes: &[u8]) -> Result<Vec<TraceRecord>, TraceError> {
    TraceReader::new(Cursor::new(bytes), Path::new("t"), Some(&id(1)))?.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn round_trips(records in records()) {
        let bytes = encode(&records);
        let mut reader = TraceReader::new(Cursor::new(&bytes), Path::new("t"), None).unwrap();
        prop_assert_eq!(reader.header(), &header());
        prop_assert_eq!(reader.summary(), &summary(records.len() as u64));
        let read: Vec<TraceRecord> = reader.by_ref().collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(read, records);
        prop_assert!(reader.next_record().unwrap().is_none());
    }

    #[test]
    fn any_flipped_bit_is_refused(records in records(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = encode(&records);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn any_truncation_is_refused_before_a_record_is_given(
        records in records(), at in any::<prop::sample::Index>(),
    ) {
        let bytes = encode(&records);
        let cut = &bytes[..at.index(bytes.len())];
        let opened = TraceReader::new(Cursor::new(cut), Path::new("t"), None);
        let is_truncated = matches!(opened.err(), Some(TraceError::Truncated { .. }));
        prop_assert!(is_truncated);
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(
        tail in prop::collection::vec(any::<u8>(), 0..400), begins_right in any::<bool>(),
    ) {
        let mut bytes = vec![];
        if begins_right {
            // The header, without the block that ends the trace.
            let whole = encode(&[]);
            let end = whole.windows(4).position(|window| window == END_KIND).unwrap();
            bytes.extend(&whole[..end]);
        }
        bytes.extend(tail);
        prop_assert!(decode(&bytes).is_err());
    }
}

fn many_records(count: u64) -> Vec<TraceRecord> {
    (0..count)
        .map(|sequence| TraceRecord {
            sequence,
            gpa: sequence << 12,
            ..TraceRecord::default()
        })
        .collect()
}

#[test]
fn blocks_that_changed_places_or_come_from_another_trace_are_refused() {
    let block = BLOCK_HEAD_BYTES + MAX_RECORDS_BYTES;
    let bytes = encode(&many_records(2048));
    let first = bytes
        .windows(4)
        .position(|window| window == RECORDS_KIND)
        .unwrap();

    let mut swapped = bytes.clone();
    swapped[first..first + 2 * block].rotate_left(block);
    assert!(matches!(decode(&swapped), Err(TraceError::Corrupt { .. })));

    let mut other_header = header();
    other_header.function = Some("helloworle".to_owned());
    let other = encode_with(&other_header, &many_records(2048));
    let mut mixed = bytes.clone();
    mixed[first..first + block].copy_from_slice(&other[first..first + block]);
    assert!(matches!(decode(&mixed), Err(TraceError::Corrupt { .. })));

    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(decode(&longer), Err(TraceError::Corrupt { .. })));

    let mut missing = bytes;
    missing.drain(first..first + block);
    assert!(decode(&missing).is_err());
}

#[test]
fn nothing_is_given_after_a_damaged_block() {
    let mut bytes = encode(&many_records(3000));
    let first = bytes
        .windows(4)
        .position(|window| window == RECORDS_KIND)
        .unwrap();
    bytes[first + BLOCK_HEAD_BYTES + MAX_RECORDS_BYTES + 100] ^= 1;
    let mut reader = TraceReader::new(Cursor::new(&bytes), Path::new("t"), None).unwrap();
    assert_eq!(
        reader.by_ref().take_while(|record| record.is_ok()).count(),
        1024
    );
    assert!(reader.next_record().unwrap().is_none());
}

#[test]
fn a_file_is_read_back_and_belongs_to_one_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    assert!(matches!(
        read(&path, &id(1)),
        Err(TraceError::Missing { .. })
    ));
    let records = many_records(3);
    write(&path, &header(), &records, summary(0)).unwrap();
    assert_eq!(read(&path, &id(1)).unwrap(), records);

    let foreign = read(&path, &id(2)).unwrap_err();
    assert!(matches!(foreign, TraceError::Foreign { .. }));
    assert!(foreign.to_string().contains("record again"), "{foreign}");
}

#[test]
fn another_version_is_named_even_if_it_is_short() {
    let mut bytes = encode(&[]);
    bytes[8] = 9;
    assert!(matches!(
        decode(&bytes),
        Err(TraceError::Version { version: 9, .. })
    ));
    let first_version = [&MAGIC[..], &[1, 0, 0, 0]].concat();
    assert!(matches!(
        decode(&first_version),
        Err(TraceError::Version { version: 1, .. })
    ));
}

#[test]
fn records_that_make_no_sense_are_refused_even_with_a_right_checksum() {
    let header = header();
    let record = many_records(2)[1];
    // Misaligned address, rip without its flag, unknown access, phase, outcome, flag, padding.
    for (offset, value) in [
        (16, 1u8),
        (40, 1),
        (56, 4),
        (57, 4),
        (58, 4),
        (59, 4),
        (60, 1),
    ] {
        let mut bytes = record.encode();
        bytes[offset] = value;
        assert_eq!(TraceRecord::decode(&bytes), None, "{offset}");
        let mut writer = TraceWriter::new(Vec::new(), &header).unwrap();
        writer.push(&record).unwrap();
        let whole = writer.finish(summary(0)).unwrap();
        let at = whole
            .windows(4)
            .position(|window| window == RECORDS_KIND)
            .unwrap();
        let header_crc32c = u32::from_le_bytes(whole[20..24].try_into().unwrap());
        let mut whole = whole;
        let payload_at = at + BLOCK_HEAD_BYTES;
        whole[payload_at + offset] = value;
        let crc32c = block_checksum(
            header_crc32c,
            0,
            &whole[at..at + 8],
            &whole[payload_at..payload_at + RECORD_BYTES],
        );
        whole[at + 8..at + 12].copy_from_slice(&crc32c.to_le_bytes());
        assert!(
            matches!(decode(&whole), Err(TraceError::Corrupt { .. })),
            "{offset}"
        );
    }
}

#[test]
fn a_writer_refuses_records_out_of_order_and_labels_without_end() {
    let mut writer = TraceWriter::new(Vec::new(), &header()).unwrap();
    let records = many_records(2);
    writer.push(&records[1]).unwrap();
    assert!(writer.push(&records[0]).is_err());

    let mut endless = header();
    endless.input = Some("x".repeat(MAX_HEADER_BYTES));
    assert!(TraceWriter::new(Vec::new(), &endless).is_err());
}

#[test]
fn every_limit_is_described() {
    for source in [
        TraceSource::UffdPager,
        TraceSource::KvmTracepoints,
        TraceSource::PageTables,
        TraceSource::UffdWriteProtect,
        TraceSource::KvmDirtyLog,
    ] {
        let json = serde_json::to_string(&source).unwrap();
        assert_eq!(json, format!("\"{}\"", source.as_str()));
        let limits = source.limits(MemoryRestoreMode::Record);
        assert!(!limits.is_empty());
        assert!(limits.iter().all(|limit| !limit.describe().is_empty()));
    }
    let limits = |mode| TraceSource::UffdPager.limits(mode);
    assert!(limits(MemoryRestoreMode::Prefetch).contains(&Limit::Prefetched));
    assert!(!limits(MemoryRestoreMode::OnDemand).contains(&Limit::Prefetched));
}

#[test]
fn what_is_no_file_is_refused_without_reading_it() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("trace");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    for path in [pipe, dir.path().to_owned(), PathBuf::from("/dev/zero")] {
        let (sender, receiver) = std::sync::mpsc::channel();
        // A pipe that is waited for would hang the test.
        std::thread::spawn(move || sender.send(read(&path, &id(1))));
        let error = receiver
            .recv_timeout(std::time::Duration::from_secs(60))
            .unwrap()
            .unwrap_err();
        assert!(matches!(error, TraceError::Read { .. }), "{error:?}");
    }
}

#[test]
fn a_sparse_giant_is_refused_without_reading_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(matches!(
        read(&path, &id(1)),
        Err(TraceError::Corrupt { .. })
    ));
    let bytes = encode(&many_records(1));
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    assert!(read(&path, &id(1)).is_err());
}
