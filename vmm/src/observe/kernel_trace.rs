//! The trace of a machine whose memory the kernel serves: from its tracepoint where that can be
//! used, from the page tables where not.

use std::collections::HashSet;
use std::fs;
use std::io;

use reapvm_reap::trace::{Access, Outcome, TraceSource, TraceSummary, name_threads};
use reapvm_reap::{MemoryRegion, MemoryRestoreMode, Phase, TraceRecord};
use reapvm_snapshot::SnapshotId;

use super::ObserveError;
use super::page_tables::PageTables;
use super::pager_trace::{Labels, SourceChoice, TraceOptions, TraceReport, header, write};
use super::tracepoints::{TracedFault, Tracepoints};
use crate::clock;
use crate::machine::Machine;

const PAGE_MASK: u64 = !(reapvm_snapshot::PAGE_SIZE as u64 - 1);

/// A trace from the kernel, under way. Its times count from the monotonic clock's zero until it is
/// written.
#[derive(Debug)]
pub(crate) struct KernelTrace {
    source: Source,
    regions: Vec<MemoryRegion>,
    records: Vec<TraceRecord>,
    seen: HashSet<u64>,
    lost: u64,
    notes: Vec<String>,
}

#[derive(Debug)]
enum Source {
    Tracepoints(Tracepoints),
    PageTables(PageTables),
}

impl KernelTrace {
    /// Begins to watch `machine`, which is restored and has not run.
    pub(crate) fn begin(
        machine: &Machine,
        mode: MemoryRestoreMode,
        choice: SourceChoice,
    ) -> Result<Self, ObserveError> {
        let regions = machine.memory().regions().to_vec();
        let mut notes = Vec::new();
        let tracepoints = match choice {
            SourceChoice::PageTables => None,
            _ => {
                let threads = vcpu_threads().map_err(ObserveError::Threads)?;
                match Tracepoints::open(&threads) {
                    Ok(tracepoints) => Some(tracepoints),
                    Err(error) if choice == SourceChoice::Tracepoints => return Err(error.into()),
                    Err(error) => {
                        notes.push(format!("from page tables, because {error}"));
                        None
                    }
                }
            }
        };
        let source = match tracepoints {
            Some(tracepoints) => Source::Tracepoints(tracepoints),
            None => {
                if mode == MemoryRestoreMode::Copy {
                    notes.push(
                        "memory mode copy puts every page with data in place before the guest \
                         runs: those are here as of phase restore, touched or not"
                            .to_owned(),
                    );
                }
                Source::PageTables(PageTables::open(&regions).map_err(ObserveError::PageTables)?)
            }
        };
        Ok(Self {
            source,
            regions,
            records: Vec::new(),
            seen: HashSet::new(),
            lost: 0,
            notes,
        })
    }

    /// Takes what has come in `phase`, which ends now.
    pub(crate) fn end_phase(&mut self, phase: Phase) -> Result<(), ObserveError> {
        match &mut self.source {
            Source::Tracepoints(tracepoints) => {
                let (faults, lost) = tracepoints.take();
                self.lost += lost;
                for fault in faults {
                    self.add_fault(&fault, phase);
                }
            }
            Source::PageTables(tables) => {
                let pages = tables.new_pages().map_err(ObserveError::PageTables)?;
                let now_ns = clock::monotonic_ns();
                for page in pages {
                    self.records.push(TraceRecord {
                        sequence: self.records.len() as u64,
                        ns_since_resume: now_ns.cast_signed(),
                        gpa: page.gpa,
                        hva: page.hva,
                        access: Access::Unknown,
                        phase,
                        outcome: Outcome::Unknown,
                        is_first_touch: true,
                        ..TraceRecord::default()
                    });
                }
            }
        }
        Ok(())
    }

    /// A fault outside of guest memory is an access to a device, and none of a page.
    fn add_fault(&mut self, fault: &TracedFault, phase: Phase) {
        let holds = |region: &&MemoryRegion| {
            fault.gpa >= region.gpa && fault.gpa - region.gpa < region.size_bytes
        };
        let Some(region) = self.regions.iter().find(holds) else {
            return;
        };
        let gpa = fault.gpa & PAGE_MASK;
        self.records.push(TraceRecord {
            sequence: self.records.len() as u64,
            ns_since_resume: fault.monotonic_ns.cast_signed(),
            gpa,
            hva: region.hva + (gpa - region.gpa),
            rip: Some(fault.rip),
            thread_id: fault.thread_id,
            access: if fault.is_write {
                Access::Write
            } else {
                Access::Read
            },
            phase,
            outcome: Outcome::Unknown,
            is_first_touch: self.seen.insert(gpa),
            ..TraceRecord::default()
        });
    }

    /// Writes what was seen to `options.path`.
    pub(crate) fn write(
        mut self,
        machine: &Machine,
        snapshot: &SnapshotId,
        mode: MemoryRestoreMode,
        options: &TraceOptions,
        input: &str,
    ) -> Result<TraceReport, ObserveError> {
        let source = match self.source {
            Source::Tracepoints(_) => TraceSource::KvmTracepoints,
            Source::PageTables(_) => TraceSource::PageTables,
        };
        let labels = Labels {
            function: options.function.as_deref(),
            input: Some(input),
        };
        let header = header(machine, snapshot, source, mode, &labels);
        let zero_ns = header.clock.zero_monotonic_ns.cast_signed();
        for record in &mut self.records {
            record.ns_since_resume = record.ns_since_resume.saturating_sub(zero_ns);
        }
        if self.records.is_empty() {
            self.notes.push(match source {
                TraceSource::KvmTracepoints => {
                    "the kernel's tracepoint kvm:kvm_page_fault reported no fault in guest memory"
                        .to_owned()
                }
                _ => "no page of guest memory came into the page tables".to_owned(),
            });
        }
        let kept = self.records.len().min(options.max_records as usize);
        let dropped = self.lost + (self.records.len() - kept) as u64;
        let records = &self.records[..kept];
        let summary = TraceSummary {
            dropped,
            threads: name_threads(records.iter().map(|record| record.thread_id)),
            notes: self.notes,
            ..TraceSummary::default()
        };
        write(&options.path, &header, records, summary)?;
        Ok(TraceReport {
            records: kept as u64,
            dropped,
            writes: None,
        })
    }
}

/// The threads of this process that are vCPUs, by their names.
fn vcpu_threads() -> io::Result<Vec<u32>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        // A thread may end while this goes on.
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with("vcpu-")
            && let Some(thread) = entry.file_name().to_str().and_then(|id| id.parse().ok())
        {
            threads.push(thread);
        }
    }
    threads.sort_unstable();
    Ok(threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(regions: Vec<MemoryRegion>) -> KernelTrace {
        KernelTrace {
            source: Source::PageTables(PageTables::open(&[]).unwrap()),
            regions,
            records: Vec::new(),
            seen: HashSet::new(),
            lost: 0,
            notes: Vec::new(),
        }
    }

    #[test]
    fn faults_in_guest_memory_become_records_and_those_of_devices_do_not() {
        let region = MemoryRegion {
            gpa: 0x10_0000,
            hva: 0x7000_0000,
            size_bytes: 0x10_0000,
            file_offset: 0,
        };
        let mut trace = trace(vec![region]);
        for (gpa, is_write) in [
            (0x10_1234, true),
            (0x10_1ff8, false),
            (0xd000_0000, true),
            (0x20_0000, true),
        ] {
            let fault = TracedFault {
                monotonic_ns: 500,
                thread_id: 9,
                gpa,
                rip: 0xffff_ffff_8100_0000,
                is_write,
            };
            trace.add_fault(&fault, Phase::Request);
        }
        let seen: Vec<_> = trace
            .records
            .iter()
            .map(|r| (r.sequence, r.gpa, r.hva, r.access, r.is_first_touch))
            .collect();
        assert_eq!(
            seen,
            [
                (0, 0x10_1000, 0x7000_1000, Access::Write, true),
                (1, 0x10_1000, 0x7000_1000, Access::Read, false)
            ]
        );
        assert_eq!(trace.records[0].rip, Some(0xffff_ffff_8100_0000));
    }

    #[test]
    fn vcpus_are_found_by_their_names() {
        let (tell, told) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("vcpu-77".to_owned());
        let thread = thread.spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_pid().unsigned_abs())
                .unwrap();
            let _ = stopped.recv();
        });
        let id = told.recv().unwrap();
        assert!(vcpu_threads().unwrap().contains(&id));
        drop(stop);
        thread.unwrap().join().unwrap();
    }
}
