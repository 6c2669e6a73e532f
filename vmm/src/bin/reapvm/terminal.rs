//! The terminal and the signals that end the program.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// A terminal that hands over each key at once and does not echo; Ctrl-C still ends the program.
/// Restored when dropped.
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// None if standard input is no terminal.
    pub(crate) fn enter() -> Option<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.local_modes
            .remove(LocalModes::ICANON | LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that has gone cannot be restored.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// SIGINT, SIGTERM and SIGHUP, to be handled by a thread instead of ending the program at once,
/// so that sockets are removed and the terminal is restored.
pub(crate) struct Termination {
    signals: libc::sigset_t,
    seen: Arc<AtomicU8>,
}

/// Blocks the signals for this thread and all that it starts from now on.
pub(crate) fn watch_termination() -> io::Result<Termination> {
    // SAFETY: the set is initialised by sigemptyset before it is used; pthread_sigmask only
    // reads it.
    let (signals, result) = unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&raw mut signals, signal);
        }
        let result =
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut());
        (signals, result)
    };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    Ok(Termination {
        signals,
        seen: Arc::default(),
    })
}

impl Termination {
    /// Calls `action` in a thread of its own when the first of the signals arrives. The one after
    /// it ends the program at once, for what cannot be waited for.
    pub(crate) fn on_signal(&self, action: impl FnOnce(u8) + Send + 'static) -> io::Result<()> {
        let signals = self.signals;
        let seen = Arc::clone(&self.seen);
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let mut signal = 0;
                // SAFETY: both pointers are to live locals; the set was initialised above.
                if unsafe { libc::sigwait(&raw const signals, &raw mut signal) } == 0 {
                    let signal = signal as u8;
                    seen.store(signal, Ordering::Release);
                    action(signal);
                    // SAFETY: the set is a live local that was initialised above.
                    unsafe {
                        libc::pthread_sigmask(
                            libc::SIG_UNBLOCK,
                            &raw const signals,
                            std::ptr::null_mut(),
                        );
                    }
                    loop {
                        std::thread::park();
                    }
                }
            })?;
        Ok(())
    }

    /// The signal that came, if one has.
    pub(crate) fn signal(&self) -> Option<u8> {
        match self.seen.load(Ordering::Acquire) {
            0 => None,
            signal => Some(signal),
        }
    }
}
