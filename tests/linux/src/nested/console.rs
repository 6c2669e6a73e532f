//! The console of a running program: kept, and searched while it grows.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Output {
    text: String,
    ended: bool,
}

/// What a program writes.
#[derive(Clone, Default)]
pub struct Console(Arc<(Mutex<Output>, Condvar)>);

impl Console {
    /// Reads `pipe` to its end, on a thread of its own.
    pub fn follow(&self, mut pipe: impl Read + Send + 'static) {
        let console = self.clone();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            loop {
                let length = pipe.read(&mut bytes).unwrap_or(0);
                let (output, changed) = &*console.0;
                let mut output = output.lock().unwrap();
                output
                    .text
                    .push_str(&String::from_utf8_lossy(&bytes[..length]));
                output.ended |= length == 0;
                changed.notify_all();
                if length == 0 {
                    return;
                }
            }
        });
    }

    /// What was written so far.
    pub fn text(&self) -> String {
        self.0.0.lock().unwrap().text.clone()
    }

    /// Waits until `found` says yes of what was written; no if the program ends before, or after
    /// `timeout`.
    pub fn wait(&self, timeout: Duration, found: impl Fn(&str) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let (output, changed) = &*self.0;
        let mut output = output.lock().unwrap();
        loop {
            if found(&output.text) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if output.ended || left.is_zero() {
                return false;
            }
            output = changed.wait_timeout(output, left).unwrap().0;
        }
    }

    /// Waits until `line` stands on a line of its own.
    pub fn wait_for_line(&self, timeout: Duration, line: &str) -> bool {
        self.wait(timeout, |text| text.lines().any(|l| l.trim() == line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_whole_and_the_end_is_no_line() {
        let console = Console::default();
        console.follow(&b"not ready\r\nready\r\n"[..]);
        assert!(console.wait_for_line(Duration::from_secs(60), "ready"));
        assert!(!console.wait_for_line(Duration::from_secs(60), "not"));
    }
}
