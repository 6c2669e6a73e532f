//! A client of the vsock device's Unix socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use reapvm::invocation::FUNCTION_PORT;
use reapvm_devices::virtio::vsock::VsockHandle;
use serde_json::Value;

/// A connection to a port of the guest.
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// A connection to the guest's function from inside this process.
    ///
    /// # Panics
    /// If it is not taken.
    pub fn inside(vsock: &VsockHandle) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        vsock.connect(FUNCTION_PORT, theirs).unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(300)))
            .unwrap();
        Self(BufReader::new(ours))
    }

    /// Waits until `path` can be connected to, asks for `port` and returns the answer's line: empty
    /// if the connection was closed.
    ///
    /// # Panics
    /// If nobody listens on `path`.
    pub fn connect(path: &Path, port: u32) -> (Self, String) {
        let deadline = Instant::now() + Duration::from_secs(300);
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        stream
            .set_read_timeout(Some(Duration::from_secs(300)))
            .unwrap();
        let mut client = Self(BufReader::new(stream));
        // Refused at once if the guest has no driver yet.
        let sent = client.send(&format!("CONNECT {port}\n"));
        let line = sent.map_or_else(|_| String::new(), |()| client.line());
        (client, line)
    }

    /// Connects to `port` and tries again until the guest takes it.
    ///
    /// # Panics
    /// If it never does.
    pub fn connected(path: &Path, port: u32) -> Self {
        let deadline = Instant::now() + Duration::from_secs(300);
        loop {
            let (client, answer) = Self::connect(path, port);
            if answer.starts_with("OK ") {
                return client;
            }
            assert!(Instant::now() < deadline, "the guest answers '{answer}'");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn send(&mut self, text: &str) -> io::Result<()> {
        self.0.get_mut().write_all(text.as_bytes())
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        // A connection that was reset has no line either.
        let _ = self.0.read_line(&mut line);
        line.trim_end().to_owned()
    }

    /// Sends `input` as a request line and returns the reply.
    ///
    /// # Panics
    /// If it is no JSON.
    pub fn call(&mut self, input: &Value) -> Value {
        self.send(&format!("{input}\n")).unwrap();
        serde_json::from_str(&self.line()).unwrap()
    }
}
