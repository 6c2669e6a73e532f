//! The entropy device (5.4): fills the driver's buffers from the host's random number generator.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vm_memory::{Bytes, GuestMemory as _, Permissions};

use super::device::{
    ActivateError, DeviceError, DeviceIo, Progress, RestoreDeviceError, SaveDeviceError,
    VirtioDevice, VirtioDeviceState,
};

const QUEUE_MAX_SIZES: [u16; 1] = [64];
/// What one request gets at most. A driver asks again for more; a hostile one does not make the
/// event loop produce gigabytes.
const MAX_REQUEST_BYTES: usize = 4096;
/// Requests that are served in one turn.
const MAX_REQUESTS_PER_TURN: usize = 64;

/// The entropy device has nothing to keep: each request is served whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {}

/// An entropy device. After a restore the guest gets fresh bytes, never those of another clone.
#[derive(Debug, Default)]
pub struct Rng {}

impl Rng {
    /// An entropy device.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fills the device-writable part of the chain and returns the bytes written.
    fn fill(
        io: &DeviceIo<'_>,
        chain: virtio_queue::DescriptorChain<&crate::GuestMemory>,
    ) -> Result<u32, DeviceError> {
        let mut random = [0u8; MAX_REQUEST_BYTES];
        let mut filled_bytes = 0usize;
        for desc in chain.writable() {
            let len = (desc.len() as usize).min(MAX_REQUEST_BYTES - filled_bytes);
            if len == 0 {
                continue;
            }
            // Only what was really written may be reported as used, so the buffer ends where
            // guest memory does.
            if !io.mem().check_range(desc.addr(), len, Permissions::Write) {
                break;
            }
            let bytes = &mut random[..len];
            getrandom::fill(bytes).map_err(|err| DeviceError::Host(err.to_string()))?;
            if io.mem().write_slice(bytes, desc.addr()).is_err() {
                break;
            }
            filled_bytes += len;
        }
        Ok(filled_bytes as u32)
    }
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn device_features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_MAX_SIZES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn event_fds(&self) -> Vec<RawFd> {
        Vec::new()
    }

    fn activate(&mut self, _acked_features: u64) -> Result<(), ActivateError> {
        Ok(())
    }

    fn process_queue(
        &mut self,
        io: &mut DeviceIo<'_>,
        queue_index: usize,
    ) -> Result<Progress, DeviceError> {
        let mut served = 0;
        loop {
            while let Some(chain) = io.pop(queue_index)? {
                let head_index = chain.head_index();
                let len_bytes = Self::fill(io, chain)?;
                io.add_used(queue_index, head_index, len_bytes)?;
                served += 1;
                if served == MAX_REQUESTS_PER_TURN {
                    return Ok(Progress::More { queue_index });
                }
            }
            if !io.enable_notification(queue_index)? {
                return Ok(Progress::Done);
            }
            // An index that moved without a buffer to be taken would go round here for ever.
            served += 1;
            if served >= MAX_REQUESTS_PER_TURN {
                return Ok(Progress::More { queue_index });
            }
        }
    }

    fn process_event(
        &mut self,
        _io: Option<&mut DeviceIo<'_>>,
        _event_index: usize,
    ) -> Result<Progress, DeviceError> {
        Ok(Progress::Done)
    }

    fn reset(&mut self) {}

    fn save(&self) -> Result<VirtioDeviceState, SaveDeviceError> {
        Ok(VirtioDeviceState::Rng(RngState {}))
    }

    fn restore(&mut self, state: &VirtioDeviceState) -> Result<Vec<usize>, RestoreDeviceError> {
        match state {
            VirtioDeviceState::Rng(RngState {}) => Ok(Vec::new()),
            _ => Err(RestoreDeviceError::OtherDevice { expected: "rng" }),
        }
    }
}
