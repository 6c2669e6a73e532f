//! Watches the faults of a machine while it runs.
//!
//! `cargo run -p reapvm --example live_faults`; needs `/dev/kvm` and `/dev/userfaultfd`.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use reapvm::config::VmConfig;
use reapvm::function_vm::{ReadyWhen, create_snapshot};
use reapvm::invocation::Connection;
use reapvm::machine::{Machine, RestoreOptions};
use reapvm::memory::MemoryHooks;
use reapvm_reap::{FaultListener, MemoryRestoreMode, fault_channel};
use reapvm_snapshot::Snapshot;
use serde_json::json;

const TIMEOUT: Duration = Duration::from_secs(60);

/// What a listener has heard until the pager ended.
#[derive(Default)]
struct Heard {
    /// Faults, and nanoseconds in which threads waited for them, by phase and outcome.
    kinds: BTreeMap<String, (u64, u64)>,
    dropped: u64,
}

fn listen(mut listener: FaultListener) -> Heard {
    let mut heard = Heard::default();
    // Ends with the pager. A listener that is too slow for the guest loses records; it never
    // slows the guest down.
    for record in listener.by_ref() {
        let kind = format!("{} {:?}", record.phase, record.outcome);
        let (faults, ns) = heard.kinds.entry(kind).or_default();
        *faults += 1;
        *ns += record.service_ns;
    }
    heard.dropped = listener.dropped();
    heard
}

/// What was heard, and how many faults the pager has counted.
fn run() -> Result<(Heard, u64), Box<dyn Error>> {
    let scratch = tempfile::tempdir()?;
    let dir = scratch.path().join("hello.snap");
    let config = VmConfig::for_function("helloworld")?;
    create_snapshot(config, &ReadyWhen::default(), None, &dir, TIMEOUT)?;
    let snapshot = Arc::new(Snapshot::open(&dir)?);

    let (sender, listener) = fault_channel(1 << 16);
    let listening = thread::spawn(move || listen(listener));
    let hooks = MemoryHooks::new().fault_listener(sender);
    let options = RestoreOptions::new(MemoryRestoreMode::OnDemand).hooks(hooks);
    let mut machine = Machine::restore(&snapshot, options)?;
    machine.resume()?;
    Connection::open(&machine)?.call(&machine, &json!({ "seed": 1 }), TIMEOUT)?;
    machine.pause()?;
    let counted = machine.memory().pager_stats().faults;
    drop(machine);
    let heard = listening.join().map_err(|_| "the listener panicked")?;
    Ok((heard, counted))
}

fn main() -> Result<(), Box<dyn Error>> {
    let (heard, counted) = run()?;
    for (kind, (faults, ns)) in &heard.kinds {
        println!("{kind}: {faults} faults, {} us each", ns / faults / 1000);
    }
    println!("{} of {counted} were dropped", heard.dropped);
    Ok(())
}

#[cfg(test)]
#[test]
fn every_fault_is_heard_of_or_counted() {
    let (heard, counted) = run().expect("it runs");
    let faults: u64 = heard.kinds.values().map(|(faults, _)| faults).sum();
    assert!(counted > 50);
    assert_eq!(faults + heard.dropped, counted);
}
