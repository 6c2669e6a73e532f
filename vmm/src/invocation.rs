//! Calling the function that a guest serves: a request line and a reply line of JSON over vsock.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use reapvm_reap::Phase;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use thiserror::Error;

use crate::clock;
use crate::machine::{Machine, MachineError};
use crate::vcpu::GuestExit;

/// The vsock port on which a guest serves its function.
pub const FUNCTION_PORT: u32 = reapvm_guest_images::protocol::PORT;
/// Longest reply that is taken, in bytes.
pub const MAX_REPLY_BYTES: usize = 16 << 20;

/// A function could not be called.
#[derive(Debug, Error)]
pub enum InvokeError {
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The guest ended before it had answered.
    #[error("the guest ended before it answered: {}", describe_exit(.0))]
    GuestEnded(GuestExit),
    /// No answer in time.
    #[error(
        "the guest did not answer within {:.1} s; give it longer with --timeout",
        .0.as_secs_f64()
    )]
    Timeout(Duration),
    /// The guest refused or closed the connection.
    #[error(
        "the guest closed the connection before it had answered: does it serve port {FUNCTION_PORT}?"
    )]
    Closed,
    /// The reply is longer than any that a function gives.
    #[error("the guest's reply is longer than {MAX_REPLY_BYTES} bytes")]
    ReplyTooLong,
    /// The reply is no JSON of the protocol.
    #[error("the guest's reply is not the JSON that the protocol asks for: {0}")]
    Reply(String),
    /// The function refused its input or failed.
    #[error("the function failed: {0}")]
    Function(String),
    /// The connection.
    #[error("the connection to the guest failed")]
    Io(#[from] io::Error),
}

/// Says in words how a guest ended.
pub fn describe_exit(exit: &GuestExit) -> String {
    match exit {
        GuestExit::Reset => "it asked for a reset".to_owned(),
        GuestExit::Panicked => "its kernel panicked".to_owned(),
        GuestExit::TripleFault { rip: Some(rip) } => {
            format!("it shut down through a triple fault at rip {rip:#x}")
        }
        GuestExit::TripleFault { rip: None } => {
            "it shut down through a triple fault (this host's KVM does not say where)".to_owned()
        }
        GuestExit::Stopped => "it was stopped".to_owned(),
        GuestExit::Failed(error) => error.to_string(),
        GuestExit::DevicesFailed(reason) => format!("its devices could not go on: {reason}"),
        GuestExit::PagerFailed(error) => {
            format!("its memory could not be served: {}", with_causes(error))
        }
    }
}

/// An error and its causes, for where an error becomes text.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// When the steps of a call were done, on the monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallMarks {
    /// The request was handed to the connection.
    pub request_sent_ns: u64,
    /// The first byte of the reply was there.
    pub first_byte_ns: u64,
    /// The reply was whole.
    pub response_ns: u64,
}

/// A function's answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The whole reply: `ok`, `function`, `result`.
    pub value: Value,
    /// When what was done.
    pub marks: CallMarks,
}

impl Reply {
    /// What the function computed.
    pub fn result(&self) -> &Value {
        &self.value["result"]
    }
}

/// A connection to the guest's function.
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Connects; the guest need not run yet.
    ///
    /// # Errors
    /// See [`Machine::connect`].
    pub fn open(machine: &Machine) -> Result<Self, InvokeError> {
        machine.memory().phase().set(Phase::Connection);
        let stream = machine.connect(FUNCTION_PORT)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream })
    }

    /// Sends `input` and waits for the reply, for at most `timeout`, or until the guest ends.
    ///
    /// # Errors
    /// See [`InvokeError`]. A reply that says that the function failed is an error too.
    pub fn call(
        &mut self,
        machine: &Machine,
        input: &Value,
        timeout: Duration,
    ) -> Result<Reply, InvokeError> {
        let deadline = Instant::now() + timeout;
        let mut line = input.to_string().into_bytes();
        line.push(b'\n');
        machine.memory().phase().set(Phase::Request);
        self.send(machine, &line, deadline, timeout)?;
        let mut marks = CallMarks {
            request_sent_ns: clock::monotonic_ns(),
            ..Default::default()
        };
        let reply = self.receive(machine, deadline, timeout, &mut marks)?;
        machine.memory().phase().set(Phase::Idle);
        parse_reply(&reply).map(|value| Reply { value, marks })
    }

    fn send(
        &mut self,
        machine: &Machine,
        mut rest: &[u8],
        deadline: Instant,
        timeout: Duration,
    ) -> Result<(), InvokeError> {
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(0) => return Err(InvokeError::Closed),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(machine, PollFlags::OUT, deadline, timeout)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_closed(&error) => return Err(self.ended_or_closed(machine)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn receive(
        &mut self,
        machine: &Machine,
        deadline: Instant,
        timeout: Duration,
        marks: &mut CallMarks,
    ) -> Result<Vec<u8>, InvokeError> {
        let mut reply = Vec::with_capacity(4096);
        let mut buffer = [0_u8; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(self.ended_or_closed(machine)),
                Ok(length) => {
                    if reply.is_empty() {
                        marks.first_byte_ns = clock::monotonic_ns();
                    }
                    reply.extend_from_slice(&buffer[..length]);
                    if reply.last() == Some(&b'\n') {
                        marks.response_ns = clock::monotonic_ns();
                        reply.pop();
                        return Ok(reply);
                    }
                    if reply.len() > MAX_REPLY_BYTES {
                        return Err(InvokeError::ReplyTooLong);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(machine, PollFlags::IN, deadline, timeout)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_closed(&error) => return Err(self.ended_or_closed(machine)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn ended_or_closed(&self, machine: &Machine) -> InvokeError {
        // A guest that ends closes its connections a moment before the reason is known.
        machine
            .wait(Some(Duration::from_millis(50)))
            .map_or(InvokeError::Closed, InvokeError::GuestEnded)
    }

    fn wait(
        &self,
        machine: &Machine,
        wanted: PollFlags,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<(), InvokeError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(InvokeError::Timeout(timeout));
            }
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let exits = machine.exits();
            let mut fds = [
                PollFd::new(&self.stream, wanted),
                PollFd::from_borrowed_fd(exits.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return Err(InvokeError::Timeout(timeout)),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(io::Error::from(error).into()),
            }
            // What the guest sent before it ended is still read.
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
            if let Some(reason) = exits.reason() {
                return Err(InvokeError::GuestEnded(reason));
            }
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

fn parse_reply(line: &[u8]) -> Result<Value, InvokeError> {
    let value: Value =
        serde_json::from_slice(line).map_err(|error| InvokeError::Reply(error.to_string()))?;
    match value["ok"].as_bool() {
        Some(true) if value.get("result").is_some() => Ok(value),
        Some(false) => Err(InvokeError::Function(
            value["error"]
                .as_str()
                .unwrap_or("it gave no reason")
                .to_owned(),
        )),
        _ => Err(InvokeError::Reply(
            "there is no 'ok' with a 'result' in it".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_must_say_ok_and_have_a_result() {
        assert!(parse_reply(br#"{"ok":true,"function":"f","result":{}}"#).is_ok());
        for bad in [
            &b"{}"[..],
            b"[]",
            b"{\"ok\":true}",
            b"\xff",
            b"",
            b"{\"ok\":\"true\"}",
        ] {
            assert!(
                matches!(parse_reply(bad), Err(InvokeError::Reply(_))),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_failed_function_is_an_error_with_its_reason() {
        let error = parse_reply(br#"{"ok":false,"error":"size too large"}"#).unwrap_err();
        assert_eq!(error.to_string(), "the function failed: size too large");
    }
}
