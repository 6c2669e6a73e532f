//! QEMU's monitor: what the emulated processor is doing when a nested host says nothing more.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How often it is asked: whether the processor stands still or turns in circles is seen by several
/// answers only.
const SAMPLES: usize = 5;
/// Between two of them.
const PAUSE: Duration = Duration::from_secs(1);
/// How long an answer may take: QEMU gives it when it gets to run.
const LIMIT: Duration = Duration::from_secs(60);
/// Stands behind each answer.
const PROMPT: &[u8] = b"(qemu) ";
/// Registers, and the interrupts that wait or are being served.
const QUESTIONS: [&str; 2] = ["info registers", "info lapic"];
/// What of the answers' lines is worth keeping.
const WORTH: [&str; 8] = [
    "RIP=", "RSP=", "CR3=", "EFER=", "LVTT\t", "Timer\t", "ISR\t", "IRR\t",
];

/// The state of the processor, several times over, of the QEMU whose monitor listens on `socket`.
///
/// # Errors
/// It does not answer.
pub fn samples(socket: &Path) -> io::Result<String> {
    let mut monitor = UnixStream::connect(socket)?;
    monitor.set_read_timeout(Some(LIMIT))?;
    answer(&mut monitor)?;
    let mut text = String::new();
    for sample in 0..SAMPLES {
        if sample > 0 {
            thread::sleep(PAUSE);
        }
        text.push_str(&format!("processor, sample {sample}:\n"));
        for question in QUESTIONS {
            monitor.write_all(format!("{question}\n").as_bytes())?;
            for line in answer(&mut monitor)?.lines() {
                if WORTH.iter().any(|what| line.contains(what)) {
                    text.push_str(&format!("    {}\n", line.trim_end()));
                }
            }
        }
    }
    Ok(text)
}

/// All up to the next prompt.
fn answer(monitor: &mut UnixStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(PROMPT) {
        monitor.read_exact(&mut byte)?;
        bytes.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn each_sample_has_the_registers_and_the_interrupts_that_wait() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("monitor");
        let listener = UnixListener::bind(&socket).unwrap();
        let monitor = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            stream.write_all(b"QEMU 7.2 monitor\r\n(qemu) ").unwrap();
            let mut asked = Vec::new();
            while let Some(Ok(line)) = lines.next() {
                let said = match line.as_str() {
                    "info registers" => format!("RIP={:016x} RFL=202\r\nFPR0=0\r\n", asked.len()),
                    _ => "LVTT\t 0xec\r\nIRR\t 236 \r\n".to_owned(),
                };
                asked.push(line);
                // An answer may come in pieces.
                let (first, second) = said.split_at(7);
                stream.write_all(first.as_bytes()).unwrap();
                stream.write_all(second.as_bytes()).unwrap();
                stream.write_all(PROMPT).unwrap();
            }
            asked
        });
        let text = samples(&socket).unwrap();
        assert_eq!(text.matches("RIP=").count(), SAMPLES);
        assert_eq!(text.matches("IRR\t 236\n").count(), SAMPLES);
        assert!(text.contains("RIP=0000000000000008") && !text.contains("FPR"));
        assert_eq!(monitor.join().unwrap().len(), 2 * SAMPLES);
    }

    #[test]
    fn a_monitor_that_goes_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("monitor");
        assert!(samples(&socket).is_err());
        let listener = UnixListener::bind(&socket).unwrap();
        let monitor = thread::spawn(move || drop(listener.accept().unwrap()));
        assert!(samples(&socket).is_err());
        monitor.join().unwrap();
    }
}
