//! What a study has measured, as its folder keeps it: `reapvm study` writes it, and what makes the
//! report reads it.
//!
//! The folder holds [`MEASUREMENTS_FILE`], JSON with all numbers, replaced as a whole after each
//! function, so that a study that was interrupted says what it has; and [`TRACES_FOLDER`], with the
//! [traces](crate::trace) that the starts name. `docs/study.md` describes both.

mod error;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use reapvm_snapshot::{SnapshotId, files};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use error::StudyFileError;

/// The file with all numbers.
pub const MEASUREMENTS_FILE: &str = "measurements.json";
/// The folder with the traces.
pub const TRACES_FOLDER: &str = "traces";
/// The built-in guest's image with its symbols.
pub const IMAGE_FILE: &str = "image.elf";
/// The version of the format that this program writes and reads.
pub const VERSION: u32 = 1;

/// What the file says that it is.
const FORMAT: &str = "reapvm-study";
/// Longest file that is read: a thousand functions with hundreds of starts each have room.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Everything that a study has measured up to now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Study {
    format: String,
    version: u32,
    /// What was to be measured.
    pub plan: StudyPlan,
    /// Where.
    pub host: StudyHost,
    /// What was measured: a function is added when all of it is there.
    pub functions: Vec<FunctionMeasurements>,
}

/// What is to be measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StudyPlan {
    /// Whose functions: "builtin" or "linux".
    pub image: String,
    /// Their names.
    pub functions: Vec<String>,
    /// The inputs that each is called with. The first one is recorded for
    /// [`StartKind::PrefetchOne`], all but the last for [`StartKind::PrefetchMerged`].
    pub inputs: Vec<Value>,
    /// Starts of each kind with each input.
    pub repetitions: u32,
    /// The command that measures: what follows the name of the program.
    pub command: Vec<String>,
    /// When it began, in milliseconds since 1970.
    pub began_unix_ms: u64,
}

/// The machine that it was measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StudyHost {
    /// Its processor's name.
    pub cpu_model: String,
    /// Its processors.
    pub cpus: u64,
    /// Its memory, in MiB.
    pub memory_mib: u64,
    /// Its kernel's release.
    pub kernel: String,
    /// The version of reapvm.
    pub reapvm: String,
    /// Whether KVM uses the processor's nested paging; without it, it shadows page tables.
    pub has_nested_paging: bool,
    /// Sequential reads past the page cache, in MiB/s.
    pub disk_seq_read_mib_s: f64,
    /// Random reads of 4 KiB past the page cache, one at a time, in µs.
    pub disk_rand_read_4k_us: f64,
}

/// One function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionMeasurements {
    /// Its name.
    pub function: String,
    /// The id of the snapshot that it was started from: that of its traces.
    pub snapshot: String,
    /// Guest memory, in bytes.
    pub memory_bytes: u64,
    /// What of it was resident when the booted machine was saved, in bytes.
    pub booted_resident_bytes: u64,
    /// Calls of the machine that was never interrupted.
    pub warm: Vec<WarmCall>,
    /// Cold starts.
    pub starts: Vec<Start>,
}

/// A call of a machine that runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WarmCall {
    /// Place of its input in the plan.
    pub input: usize,
    /// From the request to the whole response.
    pub ms: f64,
}

/// What a cold start was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartKind {
    /// Memory mode `file`: the paper's baseline.
    File,
    /// Memory mode `ondemand`.
    OnDemand,
    /// Memory mode `record`, without a trace.
    Record,
    /// Memory mode `prefetch` with the working set of the first input; never with that input.
    PrefetchOne,
    /// Memory mode `prefetch` with the merged working sets of all inputs but the last; with that.
    PrefetchMerged,
    /// Memory mode `record` with a trace: what it touched, in order. Not timed.
    Traced,
    /// Memory mode `file` with a trace from the kernel, for the guest's instructions. Not timed.
    Instructions,
}

impl StartKind {
    /// All kinds, in the order in which the starts of a round are made.
    pub const ALL: [Self; 7] = [
        Self::File,
        Self::OnDemand,
        Self::Record,
        Self::PrefetchOne,
        Self::PrefetchMerged,
        Self::Traced,
        Self::Instructions,
    ];
    /// Those whose times count.
    pub const TIMED: [Self; 5] = [
        Self::File,
        Self::OnDemand,
        Self::Record,
        Self::PrefetchOne,
        Self::PrefetchMerged,
    ];

    /// The name that reports and tables use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::OnDemand => "ondemand",
            Self::Record => "record",
            Self::PrefetchOne => "prefetch",
            Self::PrefetchMerged => "prefetch, merged",
            Self::Traced => "traced",
            Self::Instructions => "instructions",
        }
    }

    /// Whether a study starts so with the input in this place, of so many.
    #[must_use]
    pub fn is_with(self, input: usize, inputs: usize) -> bool {
        match self {
            Self::File | Self::OnDemand | Self::Record | Self::Traced => true,
            Self::PrefetchOne => input > 0,
            // A merged set is one of two recordings at least.
            Self::PrefetchMerged => inputs > 2 && input + 1 == inputs,
            Self::Instructions => input == 0,
        }
    }
}

/// Where the time of a cold start went, in milliseconds: its parts, one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StartPhasesMs {
    /// From the launcher's exec to the program's first instruction.
    pub launch: f64,
    /// State, devices and KVM, up to the guest's first instruction, but for the next part.
    pub restore: f64,
    /// Waiting for the working set before the guest's first instruction.
    pub working_set: f64,
    /// From the guest's first instruction until it accepts the connection.
    pub connection: f64,
    /// From there to the whole response.
    pub processing: f64,
}

impl StartPhasesMs {
    /// Their names, in their order.
    pub const NAMES: [&str; 5] = [
        "launch",
        "state restore",
        "working set",
        "connection",
        "processing",
    ];

    /// The parts, in their order.
    #[must_use]
    pub fn parts(&self) -> [f64; 5] {
        [
            self.launch,
            self.restore,
            self.working_set,
            self.connection,
            self.processing,
        ]
    }
}

/// One cold start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// What for.
    pub kind: StartKind,
    /// Place of its input in the plan.
    pub input: usize,
    /// Which of the repetitions, from 0.
    pub repetition: u32,
    /// From the launcher's exec to the whole response, in ms.
    pub total_ms: f64,
    /// The parts of that.
    pub phases_ms: StartPhasesMs,
    /// Faults that the pager served.
    pub pager_faults: u64,
    /// Of these, those on pages that the working set lacks.
    pub missed_pages: u64,
    /// Major faults of the process, which read from the disk.
    pub major_faults: u64,
    /// Minor faults of the process.
    pub minor_faults: u64,
    /// Pages of the working set, installed or recorded; none in other modes.
    pub working_set_pages: Option<u64>,
    /// Resident guest memory after the response, in KiB.
    pub guest_resident_kib: u64,
    /// Name of its trace in [`TRACES_FOLDER`], if it has one.
    pub trace: Option<String>,
}

impl Study {
    /// A study of which nothing was measured yet.
    #[must_use]
    pub fn new(plan: StudyPlan, host: StudyHost) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            plan,
            host,
            functions: Vec::new(),
        }
    }

    /// Writes the study into the folder `dir`, in place of what was there.
    ///
    /// # Errors
    /// The file cannot be written; an older one then stays as it was.
    pub fn write(&self, dir: &Path) -> Result<(), StudyFileError> {
        let path = dir.join(MEASUREMENTS_FILE);
        files::replace_file(&path, |file| {
            serde_json::to_writer_pretty(&mut *file, self)?;
            file.write_all(b"\n")
        })
        .map_err(|source| StudyFileError::Write { path, source })
    }

    /// Reads the study in the folder `dir`.
    ///
    /// # Errors
    /// There is none, it cannot be read, it is truncated or something else, of another version, or
    /// says what cannot be.
    pub fn read(dir: &Path) -> Result<Self, StudyFileError> {
        let path = dir.join(MEASUREMENTS_FILE);
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => StudyFileError::Missing {
                dir: dir.to_owned(),
            },
            _ => StudyFileError::Read {
                path: path.clone(),
                source,
            },
        };
        let mut text = Vec::new();
        let file = File::open(&path).map_err(failed)?;
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(failed)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(StudyFileError::Invalid {
                path,
                reason: format!("it is longer than {} MiB", MAX_FILE_BYTES >> 20),
            });
        }
        Self::from_json(&text, &path)
    }

    /// Reads the study from the text of the file `path`.
    fn from_json(text: &[u8], path: &Path) -> Result<Self, StudyFileError> {
        /// What every version has.
        #[derive(Deserialize)]
        struct Envelope {
            format: String,
            version: u32,
        }
        let not_json = |source: serde_json::Error| match source.is_eof() {
            true => StudyFileError::Truncated {
                path: path.to_owned(),
            },
            false => StudyFileError::Foreign {
                path: path.to_owned(),
                source: Some(source),
            },
        };
        let envelope: Envelope = serde_json::from_slice(text).map_err(not_json)?;
        if envelope.format != FORMAT {
            return Err(StudyFileError::Foreign {
                path: path.to_owned(),
                source: None,
            });
        }
        if envelope.version != VERSION {
            return Err(StudyFileError::Version {
                path: path.to_owned(),
                version: envelope.version,
            });
        }
        let study: Self = serde_json::from_slice(text).map_err(not_json)?;
        study.check().map_err(|reason| StudyFileError::Invalid {
            path: path.to_owned(),
            reason,
        })?;
        Ok(study)
    }

    fn check(&self) -> Result<(), String> {
        let inputs = self.plan.inputs.len();
        let mut seen = HashSet::new();
        for measured in &self.functions {
            let name = &measured.function;
            if !self.plan.functions.contains(name) {
                return Err(format!("{name} is not in its plan"));
            }
            if !seen.insert(name) {
                return Err(format!("{name} is in it twice"));
            }
            if measured.snapshot.parse::<SnapshotId>().is_err() {
                return Err(format!("{name} has no snapshot's id"));
            }
            for start in &measured.starts {
                let is_time = |ms: &f64| ms.is_finite() && *ms >= 0.0;
                let is_plain = |name: &String| {
                    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
                    !name.starts_with('.') && name.chars().all(is_plain)
                };
                if start.input >= inputs || start.repetition >= self.plan.repetitions {
                    return Err(format!("{name} has a start that is not in its plan"));
                }
                if start.total_ms == 0.0
                    || !is_time(&start.total_ms)
                    || !start.phases_ms.parts().iter().all(is_time)
                {
                    return Err(format!("{name} has a start that took no time that can be"));
                }
                // A name that leads out of the folder is nobody's trace.
                if !start.trace.iter().all(is_plain) {
                    return Err(format!("{name} has a trace with a name that cannot be"));
                }
            }
            for call in &measured.warm {
                if call.input >= inputs {
                    return Err(format!("{name} has a warm call that is not in its plan"));
                }
                if !call.ms.is_finite() || call.ms <= 0.0 {
                    return Err(format!(
                        "{name} has a warm call that took no time that can be"
                    ));
                }
            }
        }
        Ok(())
    }

    /// What of the plan is not there, a sentence a function; empty for a whole study.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let plan = &self.plan;
        let inputs = plan.inputs.len();
        let mut missing = Vec::new();
        for name in &plan.functions {
            let Some(measured) = self.functions.iter().find(|m| m.function == *name) else {
                missing.push(format!("{name}: nothing of it was measured"));
                continue;
            };
            for kind in StartKind::ALL {
                let with = (0..inputs).filter(|input| kind.is_with(*input, inputs));
                let repetitions = match kind {
                    StartKind::Instructions => 1,
                    _ => plan.repetitions as usize,
                };
                let planned = with.count() * repetitions;
                let there = measured.starts.iter().filter(|s| s.kind == kind).count();
                if there < planned {
                    let kind = kind.as_str();
                    missing.push(format!("{name}: {there} of {planned} starts \"{kind}\""));
                }
            }
        }
        missing
    }
}
