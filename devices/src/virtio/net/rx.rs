//! Frames on their way to the guest.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory as _, Permissions};

use super::header::{HEADER_BYTES, Offloads, set_num_buffers};
use super::tap::{MAX_PIECES, Tap, TapError};
use super::{MAX_FRAME_BYTES, RX_QUEUE};
use crate::rate_limiter::RateLimiter;
use crate::virtio::device::{DeviceError, DeviceIo, Progress};
use crate::{GuestMemory, GuestSlice};

/// Frames that are handled in one turn.
const MAX_FRAMES_PER_TURN: usize = 64;
/// Buffers that one frame may be spread over. Linux gives ones of 1.5 KiB and more.
const MAX_MERGED_BUFFERS: usize = 64;

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
enum Placement {
    /// The guest has it.
    Delivered,
    /// The guest has no buffer for it yet, and notifies when it has one more.
    NoBuffers,
    /// It does not fit into the buffers that the guest gives.
    TooLong,
}

/// A frame that was read, and is not delivered.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// With its header.
    len_bytes: usize,
    /// Whether the rate limiter has let it through.
    paid: bool,
}

/// The receiving half of a network device.
///
/// At most one frame waits here. While it does, the tap is left alone: its own queue fills, and
/// then the host drops frames.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) limiter: RateLimiter,
    /// Whether the tap may have a frame: it says so once, until it was read empty.
    tap_readable: bool,
    buf: Vec<u8>,
    waiting: Option<Waiting>,
}

impl Receiver {
    pub(super) fn new(limiter: RateLimiter) -> Self {
        Self {
            limiter,
            tap_readable: false,
            buf: Vec::new(),
            waiting: None,
        }
    }

    pub(super) fn on_tap_readable(&mut self) {
        self.tap_readable = true;
    }

    /// Forgets the frame of a driver that is gone.
    pub(super) fn reset(&mut self) {
        self.waiting = None;
        self.buf = Vec::new();
    }

    /// Hands frames to the guest, as long as there are some, the limiter lets them through, and
    /// the guest has buffers.
    pub(super) fn run(
        &mut self,
        io: &mut DeviceIo<'_>,
        tap: &Tap,
        offloads: Offloads,
    ) -> Result<Progress, DeviceError> {
        let mut delivered = false;
        for _ in 0..MAX_FRAMES_PER_TURN {
            if self.waiting.is_none() {
                // Without a look at the ring: it costs a page fault in a VM that was just restored.
                if !self.tap_readable {
                    if delivered {
                        // Buffers that come while there is no frame are no news.
                        io.disable_notification(RX_QUEUE)?;
                    }
                    return Ok(Progress::Done);
                }
                self.waiting = self.read(tap, offloads)?;
            }
            let Some(waiting) = &mut self.waiting else {
                continue;
            };
            let frame_bytes = (waiting.len_bytes - HEADER_BYTES) as u64;
            if !waiting.paid && !self.limiter.try_consume(frame_bytes, 1) {
                return Ok(Progress::Done);
            }
            waiting.paid = true;
            match place(io, &mut self.buf[..waiting.len_bytes], offloads.mergeable)? {
                Placement::NoBuffers => return Ok(Progress::Done),
                Placement::Delivered => delivered = true,
                Placement::TooLong => {
                    tracing::debug!(frame_bytes, "net: a frame that fits no buffer is dropped");
                }
            }
            self.waiting = None;
        }
        Ok(Progress::More {
            queue_index: RX_QUEUE,
        })
    }

    /// Reads a frame, if there is one and the guest takes its like.
    fn read(&mut self, tap: &Tap, offloads: Offloads) -> Result<Option<Waiting>, DeviceError> {
        self.buf.resize(HEADER_BYTES + MAX_FRAME_BYTES, 0);
        let len_bytes = match tap.read(&mut self.buf) {
            Ok(Some(len_bytes)) => len_bytes,
            Ok(None) => {
                self.tap_readable = false;
                return Ok(None);
            }
            Err(TapError::Gone) => {
                self.tap_readable = false;
                return Err(gone(tap));
            }
            Err(TapError::Frame(err)) => {
                tracing::warn!(%err, tap = tap.name(), "net: cannot read a frame");
                self.tap_readable = false;
                return Ok(None);
            }
        };
        if len_bytes <= HEADER_BYTES || !offloads.admit(&mut self.buf[..HEADER_BYTES]) {
            tracing::debug!(
                len_bytes,
                "net: a frame that the guest does not take is dropped"
            );
            return Ok(None);
        }
        Ok(Some(Waiting {
            len_bytes,
            paid: false,
        }))
    }
}

/// The interface was deleted: the driver is told that the device does not work.
pub(super) fn gone(tap: &Tap) -> DeviceError {
    DeviceError::Host(format!(
        "tap '{}' is not there any more: it was deleted while in use",
        tap.name()
    ))
}

/// Takes the next buffer. If there is none, the guest was asked to notify when there is.
fn pop<'m>(io: &mut DeviceIo<'m>) -> Result<Option<DescriptorChain<&'m GuestMemory>>, DeviceError> {
    if let Some(chain) = io.pop(RX_QUEUE)? {
        return Ok(Some(chain));
    }
    if io.enable_notification(RX_QUEUE)? {
        return io.pop(RX_QUEUE);
    }
    Ok(None)
}

/// Puts a frame with its header into buffers of the guest: one, or as many as it takes.
fn place(
    io: &mut DeviceIo<'_>,
    frame: &mut [u8],
    mergeable: bool,
) -> Result<Placement, DeviceError> {
    let max_buffers = if mergeable { MAX_MERGED_BUFFERS } else { 1 };
    let mut buffers: Vec<(u16, usize)> = Vec::new();
    let mut pieces: Vec<GuestSlice<'_>> = Vec::new();
    let mut room_bytes = 0;
    // Descriptors that were looked at: those without room count too.
    let mut looked_at = 0;
    let failed = loop {
        if room_bytes == frame.len() {
            break None;
        }
        if buffers.len() == max_buffers || looked_at >= MAX_PIECES {
            break Some(Placement::TooLong);
        }
        // The buffers are put back only after the guest was asked for more: where it stands in the
        // ring is what it is asked to go beyond.
        let Some(chain) = pop(io)? else {
            break Some(Placement::NoBuffers);
        };
        let before = room_bytes;
        buffers.push((chain.head_index(), 0));
        for desc in chain.writable() {
            looked_at += 1;
            let len = (desc.len() as usize).min(frame.len() - room_bytes);
            if len == 0 {
                continue;
            }
            // Only what is really written may be reported as used, so the buffer ends where guest
            // memory does.
            let Ok(slices) = io.mem().get_slices(desc.addr(), len, Permissions::Write) else {
                break;
            };
            let Ok(slices) = slices.collect::<Result<Vec<_>, _>>() else {
                break;
            };
            pieces.extend(slices);
            room_bytes += len;
        }
        if let Some((_, used_bytes)) = buffers.last_mut() {
            *used_bytes = room_bytes - before;
        }
    };
    if let Some(placement) = failed {
        for _ in &buffers {
            io.undo_pop(RX_QUEUE);
        }
        return Ok(placement);
    }
    set_num_buffers(&mut frame[..HEADER_BYTES], buffers.len() as u16);
    let mut rest = &*frame;
    for piece in pieces {
        let (head, tail) = rest.split_at(piece.len().min(rest.len()));
        piece.copy_from(head);
        rest = tail;
    }
    for (head_index, used_bytes) in buffers {
        io.add_used(RX_QUEUE, head_index, used_bytes as u32)?;
    }
    Ok(Placement::Delivered)
}
