//! Where the serial port's output goes, and where its input comes from.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use reapvm_devices::legacy::serial::SerialDevice;
use vmm_sys_util::eventfd::EventFd;

/// What is kept of a console that is only watched.
const KEPT_BYTES: usize = 64 << 10;

/// The serial port's two ends.
pub struct Console {
    /// Takes what the guest writes.
    pub output: Box<dyn Write + Send>,
    /// What the guest reads: a terminal, a pipe or a file.
    pub input: Option<OwnedFd>,
}

impl Console {
    /// Output is thrown away and there is no input.
    pub fn none() -> Self {
        Self {
            output: Box::new(io::sink()),
            input: None,
        }
    }

    /// Output is kept, to be waited for and to be shown if the guest fails.
    pub fn watched() -> (Self, ConsoleWatch) {
        Self::none().and_watched()
    }

    /// This console, with its output also kept.
    pub fn and_watched(self) -> (Self, ConsoleWatch) {
        let watch = ConsoleWatch(Arc::default());
        let output = Tee {
            watch: watch.clone(),
            output: self.output,
        };
        (
            Self {
                output: Box::new(output),
                input: self.input,
            },
            watch,
        )
    }
}

/// Keeps what it hands on.
struct Tee {
    watch: ConsoleWatch,
    output: Box<dyn Write + Send>,
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes)?;
        self.watch.write(&bytes[..written.min(bytes.len())])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[derive(Default)]
struct Watched {
    kept: Mutex<VecDeque<u8>>,
    grown: Condvar,
}

/// The last output of a console.
#[derive(Clone)]
pub struct ConsoleWatch(Arc<Watched>);

impl ConsoleWatch {
    fn kept(&self) -> MutexGuard<'_, VecDeque<u8>> {
        // Bytes cannot be left half changed by a panic.
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last output, as text.
    pub fn text(&self) -> String {
        let bytes: Vec<u8> = self.kept().iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until a line `wanted` was written; false if `ended` says so or after `timeout`.
    pub fn wait_for_line(
        &self,
        wanted: &str,
        timeout: Duration,
        ended: impl FnMut() -> bool,
    ) -> bool {
        let says_so = |text: &[u8]| {
            // Only whole lines: the last piece may still grow.
            let whole = text
                .iter()
                .rposition(|&byte| byte == b'\n')
                .map_or(0, |end| end + 1);
            text[..whole]
                .split(|&b| b == b'\n')
                .any(|line| line.trim_ascii() == wanted.as_bytes())
        };
        self.wait_until(says_so, timeout, ended)
    }

    /// Waits until `wanted` was written, in whatever line; false if `ended` says so or after
    /// `timeout`.
    pub fn wait_for_text(
        &self,
        wanted: &str,
        timeout: Duration,
        ended: impl FnMut() -> bool,
    ) -> bool {
        let wanted = wanted.as_bytes();
        let says_so = |text: &[u8]| text.windows(wanted.len().max(1)).any(|part| part == wanted);
        self.wait_until(says_so, timeout, ended)
    }

    fn wait_until(
        &self,
        says_so: impl Fn(&[u8]) -> bool,
        timeout: Duration,
        mut ended: impl FnMut() -> bool,
    ) -> bool {
        const LOOK_AGAIN: Duration = Duration::from_millis(20);
        let deadline = Instant::now() + timeout;
        let mut kept = self.kept();
        loop {
            if says_so(kept.make_contiguous()) {
                return true;
            }
            if Instant::now() >= deadline || ended() {
                return false;
            }
            kept = self
                .0
                .grown
                .wait_timeout(kept, LOOK_AGAIN)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Write for ConsoleWatch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.kept();
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(KEPT_BYTES);
        kept.drain(..excess);
        drop(kept);
        self.0.grown.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Feeds input to the serial port, no faster than the guest takes it.
pub(super) struct ConsoleInput {
    input: std::fs::File,
    serial: Arc<Mutex<SerialDevice>>,
    fifo_empty: EventFd,
    /// Read but not yet taken by the guest.
    pending: VecDeque<u8>,
    watching: bool,
    /// A file, which cannot be watched and need not be: it can always be read, up to its end.
    is_file: bool,
}

impl ConsoleInput {
    pub(super) fn new(
        input: OwnedFd,
        serial: Arc<Mutex<SerialDevice>>,
        fifo_empty: EventFd,
    ) -> Self {
        Self {
            input: input.into(),
            serial,
            fifo_empty,
            pending: VecDeque::new(),
            watching: false,
            is_file: false,
        }
    }

    fn input_fd(&self) -> RawFd {
        self.input.as_raw_fd()
    }

    /// Gives the guest as much as its FIFO takes.
    fn deliver(&mut self) {
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            match serial.enqueue_bytes(front) {
                Ok(0) => break,
                Ok(taken) => drop(self.pending.drain(..taken)),
                Err(error) => {
                    tracing::warn!(%error, "the serial port does not take input");
                    self.pending.clear();
                }
            }
        }
    }

    /// Reads what there is; false at the end of the input.
    fn read(&mut self) -> bool {
        let mut buffer = [0_u8; 256];
        match self.input.read(&mut buffer) {
            // The guest simply gets no more.
            Ok(0) => return false,
            Ok(length) => self.pending.extend(&buffer[..length]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => {
                tracing::warn!(%error, "console input ends with an error");
                return false;
            }
        }
        true
    }

    /// Gives the guest what it takes of a file.
    fn deliver_file(&mut self) {
        while self.is_file && self.pending.is_empty() {
            self.is_file = self.read();
            self.deliver();
        }
    }

    fn watch(&mut self, ops: &mut EventOps<'_>, wanted: bool) {
        if wanted == self.watching {
            return;
        }
        let events = Events::new(&self.input, EventSet::IN);
        let result = if wanted {
            ops.add(events)
        } else {
            ops.remove(events)
        };
        match result {
            Ok(()) => self.watching = wanted,
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EPERM => {
                self.is_file = true;
            }
            Err(error) => tracing::warn!(%error, "console input cannot be watched"),
        }
    }
}

impl MutEventSubscriber for ConsoleInput {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == self.fifo_empty.as_raw_fd() {
            let _ = self.fifo_empty.read();
        } else if events.fd() == self.input_fd() && !self.read() {
            return self.watch(ops, false);
        }
        self.deliver();
        if self.is_file {
            return self.deliver_file();
        }
        // Back-pressure: no more is read while the guest has not taken what there is.
        self.watch(ops, self.pending.is_empty());
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.fifo_empty, EventSet::IN)) {
            tracing::warn!(%error, "the serial FIFO cannot be watched");
        }
        self.watch(ops, true);
        self.deliver_file();
    }
}
