//! `reapvm request`: a client of `reapvm serve`.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use reapvm::cold_start::ColdStartReport;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::protocol::{ErrorKind, Invocation, InvocationResult, Refusal};
use crate::cli::{Request, RequestCommand, RequestInvoke};
use crate::command::{CommandResult, print_report};

/// What the server answers.
#[derive(Debug, Deserialize)]
pub(crate) struct Answer {
    /// That of the request.
    pub(crate) id: Value,
    pub(crate) result: Option<Box<RawValue>>,
    pub(crate) error: Option<Refusal>,
}

impl Answer {
    /// The result, or the refusal as an error.
    pub(crate) fn into_result(self) -> Result<Box<RawValue>, Box<dyn Error>> {
        match (self.result, self.error) {
            (_, Some(Refusal { kind, message })) => Err(match kind {
                ErrorKind::Failed => message,
                kind => {
                    let kind = serde_json::to_value(kind)?;
                    format!("{}: {message}", kind.as_str().unwrap_or_default())
                }
            }
            .into()),
            (Some(result), None) => Ok(result),
            (None, None) => Err("the server's answer has neither a result nor an error".into()),
        }
    }
}

/// A connection to a server.
pub(crate) struct Connection(BufReader<UnixStream>);

impl Connection {
    /// Connects to the server on `socket`.
    pub(crate) fn open(socket: &Path) -> Result<Self, String> {
        UnixStream::connect(socket)
            .map(|stream| Self(BufReader::new(stream)))
            .map_err(|error| {
                format!(
                    "cannot connect to '{}': {error}; does `reapvm serve --socket` run there?",
                    socket.display()
                )
            })
    }

    /// Sends a request.
    pub(crate) fn send(&mut self, request: &Value) -> std::io::Result<()> {
        self.send_lines(&[request.to_string()])
    }

    /// Sends requests at once, a line each.
    pub(crate) fn send_lines(&mut self, requests: &[String]) -> std::io::Result<()> {
        let mut text = requests.join("\n");
        text.push('\n');
        self.0.get_mut().write_all(text.as_bytes())
    }

    /// Waits for the next answer.
    pub(crate) fn receive(&mut self) -> Result<Answer, Box<dyn Error>> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err("the server has closed the connection".into());
        }
        serde_json::from_str(&line)
            .map_err(|error| format!("the server's answer cannot be read: {error}").into())
    }
}

/// The request line of an invocation.
pub(crate) fn invocation_request(id: u64, invocation: &Invocation) -> serde_json::Result<Value> {
    let mut request = serde_json::to_value(invocation)?;
    request["op"] = json!("invoke");
    request["id"] = json!(id);
    Ok(request)
}

fn invocation(arguments: &RequestInvoke) -> Invocation {
    Invocation {
        template: arguments.template.clone(),
        input: arguments.input.clone(),
        mode: arguments.memory,
        install: arguments.install,
        snapshot_id: arguments.snapshot_id.clone(),
        timeout_s: arguments.timeout.as_secs_f64(),
        keep_recording: true,
        count_resident: true,
    }
}

pub(crate) fn run(arguments: &Request) -> CommandResult {
    let mut connection = Connection::open(&arguments.socket)?;
    let request = match &arguments.command {
        RequestCommand::Invoke(arguments) => invocation_request(1, &invocation(arguments))?,
        RequestCommand::List => json!({"op": "list"}),
        RequestCommand::Status => json!({"op": "status"}),
        RequestCommand::Trim { template } => json!({"op": "trim", "template": template}),
        RequestCommand::Shutdown => json!({"op": "shutdown"}),
    };
    connection.send(&request)?;
    let result = connection.receive()?.into_result()?;
    match &arguments.command {
        RequestCommand::Invoke(arguments) if !arguments.json => {
            let result: InvocationResult = serde_json::from_str(result.get())?;
            let report: ColdStartReport = serde_json::from_str(result.report.get())?;
            print_report(&report, false)?;
            println!(
                "  {}, waited {:.2} ms for its turn, {:.2} ms to the first KVM_RUN but for the \
                 working set",
                if result.prepared {
                    "prepared"
                } else {
                    "not prepared"
                },
                result.queued_ms,
                result.control_ms
            );
        }
        _ => println!("{result}"),
    }
    Ok(ExitCode::SUCCESS)
}
