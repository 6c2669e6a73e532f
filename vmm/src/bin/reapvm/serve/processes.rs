//! Making and reaping the processes of machines, on threads of their own: neither may hold up a
//! request.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use reapvm_reap::MemoryRestoreMode;
use rustix::event::{EventfdFlags, eventfd};

/// This program, also when its file has been replaced since it was started.
const PROGRAM: &str = "/proc/self/exe";

/// A process to make.
#[derive(Debug)]
pub(super) struct Birth {
    pub(super) worker: u64,
    pub(super) dir: PathBuf,
    pub(super) mode: MemoryRestoreMode,
}

/// What has happened.
#[derive(Debug)]
pub(super) enum ProcessEvent {
    /// A process was made, or could not be.
    Born(u64, io::Result<(Child, UnixStream)>),
    /// A process has ended.
    Ended(u64, io::Result<ExitStatus>),
    /// The server is to end, by this signal.
    Signal(u8),
}

/// Wakes the server to look at the events.
#[derive(Debug, Clone)]
pub(super) struct Notifier {
    events: Sender<ProcessEvent>,
    wake: Arc<OwnedFd>,
}

impl Notifier {
    pub(super) fn send(&self, event: ProcessEvent) {
        // A server that is gone needs no events.
        let _ = self.events.send(event);
        // Fails only when the counter is full, and then the server is being woken.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

/// Makes and reaps processes.
#[derive(Debug)]
pub(super) struct Processes {
    births: Sender<Birth>,
    events: Receiver<ProcessEvent>,
    notifier: Notifier,
}

impl Processes {
    pub(super) fn new() -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let (sender, events) = channel();
        let notifier = Notifier {
            events: sender,
            wake,
        };
        let (births, to_be_born) = channel::<Birth>();
        let told = notifier.clone();
        std::thread::Builder::new()
            .name("spawn".to_owned())
            .spawn(move || {
                for birth in to_be_born {
                    told.send(ProcessEvent::Born(birth.worker, spawn(&birth)));
                }
            })?;
        Ok(Self {
            births,
            events,
            notifier,
        })
    }

    pub(super) fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    /// Makes a process; an event says when it is there.
    pub(super) fn spawn(&self, birth: Birth) {
        let worker = birth.worker;
        if self.births.send(birth).is_err() {
            let gone = io::Error::other("the thread that makes processes has ended");
            self.notifier.send(ProcessEvent::Born(worker, Err(gone)));
        }
    }

    /// Waits for the end of `child`, which ends by itself or was killed; an event says how.
    pub(super) fn reap(&self, worker: u64, mut child: Child) {
        let notifier = self.notifier.clone();
        // One each: a process that the kernel does not let go must not hold up the others.
        let thread = std::thread::Builder::new()
            .name("reap".to_owned())
            .stack_size(128 << 10)
            .spawn(move || notifier.send(ProcessEvent::Ended(worker, child.wait())));
        if let Err(error) = thread {
            self.notifier.send(ProcessEvent::Ended(worker, Err(error)));
        }
    }

    /// The next event, if there is one.
    pub(super) fn next_event(&self) -> Option<ProcessEvent> {
        // Before the events are looked at, so that none that comes after is slept through.
        let _ = rustix::io::read(&*self.notifier.wake, &mut [0_u8; 8]);
        self.events.try_recv().ok()
    }
}

impl AsFd for Processes {
    /// Readable when there may be events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifier.wake.as_fd()
    }
}

fn spawn(birth: &Birth) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let child = Command::new(PROGRAM)
        .arg0("reapvm")
        .arg("serve-worker")
        .args(["--memory", birth.mode.as_str(), "--"])
        .arg(&birth.dir)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()?;
    Ok((child, ours))
}
