//! The socket device: its queues, its configuration, and what a snapshot keeps of it.

use std::os::fd::RawFd;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vm_memory::Bytes;

use super::muxer::{FIRST_HOST_PORT, Muxer};
use super::packet::{MAX_PAYLOAD_BYTES, RxBuffer, TxPacket, read_tx};
use super::{VsockConfig, VsockError, VsockHandle, VsockState};
use crate::virtio::device::{
    ActivateError, DeviceError, DeviceIo, Progress, RestoreDeviceError, SaveDeviceError,
    VirtioDevice, VirtioDeviceState,
};

/// Packets for the guest.
pub(super) const RX_QUEUE: usize = 0;
/// Packets of the guest.
pub(super) const TX_QUEUE: usize = 1;
/// Events of the device.
pub(super) const EVENT_QUEUE: usize = 2;

const QUEUE_MAX_SIZES: [u16; 3] = [256, 256, 256];
/// Buffers of one queue that are handled in one turn.
const MAX_BUFFERS_PER_TURN: usize = 256;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (5.10.6.7).
const EVENT_TRANSPORT_RESET: u32 = 0;

/// A socket device.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u32,
    muxer: Muxer,
    handle: VsockHandle,
    /// The guest is to be told that its connections are gone, and has no buffer for that yet.
    reset_event_pending: bool,
    /// Payload on its way to the guest.
    rx_payload: Vec<u8>,
    /// Payload on its way from the guest.
    tx_payload: Vec<u8>,
}

impl Vsock {
    /// A socket device. With a path it listens there at once; the file goes with the device.
    ///
    /// # Errors
    /// When the CID is reserved, something is at the path, or the host cannot listen there.
    pub fn new(config: VsockConfig) -> Result<Self, VsockError> {
        if !(3..u32::MAX).contains(&config.guest_cid) {
            return Err(VsockError::ReservedCid(config.guest_cid));
        }
        let (muxer, handle) = Muxer::new(&config)?;
        Ok(Self {
            guest_cid: config.guest_cid,
            muxer,
            handle,
            reset_event_pending: false,
            rx_payload: Vec::new(),
            tx_payload: Vec::new(),
        })
    }

    /// A handle by which any thread connects streams to the guest.
    pub fn handle(&self) -> VsockHandle {
        self.handle.clone()
    }

    /// Hands packets to the guest as long as there are some and it has buffers.
    fn fill_rx(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceError> {
        if !self.muxer.has_packet() {
            // Without a look at the ring: it costs a page fault in a VM that was just restored.
            return Ok(Progress::Done);
        }
        if self.rx_payload.is_empty() {
            self.rx_payload.resize(MAX_PAYLOAD_BYTES, 0);
        }
        for _ in 0..MAX_BUFFERS_PER_TURN {
            if !self.muxer.has_packet() {
                // Buffers that come while nothing is to be sent are no news.
                io.disable_notification(RX_QUEUE)?;
                return Ok(Progress::Done);
            }
            let Some(mut chain) = io.pop(RX_QUEUE)? else {
                if io.enable_notification(RX_QUEUE)? {
                    continue;
                }
                return Ok(Progress::Done);
            };
            let head_index = chain.head_index();
            let Some(mut buffer) = RxBuffer::new(io.mem(), &mut chain) else {
                tracing::debug!("vsock: a receive buffer that cannot hold a packet is given back");
                io.add_used(RX_QUEUE, head_index, 0)?;
                continue;
            };
            let room = buffer.capacity_bytes();
            match self.muxer.next_packet(&mut self.rx_payload[..room]) {
                Some(header) => {
                    let payload = &self.rx_payload[..header.len as usize];
                    let len_bytes = buffer.fill(&header, payload);
                    io.add_used(RX_QUEUE, head_index, len_bytes)?;
                }
                None => io.undo_pop(RX_QUEUE),
            }
        }
        Ok(Progress::More {
            queue_index: RX_QUEUE,
        })
    }

    /// Takes the packets that the guest has sent.
    fn drain_tx(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceError> {
        for _ in 0..MAX_BUFFERS_PER_TURN {
            let Some(chain) = io.pop(TX_QUEUE)? else {
                if io.enable_notification(TX_QUEUE)? {
                    continue;
                }
                return Ok(Progress::Done);
            };
            let head_index = chain.head_index();
            match read_tx(io.mem(), chain, &mut self.tx_payload) {
                TxPacket::Packet(header) => {
                    self.muxer.packet_from_guest(&header, &self.tx_payload);
                }
                TxPacket::BadLength(header) => self.muxer.bad_packet_from_guest(&header),
                TxPacket::Garbage => tracing::debug!("vsock: a buffer without a packet is dropped"),
            }
            io.add_used(TX_QUEUE, head_index, 0)?;
        }
        Ok(Progress::More {
            queue_index: TX_QUEUE,
        })
    }

    /// Tells the guest that its connections are gone, if it has to be told.
    fn send_event(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceError> {
        for _ in 0..MAX_BUFFERS_PER_TURN {
            if !self.reset_event_pending {
                return Ok(Progress::Done);
            }
            let Some(chain) = io.pop(EVENT_QUEUE)? else {
                if io.enable_notification(EVENT_QUEUE)? {
                    continue;
                }
                return Ok(Progress::Done);
            };
            let head_index = chain.head_index();
            let event = EVENT_TRANSPORT_RESET.to_le_bytes();
            let buffer = chain.writable().next();
            let written = buffer
                .filter(|desc| desc.len() as usize >= event.len())
                .is_some_and(|desc| io.mem().write_slice(&event, desc.addr()).is_ok());
            io.add_used(
                EVENT_QUEUE,
                head_index,
                if written { event.len() as u32 } else { 0 },
            )?;
            self.reset_event_pending = !written;
        }
        Ok(Progress::More {
            queue_index: EVENT_QUEUE,
        })
    }
}

impl VirtioDevice for Vsock {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn device_features(&self) -> u64 {
        // Stream sockets are there without a feature bit (5.10.3).
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_MAX_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `le64 guest_cid` is all there is (5.10.4).
        let config = u64::from(self.guest_cid).to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            let value = usize::try_from(at).ok().and_then(|at| config.get(at));
            *byte = value.copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn event_fds(&self) -> Vec<RawFd> {
        vec![self.muxer.event_fd()]
    }

    fn activate(&mut self, _acked_features: u64) -> Result<(), ActivateError> {
        Ok(())
    }

    fn process_queue(
        &mut self,
        io: &mut DeviceIo<'_>,
        queue_index: usize,
    ) -> Result<Progress, DeviceError> {
        match queue_index {
            RX_QUEUE => self.fill_rx(io),
            TX_QUEUE => {
                let drained = self.drain_tx(io)?;
                // The answers go out with the same interrupt: the data of a connection right
                // after the guest's RESPONSE.
                match self.fill_rx(io)? {
                    Progress::Done => Ok(drained),
                    more if drained == Progress::Done => Ok(more),
                    // One queue can be named: a turn for what was sent includes the answers.
                    _ => Ok(drained),
                }
            }
            EVENT_QUEUE => self.send_event(io),
            _ => Ok(Progress::Done),
        }
    }

    fn process_event(
        &mut self,
        io: Option<&mut DeviceIo<'_>>,
        _event_index: usize,
    ) -> Result<Progress, DeviceError> {
        self.muxer.process_events(io.is_some());
        match io {
            Some(io) => self.fill_rx(io),
            None => Ok(Progress::Done),
        }
    }

    fn reset(&mut self) {
        self.muxer.reset();
        self.reset_event_pending = false;
        self.rx_payload = Vec::new();
        self.tx_payload = Vec::new();
    }

    fn save(&self) -> Result<VirtioDeviceState, SaveDeviceError> {
        Ok(VirtioDeviceState::Vsock(VsockState {
            guest_cid: self.guest_cid,
            next_host_port: self.muxer.next_host_port(),
            reset_needed: self.reset_event_pending || self.muxer.is_missed_by_guest(),
        }))
    }

    fn restore(&mut self, state: &VirtioDeviceState) -> Result<Vec<usize>, RestoreDeviceError> {
        let VirtioDeviceState::Vsock(state) = state else {
            return Err(RestoreDeviceError::OtherDevice { expected: "vsock" });
        };
        let invalid = |reason: String| {
            Err(RestoreDeviceError::Invalid {
                device: "vsock",
                reason,
            })
        };
        if state.guest_cid != self.guest_cid {
            return invalid(format!(
                "its guest CID is {}, that of the device is {}",
                state.guest_cid, self.guest_cid
            ));
        }
        if !(FIRST_HOST_PORT..u32::MAX).contains(&state.next_host_port) {
            return invalid(format!(
                "its next port {} is not one that a connection gets",
                state.next_host_port
            ));
        }
        self.muxer.set_next_host_port(state.next_host_port);
        self.reset_event_pending = state.reset_needed;
        Ok(if state.reset_needed {
            vec![EVENT_QUEUE]
        } else {
            Vec::new()
        })
    }
}
