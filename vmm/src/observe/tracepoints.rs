//! The kernel's tracepoint `kvm:kvm_page_fault`: each exit of a vCPU for a page fault, with the
//! guest's instruction.
//!
//! Source: `perf_event_open(2)`, `Documentation/trace/ftrace.rst`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use perf_event::data::Record;
use perf_event::events::Tracepoint;
use perf_event::{Builder, Clock, SampleFlag, Sampler};

use super::tracepoint_format::PageFaultFormat;

/// Where the kernel's tracing file system is mounted, by its own documentation.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// Whether KVM uses nested paging, by module.
const NESTED_PAGING: [&str; 2] = [
    "/sys/module/kvm_intel/parameters/ept",
    "/sys/module/kvm_amd/parameters/npt",
];
/// Buffer of one vCPU: about 50 000 faults between two readings.
const BUFFER_BYTES: usize = 4 << 20;
/// The bit of an error code that says that the access was a write.
const WRITE: u64 = 2;

/// Why the tracepoint cannot be used, and what would help.
#[derive(Debug, thiserror::Error)]
pub enum TracepointError {
    /// The tracing file system is not there.
    #[error(
        "the tracing file system is not mounted or cannot be read ({reason}): as root, `mount -t \
         tracefs nodev /sys/kernel/tracing`, and let this user read it"
    )]
    NoTracefs {
        /// What the system said.
        reason: String,
    },
    /// The tracepoint is not there, or is not what it should be.
    #[error("this kernel has no tracepoint kvm:kvm_page_fault that is understood ({reason})")]
    NoTracepoint {
        /// What is missing.
        reason: String,
    },
    /// KVM reports guest-virtual addresses.
    #[error(
        "this host's KVM does not use nested paging (no kvm_intel with ept, no kvm_amd with npt), \
         so that its page faults do not carry guest-physical addresses"
    )]
    NoNestedPaging,
    /// perf_event_open is not permitted.
    #[error(
        "no permission for kernel tracepoints ({source}): run as root or with CAP_PERFMON, or set \
         `sysctl kernel.perf_event_paranoid=-1`"
    )]
    Denied {
        /// What the system said.
        source: io::Error,
    },
    /// Another failure.
    #[error("cannot read kernel tracepoints")]
    Perf(#[source] io::Error),
}

/// A fault that the tracepoint has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TracedFault {
    pub(crate) monotonic_ns: u64,
    pub(crate) thread_id: u32,
    pub(crate) gpa: u64,
    pub(crate) rip: u64,
    pub(crate) is_write: bool,
}

/// The tracepoint, open for some threads.
pub(crate) struct Tracepoints {
    samplers: Vec<Sampler>,
    format: PageFaultFormat,
}

impl std::fmt::Debug for Tracepoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracepoints")
            .field("format", &self.format)
            .finish_non_exhaustive()
    }
}

impl Tracepoints {
    /// Opens and enables the tracepoint for `threads`.
    pub(crate) fn open(threads: &[u32]) -> Result<Self, TracepointError> {
        check_nested_paging(&NESTED_PAGING.map(PathBuf::from))?;
        let (id, format) = find_event(&TRACEFS.map(PathBuf::from))?;
        let mut samplers = Vec::with_capacity(threads.len());
        for thread in threads {
            let counter = Builder::new(Tracepoint::with_id(id))
                .observe_pid(thread.cast_signed())
                .any_cpu()
                .include_kernel()
                .include_hv()
                .clockid(Clock::MONOTONIC)
                .sample(SampleFlag::TID | SampleFlag::TIME | SampleFlag::RAW)
                .sample_period(1)
                .build()
                .map_err(perf_error)?;
            let mut sampler = counter.sampled(BUFFER_BYTES).map_err(perf_error)?;
            sampler.enable().map_err(perf_error)?;
            samplers.push(sampler);
        }
        Ok(Self { samplers, format })
    }

    /// All faults so far that were not taken yet, by time, and how many found a buffer full.
    pub(crate) fn take(&mut self) -> (Vec<TracedFault>, u64) {
        let mut faults = Vec::new();
        let mut lost = 0;
        for sampler in &mut self.samplers {
            while let Some(record) = sampler.next_record() {
                match record.parse_record() {
                    Ok(Record::Sample(sample)) => {
                        let fault = sample.raw().and_then(|raw| self.format.read(raw));
                        let (Some(fault), Some(monotonic_ns)) = (fault, sample.time()) else {
                            lost += 1;
                            continue;
                        };
                        faults.push(TracedFault {
                            monotonic_ns,
                            thread_id: sample.tid().unwrap_or_default(),
                            gpa: fault.address,
                            rip: fault.rip,
                            is_write: fault.error_code & WRITE != 0,
                        });
                    }
                    Ok(Record::Lost(record)) => lost += record.lost,
                    Ok(Record::LostSamples(record)) => lost += record.lost,
                    Ok(_) => {}
                    Err(_) => lost += 1,
                }
            }
        }
        faults.sort_by_key(|fault| fault.monotonic_ns);
        (faults, lost)
    }
}

fn perf_error(source: io::Error) -> TracepointError {
    match source.kind() {
        io::ErrorKind::PermissionDenied => TracepointError::Denied { source },
        _ => TracepointError::Perf(source),
    }
}

/// Whether this host's KVM uses the processor's nested paging; otherwise it shadows the guest's page
/// tables.
#[must_use]
pub fn uses_nested_paging() -> bool {
    check_nested_paging(&NESTED_PAGING.map(PathBuf::from)).is_ok()
}

fn check_nested_paging(parameters: &[PathBuf]) -> Result<(), TracepointError> {
    let is_on = |path: &PathBuf| {
        fs::read_to_string(path).is_ok_and(|value| matches!(value.trim(), "Y" | "1"))
    };
    match parameters.iter().any(is_on) {
        true => Ok(()),
        false => Err(TracepointError::NoNestedPaging),
    }
}

fn find_event(places: &[PathBuf]) -> Result<(u64, PageFaultFormat), TracepointError> {
    let mut reason = String::from("there is no place for it");
    for place in places {
        match fs::metadata(place.join("events")) {
            Ok(_) => return read_event(&place.join("events/kvm/kvm_page_fault")),
            Err(error) => reason = format!("{}: {error}", place.display()),
        }
    }
    Err(TracepointError::NoTracefs { reason })
}

fn read_event(dir: &Path) -> Result<(u64, PageFaultFormat), TracepointError> {
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).map_err(|error| TracepointError::NoTracepoint {
            reason: format!("{}: {error}", path.display()),
        })
    };
    let other = |what: &str| TracepointError::NoTracepoint {
        reason: format!("its {what} is of another form"),
    };
    let id = read("id")?.trim().parse().map_err(|_| other("id"))?;
    let format = PageFaultFormat::parse(&read("format")?).ok_or_else(|| other("format"))?;
    Ok((id, format))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let events = dir.path().join("events/kvm/kvm_page_fault");
        let find = || find_event(&[dir.path().join("elsewhere"), dir.path().to_owned()]);
        let text = find().unwrap_err().to_string();
        assert!(text.contains("mount -t tracefs"), "{text}");

        fs::create_dir_all(&events).unwrap();
        let text = find().unwrap_err().to_string();
        assert!(text.contains("kvm:kvm_page_fault"), "{text}");
        fs::write(events.join("id"), "77\n").unwrap();
        fs::write(events.join("format"), "nothing").unwrap();
        assert!(find().unwrap_err().to_string().contains("format"));
        let fields = ["guest_rip", "fault_address", "error_code"];
        let format: String = (1..)
            .zip(fields)
            .map(|(at, name)| format!("\tfield:u64 {name};\toffset:{};\tsize:8;\n", at * 8))
            .collect();
        fs::write(events.join("format"), format).unwrap();
        assert_eq!(find().unwrap().0, 77);

        let denied = perf_error(io::Error::from_raw_os_error(libc::EACCES)).to_string();
        for remedy in ["CAP_PERFMON", "kernel.perf_event_paranoid", "root"] {
            assert!(denied.contains(remedy), "{denied}");
        }
    }

    #[test]
    fn nested_paging_is_looked_for_before_addresses_are_believed() {
        let dir = tempfile::tempdir().unwrap();
        let (ept, npt) = (dir.path().join("ept"), dir.path().join("npt"));
        let check = || check_nested_paging(&[ept.clone(), npt.clone()]);
        assert!(check().is_err());
        fs::write(&ept, "N\n").unwrap();
        assert!(check().is_err());
        fs::write(&npt, "1\n").unwrap();
        assert!(check().is_ok());
        fs::write(&npt, "Y\n").unwrap();
        assert!(check().is_ok());
    }

    #[test]
    fn a_tracepoint_of_this_thread_is_sampled_where_that_is_permitted() {
        // No tracepoint, but the same path through the kernel, the buffer and the parser.
        let counter = Builder::new(perf_event::events::Software::PAGE_FAULTS)
            .any_cpu()
            .include_kernel()
            .clockid(Clock::MONOTONIC)
            .sample(SampleFlag::TID | SampleFlag::TIME)
            .sample_period(1)
            .build()
            .and_then(|counter| counter.sampled(1 << 16));
        let mut sampler = match counter {
            Ok(sampler) => sampler,
            Err(error) => {
                assert!(!perf_error(error).to_string().is_empty());
                return;
            }
        };
        sampler.enable().unwrap();
        let touched = vec![1_u8; 4 << 20];
        std::hint::black_box(&touched);
        let format = PageFaultFormat::parse(
            "field:u64 guest_rip;offset:0;size:8;\nfield:u64 fault_address;offset:8;size:8;\n\
             field:u64 error_code;offset:16;size:8;",
        );
        let mut tracepoints = Tracepoints {
            samplers: vec![sampler],
            format: format.unwrap(),
        };
        // Samples without the fields are counted, never taken for faults.
        let (faults, lost) = tracepoints.take();
        assert!(faults.is_empty());
        assert!(lost > 0);
    }
}
