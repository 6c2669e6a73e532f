//! What the tests of the pager share: memory to page, a source to page it from, and a watchdog.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, and each test binary uses a part of this"
)]

pub mod snapshot;

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use reapvm_reap::{
    DEFAULT_SPIN, MemoryRegion, Page, PageSource, PageSourceError, Pager, PagerConfig, PagerError,
    PagerHooks, Phase, PhaseCell,
};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

pub const PAGE: usize = 4096;

/// Longer than any of these tests can take, shorter than anybody waits.
const WATCHDOG: Duration = Duration::from_secs(240);

/// Runs `work` on a thread of its own and fails the test if it does not end, instead of hanging.
pub fn within_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = channel();
    let worker = thread::spawn(move || {
        let _ = sender.send(work());
    });
    match receiver.recv_timeout(WATCHDOG) {
        Ok(value) => value,
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(worker.join().unwrap_err())
        }
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
            panic!("still not done: a page fault hangs")
        }
    }
}

/// Anonymous memory that stands for a guest's.
pub struct GuestMemory {
    start: *mut u8,
    pages: usize,
}

// SAFETY: the memory is only touched by volatile accesses and system calls, and the tests do not
// write one place from two threads.
unsafe impl Send for GuestMemory {}
// SAFETY: as above.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    pub fn new(pages: usize) -> Arc<Self> {
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                pages * PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .unwrap()
        .cast();
        Arc::new(Self { start, pages })
    }

    pub fn len_bytes(&self) -> u64 {
        (self.pages * PAGE) as u64
    }

    /// All of it as one region at guest address zero.
    pub fn region(&self) -> MemoryRegion {
        self.part(0, self.pages, 0)
    }

    /// `pages` from page `first` on as a region at guest address `gpa`.
    pub fn part(&self, first: usize, pages: usize, gpa: u64) -> MemoryRegion {
        MemoryRegion {
            gpa,
            hva: self.address(first) as u64,
            size_bytes: (pages * PAGE) as u64,
            file_offset: (first * PAGE) as u64,
        }
    }

    pub fn address(&self, page: usize) -> *mut u8 {
        assert!(page < self.pages);
        // SAFETY: inside the mapping.
        unsafe { self.start.add(page * PAGE) }
    }

    /// Reads one byte, as a vCPU would: this may fault.
    pub fn read_byte(&self, page: usize, offset: usize) -> u8 {
        assert!(offset < PAGE);
        // SAFETY: inside the mapping.
        unsafe { self.address(page).add(offset).read_volatile() }
    }

    pub fn write_byte(&self, page: usize, offset: usize, value: u8) {
        assert!(offset < PAGE);
        // SAFETY: inside the mapping.
        unsafe { self.address(page).add(offset).write_volatile(value) }
    }

    pub fn read_page(&self, page: usize) -> Vec<u8> {
        (0..PAGE)
            .map(|offset| self.read_byte(page, offset))
            .collect()
    }

    /// Asks for huge pages, as a host does that has them always.
    pub fn advise_huge_pages(&self) {
        // SAFETY: advice about huge pages changes no contents. A kernel without them refuses it.
        let _ = unsafe {
            madvise(
                self.start.cast::<c_void>(),
                self.pages * PAGE,
                Advice::LinuxHugepage,
            )
        };
    }

    /// Drops pages, as a balloon does. Waits until the pager has read the announcement.
    pub fn drop_pages(&self, first: usize, pages: usize) {
        assert!(first + pages <= self.pages);
        // SAFETY: inside the mapping, to which no reference exists.
        unsafe {
            madvise(
                self.address(first).cast::<c_void>(),
                pages * PAGE,
                Advice::LinuxDontNeed,
            )
        }
        .unwrap();
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, to which no reference exists.
        unsafe { munmap(self.start.cast(), self.pages * PAGE) }.unwrap();
    }
}

/// The contents of the page at `gpa`: every fourth page is zero.
pub fn expected_page(gpa: u64) -> Vec<u8> {
    let page = gpa / PAGE as u64;
    (0..PAGE)
        .map(|offset| match page % 4 {
            0 => 0,
            _ => (page as usize * 31 + offset * 7 + 1) as u8 | 1,
        })
        .collect()
}

/// What a [`TestSource`] does at one page instead of giving it.
#[derive(Clone, Copy)]
pub enum Trouble {
    Fail,
    Panic,
}

/// Gives the pages of [`expected_page`] and counts how often it is asked.
pub struct TestSource {
    page: Box<[u8; PAGE]>,
    pub reads: Arc<AtomicU64>,
    pub trouble: Option<(u64, Trouble)>,
}

impl TestSource {
    pub fn new() -> Self {
        Self {
            page: Box::new([0; PAGE]),
            reads: Arc::default(),
            trouble: None,
        }
    }

    pub fn with_trouble(gpa: u64, trouble: Trouble) -> Self {
        Self {
            trouble: Some((gpa, trouble)),
            ..Self::new()
        }
    }
}

impl PageSource for TestSource {
    fn read_page(&mut self, gpa: u64) -> Result<Page<'_>, PageSourceError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        match self.trouble {
            Some((at, Trouble::Fail)) if at == gpa => Err(PageSourceError::Other {
                gpa,
                source: "the network is gone".into(),
            }),
            Some((at, Trouble::Panic)) if at == gpa => panic!("a source that panics"),
            _ if (gpa / PAGE as u64).is_multiple_of(4) => Ok(Page::Zero),
            _ => {
                self.page.copy_from_slice(&expected_page(gpa));
                Ok(Page::Data(&self.page))
            }
        }
    }
}

/// More faults than a test has.
pub const TRACE_RECORDS: u64 = 1 << 16;

/// A pager for `regions`, and where its failure arrives.
pub fn pager(
    regions: Vec<MemoryRegion>,
    source: impl PageSource + 'static,
    record: bool,
) -> (Pager, Receiver<PagerError>) {
    pager_with(regions, source, record, Arc::default(), DEFAULT_SPIN)
}

pub fn pager_with(
    regions: Vec<MemoryRegion>,
    source: impl PageSource + 'static,
    record: bool,
    phase: Arc<PhaseCell>,
    spin: Duration,
) -> (Pager, Receiver<PagerError>) {
    let (sender, failures) = channel();
    let config = PagerConfig {
        regions,
        source: Box::new(source),
        record,
        trace_records: Some(TRACE_RECORDS),
        phase,
        spin,
        hooks: PagerHooks::default(),
        // A test that looks for no failure has no receiver.
        on_failure: Box::new(move |error| drop(sender.send(error))),
    };
    // SAFETY: the tests keep their memory mapped until the pager is gone, and it is anonymous.
    let pager = unsafe { Pager::new(config) }.unwrap();
    (pager, failures)
}

/// As [`pager`], with what is hung into it.
pub fn pager_with_hooks(
    regions: Vec<MemoryRegion>,
    source: impl PageSource + 'static,
    hooks: PagerHooks,
) -> (Pager, Receiver<PagerError>) {
    let (sender, failures) = channel();
    let config = PagerConfig {
        regions,
        source: Box::new(source),
        record: false,
        trace_records: Some(TRACE_RECORDS),
        phase: Arc::default(),
        spin: DEFAULT_SPIN,
        hooks,
        // A test that looks for no failure has no receiver.
        on_failure: Box::new(move |error| drop(sender.send(error))),
    };
    // SAFETY: as in `pager_with`.
    let pager = unsafe { Pager::new(config) }.unwrap();
    (pager, failures)
}

/// As [`pager`], of memory that is registered when the pager is started.
pub fn unregistered_pager(
    regions: Vec<MemoryRegion>,
    source: impl PageSource + 'static,
    record: bool,
) -> (Pager, Receiver<PagerError>) {
    let (sender, failures) = channel();
    let config = PagerConfig {
        regions,
        source: Box::new(source),
        record,
        trace_records: None,
        phase: Arc::default(),
        spin: DEFAULT_SPIN,
        hooks: PagerHooks::default(),
        // A test that looks for no failure has no receiver.
        on_failure: Box::new(move |error| drop(sender.send(error))),
    };
    // SAFETY: as in `pager_with`.
    let pager = unsafe { Pager::new_unregistered(config) }.unwrap();
    (pager, failures)
}

pub fn failure_of(failures: &Receiver<PagerError>) -> PagerError {
    failures
        .recv_timeout(WATCHDOG)
        .expect("on_failure was not called")
}

/// A cell in `phase`.
pub fn phase(phase: Phase) -> Arc<PhaseCell> {
    Arc::new(PhaseCell::new(phase))
}

/// Numbers below `count` in an order that has no pattern, the same every time.
pub fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..count).collect();
    let mut state = seed;
    for at in (1..count).rev() {
        // Knuth's MMIX generator.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        numbers.swap(at, (state >> 33) as usize % (at + 1));
    }
    numbers
}
