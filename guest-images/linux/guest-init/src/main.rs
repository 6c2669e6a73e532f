//! The guest's first program: see the library.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod operations;
mod server;
mod vsock;

use std::error::Error;
use std::path::Path;

use reapvm_guest_init::protocol::{PORT, READY_LINE};
use reapvm_guest_init::{filesystems, kernel_modules};

fn start() -> Result<vsock::Listener, Box<dyn Error>> {
    filesystems::mount_pseudo()?;
    kernel_modules::load_all(Path::new("/modules"))?;
    Ok(vsock::Listener::bind(PORT)?)
}

fn main() {
    match start() {
        Ok(listener) => {
            println!("{READY_LINE}");
            server::serve(&listener);
        }
        Err(error) => {
            println!("init: {}", with_causes(error.as_ref()));
        }
    }
    // The first program must not end: the kernel would panic, which says nothing of the reason.
    operations::reset();
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
