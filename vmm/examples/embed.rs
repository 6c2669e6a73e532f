//! Boots a function, saves it when it serves, and starts it again from the snapshot.
//!
//! `cargo run -p reapvm --example embed`; needs `/dev/kvm` and `/dev/userfaultfd`.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use reapvm::config::VmConfig;
use reapvm::function_vm::{ReadyWhen, create_snapshot};
use reapvm::invocation::Connection;
use reapvm::machine::{Machine, RestoreOptions};
use reapvm_reap::MemoryRestoreMode;
use reapvm_snapshot::Snapshot;
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(60);

fn run() -> Result<(Value, u64), Box<dyn Error>> {
    let scratch = tempfile::tempdir()?;
    let dir = scratch.path().join("hello.snap");
    // Boots one of the built-in functions, waits until it serves, calls it once, saves it.
    let config = VmConfig::for_function("helloworld")?;
    let (ready, warm_up) = (ReadyWhen::default(), json!({ "seed": 0 }));
    create_snapshot(config, &ready, Some(&warm_up), &dir, TIMEOUT)?;

    // A machine is paused when it is made. With this mode each page comes at its first touch.
    let snapshot = Arc::new(Snapshot::open(&dir)?);
    let options = RestoreOptions::new(MemoryRestoreMode::OnDemand);
    let mut machine = Machine::restore(&snapshot, options)?;
    machine.resume()?;
    let mut connection = Connection::open(&machine)?;
    let reply = connection.call(&machine, &json!({ "seed": 1 }), TIMEOUT)?;
    machine.pause()?;
    Ok((reply.value, machine.memory().pager_stats().faults))
    // Dropping the machine ends it.
}

fn main() -> Result<(), Box<dyn Error>> {
    let (reply, faults) = run()?;
    println!("{reply}\nafter {faults} faults");
    Ok(())
}

#[cfg(test)]
#[test]
fn the_function_answers() {
    let (reply, faults) = run().expect("it runs");
    assert_eq!(reply["function"], "helloworld");
    assert!(faults > 50);
}
