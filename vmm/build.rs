//! How the static release executable is linked: resident code and relocations count as the
//! hypervisor's memory.

use std::env;
use std::path::Path;
use std::process::Command;

/// The first version of glibc whose static executables understand packed relative relocations.
const GLIBC_WITH_RELR: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=cold-code.ld");
    let is = |name, value| env::var(name).is_ok_and(|found| found == value);
    let is_static = env::var("CARGO_CFG_TARGET_FEATURE")
        .is_ok_and(|features| features.split(',').any(|feature| feature == "crt-static"));
    if !is_static || !is("PROFILE", "release") || !is("CARGO_CFG_TARGET_ENV", "gnu") {
        return;
    }
    if let Ok(directory) = env::var("CARGO_MANIFEST_DIR") {
        let script = Path::new(&directory).join("cold-code.ld");
        println!(
            "cargo::rustc-link-arg-bin=reapvm=-Wl,-T,{}",
            script.display()
        );
    }
    // An older C library would start without them, at addresses that are wrong.
    let is_native = env::var("HOST").ok() == env::var("TARGET").ok();
    if is_native && glibc_version().is_some_and(|version| version >= GLIBC_WITH_RELR) {
        println!("cargo::rustc-link-arg-bin=reapvm=-Wl,-z,pack-relative-relocs");
    }
}

/// Version of the C library of this system, if it is glibc.
fn glibc_version() -> Option<(u32, u32)> {
    let output = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, rest) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    let minor = rest.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
