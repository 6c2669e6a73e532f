//! Snapshots to restore and to damage.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use reapvm::config::VmConfig;
use reapvm::function_vm::FunctionVm;
use reapvm::invocation::Connection;
use reapvm::machine::{Machine, RestoreOptions};
use reapvm_reap::MemoryRestoreMode;
use reapvm_snapshot::Snapshot;
use serde_json::{Value, json};

use crate::scratch;

/// How long a boot or a response may take: a debug build on a busy host needs a few seconds, an
/// emulated host ten times as long.
pub const TIMEOUT: Duration = Duration::from_secs(300);

/// What is copied at once: the page's size, of which holes are made.
const COPY_BYTES: usize = 4096;

/// The input with the function's default sizes.
pub fn input(seed: u64) -> Value {
    json!({ "seed": seed })
}

/// Boots `function` and waits until it serves.
///
/// # Panics
/// If it does not.
pub fn boot(function: &str) -> FunctionVm {
    FunctionVm::boot(VmConfig::for_function(function).unwrap(), TIMEOUT).unwrap()
}

/// Makes a snapshot of `function` in `dir`, warmed up, and returns what the machine that was saved
/// answers to `seeds` when it goes on: the responses that a restored one has to give.
///
/// # Panics
/// If that fails.
pub fn create(function: &str, dir: &Path, seeds: &[u64]) -> Vec<Value> {
    let mut vm = boot(function);
    vm.invoke(&input(0), TIMEOUT).unwrap();
    vm.save(dir).unwrap();
    vm.machine.resume().unwrap();
    seeds
        .iter()
        .map(|&seed| vm.invoke(&input(seed), TIMEOUT).unwrap())
        .collect()
}

/// A snapshot of `function` that is made once a process and must not be changed.
///
/// # Panics
/// If it cannot be made.
pub fn shared(function: &str) -> PathBuf {
    static MADE: OnceLock<Mutex<HashMap<String, PathBuf>>> = OnceLock::new();
    // A test that fails while it makes one leaves the map as it was.
    let mut made = MADE
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(dir) = made.get(function) {
        return dir.clone();
    }
    // No destructor of a static runs: the next test program removes what this one has left.
    let parent = scratch::parent().join(format!(
        "shared-{}",
        std::env::current_exe()
            .unwrap()
            .file_name()
            .unwrap()
            .display()
    ));
    remove_leftovers(&parent);
    let parent = parent.join(std::process::id().to_string());
    std::fs::create_dir_all(&parent).unwrap();
    let dir = parent.join(function);
    create(function, &dir, &[]);
    made.insert(function.to_owned(), dir.clone());
    dir
}

/// Removes the directories of processes that have ended.
fn remove_leftovers(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        if !Path::new("/proc").join(entry.file_name()).exists() {
            // Another process may be removing it too.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// A copy of the snapshot `from` in `to`, with its holes.
///
/// # Panics
/// If it cannot be copied.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (mut source, target) = (
            File::open(entry.path()).unwrap(),
            File::create_new(to.join(entry.file_name())).unwrap(),
        );
        let length = source.metadata().unwrap().len();
        let mut block = vec![0; COPY_BYTES];
        let mut offset = 0;
        while offset < length {
            let count = (length - offset).min(COPY_BYTES as u64) as usize;
            let block = &mut block[..count];
            source.read_exact(block).unwrap();
            if block.iter().any(|&byte| byte != 0) {
                target.write_all_at(block, offset).unwrap();
            }
            offset += count as u64;
        }
        target.set_len(length).unwrap();
    }
}

/// Inverts the lowest bit of the byte at `offset` of `file`.
///
/// # Panics
/// If there is none.
pub fn flip_bit(file: &Path, offset: u64) {
    let handle = File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    handle.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 1;
    handle.write_all_at(&byte, offset).unwrap();
}

/// Opens the snapshot in `dir`.
///
/// # Panics
/// If it is refused.
pub fn open(dir: &Path) -> Arc<Snapshot> {
    Arc::new(Snapshot::open(dir).unwrap())
}

/// Restores the snapshot in `dir` and lets it run.
///
/// # Panics
/// If it cannot.
pub fn restore(dir: &Path, mode: MemoryRestoreMode) -> Machine {
    let mut machine = Machine::restore(&open(dir), RestoreOptions::new(mode)).unwrap();
    machine.resume().unwrap();
    machine
}

/// One invocation of a running machine; its whole response.
///
/// # Panics
/// If there is none.
pub fn call(machine: &Machine, seed: u64) -> Value {
    Connection::open(machine)
        .unwrap()
        .call(machine, &input(seed), TIMEOUT)
        .unwrap()
        .value
}
