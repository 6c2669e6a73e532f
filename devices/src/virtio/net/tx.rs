//! Frames on their way from the guest.

use rustix::io::Errno;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory as _, Permissions};

use super::header::HEADER_BYTES;
use super::rx::gone;
use super::tap::{MAX_PIECES, Tap, TapError};
use super::{MAX_FRAME_BYTES, TX_QUEUE};
use crate::rate_limiter::RateLimiter;
use crate::virtio::device::{DeviceError, DeviceIo, Progress};
use crate::{GuestMemory, GuestSlice};

/// Frames that are handled in one turn.
const MAX_FRAMES_PER_TURN: usize = 64;

/// The sending half of a network device.
#[derive(Debug)]
pub(super) struct Transmitter {
    pub(super) limiter: RateLimiter,
    /// It was said that the tap is down.
    down_reported: bool,
}

/// A frame with its header, where it is in guest memory.
struct Frame<'a> {
    pieces: Vec<GuestSlice<'a>>,
    len_bytes: usize,
}

/// The frame of a chain, or why it holds none.
fn gather<'a>(
    mem: &'a GuestMemory,
    chain: DescriptorChain<&'a GuestMemory>,
) -> Result<Frame<'a>, &'static str> {
    let mut frame = Frame {
        pieces: Vec::new(),
        len_bytes: 0,
    };
    for desc in chain.readable() {
        let len = desc.len() as usize;
        if len > HEADER_BYTES + MAX_FRAME_BYTES - frame.len_bytes {
            return Err("it is too long");
        }
        frame.len_bytes += len;
        let slices = mem
            .get_slices(desc.addr(), len, Permissions::Read)
            .map_err(|_| "it is not in guest memory")?;
        for slice in slices {
            frame
                .pieces
                .push(slice.map_err(|_| "it is not in guest memory")?);
        }
        if frame.pieces.len() > MAX_PIECES {
            return Err("it is in too many pieces");
        }
    }
    if frame.len_bytes <= HEADER_BYTES {
        return Err("it is too short");
    }
    Ok(frame)
}

impl Transmitter {
    pub(super) fn new(limiter: RateLimiter) -> Self {
        Self {
            limiter,
            down_reported: false,
        }
    }

    /// Sends what the guest has made available, as far as the limiter lets it through. A frame
    /// that the host does not take is dropped, as on any network.
    pub(super) fn run(
        &mut self,
        io: &mut DeviceIo<'_>,
        tap: &Tap,
    ) -> Result<Progress, DeviceError> {
        for _ in 0..MAX_FRAMES_PER_TURN {
            if self.limiter.is_blocked() {
                return Ok(Progress::Done);
            }
            let Some(chain) = io.pop(TX_QUEUE)? else {
                if io.enable_notification(TX_QUEUE)? {
                    continue;
                }
                return Ok(Progress::Done);
            };
            let head_index = chain.head_index();
            match gather(io.mem(), chain) {
                Ok(frame) => {
                    let frame_bytes = (frame.len_bytes - HEADER_BYTES) as u64;
                    if !self.limiter.try_consume(frame_bytes, 1) {
                        io.undo_pop(TX_QUEUE);
                        return Ok(Progress::Done);
                    }
                    self.send(tap, &frame)?;
                }
                Err(reason) => {
                    tracing::debug!(reason, "net: a frame of the guest is dropped");
                }
            }
            io.add_used(TX_QUEUE, head_index, 0)?;
        }
        Ok(Progress::More {
            queue_index: TX_QUEUE,
        })
    }

    fn send(&mut self, tap: &Tap, frame: &Frame<'_>) -> Result<(), DeviceError> {
        match tap.write(&frame.pieces) {
            Ok(()) => self.down_reported = false,
            Err(TapError::Gone) => return Err(gone(tap)),
            Err(TapError::Frame(Errno::IO)) if !self.down_reported => {
                self.down_reported = true;
                let tap = tap.name();
                tracing::warn!(
                    "net: tap '{tap}' is down, frames are dropped: ip link set {tap} up"
                );
            }
            Err(TapError::Frame(err)) => {
                tracing::debug!(%err, "net: a frame that the host does not take is dropped");
            }
        }
        Ok(())
    }
}
