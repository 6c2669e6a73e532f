//! What the REAP paper says, and what was found here: claim by claim.
//!
//! The paper's figures are those of "Benchmarking, Analysis, and Optimization of Serverless Function
//! Snapshots" (ASPLOS'21) and of its extended abstract. Everything else is computed.

use reapvm_reap::averages::{mean, median};
use reapvm_reap::study::{StartKind, Study};

use super::findings::Function;
use super::linux::LinuxFigures;
use super::numbers::{percent, range};
use super::readahead::{LINUX_WINDOW, Shape};
use super::tables::mean_readahead;

/// Whether what was found is what the paper says, by the rule of the claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Same,
    Different,
    NotMeasured,
}

impl Verdict {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Different => "different",
            Self::NotMeasured => "not measured",
        }
    }
}

/// A claim of the paper, tested.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Claim {
    pub(super) claim: &'static str,
    /// The paper's figure.
    pub(super) paper: &'static str,
    /// What was measured.
    pub(super) ours: String,
    /// What Linux guests in nested hosts show.
    pub(super) linux: String,
    pub(super) verdict: Verdict,
    /// When it counts as the same.
    pub(super) rule: &'static str,
    /// What the figures say about the reason.
    pub(super) why: String,
}

/// Percentages that differ by no more than this are called the same.
const NEAR_POINTS: f64 = 3.0;
const PAPER_FOOTPRINT_LEAST_PCT: f64 = 61.0;
const PAPER_SLOWDOWN_PCT: f64 = 95.0;
const PAPER_SAME_PCT: f64 = 97.0;
const PAPER_ELIMINATED_PCT: f64 = 97.0;
const PAPER_SPEED_UP: f64 = 3.7;
/// Times differ more between machines: a quarter.
const NEAR_RATIO: f64 = 1.25;
const PAPER_RECORDING_PCT: (f64, f64) = (15.0, 87.0);
const PAPER_RUN_PAGES: (f64, f64) = (1.5, 3.5);
const NOT_MEASURED: &str = "not measured here";
const NO_TIMES: &str = "no times from an emulated host";

pub(super) fn claims(
    study: &Study,
    functions: &[Function<'_>],
    linux: &[LinuxFigures],
) -> Vec<Claim> {
    vec![
        footprint(functions, linux),
        slowdown(functions, linux),
        reuse(functions, linux),
        contiguity(functions, linux),
        eliminated(functions, linux),
        speed_up(study, functions, linux),
        recording(functions, linux),
    ]
}

fn all<'a>(functions: &[Function<'a>], of: impl Fn(&Function<'a>) -> Option<f64>) -> Vec<f64> {
    functions.iter().filter_map(of).collect()
}

fn judge(is_same: Option<bool>) -> Verdict {
    match is_same {
        Some(true) => Verdict::Same,
        Some(false) => Verdict::Different,
        None => Verdict::NotMeasured,
    }
}

/// "1.2 to 3.4 UNIT", rounded to so many digits.
fn span(values: impl IntoIterator<Item = f64>, digits: usize, unit: &str) -> String {
    match range(values) {
        Some((least, most)) => {
            let (least, most) = (format!("{least:.digits$}"), format!("{most:.digits$}"));
            match least == most {
                true => format!("{least} {unit}"),
                false => format!("{least} to {most} {unit}"),
            }
        }
        None => NOT_MEASURED.to_owned(),
    }
}

fn mean_of(values: &[f64], digits: usize, unit: &str) -> String {
    match mean(values.iter().copied()) {
        Some(mean) => {
            let mean = format!("{mean:.digits$} {unit}");
            match span(values.iter().copied(), digits, unit) {
                span if span == mean => mean,
                span => format!("{mean} on average ({span})"),
            }
        }
        None => NOT_MEASURED.to_owned(),
    }
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// What Linux guests show, or that they were not measured.
fn of_linux(linux: &[LinuxFigures], of: impl FnOnce(&[LinuxFigures]) -> String) -> String {
    match linux {
        [] => NOT_MEASURED.to_owned(),
        linux => of(linux),
    }
}

fn no_times(linux: &[LinuxFigures]) -> String {
    of_linux(linux, |_| NO_TIMES.to_owned())
}

fn footprint(functions: &[Function<'_>], linux: &[LinuxFigures]) -> Claim {
    let reductions = all(functions, Function::footprint_reduction_pct);
    let booted = functions
        .iter()
        .map(|f| mib(f.measured.booted_resident_bytes as f64));
    let restored = || all(functions, |f| f.restored_bytes().map(mib));
    let least = range(reductions.iter().copied()).map(|range| range.0);
    Claim {
        claim: "A restored function has a much smaller footprint than a booted one",
        paper: "61 to 96 % less: 8 to 99 MB of 148 to 256 MB",
        ours: format!("{} less", mean_of(&reductions, 1, "%")),
        linux: of_linux(linux, |linux| {
            let reduction =
                |f: &LinuxFigures| 100.0 - percent(f.pages * crate::PAGE_BYTES, f.booted_bytes);
            format!("{} less", span(linux.iter().map(reduction), 1, "%"))
        }),
        verdict: judge(least.map(|least| least >= PAPER_FOOTPRINT_LEAST_PCT)),
        rule: "every function's is reduced by 61 % or more",
        why: format!(
            "Resident after a boot: {}; after a start on demand: {}. What boot and start-up touched \
             and no request needs stays on the disk.",
            span(booted, 0, "MiB"),
            span(restored(), 1, "MiB")
        ),
    }
}

fn slowdown(functions: &[Function<'_>], linux: &[LinuxFigures]) -> Claim {
    let pairs: Vec<(f64, f64)> = functions
        .iter()
        .filter_map(|f| Some((f.call_ms(StartKind::File)?, f.warm_ms()?)))
        .collect();
    let (cold, warm) = pairs
        .iter()
        .fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1));
    let slower = (warm > 0.0).then(|| 100.0 * (cold / warm - 1.0));
    let waiting = pairs.iter().map(|(cold, warm)| 100.0 * (1.0 - warm / cold));
    let alone = all(functions, Function::alone_pct);
    Claim {
        claim: "Faults that are served one after the other slow a function down",
        paper: "95 % slower on average than from memory",
        ours: slower.map_or(NOT_MEASURED.to_owned(), |slower| {
            format!("{slower:.0} % slower, all functions together")
        }),
        linux: no_times(linux),
        verdict: judge(slower.map(|slower| slower >= PAPER_SLOWDOWN_PCT)),
        rule: "95 % slower or more, from the guest's first instruction to the response, with a file \
               mapping",
        why: match slower {
            None => NOT_MEASURED.to_owned(),
            Some(_) => format!(
                "Warm calls take {}, cold ones {}, of which {} is not computing. The less a function \
                 computes, the more its faults weigh: the paper's functions take 1 to 4991 ms warm. \
                 At {} of the faults on demand no other one waited: they are served one by one.",
                span(pairs.iter().map(|pair| pair.1), 1, "ms"),
                span(pairs.iter().map(|pair| pair.0), 0, "ms"),
                span(waiting, 1, "%"),
                span(alone, 1, "%"),
            ),
        },
    }
}

fn reuse(functions: &[Function<'_>], linux: &[LinuxFigures]) -> Claim {
    let same = all(functions, |f| Some(f.other_input?.same_pct));
    let own = all(functions, |f| Some(f.same_input?.same_pct));
    let average = mean(same.iter().copied());
    Claim {
        claim: "Invocations with different inputs touch the same pages",
        paper: "97 % of the pages on average",
        ours: mean_of(&same, 1, "%"),
        linux: of_linux(linux, |linux| {
            let same: Vec<f64> = linux
                .iter()
                .map(|f| percent(f.same_pages, f.pages))
                .collect();
            mean_of(&same, 1, "%")
        }),
        verdict: judge(average.map(|average| average >= PAPER_SAME_PCT - NEAR_POINTS)),
        rule: "94 % or more on average",
        why: match mean(own) {
            Some(own) => format!(
                "With the same input again it is {own:.1} %: so much differs by itself, the rest by the \
                 input."
            ),
            None => "No input was recorded twice, so that what differs by itself is not known."
                .to_owned(),
        },
    }
}

fn contiguity(functions: &[Function<'_>], linux: &[LinuxFigures]) -> Claim {
    let runs = all(functions, Function::pages_a_run);
    let middle = median(runs.iter().copied());
    let next = all(functions, Function::next_page_pct);
    let (covered, wasted) = mean_readahead(functions, LINUX_WINDOW, Shape::Around);
    let beside = match middle {
        Some(middle) if middle < PAPER_RUN_PAGES.0 => {
            "The runs are shorter than the paper's: there is even less for readahead. "
        }
        Some(middle) if middle >= PAPER_RUN_PAGES.1 => "The runs are longer than the paper's. ",
        _ => "",
    };
    Claim {
        claim: "Touched pages lie in short runs: readahead does not help",
        paper: "runs of 2 to 3 pages (1.6 to 4.9)",
        ours: mean_of(&runs, 1, "pages a run"),
        linux: of_linux(linux, |linux| {
            let runs: Vec<f64> = linux
                .iter()
                .map(|f| f.pages as f64 / f.runs.max(1) as f64)
                .collect();
            mean_of(&runs, 1, "pages a run")
        }),
        verdict: judge(
            middle.map(|middle| (PAPER_RUN_PAGES.0..PAPER_RUN_PAGES.1).contains(&middle)),
        ),
        rule: "the median function's mean is 2 or 3 pages, rounded",
        why: format!(
            "{beside}{} of the touches are of the page after the one touched before. Linux's window of \
             {LINUX_WINDOW} pages around each fault would have covered {} of the touches, and {} of what it read \
             nobody touched.",
            span(next, 1, "%"),
            span(covered, 0, "%"),
            span(wasted, 0, "%")
        ),
    }
}

fn eliminated(functions: &[Function<'_>], linux: &[LinuxFigures]) -> Claim {
    let shares = all(functions, Function::eliminated_pct);
    let left = all(functions, |f| Some(f.faults_left()?.1));
    let lacking = all(functions, |f| Some(f.faults_left()?.0));
    let average = mean(shares.iter().copied());
    let fits = |last: bool| {
        all(functions, move |f| {
            let fit = if last { f.fits.last() } else { f.fits.first() };
            Some(fit?.missed_pct)
        })
    };
    Claim {
        claim: "Prefetching the recorded pages eliminates the faults",
        paper: "up to 97 % of the faults",
        ours: mean_of(&shares, 1, "%"),
        linux: of_linux(linux, |linux| {
            let shares: Vec<f64> = linux
                .iter()
                .map(|f| 100.0 - percent(f.missed, f.faults))
                .collect();
            mean_of(&shares, 1, "%")
        }),
        verdict: judge(average.map(|average| average >= PAPER_ELIMINATED_PCT - NEAR_POINTS)),
        rule: "94 % or more on average, with a working set of another input",
        why: format!(
            "Left of them: {}, of which {} on pages that the set lacks; the others were touched before \
             they were in place. By the traces, one recording of another input lacks {} of the pages, \
             the most that could be merged {}.",
            span(left, 0, "a start"),
            span(lacking, 0, "a start"),
            span(fits(false), 1, "%"),
            span(fits(true), 1, "%")
        ),
    }
}

fn speed_up(study: &Study, functions: &[Function<'_>], linux: &[LinuxFigures]) -> Claim {
    let ratios = all(functions, Function::speed_up);
    let average = mean(ratios.iter().copied());
    let near = PAPER_SPEED_UP / NEAR_RATIO..=PAPER_SPEED_UP * NEAR_RATIO;
    let prefetch = all(functions, |f| f.total_ms(StartKind::PrefetchOne));
    // What a prefetch start does beside computing once the guest runs, by the pages that it touches.
    let touch_us = all(functions, |f| {
        let beside = f.call_ms(StartKind::PrefetchOne)? - f.warm_ms()?;
        Some((1e3 * beside / f.touched_pages()?).max(0.0))
    });
    let running = all(functions, |f| {
        let share = f.call_ms(StartKind::PrefetchOne)? / f.total_ms(StartKind::PrefetchOne)?;
        Some(100.0 * share)
    });
    let paging = match study.host.has_nested_paging {
        true => "KVM uses the processor's nested paging here",
        false => "this KVM shadows page tables, so that each first touch exits to it",
    };
    Claim {
        claim: "Cold starts become faster",
        paper: "3.7 times on average (1.04 to 9.7)",
        ours: mean_of(&ratios, 1, "times"),
        linux: no_times(linux),
        verdict: judge(average.map(|average| near.contains(&average))),
        rule: "3.0 to 4.6 times on average: within a quarter",
        why: match average {
            None => NOT_MEASURED.to_owned(),
            Some(_) => format!(
                "A prefetch start takes {}, of which {} come after the guest's first instruction. Then \
                 its pages are in place, and yet the first touch of one takes {} on average beyond what \
                 a warm call takes; {paging}. The disk reads \
                 4 KiB in {:.0} µs and {:.0} MiB/s in sequence; the paper's took 125 µs (32 MB/s) and \
                 850 MB/s.",
                span(prefetch, 0, "ms"),
                span(running, 0, "%"),
                span(touch_us, 1, "µs"),
                study.host.disk_rand_read_4k_us,
                study.host.disk_seq_read_mib_s
            ),
        },
    }
}

fn recording(functions: &[Function<'_>], linux: &[LinuxFigures]) -> Claim {
    let over_file = all(functions, |f| f.recording_cost_pct(StartKind::File));
    let over_demand = all(functions, |f| f.recording_cost_pct(StartKind::OnDemand));
    let average = mean(over_file.iter().copied());
    let (least, most) = PAPER_RECORDING_PCT;
    Claim {
        claim: "Recording slows one start down",
        paper: "by 15 to 87 %, 28 % on average",
        ours: mean_of(&over_file, 0, "%"),
        linux: no_times(linux),
        verdict: judge(average.map(|average| (least..=most).contains(&average))),
        rule: "15 to 87 % on average over a file mapping",
        why: match median(over_demand) {
            None => NOT_MEASURED.to_owned(),
            Some(cost) => format!(
                "Keeping the record costs {cost:+.1} % over a start on demand (median). The rest is \
                 what a fault through userfaultfd costs more than one that the kernel serves from a \
                 file, with its readahead."
            ),
        },
    }
}
