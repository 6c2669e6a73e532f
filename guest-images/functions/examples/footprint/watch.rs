//! Records which pages of the arena are touched, through the faults of a protected mapping.

use std::ffi::{c_int, c_void};
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::HEAP;
use crate::arena::{ARENA_BYTES, PAGE_BYTES};

const PAGES: usize = ARENA_BYTES / PAGE_BYTES;

/// For each page the watches that it was touched in, one bit each. Static, so that keeping them
/// does not change the heap that is watched.
static TOUCHED: [AtomicU8; PAGES] = [const { AtomicU8::new(0) }; PAGES];
/// The bit of the watch that runs.
static WATCH: AtomicU8 = AtomicU8::new(0);

/// Installs the handler that records a touched page and opens it.
pub(crate) fn install() -> io::Result<()> {
    // SAFETY: a zeroed sigaction is a valid one; the handler only uses atomics and mprotect, which
    // are safe in a signal handler.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = record as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut())
    };
    check(result)
}

extern "C" fn record(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo, which has an address for SIGSEGV.
    let address = unsafe { (*info).si_addr() } as usize;
    let base = HEAP.base();
    let page = address.wrapping_sub(base) / PAGE_BYTES;
    let watch = WATCH.load(Ordering::Relaxed);
    if page >= PAGES || TOUCHED[page].fetch_or(watch, Ordering::Relaxed) & watch != 0 {
        // A real fault: without the handler the access faults again and ends the process.
        // SAFETY: resetting a signal's action is always allowed.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        return;
    }
    let start = base + page * PAGE_BYTES;
    // SAFETY: the page belongs to the arena's mapping, which is readable and writable by design.
    unsafe {
        libc::mprotect(
            start as *mut c_void,
            PAGE_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
        );
    }
}

/// Runs `work` and records the pages that it touches as watch number `watch` (0 to 7).
pub(crate) fn run(watch: u8, work: impl FnOnce()) -> io::Result<()> {
    WATCH.store(1 << watch, Ordering::Relaxed);
    protect(libc::PROT_NONE)?;
    work();
    protect(libc::PROT_READ | libc::PROT_WRITE)
}

/// The arena's pages that were touched in watch number `watch`, in ascending order.
pub(crate) fn touched_pages(watch: u8) -> Vec<usize> {
    let bit = 1 << watch;
    (0..PAGES)
        .filter(|&page| TOUCHED[page].load(Ordering::Relaxed) & bit != 0)
        .collect()
}

/// How many pages of the arena are resident.
pub(crate) fn resident_pages() -> io::Result<usize> {
    let mut states = vec![0u8; PAGES];
    // SAFETY: the arena is mapped and the vector has a byte for each of its pages.
    let result =
        unsafe { libc::mincore(HEAP.base() as *mut c_void, ARENA_BYTES, states.as_mut_ptr()) };
    check(result)?;
    Ok(states.iter().filter(|&&state| state & 1 == 1).count())
}

fn protect(protection: c_int) -> io::Result<()> {
    // SAFETY: the range is the arena's mapping; accesses to closed pages are opened by `record`.
    check(unsafe { libc::mprotect(HEAP.base() as *mut c_void, ARENA_BYTES, protection) })
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
