//! A disk that fails in the middle of an install.

use std::error::Error;
use std::io;

use reapvm_reap::page_cache;
use reapvm_snapshot::MemoryReader;
use reapvm_test_support::FailingDisk;

use super::support::snapshot::write_snapshot;
use super::*;

/// How much of a file can be read.
const WHOLE_BYTES: u64 = 400 * PAGE as u64;

/// The disk, if there can be one here. On a disk of its own and not in memory, so that the page
/// cache can be evicted.
fn failing_disk() -> Option<(tempfile::TempDir, FailingDisk)> {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let disk = FailingDisk::new(dir.path())?;
    Some((dir, disk))
}

fn is_io_error(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.raw_os_error() == Some(libc::EIO);
        }
        cause = error.source();
    }
    false
}

/// Pages are what they should be, from the source where the install has not brought them.
fn check_served(memory: &Arc<GuestMemory>) {
    check_pages(memory, (0..PAGES).step_by(19).collect());
}

#[test]
fn a_working_set_that_cannot_be_read_is_an_error_or_the_fallback_by_every_method() {
    let Some((_dir, disk)) = failing_disk() else {
        return;
    };
    let path = disk.dir().join("working-set");
    write_set(&path, &(0..1500).collect::<Vec<_>>());
    disk.fail_after(&path, WHOLE_BYTES);
    for method in methods() {
        for read_path in [None, Some(ReadPath::Pread), Some(ReadPath::PageCache)] {
            for may_fall_back in [false, true] {
                page_cache::evict(&path).unwrap();
                let memory = GuestMemory::new(PAGES);
                let options = InstallOptions {
                    read_path,
                    may_fall_back,
                    ..InstallOptions::new(method)
                };
                let (regions, reader) = (vec![memory.region()], open(&path));
                let (pager, result) = within_time(move || install_with(regions, reader, options));
                match result {
                    // Of a method that ends before the pager serves, whoever calls it falls back.
                    Err(error) => {
                        assert!(
                            !may_fall_back || method == InstallMethod::Direct,
                            "{method}"
                        );
                        assert!(is_io_error(&*error), "{method}: {error:?}");
                        let message = error.to_string();
                        assert!(message.contains(path.to_str().unwrap()), "{message}");
                    }
                    Ok(report) => {
                        assert!(may_fall_back, "{method}");
                        let reason = report.fell_back.unwrap();
                        assert!(reason.contains("os error 5"), "{reason}");
                    }
                }
                check_served(&memory);
                drop(pager);
            }
        }
    }
}

#[test]
fn tables_that_cannot_be_read_are_an_error_by_every_method() {
    let Some((_dir, disk)) = failing_disk() else {
        return;
    };
    let path = disk.dir().join("working-set");
    // Runs of one page, so that the tables are longer than what `open` reads.
    write_set(&path, &(0..PAGES).step_by(2).collect::<Vec<_>>());
    disk.fail_after(&path, PAGE as u64);
    for method in methods() {
        page_cache::evict(&path).unwrap();
        let memory = GuestMemory::new(PAGES);
        let (regions, reader) = (vec![memory.region()], open(&path));
        let options = InstallOptions::new(method);
        let (pager, result) = within_time(move || install_with(regions, reader, options));
        let error = result.unwrap_err();
        assert!(is_io_error(&*error), "{method}: {error:?}");
        assert_eq!(pager.stats().prefetched_pages, 0);
        check_served(&memory);
    }
}

#[test]
fn memory_that_cannot_be_read_fails_the_install_from_it() {
    let Some((dir, disk)) = failing_disk() else {
        return;
    };
    let set_path = dir.path().join("working-set");
    write_set(&set_path, &touched_pages());
    let snapshot = write_snapshot(&disk.dir().join("snapshot"), PAGES);
    let memory_path = snapshot.dir().join(reapvm_snapshot::MEMORY_FILE);
    let reader = MemoryReader::open(snapshot).unwrap();
    // Or it could not be read any more, either.
    reader.index().unwrap();
    let reader = Arc::new(reader);
    disk.fail_after(&memory_path, WHOLE_BYTES);
    for may_fall_back in [false, true] {
        page_cache::evict(&memory_path).unwrap();
        let memory = GuestMemory::new(PAGES);
        let mut pager = new_pager(&memory);
        let install = Install {
            working_set: Arc::new(open(&set_path)),
            memory: Some(Arc::clone(&reader)),
            options: InstallOptions {
                may_fall_back,
                ..InstallOptions::new(InstallMethod::MemoryFile)
            },
        };
        let (pager, result) = within_time(move || {
            let result = pager.install(install);
            (pager, result)
        });
        match result {
            Err(error) => {
                assert!(!may_fall_back && is_io_error(&*error), "{error:?}");
                assert!(matches!(*error, InstallError::Memory(_)), "{error}");
            }
            Ok(report) => {
                let reason = report.fell_back.unwrap();
                assert!(may_fall_back && reason.contains("os error 5"), "{reason}");
            }
        }
        check_served(&memory);
        drop(pager);
    }
}
