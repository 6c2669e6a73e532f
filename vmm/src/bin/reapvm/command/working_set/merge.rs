//! `reapvm working-set merge`.

use std::process::ExitCode;

use reapvm_reap::{MergeRule, SnapshotPageSource, TouchCounts, WorkingSet};

use super::{describe, file_of, mib, needed, snapshot_of};
use crate::cli::WorkingSetMerge;
use crate::command::CommandResult;

pub(super) fn run(arguments: &WorkingSetMerge) -> CommandResult {
    let Some(first) = arguments.sets.first() else {
        return Err("there is no working set to merge".into());
    };
    let snapshot = snapshot_of(first, arguments.snapshot.as_deref())?;
    let sets = arguments
        .sets
        .iter()
        .map(|set| Ok(describe(set, &snapshot)?.touch_counts()))
        .collect::<Result<Vec<_>, reapvm_reap::WorkingSetError>>()?;
    let rule = match (arguments.intersection, arguments.at_least) {
        (true, _) => MergeRule::Intersection,
        (false, Some(least)) => MergeRule::AtLeast(least),
        (false, None) => MergeRule::Union,
    };
    let merged = TouchCounts::merge(&sets, rule)?;
    if let MergeRule::AtLeast(least) = rule
        && least > merged.recordings()
    {
        return Err(format!(
            "no page can be touched by {least} recordings: there are {}",
            merged.recordings()
        )
        .into());
    }
    // Not the pages of the given files: what a set holds is what the snapshot's memory says.
    let mut source = SnapshotPageSource::new(snapshot.clone())?;
    let out = file_of(&arguments.out);
    let _lock = (out == snapshot.working_set_path())
        .then(|| snapshot.directory().lock())
        .transpose()?;
    let set = WorkingSet::write_counted(&out, &snapshot.id(), &merged, &mut source)?;
    println!(
        "{}: {} pages in {} runs, {:.1} MiB, of {} recordings; needed {}",
        out.display(),
        set.page_count(),
        set.extents().len(),
        mib(set.len_bytes()),
        set.recordings(),
        needed(set.touch_curve())
    );
    Ok(ExitCode::SUCCESS)
}
