//! **Unstable.** The generation id: tells a guest that it is another copy of itself, so that it draws new random
//! numbers (Microsoft, "Virtual Machine Generation ID"; Linux's driver `vmgenid`).

use reapvm_devices::GuestMemory;
use thiserror::Error;
use vm_memory::{Bytes, GuestMemoryError};

use crate::arch::layout;

/// A generation id cannot be given to the guest.
#[derive(Debug, Error)]
pub enum GenerationIdError {
    /// The host has no random numbers.
    #[error("the host gives no random numbers for the guest's generation id: {0}")]
    Random(String),
    /// It cannot be written.
    #[error("cannot write the generation id into guest memory")]
    Memory(#[from] GuestMemoryError),
    /// The guest cannot be told.
    #[error("cannot tell the guest of its new generation id")]
    Notify(#[source] std::io::Error),
}

/// Writes a new generation id where the ACPI tables say that it lies. In a machine that is being
/// restored the pager must serve already: the page may be missing.
pub(crate) fn write_new(memory: &GuestMemory) -> Result<(), GenerationIdError> {
    let mut id = [0_u8; 16];
    getrandom::fill(&mut id).map_err(|error| GenerationIdError::Random(error.to_string()))?;
    Ok(memory.write_slice(&id, layout::GENERATION_ID)?)
}
