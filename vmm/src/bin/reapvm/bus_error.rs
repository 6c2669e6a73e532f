//! What is said when a page of a mapped file cannot be read.
//!
//! In the memory mode `file` the snapshot's memory file is mapped, and the kernel reads its pages when
//! they are touched. A page that it cannot read (the disk failed, or the file was cut short) ends a
//! vCPU's KVM_RUN with an error, but to the threads of devices it is a SIGBUS, which would end the
//! program without a word.

use std::io;

use reapvm_reap::MemoryRestoreMode;

const MESSAGE: &[u8] = b"error: a page of the snapshot's memory file, which --memory file maps, \
    cannot be read: its disk failed, or the file was cut short\n";

/// To be called before a machine has its memory by `mode`: the program then ends with an error
/// instead of a signal. Of other modes nothing is mapped that can fail so.
pub(crate) fn explain_for(mode: MemoryRestoreMode) -> io::Result<()> {
    if mode != MemoryRestoreMode::File {
        return Ok(());
    }
    // SAFETY: an all-zero sigaction is valid, and the handler, of the type that SA_SIGINFO wants,
    // only makes calls that are safe in a handler (signal-safety(7)).
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

extern "C" fn on_bus_error(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel gives a valid siginfo to a handler with SA_SIGINFO; write, _exit, signal
    // and raise are safe in a handler.
    unsafe {
        if (*info).si_code == libc::BUS_ADRERR {
            libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len());
            libc::_exit(1);
        }
        // Something else: as if there were no handler.
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}
