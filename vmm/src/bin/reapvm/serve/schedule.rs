//! Which job gets which machine, and when machines are prepared and given up.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use reapvm::clock;

use super::lines::LineStream;
use super::machine::{Job, MAX_MESSAGE_BYTES, Stage, Worker};
use super::processes::Birth;
use super::protocol::{ErrorKind, InvocationResult, Refusal, answer};
use super::server::Server;
use super::worker::Message;

/// No machine is prepared while another one has been started so recently and has not answered:
/// both would want the same processors.
const START_PAUSE: Duration = Duration::from_millis(250);

impl Server {
    /// Starts what can be started and prepares what is wanted.
    pub(super) fn schedule(&mut self) {
        self.admit();
        self.start_ready();
        self.refill(Instant::now());
    }

    /// Jobs that have a machine.
    pub(super) fn job_count(&self) -> usize {
        self.workers.values().filter(|w| w.job.is_some()).count()
    }

    /// Whether another machine may run.
    pub(super) fn has_room(&self) -> bool {
        self.job_count() < self.options.max_running as usize
    }

    /// Gives machines to the jobs that wait, in the order of their arrival.
    pub(super) fn admit(&mut self) {
        while self.has_room()
            && let Some(job) = self.queue.pop_front()
        {
            self.place(job);
        }
    }

    /// Gives `job` a machine: a prepared one, one that is being prepared, or a new one.
    fn place(&mut self, mut job: Job) {
        let name = job.invocation.template.clone();
        let snapshot_id = match self.current_snapshot(&name) {
            Ok(id) => id,
            Err(message) => {
                return self.refuse(&job, &Refusal::new(ErrorKind::Snapshot, message));
            }
        };
        if let Some(wanted) = &job.invocation.snapshot_id
            && *wanted != snapshot_id
        {
            let message = format!("'{name}' is snapshot {snapshot_id} by now, not {wanted}");
            return self.refuse(&job, &Refusal::new(ErrorKind::Snapshot, message));
        }
        let spare = self
            .workers
            .iter_mut()
            .filter(|(_, w)| w.is_spare() && w.template == name && w.does_for(job.mode))
            .max_by_key(|(number, w)| {
                (
                    w.stage == Stage::Ready,
                    w.stage == Stage::Preparing,
                    std::cmp::Reverse(**number),
                )
            });
        match spare {
            Some((_, worker)) => {
                job.prepared = worker.stage == Stage::Ready;
                worker.job = Some(job);
            }
            None => {
                let mode = job.mode;
                self.spawn(&name, snapshot_id, mode, Some(job));
            }
        }
    }

    /// The id of the snapshot that is served as `name`, as it is on disk now.
    fn current_snapshot(&mut self, name: &str) -> Result<String, String> {
        let Some(template) = self.templates.get_mut(name) else {
            return Err(format!("no snapshot is served as '{name}'"));
        };
        let refreshed = template.refresh();
        let id = template.id().map(str::to_owned);
        // What was prepared of another snapshot, or of one that is gone, is of no use any more.
        self.drop_spares(|w| w.template == name && Some(&w.snapshot_id) != id.as_ref());
        refreshed?;
        id.ok_or_else(|| format!("the snapshot that is served as '{name}' cannot be used"))
    }

    fn spawn(
        &mut self,
        name: &str,
        snapshot_id: String,
        mode: reapvm_reap::MemoryRestoreMode,
        job: Option<Job>,
    ) {
        let Some(template) = self.templates.get(name) else {
            return;
        };
        let dir = template.dir.clone();
        let number = self.number();
        let mut worker = Worker::new(name.to_owned(), snapshot_id, mode);
        worker.job = job;
        self.workers.insert(number, worker);
        self.processes.spawn(Birth {
            worker: number,
            dir,
            mode,
        });
    }

    /// Hands jobs to machines that are prepared, in the order of their arrival, as far as their
    /// memory may be read now. One after the other is better than all at once: reads that come
    /// one after the other stay sequential for the disk, and the first does not wait for the last.
    fn start_ready(&mut self) {
        let mut reading = self
            .workers
            .values()
            .filter(|w| w.stage == Stage::Reading)
            .filter_map(|w| w.job.as_ref())
            .filter(|job| job.reads_ahead())
            .count();
        let mut waiting: Vec<(u64, u64)> = self
            .workers
            .iter()
            .filter(|(_, w)| w.stage == Stage::Ready)
            .filter_map(|(&number, w)| Some((w.job.as_ref()?.number, number)))
            .collect();
        waiting.sort_unstable();
        for (_, number) in waiting {
            let Some(worker) = self.workers.get_mut(&number) else {
                continue;
            };
            let Some(job) = &mut worker.job else { continue };
            let now_ns = clock::monotonic_ns();
            let turn_since_ns = *job.turn_since_ns.get_or_insert(now_ns);
            if job.reads_ahead() {
                if reading >= self.options.max_reading as usize {
                    continue;
                }
                reading += 1;
            }
            job.turn_ms = (now_ns - turn_since_ns) as f64 / 1e6;
            job.queued_ms = now_ns.saturating_sub(job.received_ns) as f64 / 1e6;
            if let Err(error) = worker.start() {
                tracing::warn!(%error, "cannot tell a worker what to do");
                // Its end is seen on its socket.
                worker.enter(Stage::Running);
                if let Some(child) = &mut worker.child {
                    let _ = child.kill();
                }
            }
        }
    }

    /// Prepares machines where fewer are than are wanted.
    fn refill(&mut self, now: Instant) {
        if self.is_stopping() || self.start_pause_ends().is_some_and(|end| end > now) {
            return;
        }
        let mut wanted = Vec::new();
        for template in self.templates.values() {
            if template.may_prepare(now).is_err() {
                continue;
            }
            let Some(id) = template.id() else { continue };
            let spares = self
                .workers
                .values()
                .filter(|w| w.is_spare() && w.template == template.name)
                .filter(|w| w.does_for(self.options.memory))
                .count();
            for _ in spares..self.options.ready as usize {
                wanted.push((template.name.clone(), id.to_owned()));
            }
        }
        for (name, id) in wanted {
            self.spawn(&name, id, self.options.memory, None);
        }
    }

    /// When the last machine that was started, and has not answered, was started long enough ago.
    fn start_pause_ends(&self) -> Option<Instant> {
        self.workers
            .values()
            .filter(|w| w.job.is_some())
            .map(|w| w.since + START_PAUSE)
            .max()
    }

    /// When something is to be done that nothing else will be the occasion of.
    pub(super) fn next_scheduled(&self) -> Option<Instant> {
        let now = Instant::now();
        let deadlines = self.workers.values().filter_map(Worker::deadline);
        let idle = self
            .templates
            .values()
            .filter(|template| !template.is_dormant)
            .map(|template| template.last_used + self.options.idle);
        let retries = self
            .templates
            .values()
            .filter_map(|template| template.may_prepare(now).err().flatten());
        let pause = self.start_pause_ends().filter(|&end| end > now);
        deadlines.chain(idle).chain(retries).chain(pause).min()
    }

    /// Gives up what has taken too long and what has not been asked for.
    pub(super) fn on_scheduled_time(&mut self, now: Instant) {
        let late: Vec<u64> = self
            .workers
            .iter()
            .filter(|(_, w)| w.deadline().is_some_and(|deadline| deadline <= now))
            .map(|(&number, _)| number)
            .collect();
        for number in late {
            let Some(worker) = self.workers.get_mut(&number) else {
                continue;
            };
            let seconds = (now - worker.since).as_secs();
            let what = format!("its process has hung for {seconds} s and was ended");
            let template = worker.template.clone();
            let job = worker.job.take();
            worker.kill();
            match job {
                Some(job) => self.refuse(&job, &Refusal::new(ErrorKind::Crashed, what)),
                None => self.cannot_prepare(&template, what),
            }
        }
        let idle = self.options.idle;
        let mut dormant = Vec::new();
        for template in self.templates.values_mut() {
            if !template.is_dormant && template.last_used + idle <= now {
                template.is_dormant = true;
                dormant.push(template.name.clone());
            }
        }
        self.drop_spares(|w| dormant.contains(&w.template));
    }

    /// Gives up the prepared machines of `template`, or of all; none is prepared until it is
    /// asked for. Returns how many there were.
    pub(super) fn trim(&mut self, template: Option<&str>) -> Result<usize, Refusal> {
        if let Some(name) = template
            && !self.templates.contains_key(name)
        {
            let message = format!("no snapshot is served as '{name}'");
            return Err(Refusal::new(ErrorKind::NoTemplate, message));
        }
        for (name, known) in &mut self.templates {
            known.is_dormant |= template.is_none_or(|wanted| wanted == name);
        }
        Ok(self.drop_spares(|w| template.is_none_or(|name| w.template == name)))
    }

    /// Ends the machines that nobody waits for, of those that `which` says. Returns how many.
    pub(super) fn drop_spares(&mut self, which: impl Fn(&Worker) -> bool) -> usize {
        let mut count = 0;
        for worker in self.workers.values_mut() {
            if worker.is_spare() && which(worker) {
                worker.kill();
                count += 1;
            }
        }
        count
    }

    /// A client has gone: its jobs are not worth anything any more.
    pub(super) fn forget_jobs_of(&mut self, client: u64) {
        let before = self.queue.len();
        self.queue.retain(|job| job.client != client);
        self.counts.failed += (before - self.queue.len()) as u64;
        for worker in self.workers.values_mut() {
            if worker.job.as_ref().is_some_and(|job| job.client == client) {
                self.counts.failed += 1;
                match worker.stage {
                    // It has not been told yet; another job can have it.
                    Stage::Unborn | Stage::Preparing | Stage::Ready => worker.job = None,
                    Stage::Reading | Stage::Running | Stage::Ending => worker.kill(),
                }
            }
        }
    }

    /// Ends all machines that run, and says `refusal` to who waits for them.
    pub(super) fn end_all_jobs(&mut self, refusal: &Refusal) {
        let jobs: Vec<Job> = self
            .workers
            .values_mut()
            .filter(|w| w.job.is_some())
            .filter_map(|worker| {
                let job = worker.job.take();
                worker.kill();
                job
            })
            .collect();
        for job in &jobs {
            self.refuse(job, refusal);
        }
    }

    /// Answers a job that is not served.
    pub(super) fn refuse(&mut self, job: &Job, refusal: &Refusal) {
        self.counts.failed += 1;
        self.finish(job, &answer(&job.id, Err::<&(), _>(refusal)));
    }

    fn finish(&mut self, job: &Job, line: &str) {
        if let Some(client) = self.clients.get_mut(&job.client) {
            client.pending -= 1;
            client.send(line);
        }
        if let Some(template) = self.templates.get_mut(&job.invocation.template) {
            template.touch();
        }
    }

    fn cannot_prepare(&mut self, template: &str, why: String) {
        if let Some(template) = self.templates.get_mut(template) {
            template.not_prepared(why);
        }
    }

    pub(super) fn on_born(&mut self, number: u64, born: io::Result<(Child, UnixStream)>) {
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        let was_given_up = worker.stage == Stage::Ending;
        let error = match born {
            Ok((child, stream)) => {
                worker.child = Some(child);
                match LineStream::new(stream, MAX_MESSAGE_BYTES) {
                    Ok(lines) => {
                        worker.lines = Some(lines);
                        if was_given_up {
                            worker.kill();
                        } else {
                            worker.enter(Stage::Preparing);
                        }
                        return;
                    }
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        let message = format!("cannot make a process for a machine: {error}");
        let template = worker.template.clone();
        let job = worker.job.take();
        worker.kill();
        if let Some(child) = worker.child.take() {
            self.processes.reap(number, child);
        } else {
            self.workers.remove(&number);
        }
        match job {
            Some(job) => self.refuse(&job, &Refusal::new(ErrorKind::Failed, message)),
            None if was_given_up => {}
            None => self.cannot_prepare(&template, message),
        }
    }

    pub(super) fn on_worker_readable(&mut self, number: u64) {
        let Some(lines) = self.workers.get_mut(&number).and_then(|w| w.lines.as_mut()) else {
            return;
        };
        // The rest of an order that did not go at once; its failure is the worker's end.
        let _ = lines.flush();
        lines.fill();
        loop {
            let Some(worker) = self.workers.get_mut(&number) else {
                return;
            };
            let Some(lines) = &mut worker.lines else {
                return;
            };
            let message = match lines.next_line() {
                Ok(Some(line)) => serde_json::from_slice::<Message>(&line).ok(),
                Ok(None) => break,
                Err(_) => None,
            };
            match message {
                Some(message) => self.on_message(number, message),
                None => {
                    tracing::warn!("a worker says what is no message");
                    if let Some(child) = &mut worker.child {
                        let _ = child.kill();
                    }
                    break;
                }
            }
        }
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        if worker.lines.as_ref().is_some_and(LineStream::has_ended)
            && let Some(child) = worker.child.take()
        {
            // How it ended is known when it has been reaped.
            self.processes.reap(number, child);
        }
    }

    fn on_message(&mut self, number: u64, message: Message) {
        let Some(worker) = self.workers.get_mut(&number) else {
            return;
        };
        match message {
            Message::Ready { snapshot_id } => {
                if worker.stage != Stage::Preparing {
                    return;
                }
                if snapshot_id != worker.snapshot_id {
                    // Another snapshot has taken the place since the process was asked for.
                    let job = worker.job.take();
                    worker.kill();
                    if let Some(job) = job {
                        self.place(job);
                    }
                    return;
                }
                worker.enter(Stage::Ready);
                let name = worker.template.clone();
                if let Some(template) = self.templates.get_mut(&name) {
                    template.prepared();
                }
                // Before other events: the client of its job waits.
                self.start_ready();
            }
            Message::MemoryReady => {
                if worker.stage == Stage::Reading {
                    worker.stage = Stage::Running;
                    self.start_ready();
                }
            }
            Message::Answer { control_ms, report } => {
                let Some(job) = worker.job.take() else { return };
                worker.enter(Stage::Ending);
                let result = InvocationResult {
                    template: job.invocation.template.clone(),
                    snapshot_id: worker.snapshot_id.clone(),
                    prepared: job.prepared,
                    queued_ms: job.queued_ms,
                    turn_ms: job.turn_ms,
                    control_ms: control_ms - job.turn_ms,
                    report,
                };
                self.counts.served += 1;
                self.counts.prepared += u64::from(job.prepared);
                self.finish(&job, &answer(&job.id, Ok(&result)));
            }
            Message::Failed { message } => {
                let template = worker.template.clone();
                let was_preparing = worker.stage == Stage::Preparing;
                let job = worker.job.take();
                worker.enter(Stage::Ending);
                if was_preparing {
                    self.cannot_prepare(&template, message.clone());
                }
                if let Some(job) = job {
                    self.refuse(&job, &Refusal::new(ErrorKind::Failed, message));
                }
            }
        }
    }

    /// The process of a worker has ended.
    pub(super) fn on_ended(&mut self, number: u64, status: io::Result<ExitStatus>) {
        let Some(mut worker) = self.workers.remove(&number) else {
            return;
        };
        if worker.stage == Stage::Ending {
            return;
        }
        let how = match status {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let message = format!("the machine's process ended before it had answered: {how}");
        let was_preparing = worker.stage == Stage::Preparing;
        match worker.job.take() {
            Some(job) => self.refuse(&job, &Refusal::new(ErrorKind::Crashed, message.clone())),
            None => {
                tracing::warn!(how, "a prepared machine's process has ended");
            }
        }
        if was_preparing {
            self.cannot_prepare(&worker.template, message);
        }
    }

    /// How many workers of `template`, or of all, are at each stage.
    pub(super) fn stages(&self, template: Option<&str>) -> BTreeMap<&'static str, usize> {
        let mut stages: BTreeMap<&'static str, usize> = ["preparing", "ready", "running", "ending"]
            .into_iter()
            .map(|stage| (stage, 0))
            .collect();
        for worker in self.workers.values() {
            if template.is_none_or(|name| worker.template == name) {
                let stage = match worker.stage {
                    Stage::Unborn | Stage::Preparing => "preparing",
                    Stage::Ready => "ready",
                    Stage::Reading | Stage::Running => "running",
                    Stage::Ending => "ending",
                };
                *stages.entry(stage).or_default() += 1;
            }
        }
        stages
    }
}
