//! `reapvm invoke`.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use reapvm::cold_start::{self, ColdStart, ColdStartReport, MeasuredUse, WorkingSetPolicy};
use reapvm::memory::MemoryHooks;
use reapvm::observe::TraceReport;
use reapvm::vcpu::GuestExit;
use reapvm_reap::{LeadRule, MemoryRestoreMode, RecordReason, page_cache};

use super::CommandResult;
use crate::bench::worker;
use crate::bus_error;
use crate::cli::Invoke;
use crate::terminal::watch_termination;

pub(super) fn run(arguments: &Invoke, process_start_ns: u64) -> CommandResult {
    let overrides = arguments.overrides.overrides()?;
    let trace = arguments.trace.options();
    let set = arguments.working_set.options();
    if set.policy != WorkingSetPolicy::Fixed
        && (arguments.memory.is_some() || arguments.discard_recording)
    {
        return Err(format!(
            "the working-set policy {} decides by itself how memory comes back and what is \
             recorded: leave out --memory and --discard-recording",
            set.policy
        )
        .into());
    }
    let start = ColdStart {
        overrides: &overrides,
        dir: &arguments.dir,
        mode: arguments.memory.unwrap_or(MemoryRestoreMode::OnDemand),
        set,
        install: arguments.install.options(&arguments.dir)?,
        input: &arguments.input,
        timeout: arguments.timeout,
        keep_recording: !arguments.discard_recording,
        count_resident: true,
        trace: trace.as_ref(),
        started_ns: arguments.started_at_ns.unwrap_or(process_start_ns),
    };
    if start.trace.is_some() && arguments.repeat > 1 {
        return Err(
            "each repetition would replace the trace of the one before: leave out --repeat".into(),
        );
    }
    // A cold or repeated start is measured from the exec of a process of its own.
    if arguments.started_at_ns.is_none() && (arguments.cold || arguments.repeat > 1) {
        for _ in 0..arguments.repeat {
            if arguments.cold {
                page_cache::evict_directory(&arguments.dir)?;
            }
            print(
                &worker::invoke(&start, &arguments.overrides.to_arguments())?,
                arguments.json,
            )?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    // A signal may end a start at once, unless that would leave a socket behind. Before any thread is
    // started: they all inherit the blocked signals.
    let termination = match &overrides.vsock_uds_path {
        Some(_) => Some(watch_termination()?),
        None => None,
    };
    bus_error::explain_for(start.mode)?;
    let mut watched = Ok(());
    let result = cold_start::run_watched(
        &start,
        process_start_ns,
        MemoryHooks::default(),
        |machine| {
            if let Some(termination) = &termination {
                let exits = Arc::clone(machine.exits());
                watched = termination.on_signal(move |_| exits.end(GuestExit::Stopped));
            }
        },
    );
    watched?;
    match (
        result,
        termination.and_then(|termination| termination.signal()),
    ) {
        (Ok(invoked), _) => {
            // Before the machine is taken apart.
            print(&invoked.report, arguments.json)?;
            Ok(ExitCode::SUCCESS)
        }
        // As a shell reports a program that a signal has ended.
        (Err(_), Some(signal)) => Ok(ExitCode::from(128 + signal)),
        (Err(error), None) => Err(error.into()),
    }
}

/// What is in a trace, as people read it.
pub(super) fn trace_line(trace: &TraceReport) -> String {
    let mut line = match trace.dropped {
        0 => format!("{} records", trace.records),
        dropped => format!(
            "the first {} records; {dropped} more did not fit (--trace-records)",
            trace.records
        ),
    };
    if let Some(writes) = &trace.writes {
        line.push_str(&format!(
            "; written pages: {} in KVM's dirty log too, {} only here that devices wrote, {} only \
             here otherwise, {} only in the log",
            writes.both, writes.only_devices, writes.only_protected, writes.only_logged
        ));
    }
    line
}

pub(crate) fn print(report: &ColdStartReport, json: bool) -> Result<(), Box<dyn Error>> {
    if json {
        println!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    println!("{}", report.response);
    let marks = &report.marks_ms;
    println!("memory {}", report.mode);
    let line = |name: &str, value: f64| println!("  {name:<22}{value:>9.2} ms");
    line("state loaded", marks.state_loaded);
    line("memory ready", marks.memory_ready);
    line("first KVM_RUN", marks.first_run);
    line("request sent", marks.request_sent);
    line("guest connected", marks.connected);
    line("first response byte", marks.first_byte);
    line("response complete", marks.response);
    if let Some(install) = &report.install_ms {
        let threads = match install.threads {
            1 => "1 thread".to_owned(),
            count => format!("{count} threads"),
        };
        println!(
            "  working set: {} pages in {} runs, {} in {:.2} ms by {}: read {:.2} ms, \
             verify {:.2} ms, copy {:.2} ms; {} pages before the first instruction{}",
            report.faults.prefetched_pages,
            install.extents,
            install.method,
            install.total,
            threads,
            install.read,
            install.verify,
            install.copy,
            install.lead_pages,
            match install.lead_rule {
                LeadRule::All => "",
                LeadRule::Trace => ", by when the guest needs the others",
                LeadRule::Pace => ", by the pace of the install",
            }
        );
        if let Some(reason) = &install.fell_back {
            println!("  the rest of the working set was served on demand: {reason}");
        }
    }
    if let Some(entered) = &report.pre_fault_ms {
        println!(
            "  entered in the guest's page tables ahead: {} pages in {:.2} ms",
            entered.pages, entered.total
        );
    }
    let faults = &report.faults;
    println!(
        "  faults: {} by the pager ({} missed by the working set, {} before it was there), kernel {} \
         major, {} minor",
        faults.uffd,
        faults.missed_pages,
        faults.early_pages,
        faults.kernel_major,
        faults.kernel_minor
    );
    if let (MemoryRestoreMode::Record, Some(pages)) = (report.mode, report.working_set_pages) {
        println!("  recorded {pages} pages");
    }
    if let Some(trace) = &report.trace {
        println!("  trace: {}", trace_line(trace));
    }
    print_set_use(report);
    if let (Some(guest), Some(vmm)) = (report.guest_resident_kib, report.vmm_overhead_kib) {
        println!("  resident: guest {guest} KiB, VMM {vmm} KiB");
    }
    Ok(())
}

/// How well the working set fitted, and what became of it.
fn print_set_use(report: &ColdStartReport) {
    let not_touched = |set_use: &reapvm::cold_start::SetUse| {
        let unknown = match set_use.unknown_pages {
            0 => String::new(),
            pages => format!(", {pages} unknown"),
        };
        format!(
            "{} of {} pages not touched{unknown}",
            set_use.unused_pages, set_use.set_pages
        )
    };
    match &report.working_set_use {
        Some(MeasuredUse::PageTables(set_use)) => {
            println!(
                "  prefetched: {} (by the page tables)",
                not_touched(set_use)
            );
        }
        Some(MeasuredUse::Recording(set_use)) => println!(
            "  the set before it: {}, {} touched pages missing (by the recording)",
            not_touched(set_use),
            set_use.lacking_pages
        ),
        Some(MeasuredUse::NotMeasured { reason }) => {
            println!("  pages not touched: not measured: {reason}");
        }
        None => {}
    }
    let Some(evolution) = &report.evolution else {
        return;
    };
    if let Some(reason) = &evolution.state_reset {
        println!("  the working set's state was begun anew: {reason}");
    }
    if let Some(reason) = evolution.recorded {
        println!("  recorded because {}", reason.as_str());
    }
    println!(
        "  working set, {}: {} pages joined, {} left; the next start {}",
        evolution.policy,
        evolution.added_pages,
        evolution.left_pages,
        match (evolution.policy, evolution.record_next) {
            (WorkingSetPolicy::Record, _) => "decides by its policy".to_owned(),
            (_, None) => "prefetches".to_owned(),
            (_, Some(reason)) => format!("records: {}", RecordReason::as_str(reason)),
        }
    );
}
