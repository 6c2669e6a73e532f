//! Builds the guest's image, a freestanding binary, with a cargo of its own, for `src/lib.rs` to
//! embed.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The stable toolchain's own target; the flags below leave nothing of its C library in the image.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const PACKAGE: &str = "reapvm-guest";

/// A static executable at 16 MiB, where a boot loader may put it, entered at the 64-bit entry of
/// the Linux boot protocol; the entry for PVH is in a note.
const RUST_FLAGS: [&str; 10] = [
    "-Crelocation-model=static",
    "-Cpanic=abort",
    "-Cforce-unwind-tables=no",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-arg=-no-pie",
    "-Clink-arg=-Wl,--image-base=0x1000000",
    "-Clink-arg=-Wl,--entry=linux_start",
    "-Clink-arg=-Wl,--build-id=none",
];

/// Variables of the outer build that the inner one needs; every other `CARGO` and `RUST` variable
/// describes the outer build (its target directory, flags, profile, wrappers) and is removed.
const KEPT: [&str; 6] = [
    "CARGO",
    "CARGO_HOME",
    "CARGO_MAKEFLAGS",
    "RUSTC",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
];
/// Settings of how crates are fetched.
const KEPT_PREFIXES: [&str; 5] = [
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
];

fn main() -> Result<(), Box<dyn Error>> {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = here
        .parent()
        .ok_or("the crate is not inside its workspace")?;
    for input in [
        workspace.join("Cargo.toml"),
        workspace.join("Cargo.lock"),
        here.join("build.rs"),
        here.join("functions/Cargo.toml"),
        here.join("functions/src"),
        here.join("guest/Cargo.toml"),
        here.join("guest/src"),
    ] {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    let image = build(workspace, Path::new(&variable("OUT_DIR")?))?;
    println!("cargo::rustc-env=REAPVM_GUEST_IMAGE={}", image.display());
    Ok(())
}

/// Builds the image below `out` and returns its path.
fn build(workspace: &Path, out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let target_dir = out.join("guest");
    let mut cargo = Command::new(variable("CARGO")?);
    for (name, _) in env::vars_os() {
        let foreign = name.to_str().is_some_and(|name| {
            (name.starts_with("CARGO") || name.starts_with("RUST"))
                && !KEPT.contains(&name)
                && !KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        });
        if foreign {
            cargo.env_remove(name);
        }
    }
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", RUST_FLAGS.join("\u{1f}"))
        .current_dir(workspace)
        .args(["build", "--package", PACKAGE, "--bin", PACKAGE])
        .args(["--profile", "guest", "--features", "freestanding"])
        .args(["--target", TARGET, "--locked", "--target-dir"])
        .arg(&target_dir);
    let status = cargo
        .status()
        .map_err(|error| format!("cannot start {cargo:?}: {error}"))?;
    if !status.success() {
        return Err(format!("building the guest's image failed ({status}): {cargo:?}").into());
    }
    Ok(target_dir.join(TARGET).join("guest").join(PACKAGE))
}

fn variable(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|error| format!("the variable {name} of cargo: {error}").into())
}
