//! The arguments of `reapvm working-set`, and those about working sets of `reapvm invoke`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use reapvm::cold_start::{WorkingSetOptions, WorkingSetPolicy};
use reapvm_reap::EvolutionRules;

#[derive(Subcommand)]
pub(crate) enum WorkingSetCommand {
    /// Make one working set of several recordings of the same snapshot
    Merge(WorkingSetMerge),
    /// Say which pages two working sets of the same snapshot have in common
    Diff(WorkingSetDiff),
    /// Say what a working set holds and how its pages lie in guest memory
    Show(WorkingSetShow),
}

#[derive(Args)]
pub(crate) struct WorkingSetMerge {
    /// Working-set files, or snapshot directories for the set in them
    #[arg(value_name = "SET", required = true)]
    pub(crate) sets: Vec<PathBuf>,
    /// The working-set file to write, or a snapshot directory for the set in it; replaced at once
    #[arg(short, long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Keep only pages that are in every set, instead of those that are in any
    #[arg(long, conflicts_with = "at_least")]
    pub(crate) intersection: bool,
    /// Keep only pages that at least K of all the recordings touched
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) at_least: Option<u16>,
    /// The snapshot that the sets belong to [default: the directory of the first set]
    #[arg(long, value_name = "DIR")]
    pub(crate) snapshot: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct WorkingSetDiff {
    /// A working-set file, or a snapshot directory for the set in it
    pub(crate) first: PathBuf,
    /// Another one of the same snapshot
    pub(crate) second: PathBuf,
    /// The snapshot that the sets belong to [default: the directory of the first set]
    #[arg(long, value_name = "DIR")]
    pub(crate) snapshot: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct WorkingSetShow {
    /// A working-set file, or a snapshot directory for the set in it
    pub(crate) set: PathBuf,
    /// The snapshot that it belongs to [default: the directory of the set]
    #[arg(long, value_name = "DIR")]
    pub(crate) snapshot: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What starts do about their snapshot's working set.
#[derive(Args, Debug)]
pub(crate) struct WorkingSetPolicyOptions {
    /// What happens to the working set from start to start
    ///
    /// fixed: it stays as it is; memory comes back as --memory says.
    /// evolve: it is prefetched. Where there is none, or a prefetch missed or wasted too much, a
    /// start records instead, and the set changes by that: pages that were touched join, pages that
    /// several recordings in a row did not touch leave.
    /// record: this start records, and the set changes by that.
    #[arg(long, value_name = "POLICY", default_value = "fixed", value_parser = policy, verbatim_doc_comment)]
    pub(crate) working_set_policy: WorkingSetPolicy,
    /// evolve: record again after a prefetch that missed more than this share of the set
    #[arg(long, value_name = "PERCENT", default_value = "1", value_parser = percent)]
    pub(crate) miss_threshold: f64,
    /// evolve: record again after a run that left more than this share of the set untouched
    #[arg(long, value_name = "PERCENT", default_value = "10", value_parser = percent)]
    pub(crate) unused_threshold: f64,
    /// evolve, record: a page leaves that so many recordings in a row did not touch
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) leave_after: u16,
    /// Begin anew with a state of the working set that is damaged or of another snapshot or version
    #[arg(long)]
    pub(crate) reset_working_set_state: bool,
}

/// What an invocation does about its snapshot's working set.
#[derive(Args)]
pub(crate) struct WorkingSetUseOptions {
    #[command(flatten)]
    pub(crate) policy: WorkingSetPolicyOptions,
    /// Measure which prefetched pages the guest did not touch; makes the start longer, needs root
    #[arg(long)]
    pub(crate) measure_unused: bool,
}

impl WorkingSetPolicyOptions {
    pub(crate) fn options(&self) -> WorkingSetOptions {
        WorkingSetOptions {
            policy: self.working_set_policy,
            rules: EvolutionRules {
                miss_threshold_pct: self.miss_threshold,
                unused_threshold_pct: self.unused_threshold,
                leave_after: self.leave_after,
            },
            reset_state: self.reset_working_set_state,
            measure_unused: false,
        }
    }
}

impl WorkingSetUseOptions {
    pub(crate) fn options(&self) -> WorkingSetOptions {
        WorkingSetOptions {
            measure_unused: self.measure_unused,
            ..self.policy.options()
        }
    }
}

/// The arguments that stand for `options`.
pub(crate) fn to_arguments(options: &WorkingSetOptions) -> Vec<String> {
    let rules = &options.rules;
    let mut arguments = vec![
        format!("--working-set-policy={}", options.policy),
        format!("--miss-threshold={}", rules.miss_threshold_pct),
        format!("--unused-threshold={}", rules.unused_threshold_pct),
        format!("--leave-after={}", rules.leave_after),
    ];
    if options.reset_state {
        arguments.push("--reset-working-set-state".to_owned());
    }
    if options.measure_unused {
        arguments.push("--measure-unused".to_owned());
    }
    arguments
}

fn policy(text: &str) -> Result<WorkingSetPolicy, String> {
    text.parse::<WorkingSetPolicy>()
        .map_err(|error| error.to_string())
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err(format!("'{text}' is no percentage from 0 to 100")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: WorkingSetUseOptions,
    }

    #[test]
    fn options_become_arguments_that_mean_them() {
        let given = WorkingSetOptions {
            policy: WorkingSetPolicy::Evolve,
            rules: EvolutionRules {
                miss_threshold_pct: 0.25,
                unused_threshold_pct: 33.0,
                leave_after: 7,
            },
            reset_state: true,
            measure_unused: true,
        };
        for options in [given, WorkingSetOptions::default()] {
            let line = [vec!["reapvm".to_owned()], to_arguments(&options)].concat();
            assert_eq!(Line::parse_from(line).options.options(), options);
        }
        // What clap says by default is what the library does.
        let line = Line::parse_from(["reapvm"]);
        assert_eq!(line.options.options(), WorkingSetOptions::default());
    }

    #[test]
    fn percentages_are_bounded() {
        assert_eq!(percent("2.5"), Ok(2.5));
        for bad in ["-1", "101", "nan", "many", ""] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }
}
