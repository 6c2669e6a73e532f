//! The server's side of a worker: its process and where it is in its life.

use std::io;
use std::process::Child;
use std::time::{Duration, Instant};

use reapvm::cold_start::WorkingSetOptions;
use reapvm::invocation::MAX_REPLY_BYTES;
use reapvm_reap::{InstallMethod, MemoryRestoreMode};
use serde_json::Value;

use super::lines::LineStream;
use super::protocol::Invocation;
use super::worker::Order;

/// Longest line of a worker: a reply, in which every byte may have become six by an escape.
pub(super) const MAX_MESSAGE_BYTES: usize = 6 * MAX_REPLY_BYTES + (1 << 20);
/// How long a worker may take to prepare its machine.
const PREPARE_LIMIT: Duration = Duration::from_secs(60);
/// How long a worker may take beyond the time that the function has.
const EXTRA_TIME: Duration = Duration::from_secs(30);

/// An invocation that was asked for.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) client: u64,
    pub(super) id: Value,
    pub(super) invocation: Invocation,
    pub(super) mode: MemoryRestoreMode,
    pub(super) install: InstallMethod,
    pub(super) pre_fault: bool,
    pub(super) set: WorkingSetOptions,
    pub(super) timeout: Duration,
    pub(super) received_ns: u64,
    /// Counts the jobs: the order of their arrival.
    pub(super) number: u64,
    /// Whether a prepared machine was there.
    pub(super) prepared: bool,
    /// When its machine was prepared and it first waited for its turn to read, if it had to.
    pub(super) turn_since_ns: Option<u64>,
    /// Time that it waited for its turn.
    pub(super) turn_ms: f64,
    /// Time until it was handed to its machine.
    pub(super) queued_ms: f64,
}

impl Job {
    /// Whether its memory is read before it runs.
    pub(super) fn reads_ahead(&self) -> bool {
        matches!(
            self.mode,
            MemoryRestoreMode::Prefetch | MemoryRestoreMode::Copy
        )
    }

    /// What its worker is told.
    pub(super) fn order(&self) -> Order {
        Order {
            mode: self.mode,
            install: self.install,
            pre_fault: self.pre_fault,
            set: self.set,
            input: self.invocation.input.clone(),
            timeout_s: self.invocation.timeout_s,
            keep_recording: self.invocation.keep_recording,
            count_resident: self.invocation.count_resident,
            received_ns: self.received_ns,
        }
    }
}

/// Where a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its process is being made.
    Unborn,
    /// It prepares its machine.
    Preparing,
    /// Its machine is prepared.
    Ready,
    /// It restores its machine's memory.
    Reading,
    /// Its machine runs.
    Running,
    /// It has answered, or its answer is not wanted any more: it ends.
    Ending,
}

/// A worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) template: String,
    /// The snapshot that it was made for.
    pub(super) snapshot_id: String,
    pub(super) mode: MemoryRestoreMode,
    pub(super) stage: Stage,
    /// When it came to this stage.
    pub(super) since: Instant,
    pub(super) job: Option<Job>,
    pub(super) lines: Option<LineStream>,
    pub(super) child: Option<Child>,
}

impl Worker {
    pub(super) fn new(template: String, snapshot_id: String, mode: MemoryRestoreMode) -> Self {
        Self {
            template,
            snapshot_id,
            mode,
            stage: Stage::Unborn,
            since: Instant::now(),
            job: None,
            lines: None,
            child: None,
        }
    }

    pub(super) fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.since = Instant::now();
    }

    /// Whether it is, or will be, prepared and has no job.
    pub(super) fn is_spare(&self) -> bool {
        self.job.is_none() && matches!(self.stage, Stage::Unborn | Stage::Preparing | Stage::Ready)
    }

    /// Whether its machine can be restored by `mode`: only `file` needs another kind than the rest.
    pub(super) fn does_for(&self, mode: MemoryRestoreMode) -> bool {
        (self.mode == MemoryRestoreMode::File) == (mode == MemoryRestoreMode::File)
    }

    /// When it has taken too long for what it is doing.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Unborn | Stage::Preparing => Some(self.since + PREPARE_LIMIT),
            Stage::Reading | Stage::Running => self
                .job
                .as_ref()
                .map(|job| self.since + job.timeout + EXTRA_TIME),
            Stage::Ready | Stage::Ending => None,
        }
    }

    /// Kills its process, which is reaped when its end is seen.
    pub(super) fn kill(&mut self) {
        if let Some(child) = &mut self.child
            && let Err(error) = child.kill()
            && error.kind() != io::ErrorKind::InvalidInput
        {
            tracing::warn!(%error, "cannot kill a worker");
        }
        self.job = None;
        self.enter(Stage::Ending);
    }

    /// Sends the order of its job.
    pub(super) fn start(&mut self) -> io::Result<()> {
        let (Some(job), Some(lines)) = (&self.job, &mut self.lines) else {
            return Err(io::Error::other("a worker without a job or a process"));
        };
        let order = serde_json::to_string(&job.order())?;
        lines.send(&order)?;
        self.enter(Stage::Reading);
        Ok(())
    }
}
