//! What the guest can be asked to do.

mod block;
mod memory;
mod network;
mod system;

use std::io;

use reapvm_guest_init::protocol::{MAX_SEQUENCE, Request};
use serde_json::Value;
use thiserror::Error;

pub(crate) use system::reset;

/// Why a request was not done.
#[derive(Debug, Error)]
pub(crate) enum OperationError {
    /// A number that is out of its bounds.
    #[error("{0}")]
    Refused(String),
    /// The system.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, OperationError>;

/// Makes an error of what the system said when it was tried to do `what`.
fn cannot<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> OperationError {
    move |error| OperationError::System {
        what,
        source: error.into(),
    }
}

/// The operations, and what they keep from one request to the next.
#[derive(Default)]
pub(crate) struct Operations {
    memory: memory::Kept,
    block: block::Writer,
}

impl Operations {
    fn sequence(&self, requests: Vec<Request>) -> Result<Value> {
        let nested = |request: &Request| matches!(request, Request::Sequence { .. });
        if requests.len() > MAX_SEQUENCE || requests.iter().any(nested) {
            return Err(OperationError::Refused(format!(
                "a sequence has at most {MAX_SEQUENCE} requests, none of them a sequence"
            )));
        }
        let results: Result<Vec<Value>> = requests
            .into_iter()
            .map(|request| self.perform(request))
            .collect();
        results.map(Value::Array)
    }

    /// Does what is asked for and returns the result.
    pub(crate) fn perform(&self, request: Request) -> Result<Value> {
        match request {
            Request::Sequence { requests } => self.sequence(requests),
            Request::Echo { value } => Ok(value),
            Request::Clock {} => system::clock(),
            Request::Sleep { ms } => system::sleep(ms),
            Request::Random {} => system::random(),
            Request::Cpus {} => system::cpus(),
            Request::Dmesg {} => system::dmesg(),
            Request::Panic {} => system::panic(),
            Request::Reboot {} => reset(),
            Request::Memory {} => memory::info(),
            Request::MemoryShrunk { total_kib } => memory::shrunk(total_kib),
            Request::MemoryDigest { pages, seed } => self.memory.digest(pages, seed),
            Request::BlockInfo {} => block::info(),
            Request::BlockDigest { offset, bytes } => block::digest(offset, bytes),
            Request::BlockWrite {
                offset,
                bytes,
                seed,
            } => block::write(offset, bytes, seed),
            Request::BlockWriteStart {
                offset,
                bytes,
                seed,
            } => self.block.start(offset, bytes, seed),
            Request::BlockWriteWait {} => self.block.wait(),
            Request::NetUp {
                address,
                prefix_bits,
            } => network::up(address, prefix_bits),
            Request::NetInfo {} => network::info(),
            Request::NetBroadcast { to, datagrams } => network::broadcast(to, datagrams),
            Request::HttpGet { server, path } => network::get(server, &path),
            Request::HttpServe { port, bytes, seed } => network::serve(port, bytes, seed),
        }
    }
}
