//! A client of a guest's program, through the Unix socket of its vsock device.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use reapvm_guest_init::protocol::{PORT, Request};
use serde_json::Value;

use super::PATIENCE;

/// How long an answer may take.
const TIMEOUT: Duration = PATIENCE;

/// A connection to the guest's program.
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects by way of the socket at `path`, and tries again until the guest takes it.
    pub fn connect(path: &Path) -> Result<Self, String> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match Self::try_connect(path) {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > deadline => {
                    return Err(format!("the guest takes no connection: {error}"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn try_connect(path: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(path).map_err(|error| error.to_string())?;
        stream
            .set_read_timeout(Some(TIMEOUT))
            .map_err(|error| error.to_string())?;
        let mut client = Self(BufReader::new(stream));
        let answer = client.exchange(&format!("CONNECT {PORT}"))?;
        if answer.starts_with("OK ") {
            return Ok(client);
        }
        Err(format!("it answers '{answer}'"))
    }

    fn exchange(&mut self, line: &str) -> Result<String, String> {
        self.send(line)?;
        let mut answer = String::new();
        match self.0.read_line(&mut answer) {
            Ok(0) => Err("the connection was closed".to_owned()),
            Ok(_) => Ok(answer.trim_end().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn send(&mut self, line: &str) -> Result<(), String> {
        let line = format!("{line}\n");
        self.0
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(|error| error.to_string())
    }

    /// Sends a request that has no answer.
    pub fn tell(&mut self, request: &Request) -> Result<(), String> {
        self.send(&serde_json::to_string(request).unwrap())
    }

    /// The whole answer of the guest to a request line of JSON.
    pub fn exchange_json(&mut self, request: &Value) -> Result<Value, String> {
        let answer = self.exchange(&request.to_string())?;
        serde_json::from_str(&answer)
            .map_err(|error| format!("the guest's answer '{answer}' is no JSON: {error}"))
    }

    /// What the guest answers to `request`.
    pub fn ask(&mut self, request: &Request) -> Result<Value, String> {
        let answer = self.exchange(&serde_json::to_string(request).unwrap())?;
        let mut answer: Value = serde_json::from_str(&answer)
            .map_err(|error| format!("the guest's answer '{answer}' is no JSON: {error}"))?;
        if answer["ok"] != true {
            return Err(format!(
                "the guest refuses {request:?}: {}",
                answer["error"]
            ));
        }
        Ok(answer["result"].take())
    }
}
