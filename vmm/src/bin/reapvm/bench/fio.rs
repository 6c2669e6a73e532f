//! The best that the disk gives, in sequential reads of the very files that are measured.

use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Serialize;
use serde_json::Value;

use super::disk::Disk;

/// Block sizes that are tried, in KiB, with each of [`DEPTHS`].
const BLOCKS_KIB: [u32; 4] = [128, 512, 1024, 2048];
/// Requests under way at once.
const DEPTHS: [u32; 4] = [1, 4, 16, 32];
/// Bytes that one measurement reads at least; small files are read again.
const BYTES_A_RUN: u64 = 256 << 20;

/// One measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Tried {
    pub(crate) block_kib: u32,
    pub(crate) depth: u32,
    pub(crate) mib_s: f64,
}

/// What the disk gives.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Bandwidth {
    /// The best of what was tried, in MiB/s.
    pub(crate) mib_s: f64,
    /// What was run, for people.
    pub(crate) what: String,
    /// All that was tried; empty where there is no fio.
    pub(crate) tried: Vec<Tried>,
}

/// Reads `files` one after the other past the page cache with fio, in several ways. Without fio it
/// is the figure of `disk`.
pub(crate) fn measure(files: &[PathBuf], disk: &Disk) -> Result<Bandwidth, Box<dyn Error>> {
    let version = match Command::new("fio").arg("--version").output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => {
            return Ok(Bandwidth {
                mib_s: disk.seq_read_mib_s,
                what: "own O_DIRECT reader, four threads of 1 MiB each, another file of 256 MiB \
                       (fio is not installed)"
                    .to_owned(),
                tried: Vec::new(),
            });
        }
    };
    let mut tried = Vec::new();
    for block_kib in BLOCKS_KIB {
        for depth in DEPTHS {
            let mib_s = run(files, block_kib, depth)?;
            tried.push(Tried {
                block_kib,
                depth,
                mib_s,
            });
        }
    }
    let best = tried
        .iter()
        .copied()
        .max_by(|a, b| a.mib_s.total_cmp(&b.mib_s))
        .ok_or("nothing was measured")?;
    Ok(Bandwidth {
        mib_s: best.mib_s,
        what: format!(
            "{version}, sequential O_DIRECT reads of the working-set files by io_uring, {} KiB x {}, \
             the best of {} block sizes with {} depths each",
            best.block_kib,
            best.depth,
            BLOCKS_KIB.len(),
            DEPTHS.len()
        ),
        tried,
    })
}

fn run(files: &[PathBuf], block_kib: u32, depth: u32) -> Result<f64, Box<dyn Error>> {
    let mut total_bytes = 0;
    let mut names = OsString::from("--filename=");
    for (index, file) in files.iter().enumerate() {
        total_bytes += std::fs::metadata(file)?.len();
        if index > 0 {
            names.push(":");
        }
        // fio takes a colon for the end of a name.
        names.push(file.to_string_lossy().replace(':', "\\:"));
    }
    let loops = BYTES_A_RUN.div_ceil(total_bytes.max(1)).max(1);
    let output = Command::new("fio")
        .args(["--name=read", "--readonly", "--rw=read", "--direct=1"])
        .args(["--ioengine=io_uring", "--file_service_type=sequential"])
        .args(["--invalidate=1", "--output-format=json"])
        .arg(format!("--bs={block_kib}k"))
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--loops={loops}"))
        .arg(names)
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("fio failed: {}", said.trim()).into());
    }
    // It may write a note before the object.
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.find('{').map(|at| &text[at..]).unwrap_or_default();
    let result: Value =
        serde_json::from_str(json).map_err(|error| format!("fio's answer: {error}"))?;
    let read = &result["jobs"][0]["read"];
    match read["bw_bytes"].as_f64() {
        Some(bytes_s) if bytes_s > 0.0 => Ok(bytes_s / f64::from(1 << 20)),
        _ => Err(format!("fio does not say how fast it has read: {}", said.trim()).into()),
    }
}
