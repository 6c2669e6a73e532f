//! Records which pages of the arena are touched, through the faults of a protected mapping.

use std::ffi::{c_int, c_void};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::HEAP;
use crate::arena::{ARENA_BYTES, PAGE_BYTES};

const PAGES: usize = ARENA_BYTES / PAGE_BYTES;

static TOUCHED: [AtomicBool; PAGES] = [const { AtomicBool::new(false) }; PAGES];
static FAULTS: AtomicUsize = AtomicUsize::new(0);

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
    if page >= PAGES || TOUCHED[page].swap(true, Ordering::Relaxed) {
        // A real fault: without the handler the access faults again and ends the process.
        // SAFETY: resetting a signal's action is always allowed.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        return;
    }
    FAULTS.fetch_add(1, Ordering::Relaxed);
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

/// Runs `work` and returns the arena's pages that it touched, in ascending order.
pub(crate) fn touched_pages(work: impl FnOnce()) -> io::Result<Vec<usize>> {
    for page in &TOUCHED {
        page.store(false, Ordering::Relaxed);
    }
    protect(libc::PROT_NONE)?;
    work();
    let open = protect(libc::PROT_READ | libc::PROT_WRITE);
    let touched = (0..PAGES)
        .filter(|&page| TOUCHED[page].load(Ordering::Relaxed))
        .collect();
    open.map(|()| touched)
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
