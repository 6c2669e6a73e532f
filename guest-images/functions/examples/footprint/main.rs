//! Measures what each function holds and what an invocation touches, without a VM.
//!
//! `cargo run --release -p reapvm-functions --example footprint [NAME]...`
//!
//! Each function runs in a process of its own on the guest's heap. Columns:
//! `init_ms`; `booted_mib`, the resident heap after a warm-up; `ws_pages`, the pages that an
//! invocation with seed 1 touches; `run`, the mean length of their contiguous runs; `blocks`, how
//! many aligned 64 KiB blocks they lie in; `new_pct`, the share of seed 2's pages that seed 1 did
//! not touch; `warm_ms`, the median of 20 invocations.

mod arena;
mod watch;

use std::error::Error;
use std::process::Command;
use std::time::Instant;

use reapvm_functions::{FUNCTIONS, initialise, protocol};

#[global_allocator]
static HEAP: arena::Arena = arena::Arena::new();

/// Set in the process that measures one function.
const CHILD_VARIABLE: &str = "REAPVM_FOOTPRINT_CHILD";

fn main() -> Result<(), Box<dyn Error>> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    if std::env::var_os(CHILD_VARIABLE).is_some() {
        return names.iter().try_for_each(|name| measure(name));
    }
    println!(
        "{:<18}{:>8}{:>11}{:>9}{:>6}{:>8}{:>8}{:>9}",
        "function", "init_ms", "booted_mib", "ws_pages", "run", "blocks", "new_pct", "warm_ms"
    );
    let all = FUNCTIONS.iter().map(|info| info.name.to_owned());
    for name in if names.is_empty() {
        all.collect()
    } else {
        names
    } {
        let status = Command::new(std::env::current_exe()?)
            .arg(&name)
            .env(CHILD_VARIABLE, "1")
            .status()?;
        if !status.success() {
            return Err(format!("measuring {name} failed: {status}").into());
        }
    }
    Ok(())
}

fn measure(name: &str) -> Result<(), Box<dyn Error>> {
    watch::install()?;
    let start = Instant::now();
    let mut function = initialise(name)?;
    let init_ms = start.elapsed().as_secs_f64() * 1e3;
    let mut serve = |seed: u32| {
        let reply =
            protocol::handle_request(&mut *function, format!("{{\"seed\":{seed}}}").as_bytes());
        reply.len()
    };
    // The guest's snapshot is taken after one warm-up invocation.
    serve(4711);
    watch::run(0, || {
        serve(1);
    })?;
    watch::run(1, || {
        serve(2);
    })?;
    let booted_mib = watch::resident_pages()? as f64 / 256.0;
    let (first, second) = (watch::touched_pages(0), watch::touched_pages(1));
    let mut times_ms: Vec<f64> = (0..20)
        .map(|seed| {
            let start = Instant::now();
            serve(seed);
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times_ms.sort_by(f64::total_cmp);

    let runs = first
        .iter()
        .enumerate()
        .filter(|&(index, &page)| index == 0 || first[index - 1] + 1 != page)
        .count();
    let mut blocks: Vec<usize> = first.iter().map(|page| page / 16).collect();
    blocks.dedup();
    let new = second
        .iter()
        .filter(|page| first.binary_search(page).is_err())
        .count();
    println!(
        "{name:<18}{init_ms:>8.0}{booted_mib:>11.1}{:>9}{:>6.1}{:>8}{:>8.2}{:>9.2}",
        first.len(),
        first.len() as f64 / runs as f64,
        blocks.len(),
        new as f64 * 100.0 / second.len() as f64,
        times_ms[times_ms.len() / 2],
    );
    Ok(())
}
