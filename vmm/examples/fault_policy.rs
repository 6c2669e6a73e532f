//! A prefetcher in a page of code: with each fault come the pages that followed it the last time.
//!
//! `cargo run -p reapvm --example fault_policy`; needs `/dev/kvm` and `/dev/userfaultfd`.

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use reapvm::config::VmConfig;
use reapvm::function_vm::{ReadyWhen, create_snapshot};
use reapvm::invocation::Connection;
use reapvm::machine::{Machine, RestoreOptions};
use reapvm::memory::MemoryHooks;
use reapvm_reap::{
    DEFAULT_TRACE_RECORDS, FaultInfo, FaultPlan, FaultPolicy, FaultTrace, MemoryRestoreMode,
    PagerStats,
};
use reapvm_snapshot::Snapshot;
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Predicts the next touches by the order of first touch in a trace.
struct NextTouch {
    order: Vec<u64>,
    place: HashMap<u64, usize>,
}

impl NextTouch {
    /// Pages that the guest waits for.
    const SOON: usize = 16;
    /// Pages after those, which are installed while the guest runs.
    const LATER: usize = 64;

    fn learn(trace: &FaultTrace) -> Self {
        let first = trace.records.iter().filter(|record| record.is_first_touch);
        let order: Vec<u64> = first.map(|record| record.gpa).collect();
        let place = (0..).zip(&order).map(|(at, &gpa)| (gpa, at)).collect();
        Self { order, place }
    }
}

impl FaultPolicy for NextTouch {
    fn on_fault(&mut self, fault: &FaultInfo, plan: &mut FaultPlan<'_>) {
        let Some(place) = self.place.get(&fault.gpa) else {
            return;
        };
        let mut next = self.order[place + 1..].iter();
        for &gpa in next.by_ref().take(Self::SOON) {
            plan.install(gpa, 1);
        }
        for &gpa in next.take(Self::LATER) {
            plan.install_later(gpa, 1);
        }
    }
}

/// What the pager did without the policy and with it, for different inputs.
fn run() -> Result<[PagerStats; 2], Box<dyn Error>> {
    let scratch = tempfile::tempdir()?;
    let dir = scratch.path().join("json.snap");
    let config = VmConfig::for_function("json_serdes")?;
    create_snapshot(config, &ReadyWhen::default(), None, &dir, TIMEOUT)?;
    let snapshot = Arc::new(Snapshot::open(&dir)?);

    let traced = RestoreOptions {
        trace_records: Some(DEFAULT_TRACE_RECORDS),
        ..RestoreOptions::new(MemoryRestoreMode::OnDemand)
    };
    let (machine, _) = call(&snapshot, traced, 1)?;
    let without = machine.memory().pager_stats();
    let trace = machine.memory().fault_trace().unwrap_or_default();
    drop(machine);

    let hooks = MemoryHooks::new().fault_policy(NextTouch::learn(&trace));
    let options = RestoreOptions::new(MemoryRestoreMode::OnDemand).hooks(hooks);
    let (machine, _) = call(&snapshot, options, 2)?;
    Ok([without, machine.memory().pager_stats()])
}

fn call(
    snapshot: &Arc<Snapshot>,
    options: RestoreOptions,
    seed: u64,
) -> Result<(Machine, Value), Box<dyn Error>> {
    let mut machine = Machine::restore(snapshot, options)?;
    machine.resume()?;
    let mut connection = Connection::open(&machine)?;
    let reply = connection.call(&machine, &json!({ "seed": seed }), TIMEOUT)?;
    machine.pause()?;
    Ok((machine, reply.value))
}

fn main() -> Result<(), Box<dyn Error>> {
    let [without, with] = run()?;
    println!("on demand: {} faults", without.faults);
    println!(
        "with the policy: {} faults, {} pages brought along",
        with.faults, with.policy_pages
    );
    Ok(())
}

#[cfg(test)]
#[test]
fn the_guest_faults_less() {
    let [without, with] = run().expect("it runs");
    assert!(with.faults * 2 < without.faults, "{with:?} {without:?}");
    assert!(with.policy_pages > 0 && without.policy_pages == 0);
}
