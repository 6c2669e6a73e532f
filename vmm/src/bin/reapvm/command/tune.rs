//! `reapvm tune`.

use std::process::ExitCode;

use reapvm::tuning;

use super::CommandResult;
use crate::cli::Tune;

pub(super) fn run(arguments: &Tune) -> CommandResult {
    let device = tuning::device_of(&arguments.dir)?;
    let cache = tuning::cache_path()?;
    let tuning = tuning::measure(&arguments.dir, |tried| {
        eprintln!(
            "{:>5} KiB x {:>2}: {:.2} of the default's time",
            tried.piece_bytes >> 10,
            tried.depth,
            tried.of_default
        );
    })?;
    tuning::keep(&cache, &device, tuning)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&tuning)?);
    } else {
        println!(
            "{device}: reads of {} KiB, {} under way in each of two threads, {}; {:.0} MiB/s are \
             installed\nkept in {}",
            tuning.piece_bytes >> 10,
            tuning.depth,
            match tuning.gain_pct {
                gain if gain > 0.0 => format!("{gain:.0} % less time than the default"),
                _ => "the default: none is faster by more than noise".to_owned(),
            },
            tuning.mib_s,
            cache.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}
