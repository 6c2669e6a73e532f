//! The command line.

mod install;
mod machine;
mod serve;
mod study;
mod trace;
mod working_set;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use reapvm_reap::MemoryRestoreMode;

pub(crate) use install::{InstallArguments, to_arguments as install_arguments};
pub(crate) use machine::{MachineOptions, OverrideOptions};
pub(crate) use serve::{
    Request, RequestCommand, RequestInvoke, Serve, ServeWorker, TemplateArgument,
};
pub(crate) use study::StudyArguments;
pub(crate) use trace::{TraceAnalysis, TraceCommand, TraceFlags, TraceInfo, TraceRecordArguments};
pub(crate) use working_set::{
    WorkingSetCommand, WorkingSetDiff, WorkingSetMerge, WorkingSetShow, WorkingSetUseOptions,
    to_arguments as working_set_arguments,
};

/// A minimal KVM hypervisor that starts snapshots with their working set prefetched (REAP).
#[derive(Parser)]
#[command(name = "reapvm", version, max_term_width = 100)]
#[command(after_help = "\
First steps:
  reapvm snapshot create --function helloworld -o hello.snap
  reapvm invoke hello.snap --input '{\"seed\":1}' --memory record
  reapvm invoke hello.snap --input '{\"seed\":2}' --memory prefetch --cold

reapvm needs read and write access to /dev/kvm, and to /dev/userfaultfd for the memory modes
ondemand, record and prefetch.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) logging: Logging,
}

#[derive(Args)]
pub(crate) struct Logging {
    /// Write log lines to standard error, for example `debug` or `reapvm_reap=trace` [default:
    /// `warn` for run, restore and serve, `off` for the others]
    #[arg(long, global = true, value_name = "FILTER", env = "REAPVM_LOG")]
    pub(crate) log: Option<tracing_subscriber::filter::Targets>,
}

/// The command line of `reapvm invoke` alone.
#[derive(Parser)]
#[command(disable_help_flag = true)]
struct InvokeArguments {
    #[command(flatten)]
    invoke: Invoke,
    #[command(flatten)]
    logging: Logging,
}

impl Arguments {
    /// Parses this process's command line; ends the process if it is wrong, or asks for help.
    ///
    /// clap describes all subcommands before it looks at the first argument, which is a part of a
    /// cold start that `invoke` does not need. Whatever is not right is left to the whole.
    pub(crate) fn of_this_process() -> Self {
        let mut arguments = std::env::args_os().skip(1);
        if arguments.next().is_some_and(|command| command == "invoke") {
            let program = std::ffi::OsString::from("reapvm");
            let parsed = InvokeArguments::try_parse_from(std::iter::once(program).chain(arguments));
            if let Ok(InvokeArguments { invoke, logging }) = parsed {
                return Self {
                    command: Command::Invoke(invoke),
                    logging,
                };
            }
        }
        Self::parse()
    }
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Boot a machine; its console is standard input and output
    Run(Box<Run>),
    /// Create snapshots and look into them
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Restore a snapshot, call its function, print the response
    Invoke(Invoke),
    /// Restore a snapshot and let it run; its console is standard input and output
    Restore(Restore),
    /// Record traces of page faults, and look into them
    #[command(subcommand)]
    Trace(TraceCommand),
    /// Serve starts from snapshots over a Unix socket, from machines that are prepared beforehand
    Serve(Serve),
    /// Ask a server that runs `reapvm serve`
    Request(Request),
    /// The process of one machine of `reapvm serve`
    #[command(hide = true)]
    ServeWorker(ServeWorker),
    /// Merge and compare the working sets of a snapshot, and look into them
    #[command(subcommand)]
    WorkingSet(WorkingSetCommand),
    /// Measure how a disk is best read, for --install-tuned
    Tune(Tune),
    /// Measure warm and cold starts of the built-in functions
    Bench(Bench),
    /// Study how functions use memory: the findings of the REAP paper, tested here, as a report
    Study(StudyArguments),
    /// The built-in guest's image
    #[command(subcommand)]
    Image(ImageCommand),
}

impl Command {
    /// Whether it is there for its machine until that ends, and not for one answer of it.
    pub(crate) fn runs_for_long(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Restore(_) | Self::Serve(_))
    }
}

/// How what runs a machine ends.
const EXIT_CODES: &str = "\
Exit codes:
  0      the guest reset or powered off its machine, or it was saved as asked for
  1      the machine or its guest failed: the message says how
  2      the command line is wrong
  3      the guest's kernel panicked, and said so through pvpanic
  128+N  signal N ended the machine";

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) machine: MachineOptions,
    /// The serial port: `stdio`, `none`, or a file that takes its output
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    pub(crate) serial: Serial,
    /// End the machine with an error if the guest has not ended by itself after this long
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
}

/// Where the serial port leads.
#[derive(Clone, Debug)]
pub(crate) enum Serial {
    /// Standard input and output.
    Stdio,
    /// Nowhere.
    None,
    /// Into a file.
    File(PathBuf),
}

impl From<std::ffi::OsString> for Serial {
    fn from(text: std::ffi::OsString) -> Self {
        match text.to_str() {
            Some("stdio") => Self::Stdio,
            Some("none") => Self::None,
            _ => Self::File(text.into()),
        }
    }
}

/// By what a guest shows that it is ready to be saved.
#[derive(Clone, Debug)]
pub(crate) enum WaitFor {
    /// A text on its console.
    Text(String),
    /// A vsock port that takes a connection.
    VsockPort(u32),
}

fn wait_for(text: &str) -> Result<WaitFor, String> {
    match text.strip_prefix("vsock:") {
        None if text.trim().is_empty() => Err("a text to wait for cannot be empty".to_owned()),
        None => Ok(WaitFor::Text(text.to_owned())),
        Some(port) => port
            .parse()
            .map(WaitFor::VsockPort)
            .map_err(|_| format!("'{port}' is no vsock port")),
    }
}

#[derive(Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Boot a machine, wait until it is ready, serve one warm-up invocation, save it
    Create(Box<SnapshotCreate>),
    /// Say what a snapshot holds
    Info(SnapshotInfo),
    /// Check every byte of a snapshot against its checksums
    Verify(SnapshotVerify),
    /// Make a full snapshot of one and the diffs that follow it
    Merge(SnapshotMerge),
}

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct SnapshotCreate {
    #[command(flatten)]
    pub(crate) machine: MachineOptions,
    /// The snapshot directory to make; an older snapshot there is replaced at once
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Save when the console says TEXT, or when a vsock port takes connections: `vsock:PORT`
    ///
    /// A built-in function says by itself when it serves.
    #[arg(long, value_name = "TEXT|vsock:PORT", value_parser = wait_for, conflicts_with = "function")]
    pub(crate) wait_for: Option<WaitFor>,
    /// Serve one invocation with this input before saving [default for functions: {"seed":0}]
    #[arg(long, value_name = "JSON", value_parser = json)]
    pub(crate) warm_up: Option<serde_json::Value>,
    /// How long booting and the warm-up may each take
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

#[derive(Args)]
pub(crate) struct SnapshotInfo {
    /// The snapshot directory
    pub(crate) dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct SnapshotVerify {
    /// The snapshot directory
    pub(crate) dir: PathBuf,
}

#[derive(Args)]
pub(crate) struct SnapshotMerge {
    /// The full snapshot to begin with
    #[arg(long, value_name = "DIR")]
    pub(crate) base: PathBuf,
    /// A diff against the base; may be repeated, each then against the one before it
    #[arg(long, value_name = "DIR", required = true)]
    pub(crate) diff: Vec<PathBuf>,
    /// The snapshot directory to make; an older snapshot there is replaced at once
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
}

/// How memory comes back, as clap reads it.
fn mode(text: &str) -> Result<MemoryRestoreMode, String> {
    text.parse::<MemoryRestoreMode>()
        .map_err(|error| error.to_string())
}

#[derive(Args)]
pub(crate) struct Invoke {
    /// The snapshot directory
    pub(crate) dir: PathBuf,
    /// The function's input
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = json)]
    pub(crate) input: serde_json::Value,
    /// How guest memory comes back [default: ondemand]
    ///
    /// copy: read whole, and checked, before the first instruction.
    /// file: private mapping of the memory file, served by the kernel, which checks nothing:
    /// run `reapvm snapshot verify` where the disk is not trusted.
    /// ondemand: a page at a time by reapvm's pager, each page checked.
    /// record: as ondemand, and the pages that the invocation touched become the working set.
    /// prefetch: the working set is read and installed at once, the rest as ondemand.
    #[arg(long, value_name = "MODE", value_parser = mode, verbatim_doc_comment)]
    pub(crate) memory: Option<MemoryRestoreMode>,
    #[command(flatten)]
    pub(crate) working_set: WorkingSetUseOptions,
    #[command(flatten)]
    pub(crate) install: InstallArguments,
    #[command(flatten)]
    pub(crate) overrides: OverrideOptions,
    #[command(flatten)]
    pub(crate) trace: TraceFlags,
    /// Take the snapshot's files out of the page cache first, and fail if they stay
    #[arg(long)]
    pub(crate) cold: bool,
    /// Repeat the whole start, each time in a new process
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,
    /// Print JSON: the response, the marks and the faults; a line a repetition
    #[arg(long)]
    pub(crate) json: bool,
    /// How long the response may take
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Throw a recording away instead of replacing the snapshot's working set
    #[arg(long, hide = true)]
    pub(crate) discard_recording: bool,
    /// Moment of exec on the monotonic clock, in ns: given by a launcher that measures
    #[arg(long, value_name = "NS", hide = true)]
    pub(crate) started_at_ns: Option<u64>,
}

#[derive(Args)]
#[command(after_help = EXIT_CODES)]
#[command(group = clap::ArgGroup::new("ready").multiple(true))]
pub(crate) struct Restore {
    /// The snapshot directory
    pub(crate) dir: PathBuf,
    /// How guest memory comes back: see `reapvm invoke --help`
    #[arg(long, value_name = "MODE", default_value = "ondemand", value_parser = mode)]
    pub(crate) memory: MemoryRestoreMode,
    #[command(flatten)]
    pub(crate) overrides: OverrideOptions,
    /// The serial port: `stdio`, `none`, or a file that takes its output
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    pub(crate) serial: Serial,
    /// Save the machine when it is ready, and end: the snapshot directory to make
    ///
    /// Ready is a machine whose guest is as --wait-for says, and has served --warm-up.
    #[arg(long, value_name = "DIR", requires = "ready")]
    pub(crate) save_to: Option<PathBuf>,
    /// Save only the pages that were written since the snapshot was made: see `snapshot merge`
    #[arg(long, requires = "save_to")]
    pub(crate) diff: bool,
    /// Save when the console says TEXT, or when a vsock port takes connections: `vsock:PORT`
    #[arg(long, value_name = "TEXT|vsock:PORT", value_parser = wait_for, group = "ready", requires = "save_to")]
    pub(crate) wait_for: Option<WaitFor>,
    /// Serve one invocation with this input before saving
    #[arg(long, value_name = "JSON", value_parser = json, group = "ready", requires = "save_to")]
    pub(crate) warm_up: Option<serde_json::Value>,
    /// End the machine with an error if the guest has not ended by itself, or is not ready to be
    /// saved [default: 60], after this long
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Args)]
pub(crate) struct Tune {
    /// A directory on the disk where the snapshots are
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Print what was found as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which guest a benchmark measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageKind {
    /// The guest that is embedded in this program.
    Builtin,
    /// A Linux guest with Python.
    Linux,
}

/// Whose functions are measured.
#[derive(Args)]
pub(crate) struct ImageArguments {
    /// Whose functions: those of the built-in guest, or the same in Python on Linux
    #[arg(long, value_enum, default_value = "builtin")]
    pub(crate) image: ImageKind,
    /// Where `make linux-images` has put the images [default: ~/.cache/reapvm/linux/images]
    #[arg(long, value_name = "DIR")]
    pub(crate) image_dir: Option<PathBuf>,
    /// Another kernel for the Linux image
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// The initial RAM disk that this kernel needs
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,
}

/// A mode in which many machines are started at once.
fn concurrent_mode(text: &str) -> Result<MemoryRestoreMode, String> {
    match mode(text)? {
        MemoryRestoreMode::Record => {
            Err("recordings of one snapshot cannot be made at once".to_owned())
        }
        mode => Ok(mode),
    }
}

/// What makes many starts at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StartBy {
    /// A process `reapvm invoke` each.
    Invoke,
    /// One server, `reapvm serve`, with a prepared machine for each.
    Serve,
}

impl StartBy {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Invoke => "invoke",
            Self::Serve => "serve",
        }
    }
}

#[derive(Args)]
pub(crate) struct Bench {
    #[command(flatten)]
    pub(crate) image: ImageArguments,
    /// Functions, separated by commas
    #[arg(long, value_name = "NAMES", default_value = "all")]
    pub(crate) functions: String,
    /// Memory modes to start cold with, separated by commas; warm is always measured
    #[arg(long, value_name = "MODES", default_value = "file,ondemand,record,prefetch", value_delimiter = ',', value_parser = mode)]
    pub(crate) modes: Vec<MemoryRestoreMode>,
    /// Start cold by every method, from a file mapping on, and print what each step is worth
    #[arg(long, conflicts_with_all = ["concurrent", "clones", "modes"])]
    pub(crate) ladder: bool,
    #[command(flatten)]
    pub(crate) install: InstallArguments,
    /// Runs of each mode of each function
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) runs: u32,
    /// Measure so many cold starts at the same moment instead, of as many copies of snapshots
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) concurrent: Vec<u32>,
    /// Measure so many cold starts at the same moment instead, all of one snapshot
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) clones: Vec<u32>,
    /// With --concurrent or --clones: the memory modes
    #[arg(long, value_name = "MODES", default_value = "prefetch", value_delimiter = ',', value_parser = concurrent_mode)]
    pub(crate) concurrent_modes: Vec<MemoryRestoreMode>,
    /// With --concurrent or --clones: what makes the starts
    #[arg(
        long,
        value_name = "HOW",
        default_value = "invoke,serve",
        value_delimiter = ',',
        value_enum
    )]
    pub(crate) start_by: Vec<StartBy>,
    /// With --concurrent or --clones: machines whose memory a server reads at once
    #[arg(long, value_name = "N", default_value_t = serve::DEFAULT_MAX_READING, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_reading: u32,
    /// Also write all results to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Where the snapshots are made: a directory on the disk to be measured
    #[arg(long, value_name = "DIR", default_value = "bench-results/snapshots")]
    pub(crate) dir: PathBuf,
}

#[derive(Subcommand)]
pub(crate) enum ImageCommand {
    /// Write the built-in guest's ELF image, to run it elsewhere
    Export(ImageExport),
    /// List the functions of the built-in guest
    List,
}

#[derive(Args)]
pub(crate) struct ImageExport {
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

fn json(text: &str) -> Result<serde_json::Value, String> {
    serde_json::from_str(text).map_err(|error| format!("this is not JSON: {error}"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| format!("'{text}' is no number of seconds, such as 10 or 0.5"))?;
    if seconds <= 0.0 {
        return Err("a time limit must be more than zero seconds".to_owned());
    }
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        InvokeArguments::command().debug_assert();
    }

    #[test]
    fn times_must_be_positive_numbers() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "nan", "inf", "soon", "1e300"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
