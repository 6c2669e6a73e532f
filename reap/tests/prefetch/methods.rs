//! What each method does, with and without a guest beside it.

use super::*;

#[test]
fn what_was_recorded_is_installed_and_does_not_fault_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    let touched = touched_pages();

    let memory = GuestMemory::new(PAGES);
    let recorder = new_pager(&memory);
    check_pages(&memory, touched.clone());
    // What the guest wrote is no part of the set: it has the snapshot's contents.
    let guest = Arc::clone(&memory);
    let first = touched[0];
    within_time(move || guest.write_byte(first, 0, 0xff));
    let recording = recorder.stop().unwrap();
    assert_eq!(recording.pages(), gpas(&touched));
    let set = WorkingSet::write(&path, &id(), &recording.pages(), &mut TestSource::new()).unwrap();
    drop(memory);

    for method in methods() {
        install_and_check(&path, &set, &touched, method);
    }
}

fn install_and_check(path: &Path, set: &WorkingSet, touched: &[usize], method: InstallMethod) {
    let memory = GuestMemory::new(PAGES);
    let (prefetcher, report) = install_all(&memory, path, method);
    let report = report.unwrap();
    assert_eq!(report.pages, touched.len() as u64, "{method}");
    assert_eq!(report.extents, set.extents().len() as u64);
    // Zero pages are in place and in no file.
    assert_eq!(report.zero_pages, set.zero_page_count());
    assert_eq!(
        report.zero_pages,
        touched.iter().filter(|page| *page % 4 == 0).count() as u64
    );
    assert_eq!(report.bytes_read, fs::metadata(path).unwrap().len());
    let installed_bytes = prefetcher.page_states().bytes_in(PageState::Installed);
    assert_eq!(installed_bytes, report.pages * PAGE as u64);
    let of_threads = report.verify_ns + report.copy_ns + report.read_ns;
    assert!(report.total_ns * report.threads >= of_threads, "{report:?}");
    assert_ne!(report.method, InstallMethod::Auto);
    assert_eq!(
        (report.lead_pages, report.lead_rule),
        (report.pages, LeadRule::All)
    );
    check_pages(&memory, touched.to_vec());
    let stats = prefetcher.stats();
    assert_eq!((stats.faults, stats.prefetched_pages), (0, report.pages));

    // The rest is missing still, and counted as it is missed.
    let missed: Vec<usize> = (0..PAGES).filter(|page| !touched.contains(page)).collect();
    check_pages(&memory, missed.clone());
    assert_eq!(prefetcher.stats().faults, missed.len() as u64);
    let mut recorded = prefetcher.stop().unwrap().pages();
    recorded.sort_unstable();
    assert_eq!(recorded, gpas(&missed));
}

#[test]
fn pieces_are_shared_by_two_threads_and_meet_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_set(&path, &(3..1500).collect::<Vec<_>>());
    let memory = GuestMemory::new(PAGES);
    let (pager, report) = install_all(&memory, &path, InstallMethod::Streamed);
    let report = report.unwrap();
    assert_eq!((report.pages, report.extents, report.threads), (1497, 1, 2));
    check_pages(&memory, (0..PAGES).collect());
    assert_eq!(pager.stats().faults, 3 + 100);
}

#[test]
fn a_set_without_pages_is_installed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_set(&path, &[]);
    for method in methods() {
        let memory = GuestMemory::new(PAGES);
        let (_pager, report) = install_all(&memory, &path, method);
        let report = report.unwrap();
        assert_eq!((report.pages, report.bytes_read), (0, PAGE as u64));
    }
}

#[test]
fn a_run_over_the_border_of_two_regions_is_installed_in_both() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_set(&path, &[5, 6, 7, 8, 9]);
    let memory = GuestMemory::new(PAGES);
    // Adjacent in guest addresses, not in host addresses.
    let border = 7 * PAGE as u64;
    let regions = vec![memory.part(100, 7, 0), memory.part(0, 93, border)];
    for method in methods() {
        let (pager, result) =
            install_with(regions.clone(), open(&path), InstallOptions::new(method));
        assert_eq!(result.unwrap().pages, 5, "{method}");
        let guest = Arc::clone(&memory);
        within_time(move || {
            for (page, gpa) in [(105, 0x5000), (106, 0x6000), (0, 0x7000), (2, 0x9000)] {
                assert_eq!(guest.read_page(page), expected_page(gpa));
            }
        });
        assert_eq!(pager.stats().faults, 0, "{method}");
        memory.drop_pages(0, 110);
    }
}

#[test]
fn every_way_of_reading_gives_the_same_pages_at_every_size_and_depth() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    let touched = touched_pages();
    write_set(&path, &touched);
    for method in [
        InstallMethod::Streamed,
        InstallMethod::Moved,
        InstallMethod::Direct,
    ] {
        for read_path in [ReadPath::IoUring, ReadPath::Pread, ReadPath::PageCache] {
            for (piece_bytes, depth) in [(4096, 1), (4096, 7), (20 << 10, 64), (64 << 20, 2)] {
                let memory = GuestMemory::new(PAGES);
                let options = InstallOptions {
                    read_path: Some(read_path),
                    piece_bytes,
                    depth,
                    ..InstallOptions::new(method)
                };
                let (pager, report) = install_with(vec![memory.region()], open(&path), options);
                assert_eq!(report.unwrap().pages, touched.len() as u64);
                check_pages(&memory, touched.clone());
                assert_eq!(pager.stats().faults, 0, "{method} {options:?}");
            }
        }
    }
}

#[test]
fn a_set_that_is_in_the_page_cache_is_read_from_it_and_an_evicted_one_is_not() {
    // On a disk, because a memory file system evicts nothing.
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = dir.path().join("working-set");
    write_set(&path, &(0..1500).collect::<Vec<_>>());
    let read_path = || {
        let memory = GuestMemory::new(PAGES);
        install_all(&memory, &path, InstallMethod::Auto)
            .1
            .unwrap()
            .read_path
    };
    fs::read(&path).unwrap();
    assert_eq!(read_path(), ReadPath::PageCache);
    reapvm_reap::page_cache::evict(&path).unwrap();
    assert_eq!(read_path(), ReadPath::IoUring);
}

#[test]
fn a_guest_that_does_not_wait_for_all_finds_every_page_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    let touched: Vec<usize> = (0..1500).collect();
    write_set(&path, &touched);
    for run in 0..20 {
        let memory = GuestMemory::new(PAGES);
        let mut pager = new_pager(&memory);
        pager
            .begin_install(Install {
                working_set: Arc::new(open(&path)),
                memory: None,
                options: InstallOptions {
                    // One page a read: the guest overtakes it.
                    piece_bytes: 4096,
                    depth: 1,
                    ..InstallOptions::new(InstallMethod::Overlapped)
                },
            })
            .unwrap();
        pager.wait_until_installed().unwrap();
        pager.mark_resumed().unwrap();
        // Against the order of the install, and with writes and removals between.
        let guest = Arc::clone(&memory);
        within_time(move || {
            for page in (0..1500).rev().step_by(1 + run % 5) {
                assert_eq!(
                    guest.read_page(page),
                    expected_page((page * PAGE) as u64),
                    "page {page}"
                );
                match page % 7 {
                    0 => guest.write_byte(page, 0, 0xab),
                    1 => guest.drop_pages(page, 1),
                    _ => {}
                }
            }
            for page in (0..1500).rev().step_by(1 + run % 5) {
                match page % 7 {
                    0 => assert_eq!(guest.read_byte(page, 0), 0xab),
                    1 => assert_eq!(guest.read_page(page), vec![0; PAGE]),
                    _ => {}
                }
            }
        });
        let report = pager.finish_install().unwrap().unwrap();
        assert_eq!(report.method, InstallMethod::Overlapped);
        assert!(report.lead_pages >= 128, "{report:?}");
        assert_eq!(report.lead_rule, LeadRule::Pace);
        let stats = pager.stats();
        assert_eq!(report.pages, stats.prefetched_pages);
        assert!(stats.prefetched_pages + stats.data_faults + stats.zero_faults >= 1500);
    }
}

#[test]
fn a_guest_is_let_go_by_when_it_needs_its_pages() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    // Not 0, 4, ..., which are zero.
    let touched: Vec<usize> = (0..1500).filter(|page| page % 4 != 0).collect();
    let memory = GuestMemory::new(PAGES);
    let recorder = new_pager(&memory);
    check_pages(&memory, touched.clone());
    let recording = recorder.stop().unwrap();
    drop(memory);

    let prefetch = |touches: &[FirstTouch]| {
        let touches = TouchCounts::of_first_touches(touches);
        WorkingSet::write_counted(&path, &id(), &touches, &mut TestSource::new()).unwrap();
        let memory = GuestMemory::new(PAGES);
        let mut pager = new_pager(&memory);
        pager
            .begin_install(Install {
                working_set: Arc::new(open(&path)),
                memory: None,
                options: InstallOptions {
                    piece_bytes: 4096,
                    ..InstallOptions::new(InstallMethod::Overlapped)
                },
            })
            .unwrap();
        pager.wait_until_installed().unwrap();
        pager.mark_resumed().unwrap();
        check_pages(&memory, touched.clone());
        let report = pager.finish_install().unwrap().unwrap();
        let stats = pager.stats();
        assert_eq!(stats.faults, stats.early_faults, "{stats:?}");
        assert_eq!(report.lead_rule, LeadRule::Trace);
        (report, stats)
    };
    let mut touches = recording.first_touches_until_idle(measure_fault_ns().unwrap());
    assert_eq!(touches.len(), touched.len());
    assert!(touches.is_sorted_by_key(|touch| touch.own_ns));
    // Each touch counts for something.
    assert!(touches.last().unwrap().own_ns >= 500 * (touches.len() as u64 - 1));
    let (report, _) = prefetch(&touches);
    assert!(report.lead_pages > 0, "{report:?}");

    // All at once: nothing may be left when the guest begins.
    for touch in &mut touches {
        touch.own_ns = 0;
    }
    let (report, stats) = prefetch(&touches);
    assert_eq!(report.lead_pages, touched.len() as u64);
    assert_eq!((report.pages, stats.faults), (touched.len() as u64, 0));
}

#[test]
fn a_pager_that_is_dropped_while_it_installs_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_set(&path, &(0..1500).collect::<Vec<_>>());
    for _ in 0..20 {
        let memory = GuestMemory::new(PAGES);
        let mut pager = new_pager(&memory);
        pager
            .begin_install(Install {
                working_set: Arc::new(open(&path)),
                memory: None,
                options: InstallOptions {
                    piece_bytes: 4096,
                    ..InstallOptions::default()
                },
            })
            .unwrap();
        within_time(move || drop(pager));
    }
}

#[test]
fn pages_that_are_there_already_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_set(&path, &(0..64).collect::<Vec<_>>());
    let memory = GuestMemory::new(PAGES);
    let mut pager = new_pager(&memory);
    let guest = Arc::clone(&memory);
    within_time(move || {
        for page in [0, 21, 63] {
            guest.read_byte(page, 8);
        }
        guest.write_byte(20, 8, 0xcd);
    });
    assert_eq!(beside(&mut pager, &path).unwrap().pages, 60);
    assert_eq!(memory.read_byte(20, 8), 0xcd);
    assert_eq!(memory.read_page(21), expected_page(21 * PAGE as u64));
    assert_eq!(pager.stats().prefetched_pages, 60);
}

#[test]
fn pages_that_were_dropped_before_the_install_stay_zero() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    // Pieces for both threads of a streamed install: one of them has to read the announcements
    // while the other one copies.
    write_set(&path, &(0..1500).collect::<Vec<_>>());
    for method in methods().filter(|method| !method.needs_unregistered_memory()) {
        let memory = GuestMemory::new(PAGES);
        let mut pager = new_pager(&memory);
        let droppers: Vec<_> = [10, 700, 1400]
            .map(|first| {
                let guest = Arc::clone(&memory);
                thread::spawn(move || guest.drop_pages(first, 3))
            })
            .into();
        // Whether an announcement comes before the install, which then has to read it, or after
        // it: the pages are zero.
        thread::sleep(Duration::from_millis(20));
        pager
            .install(Install {
                working_set: Arc::new(open(&path)),
                memory: None,
                options: InstallOptions::new(method),
            })
            .unwrap();
        within_time(move || {
            for dropper in droppers {
                dropper.join().unwrap();
            }
        });
        for page in [10, 12, 700, 702, 1400, 1402] {
            assert_eq!(memory.read_page(page), vec![0; PAGE], "{method}: {page}");
        }
        check_pages(&memory, vec![9, 13, 699, 703, 1399, 1403, 1499, 1550]);
        assert_eq!(pager.stats().removed_pages, 9, "{method}");
    }
}

#[test]
fn a_fault_that_came_before_the_start_is_served_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    write_set(&path, &(0..64).collect::<Vec<_>>());
    let memory = GuestMemory::new(PAGES);
    let (mut pager, _) = pager(vec![memory.region()], TestSource::new(), true);
    // One page is in the set, one is not.
    let touchers: Vec<_> = [5, 101]
        .map(|page| {
            let guest = Arc::clone(&memory);
            thread::spawn(move || guest.read_byte(page, 3))
        })
        .into();
    let guest = Arc::clone(&memory);
    let dropper = thread::spawn(move || guest.drop_pages(200, 1));
    thread::sleep(Duration::from_millis(20));
    pager.start().unwrap();
    beside(&mut pager, &path).unwrap();
    let bytes = within_time(move || {
        dropper.join().unwrap();
        touchers
            .into_iter()
            .map(|toucher| toucher.join().unwrap())
            .collect::<Vec<_>>()
    });
    let expected = [5, 101].map(|page| expected_page(page * PAGE as u64)[3]);
    assert_eq!(bytes, expected);
}

#[test]
fn pages_known_to_be_dropped_are_not_asked_of_the_source() {
    let memory = GuestMemory::new(8);
    let source = TestSource::new();
    let reads = Arc::clone(&source.reads);
    let (mut pager, _failures) = pager(vec![memory.region()], source, false);
    pager.start().unwrap();
    let guest = Arc::clone(&memory);
    within_time(move || {
        guest.drop_pages(1, 2);
        assert_eq!(guest.read_page(1), vec![0; PAGE]);
        assert_eq!(guest.read_page(2), vec![0; PAGE]);
        assert_eq!(guest.read_page(3), expected_page(0x3000));
    });
    assert_eq!(reads.load(Ordering::Relaxed), 1);
    assert_eq!(pager.stats().zero_faults, 2);
}

#[test]
fn zero_pages_are_installed_without_a_read_and_can_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    let zero: Vec<usize> = (0..PAGES / 4).map(|page| page * 4).collect();
    let set = write_set(&path, &zero);
    assert_eq!(set.zero_page_count(), zero.len() as u64);
    for (method, own_zero_pages) in methods().flat_map(|method| [(method, false), (method, true)]) {
        let memory = GuestMemory::new(PAGES);
        let options = InstallOptions {
            own_zero_pages,
            ..InstallOptions::new(method)
        };
        let (pager, report) = install_with(vec![memory.region()], open(&path), options);
        let report = report.unwrap();
        assert_eq!(
            (report.pages, report.zero_pages),
            (zero.len() as u64, zero.len() as u64)
        );
        // The tables and nothing else.
        assert_eq!(report.bytes_read, set.len_bytes(), "{method}");
        let guest = Arc::clone(&memory);
        within_time(move || {
            // Half of them are written first, half are read first.
            for page in (0..PAGES).step_by(8) {
                guest.write_byte(page, 7, 0xab);
                assert_eq!(guest.read_byte(page + 4, 7), 0);
                guest.write_byte(page + 4, 7, 0xcd);
            }
            for page in (0..PAGES).step_by(8) {
                let bytes = (guest.read_byte(page, 7), guest.read_byte(page, 8));
                assert_eq!(bytes, (0xab, 0));
                assert_eq!(guest.read_byte(page + 4, 7), 0xcd);
            }
        });
        assert_eq!(pager.stats().faults, 0, "{method}");
        // What is between them is missing still.
        check_pages(&memory, vec![1, 2, 3, 5, PAGES - 1]);
        assert_eq!(pager.stats().faults, 5, "{method}");
    }
}

#[test]
fn a_huge_page_never_brings_more_than_the_set() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("working-set");
    // Room for whole huge pages, of which the set has a page of zeroes and one of data each.
    let pages = 4 * 512;
    let touched: Vec<usize> = (0..pages)
        .step_by(256)
        .flat_map(|page| [page, page + 1])
        .collect();
    WorkingSet::write(&path, &id(), &gpas(&touched), &mut TestSource::new()).unwrap();
    for method in methods() {
        let memory = GuestMemory::new(pages);
        memory.advise_huge_pages();
        let reader = WorkingSet::open(&path, &id(), memory.len_bytes()).unwrap();
        let options = InstallOptions::new(method);
        let (pager, report) = install_with(vec![memory.region()], reader, options);
        assert_eq!(report.unwrap().pages, touched.len() as u64);
        check_pages(&memory, (0..pages).collect());
        let missed = (pages - touched.len()) as u64;
        assert_eq!(pager.stats().faults, missed, "{method}");
    }
}
