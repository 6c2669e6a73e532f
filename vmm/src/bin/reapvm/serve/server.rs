//! The server's loop: one thread, which waits for clients, workers and signals at once.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use reapvm::clock;
use reapvm::cold_start::{WorkingSetOptions, WorkingSetPolicy};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde_json::{Value, json};

use super::client::Client;
use super::lines::TooLong;
use super::machine::{Job, Worker};
use super::processes::{ProcessEvent, Processes};
use super::protocol::{ErrorKind, Invocation, MAX_REQUEST_BYTES, Refusal, Request, answer, parse};
use super::socket::ServerSocket;
use super::template::Template;
use crate::cli::Serve;

/// Connections at once; further ones wait to be accepted.
const MAX_CLIENTS: usize = 1024;
/// Connections that one turn accepts at most.
const ACCEPTS_A_TURN: usize = 64;
/// The pause after a client that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long clients have to take their last answers when the server ends.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) options: Serve,
    /// None when it has stopped accepting.
    socket: Option<ServerSocket>,
    pub(super) processes: Processes,
    pub(super) templates: BTreeMap<String, Template>,
    pub(super) clients: BTreeMap<u64, Client>,
    pub(super) workers: BTreeMap<u64, Worker>,
    /// Jobs that wait until fewer machines run.
    pub(super) queue: VecDeque<Job>,
    pub(super) counts: Counts,
    pub(super) started: Instant,
    next_number: u64,
    /// No client is accepted before: the last one could not be.
    accept_after: Option<Instant>,
    stopping: Option<Stopping>,
}

/// What has been done so far.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Counts {
    /// Invocations that were answered.
    pub(super) served: u64,
    /// Invocations that were not: refused, failed, crashed or cut off.
    pub(super) failed: u64,
    /// Of those served, how many found a prepared machine.
    pub(super) prepared: u64,
}

/// The server is ending.
#[derive(Clone, Copy, Debug)]
struct Stopping {
    signal: Option<u8>,
    /// When machines that still run are killed.
    kill_at: Instant,
    /// When clients that have not taken their answers are cut off.
    leave_at: Option<Instant>,
}

/// What a turn of the loop waits for.
#[derive(Clone, Copy, Debug)]
enum Source {
    Processes,
    Socket,
    Client(u64),
    Worker(u64),
}

impl Server {
    pub(super) fn new(
        options: Serve,
        socket: ServerSocket,
        processes: Processes,
        templates: BTreeMap<String, Template>,
    ) -> Self {
        Self {
            options,
            socket: Some(socket),
            processes,
            templates,
            clients: BTreeMap::new(),
            workers: BTreeMap::new(),
            queue: VecDeque::new(),
            counts: Counts::default(),
            started: Instant::now(),
            next_number: 0,
            accept_after: None,
            stopping: None,
        }
    }

    /// Serves until it is told to end. Returns the signal by which it was, if by one.
    pub(super) fn run(mut self) -> io::Result<Option<u8>> {
        loop {
            self.schedule();
            self.remove_clients();
            if let Some(stopping) = self.stopping
                && self.has_stopped()
            {
                return Ok(stopping.signal);
            }
            for (source, flags) in self.wait()? {
                match source {
                    Source::Processes => {
                        while let Some(event) = self.processes.next_event() {
                            self.on_process_event(event);
                        }
                    }
                    Source::Socket => self.accept(),
                    Source::Client(number) => self.on_client(number, flags),
                    Source::Worker(number) => self.on_worker_readable(number),
                }
            }
            self.on_time(Instant::now());
        }
    }

    /// Waits until something happens or a time has come.
    fn wait(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let mut sources = vec![Source::Processes];
        let mut fds = vec![PollFd::from_borrowed_fd(
            self.processes.as_fd(),
            PollFlags::IN,
        )];
        if let Some(socket) = &self.socket
            && self.clients.len() < MAX_CLIENTS
            && self.accept_after.is_none()
        {
            sources.push(Source::Socket);
            fds.push(PollFd::new(socket.listener(), PollFlags::IN));
        }
        for (&number, client) in &self.clients {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, client.is_read());
            flags.set(PollFlags::OUT, client.lines.unsent_bytes() > 0);
            sources.push(Source::Client(number));
            fds.push(PollFd::new(&client.lines, flags));
        }
        for (&number, worker) in &self.workers {
            if let Some(lines) = &worker.lines
                && !lines.has_ended()
            {
                let mut flags = PollFlags::IN;
                flags.set(PollFlags::OUT, lines.unsent_bytes() > 0);
                sources.push(Source::Worker(number));
                fds.push(PollFd::new(lines, flags));
            }
        }
        let timeout = self.next_deadline().map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(sources
            .into_iter()
            .zip(&fds)
            .map(|(source, fd)| (source, fd.revents()))
            .filter(|(_, flags)| !flags.is_empty())
            .collect())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let stopping = self
            .stopping
            .map(|stopping| stopping.leave_at.unwrap_or(stopping.kill_at));
        self.next_scheduled()
            .into_iter()
            .chain(stopping)
            .chain(self.accept_after)
            .min()
    }

    fn on_time(&mut self, now: Instant) {
        self.on_scheduled_time(now);
        self.accept_after = self.accept_after.filter(|&after| after > now);
        if let Some(stopping) = self.stopping
            && now >= stopping.kill_at
        {
            self.end_all_jobs(&Refusal::new(
                ErrorKind::Stopping,
                "the server has ended before the function had answered",
            ));
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_A_TURN {
            let Some(socket) = &self.socket else { return };
            match socket.listener().accept() {
                Ok((stream, _)) => match Client::new(stream) {
                    Ok(client) => {
                        let number = self.number();
                        self.clients.insert(number, client);
                    }
                    Err(error) => tracing::warn!(%error, "cannot serve a client"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // One that has gone already, or no descriptor is left.
                    tracing::warn!(%error, "cannot accept a client");
                    self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// A number that was not given before.
    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn on_client(&mut self, number: u64, flags: PollFlags) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        if flags.contains(PollFlags::OUT) && client.lines.flush().is_err() {
            client.is_gone = true;
        }
        if flags.contains(PollFlags::IN) && client.is_read() {
            client.lines.fill();
        }
        // Not the end of what it sends, which may be all that it had to ask, but of both ways.
        if flags.intersects(PollFlags::HUP | PollFlags::ERR) {
            client.is_gone = true;
        }
        if !client.is_gone {
            self.read_requests(number);
        }
    }

    /// Removes the clients that have gone, with their jobs, and those that are done.
    fn remove_clients(&mut self) {
        let done: Vec<(u64, bool)> = self
            .clients
            .iter()
            .filter(|(_, client)| client.is_done())
            .map(|(&number, client)| (number, client.is_gone))
            .collect();
        for (number, is_gone) in done {
            self.clients.remove(&number);
            if is_gone {
                self.forget_jobs_of(number);
            }
        }
    }

    fn read_requests(&mut self, number: u64) {
        let received_ns = clock::monotonic_ns();
        while let Some(client) = self.clients.get_mut(&number)
            && !client.is_closing
        {
            let refusal = match client.lines.next_line() {
                Ok(Some(line)) => {
                    self.on_request(number, &line, received_ns);
                    continue;
                }
                Ok(None) if client.lines.has_ended() && client.lines.has_partial_line() => {
                    Refusal::new(
                        ErrorKind::BadRequest,
                        "the connection ended within a request: it ends with a line feed",
                    )
                }
                Ok(None) => return,
                Err(TooLong) => Refusal::new(
                    ErrorKind::BadRequest,
                    format!("a request is longer than {MAX_REQUEST_BYTES} bytes"),
                ),
            };
            // Where the next request would begin is not known.
            client.is_closing = true;
            client.send(&answer(&Value::Null, Err::<&(), _>(&refusal)));
        }
    }

    fn on_request(&mut self, client: u64, line: &[u8], received_ns: u64) {
        let (id, request) = parse(line);
        let result = match request {
            Ok(Request::Invoke(invocation)) => {
                match self.enqueue(client, &id, invocation, received_ns) {
                    // Answered when it is done.
                    Ok(()) => return,
                    Err(refusal) => {
                        self.counts.failed += 1;
                        Err(refusal)
                    }
                }
            }
            Ok(Request::List {}) => Ok(self.list()),
            Ok(Request::Status {}) => Ok(self.status()),
            Ok(Request::Trim { template }) => self
                .trim(template.as_deref())
                .map(|dropped| json!({ "dropped": dropped })),
            Ok(Request::Shutdown {}) => {
                self.stop(None);
                Ok(json!({ "stopping": true }))
            }
            Err(refusal) => Err(refusal),
        };
        self.tell(client, &answer(&id, result.as_ref()));
    }

    /// Sends an answer to a client, if it is still there.
    pub(super) fn tell(&mut self, client: u64, line: &str) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.send(line);
        }
    }

    /// Checks an invocation and puts it in the queue.
    fn enqueue(
        &mut self,
        client: u64,
        id: &Value,
        invocation: Invocation,
        received_ns: u64,
    ) -> Result<(), Refusal> {
        if self.stopping.is_some() {
            return Err(Refusal::new(ErrorKind::Stopping, "the server is ending"));
        }
        let Some(template) = self.templates.get_mut(&invocation.template) else {
            let names: Vec<&str> = self.templates.keys().map(String::as_str).collect();
            return Err(Refusal::new(
                ErrorKind::NoTemplate,
                format!(
                    "no snapshot is served as '{}', only: {}",
                    invocation.template,
                    names.join(", ")
                ),
            ));
        };
        template.touch();
        let timeout = Duration::try_from_secs_f64(invocation.timeout_s)
            .ok()
            .filter(|timeout| !timeout.is_zero() && timeout.as_secs() < 1 << 31)
            .ok_or_else(|| {
                Refusal::new(
                    ErrorKind::BadRequest,
                    "timeout_s is a number of seconds, more than zero",
                )
            })?;
        // A mode that is asked for is what runs, so that the policy cannot decide.
        let set = match invocation.mode {
            None => self.options.working_set.options(),
            Some(_) => WorkingSetOptions::default(),
        };
        if set.policy != WorkingSetPolicy::Fixed && !invocation.keep_recording {
            return Err(Refusal::new(
                ErrorKind::BadRequest,
                format!(
                    "the server's working-set policy {} keeps what it records: leave out \
                     keep_recording, or give a mode",
                    set.policy
                ),
            ));
        }
        let waiting = self.queue.len();
        if waiting >= self.options.max_queued as usize && !self.has_room() {
            return Err(Refusal::new(
                ErrorKind::Busy,
                format!(
                    "{} machines run and {waiting} requests wait, which are as many as may",
                    self.job_count()
                ),
            ));
        }
        let job = Job {
            client,
            id: id.clone(),
            mode: invocation.mode.unwrap_or(self.options.memory),
            install: invocation.install.unwrap_or(self.options.install),
            pre_fault: self.options.pre_fault,
            set,
            invocation,
            timeout,
            received_ns,
            number: self.number(),
            prepared: false,
            turn_since_ns: None,
            turn_ms: 0.0,
            queued_ms: 0.0,
        };
        self.queue.push_back(job);
        if let Some(client) = self.clients.get_mut(&client) {
            client.pending += 1;
        }
        // At once, so that the count of those that wait is right for the next request.
        self.admit();
        Ok(())
    }

    /// Stops accepting; machines that run may go on for a while.
    pub(super) fn stop(&mut self, signal: Option<u8>) {
        if self.stopping.is_some() {
            return;
        }
        self.socket = None;
        self.stopping = Some(Stopping {
            signal,
            kill_at: Instant::now() + self.options.grace,
            leave_at: None,
        });
        let refusal = Refusal::new(ErrorKind::Stopping, "the server is ending");
        while let Some(job) = self.queue.pop_front() {
            self.refuse(&job, &refusal);
        }
        self.drop_spares(|_| true);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Whether everything is done that is to be done before the end.
    fn has_stopped(&mut self) -> bool {
        if self.job_count() > 0 {
            return false;
        }
        let now = Instant::now();
        if let Some(stopping) = &mut self.stopping {
            let leave_at = *stopping.leave_at.get_or_insert(now + LAST_ANSWERS);
            // Connections that only stay open are not waited for.
            let all_sent = self
                .clients
                .values()
                .all(|client| client.lines.unsent_bytes() == 0);
            let all_ended = self.workers.values().all(|worker| worker.child.is_none());
            return (all_sent && all_ended) || now >= leave_at;
        }
        false
    }

    fn on_process_event(&mut self, event: ProcessEvent) {
        match event {
            ProcessEvent::Signal(signal) => self.stop(Some(signal)),
            ProcessEvent::Born(number, born) => self.on_born(number, born),
            ProcessEvent::Ended(number, status) => self.on_ended(number, status),
        }
    }
}
