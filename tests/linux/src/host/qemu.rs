//! One run of the nested host.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::disk::{self, DiskError};
use super::monitor;
use crate::nested::jobs::Job;
use crate::verdict;

/// What the kernel says of its end. The nested host gives a guest's console behind its own prefix.
const PANIC: &str = "Kernel panic - not syncing";

/// How long a nested host may say nothing: several times what it lets pass itself.
const MAX_SILENCE: Duration = Duration::from_secs(420);

/// The nested host cannot be run.
#[derive(Debug, Error)]
pub enum QemuError {
    /// QEMU is not there.
    #[error("cannot start qemu-system-x86_64; guest-images/linux/setup installs it")]
    Start(#[source] io::Error),
    /// The log cannot be written.
    #[error("cannot write the log {}", path.display())]
    Log {
        /// The log.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// QEMU cannot be waited for.
    #[error("cannot wait for qemu-system-x86_64")]
    Wait(#[source] io::Error),
    /// The scratch disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All checks passed.
    Passed,
    /// A check failed.
    Failed,
    /// The nested host's own kernel panicked: a fault of the emulation.
    OuterPanic,
    /// No verdict in time.
    TimedOut,
    /// Not even the first program, which has nothing to do with the job, has said anything for long:
    /// the nested host itself stands still.
    Stalled,
    /// QEMU ended without a verdict.
    NoVerdict,
}

impl Outcome {
    /// Whether another run may come to another end: never so after a failed check.
    pub fn may_be_repeated(&self) -> bool {
        matches!(self, Self::OuterPanic | Self::TimedOut | Self::Stalled)
    }
}

/// The nested host: its kernel, its initial RAM disk, the disk of the jobs.
#[derive(Clone, Debug)]
pub struct NestedHost {
    /// A bzImage.
    pub kernel: PathBuf,
    /// See [`disk::nested_host_initrd`].
    pub initrd: PathBuf,
    /// See [`disk::job_disk`].
    pub job_disk: PathBuf,
    /// The root file system of the Python functions.
    pub rootfs: Option<PathBuf>,
    /// Where logs and scratch disks are made.
    pub folder: PathBuf,
}

/// Ends QEMU in every case.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself: then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl NestedHost {
    /// Where the console of a job's run is kept.
    pub fn log_path(&self, job: &str) -> PathBuf {
        self.folder.join(format!("{job}.log"))
    }

    /// Takes the console of a job's run aside, so that the next one leaves it alone. Returns where it is.
    ///
    /// # Errors
    /// [`QemuError::Log`].
    pub fn keep_log(&self, job: &str) -> Result<PathBuf, QemuError> {
        let kept = self.folder.join(format!("first-run-{job}.log"));
        std::fs::rename(self.log_path(job), &kept)
            .map(|()| kept.clone())
            .map_err(|source| QemuError::Log { path: kept, source })
    }

    fn command(&self, job: &Job, scratch: &str, monitor: &Path) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        // One CPU: with two, QEMU 7.2 sometimes breaks the nested host's kernel.
        command
            .args(["-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm"])
            .args(["-M", "q35", "-smp", "1"])
            .args(["-m", &job.host_memory_mib.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-serial", "stdio", "-no-reboot"])
            .arg("-monitor")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()));
        let mut disks = vec![
            (
                "job",
                format!("file={},readonly=on", self.job_disk.display()),
            ),
            ("scratch", format!("file={scratch},cache=unsafe")),
        ];
        if let Some(rootfs) = &self.rootfs {
            disks.push(("rootfs", format!("file={},readonly=on", rootfs.display())));
        }
        for (id, options) in disks {
            command
                .args(["-drive", &format!("if=none,id={id},format=raw,{options}")])
                .args(["-device", &format!("virtio-blk-pci,drive={id}")]);
        }
        // The kernel's own check of its timer, at boot, does not wait long enough for a busy machine.
        command
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initrd)
            .arg("-append")
            .arg(format!(
                "console=ttyS0 panic=-1 quiet no_timer_check {}={}",
                verdict::JOB_PARAMETER,
                job.name
            ));
        command
    }

    /// Runs `job` for as long as it may take at most; `on_message` hears what it says to the runner.
    ///
    /// # Errors
    /// See [`QemuError`]. A job that fails is no error but an [`Outcome`].
    pub fn run(&self, job: &Job, mut on_message: impl FnMut(&str)) -> Result<Outcome, QemuError> {
        let scratch = self.folder.join(format!("{}.scratch", job.name));
        disk::scratch_disk(&scratch)?;
        let result = self.run_on(job, &scratch.display().to_string(), &mut on_message);
        // Gigabytes that nobody looks at again; that it cannot be removed changes no verdict.
        let _ = std::fs::remove_file(&scratch);
        result
    }

    fn run_on(
        &self,
        job: &Job,
        scratch: &str,
        on_message: &mut dyn FnMut(&str),
    ) -> Result<Outcome, QemuError> {
        let path = self.log_path(job.name);
        let log_error = |source| QemuError::Log {
            path: path.clone(),
            source,
        };
        let mut log = File::create(&path).map_err(log_error)?;
        let log_of_errors = log.try_clone().map_err(log_error)?;
        // The path of a socket has to be short.
        let monitor_folder = tempfile::tempdir().map_err(QemuError::Start)?;
        let monitor = monitor_folder.path().join("monitor");
        let mut qemu = Running(
            self.command(job, scratch, &monitor)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(log_of_errors)
                .spawn()
                .map_err(QemuError::Start)?,
        );
        let deadline = Instant::now() + job.limit();
        let (sender, lines) = mpsc::channel();
        if let Some(console) = qemu.0.stdout.take() {
            thread::spawn(move || {
                let mut reader = BufReader::new(console);
                let mut line = Vec::new();
                // Ends with QEMU, or when nobody listens any more.
                while reader
                    .read_until(b'\n', &mut line)
                    .is_ok_and(|length| length > 0)
                {
                    let text = String::from_utf8_lossy(&line).into_owned();
                    line.clear();
                    if sender.send(text).is_err() {
                        return;
                    }
                }
            });
        }
        let mut outcome = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left.min(MAX_SILENCE)) {
                Ok(line) => {
                    log.write_all(line.as_bytes()).map_err(log_error)?;
                    if let Some(ended) = judge(&line, on_message) {
                        outcome.get_or_insert(ended);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let state = monitor::samples(&monitor)
                        .unwrap_or_else(|error| format!("QEMU's monitor: {error}\n"));
                    log.write_all(state.as_bytes()).map_err(log_error)?;
                    return Ok(outcome.unwrap_or(match left <= MAX_SILENCE {
                        true => Outcome::TimedOut,
                        false => Outcome::Stalled,
                    }));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    qemu.0.wait().map_err(QemuError::Wait)?;
                    return Ok(outcome.unwrap_or(Outcome::NoVerdict));
                }
            }
        }
    }
}

/// What a line of the console says about how the run ends.
fn judge(line: &str, on_message: &mut dyn FnMut(&str)) -> Option<Outcome> {
    match verdict::message(line) {
        Some(verdict::PASSED) => Some(Outcome::Passed),
        Some(verdict::FAILED) => Some(Outcome::Failed),
        Some(verdict::ALIVE) => None,
        Some(message) => {
            on_message(message);
            None
        }
        None => line.contains(PANIC).then_some(Outcome::OuterPanic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_panic_of_the_nested_host_itself_is_one() {
        let mut said = Vec::new();
        let mut hear = |message: &str| said.push(message.to_owned());
        let panic = "[    3.1] Kernel panic - not syncing: Attempted to kill init!\n";
        assert_eq!(judge(panic, &mut hear), Some(Outcome::OuterPanic));
        assert_eq!(judge(&format!("reapvm-test: | {panic}"), &mut hear), None);
        assert_eq!(
            judge("reapvm-test: passed\r\n", &mut hear),
            Some(Outcome::Passed)
        );
        assert_eq!(judge("passed\n", &mut hear), None);
        let between = "test a ... reapvm-test: alive\r\n";
        assert_eq!(judge(between, &mut hear), None);
        assert_eq!(said.len(), 1);
    }

    #[test]
    fn a_failed_check_is_never_repeated() {
        for of_emulation in [Outcome::TimedOut, Outcome::Stalled, Outcome::OuterPanic] {
            assert!(of_emulation.may_be_repeated());
        }
        assert!(!Outcome::Failed.may_be_repeated() && !Outcome::NoVerdict.may_be_repeated());
    }
}
