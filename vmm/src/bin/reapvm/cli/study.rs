//! `reapvm study`.

use std::path::PathBuf;

use clap::Args;

use super::{ImageArguments, InstallArguments};

/// Starts each function cold with several inputs, again and again, in every memory mode, and writes a
/// report: footprint, latency by phase, contiguity, reuse, readahead, misses and waste of working sets,
/// and the claims of the REAP paper beside what was found here.
///
/// docs/study.md explains each figure.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct StudyArguments {
    #[command(flatten)]
    pub(crate) image: ImageArguments,
    #[command(flatten)]
    pub(crate) install: InstallArguments,
    /// Functions, separated by commas
    #[arg(long, value_name = "NAMES", default_value = "all")]
    pub(crate) functions: String,
    /// Inputs that each function is called with
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=16))]
    pub(crate) inputs: u32,
    /// Starts of each kind with each input
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) repetitions: u32,
    /// The folder for report, data and traces, on the disk to be measured; those of an older study
    /// there are removed
    #[arg(short, long, value_name = "DIR", default_value = "bench-results/study")]
    pub(crate) output: PathBuf,
    /// Make the report again of what was measured before, also of a study that was interrupted
    #[arg(long, conflicts_with_all = ["functions", "inputs", "repetitions", "image"])]
    pub(crate) report_only: bool,
    /// Figures of Linux guests to stand beside: JSON lines, from `make linux-figures`
    #[arg(long, value_name = "FILE")]
    pub(crate) linux_figures: Option<PathBuf>,
    /// The symbols of a Linux guest's kernel, where KVM's tracepoint sees its instructions: an ELF
    /// file or a System.map [default: the built-in guest's own]
    #[arg(long, value_name = "FILE")]
    pub(crate) symbols: Option<PathBuf>,
    /// How far that kernel was moved from where it was linked (KASLR), in hexadecimal
    #[arg(long, value_name = "HEX", requires = "symbols")]
    pub(crate) moved_by: Option<String>,
    /// Keep the snapshots, 50 to 200 MiB a function
    #[arg(long)]
    pub(crate) keep_snapshots: bool,
}
