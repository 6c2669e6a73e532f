//! Chromium without a window, driven by its DevTools protocol over a pair of pipes.
//!
//! <https://chromedevtools.github.io/devtools-protocol/> describes the messages: JSON, each ended by
//! a zero byte.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Names under which it is installed; the first is made for this and nothing else.
const PROGRAMS: [&str; 5] = [
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
];
const A4_INCHES: (f64, f64) = (8.27, 11.69);
/// On the left and on the right, what Chromium takes by itself.
const MARGIN_INCHES: f64 = 0.4;
/// How wide a page is on paper, in CSS pixels, of which 96 are an inch.
pub(crate) const PAPER_WIDTH: u32 = ((A4_INCHES.0 - 2.0 * MARGIN_INCHES) * 96.0) as u32;
/// How long an answer or an event may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A part of a page, in CSS pixels.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
pub(crate) struct Rect {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

/// What a page is shown in, in CSS pixels.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Window {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// As who prefers dark pages sees it.
    pub(crate) is_dark: bool,
    /// As it is printed, but in one piece.
    pub(crate) is_paper: bool,
}

/// A running Chromium with one tab. It ends with this value.
pub(crate) struct Chromium {
    process: Child,
    requests: Option<ChildStdin>,
    messages: Receiver<Value>,
    /// What was told since the page that is shown was asked for.
    events: Vec<Value>,
    session: Option<String>,
    last_id: u64,
    /// Its profile and what it writes to standard error.
    folder: TempDir,
}

/// The program, if it is installed.
pub(crate) fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    PROGRAMS.iter().find_map(|name| {
        let mut candidates = folders.iter().map(|folder| folder.join(name));
        candidates.find(|candidate| candidate.is_file())
    })
}

impl Chromium {
    /// Starts `program`.
    pub(crate) fn start(program: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join("stderr")).unwrap();
        // Chromium reads requests from descriptor 3 and answers on 4.
        let mut process = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh"])
            .arg(program)
            .args(["--headless", "--remote-debugging-pipe", "--hide-scrollbars"])
            // A sandbox needs user namespaces, which root in a container may lack; the pages are
            // the test's own.
            .args(["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--disable-background-networking"])
            .args(["--disable-component-update", "--disable-sync"])
            .arg(format!(
                "--user-data-dir={}",
                folder.path().join("profile").display()
            ))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut answers = BufReader::new(process.stdout.take().unwrap());
        let (sender, messages) = mpsc::channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while answers.read_until(0, &mut message).is_ok_and(|n| n > 0) {
                if message.pop() != Some(0) {
                    break;
                }
                let Ok(value) = serde_json::from_slice(&message) else {
                    break;
                };
                if sender.send(value).is_err() {
                    break;
                }
                message.clear();
            }
        });
        let mut chromium = Self {
            requests: process.stdin.take(),
            process,
            messages,
            events: Vec::new(),
            session: None,
            last_id: 0,
            folder,
        };
        let target = chromium.ask("Target.createTarget", json!({ "url": "about:blank" }));
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        let session = chromium.ask("Target.attachToTarget", target);
        chromium.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            chromium.ask(&format!("{domain}.enable"), json!({}));
        }
        chromium
    }

    /// Shows `file` in `window`.
    pub(crate) fn open(&mut self, file: &Path, window: &Window) {
        let Window { width, height, .. } = window;
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            json!({
                "width": width,
                "height": height,
                "deviceScaleFactor": 1,
                "mobile": *width < 600,
            }),
        );
        let scheme = if window.is_dark { "dark" } else { "light" };
        let media = if window.is_paper { "print" } else { "screen" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.ask(
            "Emulation.setEmulatedMedia",
            json!({ "media": media, "features": features }),
        );
        let address = format!("file://{}", file.display());
        self.events.clear();
        let answer = self.ask("Page.navigate", json!({ "url": address }));
        assert_eq!(answer.get("errorText"), None, "{address}: {answer}");
        let is_load = |event: &Value| event["method"] == "Page.loadEventFired";
        let deadline = Instant::now() + PATIENCE;
        while !self.events.iter().any(is_load) {
            let event = self.receive("the page's load event", deadline);
            self.events.push(event);
        }
    }

    /// What the page that is shown has asked for beside itself, and what it has complained of.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        // What has happened before an answer is told before it.
        let address = self.evaluate("location.href");
        let mut pages = 0;
        let mut complaints = Vec::new();
        for event in &self.events {
            let of = &event["params"];
            match event["method"].as_str().unwrap_or_default() {
                "Network.requestWillBeSent" if of["request"]["url"] == address => pages += 1,
                "Network.requestWillBeSent" => {
                    complaints.push(format!("asks for {}", of["request"]["url"]));
                }
                "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded" => {
                    complaints.push(format!("says {of}"));
                }
                _ => {}
            }
        }
        // Otherwise nothing would have been seen of the others.
        assert_eq!(pages, 1, "{address} was asked for so often");
        complaints
    }

    /// What `expression` is on the page that is shown.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let answer = self.ask(
            "Runtime.evaluate",
            json!({ "expression": expression, "returnByValue": true }),
        );
        assert_eq!(answer.get("exceptionDetails"), None, "{answer}");
        answer["result"]["value"].clone()
    }

    /// A picture of a part of the page, as PNG.
    pub(crate) fn picture(&mut self, part: Rect) -> Vec<u8> {
        let Rect {
            x,
            y,
            width,
            height,
        } = part;
        let clip = json!({ "x": x, "y": y, "width": width, "height": height, "scale": 1 });
        let answer = self.ask(
            "Page.captureScreenshot",
            json!({ "format": "png", "captureBeyondViewport": true, "clip": clip }),
        );
        BASE64.decode(answer["data"].as_str().unwrap()).unwrap()
    }

    /// The page on A4 paper, as PDF.
    pub(crate) fn print(&mut self) -> Vec<u8> {
        let (width, height) = A4_INCHES;
        let paper = json!({
            "paperWidth": width,
            "paperHeight": height,
            "marginLeft": MARGIN_INCHES,
            "marginRight": MARGIN_INCHES,
        });
        let answer = self.ask("Page.printToPDF", paper);
        BASE64.decode(answer["data"].as_str().unwrap()).unwrap()
    }

    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        let mut request = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            request["sessionId"] = session.as_str().into();
        }
        let mut bytes = serde_json::to_vec(&request).unwrap();
        bytes.push(0);
        let sent = match &mut self.requests {
            Some(pipe) => pipe.write_all(&bytes),
            None => Ok(()),
        };
        if let Err(error) = sent {
            self.fail(&format!("{method} was not sent: {error}"));
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut message = self.receive(method, deadline);
            if message["id"] != id {
                self.events.push(message);
            } else if message.get("error").is_some() {
                self.fail(&format!("{method}: {}", message["error"]));
            } else {
                return message["result"].take();
            }
        }
    }

    fn receive(&self, what: &str, deadline: Instant) -> Value {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.messages.recv_timeout(left) {
            Ok(message) => message,
            Err(error) => self.fail(&format!("{what}: {error}")),
        }
    }

    fn fail(&self, what: &str) -> ! {
        let log = std::fs::read_to_string(self.folder.path().join("stderr"));
        panic!("Chromium: {what}\n{}", log.unwrap_or_default());
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // It ends, with the processes that it has started, when nobody can ask it any more.
        drop(self.requests.take());
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
