//! The trace of what is written: by protection against writes, which has an order, by KVM's dirty
//! log, which has none, or by both, to compare them.

use std::collections::BTreeSet;

use reapvm_reap::trace::{Access, Outcome, TraceSource, TraceSummary, name_threads};
use reapvm_reap::{MemoryRegion, MemoryRestoreMode, Phase, TraceRecord};
use reapvm_snapshot::SnapshotId;
use serde::{Deserialize, Serialize};

use super::ObserveError;
use super::pager_trace::{Labels, SourceChoice, TraceOptions, TraceReport, header, write};
use crate::clock;
use crate::machine::Machine;
use crate::memory::{WriteTracking, WrittenPages};

/// Pages that a note names at most.
const NAMED_PAGES: usize = 16;

/// How protection against writes and KVM's dirty log agree on which pages were written, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WritesCompared {
    /// Seen by both.
    pub both: u64,
    /// A write to them was stopped by the protection; KVM's log does not have them, for devices of
    /// this process wrote them and not KVM.
    pub only_devices: u64,
    /// A write to them was stopped by the protection; neither KVM's log nor this process's own marks
    /// have them.
    pub only_protected: u64,
    /// Only KVM's log has them.
    pub only_logged: u64,
}

/// A trace of writes, under way.
pub(crate) struct WriteTrace {
    choice: SourceChoice,
    regions: Vec<MemoryRegion>,
    /// By protection.
    tracking: Option<WriteTracking>,
    /// Of KVM's log. Their times are those of the monotonic clock.
    logged: Vec<TraceRecord>,
    logged_pages: BTreeSet<u64>,
    own_pages: BTreeSet<u64>,
}

impl std::fmt::Debug for WriteTrace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteTrace")
            .field("choice", &self.choice)
            .finish_non_exhaustive()
    }
}

impl WriteTrace {
    /// Begins to watch `machine`, which is restored and has not run. What was written up to now is
    /// no part of it.
    pub(crate) fn begin(machine: &Machine, options: &TraceOptions) -> Result<Self, ObserveError> {
        let memory = machine.memory();
        let tracking = if options.source.protects() {
            Some(memory.track_writes(options.max_records)?)
        } else {
            None
        };
        if options.source.needs_dirty_log() {
            if !memory.tracks_dirty_pages() {
                return Err(ObserveError::NotTracked);
            }
            machine.collect_writes()?;
        }
        Ok(Self {
            choice: options.source,
            regions: memory.regions().to_vec(),
            tracking,
            logged: Vec::new(),
            logged_pages: BTreeSet::new(),
            own_pages: BTreeSet::new(),
        })
    }

    /// Takes what KVM has logged in `phase`, which ends now. The machine is paused.
    pub(crate) fn end_phase(
        &mut self,
        machine: &Machine,
        phase: Phase,
    ) -> Result<(), ObserveError> {
        if !self.choice.needs_dirty_log() {
            return Ok(());
        }
        let WrittenPages { logged, own } = machine.collect_writes()?;
        let now_ns = clock::monotonic_ns().cast_signed();
        for gpa in logged {
            self.logged.push(TraceRecord {
                sequence: self.logged.len() as u64,
                ns_since_resume: now_ns,
                gpa,
                hva: hva_of(&self.regions, gpa),
                access: Access::Write,
                phase,
                outcome: Outcome::Unknown,
                is_first_touch: self.logged_pages.insert(gpa),
                ..TraceRecord::default()
            });
        }
        self.own_pages.extend(own);
        Ok(())
    }

    /// Writes what was seen to `options.path`. The machine is paused.
    pub(crate) fn write(
        self,
        machine: &Machine,
        snapshot: &SnapshotId,
        mode: MemoryRestoreMode,
        options: &TraceOptions,
        input: &str,
    ) -> Result<TraceReport, ObserveError> {
        let source = match self.choice.protects() {
            true => TraceSource::UffdWriteProtect,
            false => TraceSource::KvmDirtyLog,
        };
        let labels = Labels {
            function: options.function.as_deref(),
            input: Some(input),
        };
        let header = header(machine, snapshot, source, mode, &labels);
        let zero_ns = header.clock.zero_monotonic_ns;
        let Self {
            choice,
            tracking,
            mut logged,
            logged_pages,
            own_pages,
            ..
        } = self;
        let mut notes = Vec::new();
        let mut compared = None;
        let (records, dropped) = match tracking {
            Some(tracking) => {
                let writes = tracking.stop(zero_ns)?;
                if choice.needs_dirty_log() && writes.dropped == 0 {
                    let seen = writes.records.iter().map(|record| record.gpa).collect();
                    let (counts, note) = compare(&seen, &logged_pages, &own_pages);
                    compared = Some(counts);
                    notes.push(note);
                } else if choice.needs_dirty_log() {
                    notes
                        .push("not compared with KVM's dirty log: records were dropped".to_owned());
                }
                (writes.records, writes.dropped)
            }
            None => {
                let kept = logged.len().min(options.max_records as usize);
                let dropped = (logged.len() - kept) as u64;
                logged.truncate(kept);
                for record in &mut logged {
                    record.ns_since_resume -= zero_ns.cast_signed();
                }
                let others = own_pages.difference(&logged_pages).count();
                notes.push(format!(
                    "the order is that of addresses; {others} pages that devices wrote are not in \
                     KVM's log and not here"
                ));
                (logged, dropped)
            }
        };
        let summary = TraceSummary {
            dropped,
            threads: name_threads(records.iter().map(|record| record.thread_id)),
            notes,
            ..TraceSummary::default()
        };
        write(&options.path, &header, &records, summary)?;
        Ok(TraceReport {
            records: records.len() as u64,
            dropped,
            writes: compared,
        })
    }
}

fn hva_of(regions: &[MemoryRegion], gpa: u64) -> u64 {
    regions
        .iter()
        .find(|region| gpa >= region.gpa && gpa - region.gpa < region.size_bytes)
        .map_or(0, |region| region.hva + (gpa - region.gpa))
}

/// Counts on which pages the two agree, and says so with the pages on which they do not.
fn compare(
    protected: &BTreeSet<u64>,
    logged: &BTreeSet<u64>,
    own: &BTreeSet<u64>,
) -> (WritesCompared, String) {
    let (devices, others): (Vec<u64>, Vec<u64>) = protected
        .difference(logged)
        .partition(|&page| own.contains(page));
    let only_logged: Vec<u64> = logged.difference(protected).copied().collect();
    let counts = WritesCompared {
        both: protected.intersection(logged).count() as u64,
        only_devices: devices.len() as u64,
        only_protected: others.len() as u64,
        only_logged: only_logged.len() as u64,
    };
    let mut note = format!(
        "against KVM's dirty log: {} pages in both, {} only here that devices wrote, {} only here \
         otherwise, {} only in the log",
        counts.both, counts.only_devices, counts.only_protected, counts.only_logged
    );
    for (what, pages) in [
        ("of devices", devices),
        ("otherwise only here", others),
        ("only in the log", only_logged),
    ] {
        if !pages.is_empty() {
            let named = pages.iter().take(NAMED_PAGES);
            let named: Vec<String> = named.map(|gpa| format!("{gpa:#x}")).collect();
            let more = if pages.len() > NAMED_PAGES {
                ", …"
            } else {
                ""
            };
            note.push_str(&format!("; {what}: {}{more}", named.join(" ")));
        }
    }
    (counts, note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_compared_by_who_has_seen_them() {
        let set = |pages: &[u64]| pages.iter().copied().collect::<BTreeSet<u64>>();
        let (counts, note) = compare(
            &set(&[0x1000, 0x2000, 0x3000, 0x4000]),
            &set(&[0x1000, 0x5000]),
            &set(&[0x2000, 0x9000]),
        );
        let expected = WritesCompared {
            both: 1,
            only_devices: 1,
            only_protected: 2,
            only_logged: 1,
        };
        assert_eq!(counts, expected);
        assert!(note.ends_with(
            "; of devices: 0x2000; otherwise only here: 0x3000 0x4000; only in the log: 0x5000"
        ));
        let many: BTreeSet<u64> = (0..100).map(|page| page << 12).collect();
        let (_, note) = compare(&many, &set(&[]), &set(&[]));
        assert!(note.ends_with("0xf000, …"), "{note}");
    }
}
