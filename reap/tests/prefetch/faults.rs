//! Sets and hosts with which an install cannot go on.

use super::*;

#[test]
fn a_set_that_is_cut_short_after_it_was_opened_fails_the_install() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    for method in methods() {
        for left_bytes in [0, 100, PAGE, 600 * PAGE, 1000 * PAGE + 5] {
            write_set(&path, &(0..1500).collect::<Vec<_>>());
            let reader = open(&path);
            // Not replaced: the same file.
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_len(left_bytes as u64).unwrap();
            let memory = GuestMemory::new(PAGES);
            let options = InstallOptions::new(method);
            let (_pager, result) = install_with(vec![memory.region()], reader, options);
            let error = result.unwrap_err();
            assert!(
                matches!(
                    *error,
                    InstallError::WorkingSet(WorkingSetError::Truncated { .. })
                ),
                "{method}, {left_bytes} bytes: {error}"
            );
            // What is in place is right.
            check_pages(&memory, (0..PAGES).collect());
        }
    }
}

#[test]
fn a_damaged_page_of_a_later_piece_is_not_installed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    let set = write_set(&path, &(0..1500).collect::<Vec<_>>());
    // Every fourth page is zero, and not in the file.
    let data_offset = set.len_bytes() as usize - 1500 / 4 * 3 * PAGE;
    let pages_before = (0..1301).filter(|page| page % 4 != 0).count();
    let mut bytes = fs::read(&path).unwrap();
    bytes[data_offset + pages_before * PAGE + 7] ^= 0x10;
    fs::write(&path, bytes).unwrap();
    for method in methods() {
        let memory = GuestMemory::new(PAGES);
        let (_pager, result) = install_all(&memory, &path, method);
        let error = result.unwrap_err();
        assert!(
            matches!(
                &*error,
                InstallError::WorkingSet(WorkingSetError::CorruptPage { gpa, .. })
                    if *gpa == 1301 * PAGE as u64
            ),
            "{error}"
        );
        check_pages(&memory, vec![0, 701, 1299, 1301, 1302, 1499]);
    }
}

#[test]
fn a_damaged_page_fails_the_install_and_is_not_installed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_set(&path, &[1, 2, 3, 9, 10, 11]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[PAGE + 4 * PAGE + 50] ^= 1;
    fs::write(&path, bytes).unwrap();

    let memory = GuestMemory::new(PAGES);
    let (pager, result) = install_all(&memory, &path, InstallMethod::default());
    let error = result.unwrap_err();
    assert!(
        matches!(
            &*error,
            InstallError::WorkingSet(WorkingSetError::CorruptPage { gpa: 0xa000, .. })
        ),
        "{error}"
    );
    // What is in place is right, and the rest comes from the source.
    check_pages(&memory, (0..16).collect());
    assert_eq!(pager.stats().faults, 13);
}

#[test]
fn a_set_that_goes_beyond_memory_is_refused_before_its_first_page() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_set(&path, &[1, 100, 101]);
    let memory = GuestMemory::new(PAGES);
    // Guest memory of the right size, but with a hole where the set has a page.
    let regions = vec![
        memory.part(0, 101, 0),
        memory.part(101, PAGES - 101, 0x1_0000_0000),
    ];
    for method in methods() {
        let (pager, result) =
            install_with(regions.clone(), open(&path), InstallOptions::new(method));
        let error = result.unwrap_err();
        assert!(
            matches!(
                &*error,
                InstallError::OutsideRegions {
                    gpa: 0x64000,
                    pages: 2,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(pager.stats().prefetched_pages, 0);
        check_pages(&memory, vec![1]);
        assert_eq!(pager.stats().faults, 1);
        memory.drop_pages(1, 1);
    }
}

#[test]
fn an_install_at_the_wrong_time_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_set(&path, &[1]);
    let install = |method| Install {
        working_set: Arc::new(open(&path)),
        memory: None,
        options: InstallOptions::new(method),
    };
    let memory = GuestMemory::new(PAGES);
    let (mut pager, _) = pager(vec![memory.region()], TestSource::new(), false);
    assert!(matches!(
        pager.begin_install(install(InstallMethod::Streamed)),
        Err(InstallError::NotStarted { .. })
    ));
    // SAFETY: nothing touches the memory.
    let registered = unsafe { pager.install_unregistered(&install(InstallMethod::Direct)) };
    assert!(matches!(registered, Err(InstallError::Registered)));
    pager.start().unwrap();
    let no_memory = pager.install(install(InstallMethod::MemoryFile));
    assert!(matches!(
        *no_memory.unwrap_err(),
        InstallError::NoMemoryReader { .. }
    ));
    assert!(matches!(
        pager.begin_install(install(InstallMethod::Streamed)),
        Err(InstallError::Twice)
    ));
}

#[test]
fn a_host_without_io_uring_is_an_error_that_says_what_to_use() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = dir.path().join("working-set");
    write_set(&path, &(0..600).collect::<Vec<_>>());
    // Or it would be read from the page cache.
    reapvm_reap::page_cache::evict(&path).unwrap();
    let no_io_uring = Refused {
        number: libc::SYS_io_uring_setup,
        second_argument: None,
        errno: libc::EPERM,
    };
    for method in [
        InstallMethod::Streamed,
        InstallMethod::Overlapped,
        InstallMethod::Direct,
    ] {
        without(&no_io_uring, || {
            let memory = GuestMemory::new(PAGES);
            let (_pager, result) = install_all(&memory, &path, method);
            let error = result.unwrap_err();
            assert!(matches!(*error, InstallError::NoIoUring { .. }), "{error}");
            let message = error.to_string();
            assert!(message.contains(method.as_str()) && message.contains("one-read"));

            // What reads in another way is not kept from it.
            let memory = GuestMemory::new(PAGES);
            let options = InstallOptions {
                read_path: Some(ReadPath::Pread),
                ..InstallOptions::new(method)
            };
            let (_pager, result) = install_with(vec![memory.region()], open(&path), options);
            assert_eq!(result.unwrap().pages, 600, "{method}");
            check_pages(&memory, vec![0, 300, 599]);
        });
    }
}

#[test]
fn a_kernel_that_does_not_move_pages_is_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_set(&path, &(0..600).collect::<Vec<_>>());
    let no_move = Refused {
        number: libc::SYS_ioctl,
        // UFFDIO_MOVE
        second_argument: Some(0xc028_aa05),
        errno: libc::ENOTTY,
    };
    without(&no_move, || {
        let memory = GuestMemory::new(PAGES);
        let (_pager, result) = install_all(&memory, &path, InstallMethod::Moved);
        let error = result.unwrap_err();
        assert!(matches!(*error, InstallError::NoMove { .. }), "{error}");
        // The machine may go on as if on demand.
        check_pages(&memory, vec![0, 300, 599]);

        let memory = GuestMemory::new(PAGES);
        let (_pager, result) = install_all(&memory, &path, InstallMethod::Streamed);
        assert_eq!(result.unwrap().pages, 600);
    });
}

/// A working set whose last page is damaged.
fn write_damaged_set(path: &Path) {
    let set = write_set(path, &(0..1500).collect::<Vec<_>>());
    let mut bytes = fs::read(path).unwrap();
    let at = set.len_bytes() as usize - 10;
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn damage_that_is_found_while_the_guest_runs_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_damaged_set(&path);
    let memory = GuestMemory::new(PAGES);
    let (mut pager, failures) = pager(vec![memory.region()], TestSource::new(), false);
    pager.start().unwrap();
    pager
        .begin_install(Install {
            working_set: Arc::new(open(&path)),
            memory: None,
            options: InstallOptions::new(InstallMethod::Overlapped),
        })
        .unwrap();
    let failure = failure_of(&failures);
    assert!(
        matches!(&failure, PagerError::Install(error) if matches!(
            &**error,
            InstallError::WorkingSet(WorkingSetError::CorruptPage { gpa, .. })
                if *gpa == 1499 * PAGE as u64
        )),
        "{failure}"
    );
    assert!(pager.mark_resumed().is_err());
    // The page that was damaged is served from the source, as others are.
    check_pages(&memory, vec![0, 1498, 1499]);
}

#[test]
fn where_it_is_allowed_damage_is_made_good_on_demand_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_damaged_set(&path);
    let memory = GuestMemory::new(PAGES);
    let options = InstallOptions {
        may_fall_back: true,
        ..InstallOptions::default()
    };
    let (pager, report) = install_with(vec![memory.region()], open(&path), options);
    let report = report.unwrap();
    let reason = report.fell_back.as_deref().unwrap();
    assert!(reason.contains("checksum"), "{reason}");
    pager.mark_resumed().unwrap();
    check_pages(&memory, (0..PAGES).collect());
    assert_eq!(
        pager.stats().faults + report.pages,
        PAGES as u64,
        "{report:?}"
    );
}
