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
            "{:>5} KiB x {:>2}: {:>6.0} MiB/s",
            tried.piece_bytes >> 10,
            tried.depth,
            tried.mib_s
        );
    })?;
    tuning::keep(&cache, &device, tuning)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&tuning)?);
    } else {
        println!(
            "{device}: reads of {} KiB, {} under way in each of two threads, {:.0} MiB/s\nkept in {}",
            tuning.piece_bytes >> 10,
            tuning.depth,
            tuning.mib_s,
            cache.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}
