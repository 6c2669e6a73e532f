//! Packets of the socket device (5.10.6) and their way in and out of descriptor chains.

use std::io::Read;

use virtio_queue::DescriptorChain;
use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};
use vm_memory::Bytes;
use vm_memory::bitmap::BS;

use crate::{DirtyBitmap, GuestMemory};

/// Payload of one packet at most.
pub(super) const MAX_PAYLOAD_BYTES: usize = 64 * 1024;

/// `type`: a stream socket.
pub(super) const TYPE_STREAM: u16 = 1;

/// `op` values.
pub(super) mod op {
    pub(in super::super) const REQUEST: u16 = 1;
    pub(in super::super) const RESPONSE: u16 = 2;
    pub(in super::super) const RST: u16 = 3;
    pub(in super::super) const SHUTDOWN: u16 = 4;
    pub(in super::super) const RW: u16 = 5;
    pub(in super::super) const CREDIT_UPDATE: u16 = 6;
    pub(in super::super) const CREDIT_REQUEST: u16 = 7;
}

/// `flags` of SHUTDOWN: the sender will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// `flags` of SHUTDOWN: the sender will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both of them.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// A packet's header, read once: the guest may change its copy at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    pub(super) len: u32,
    pub(super) type_: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

/// What a buffer of the transmit queue held.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TxPacket {
    /// A packet; its payload is in the caller's buffer.
    Packet(Header),
    /// A packet that promises more payload than it has, or than is allowed.
    BadLength(Header),
    /// No packet.
    Garbage,
}

fn header_of<B: vm_memory::bitmap::BitmapSlice>(packet: &VsockPacket<'_, B>) -> Header {
    Header {
        src_cid: packet.src_cid(),
        dst_cid: packet.dst_cid(),
        src_port: packet.src_port(),
        dst_port: packet.dst_port(),
        len: packet.len(),
        type_: packet.type_(),
        op: packet.op(),
        flags: packet.flags(),
        buf_alloc: packet.buf_alloc(),
        fwd_cnt: packet.fwd_cnt(),
    }
}

/// Reads the packet of a transmit chain; `payload` gets its payload.
pub(super) fn read_tx(
    mem: &GuestMemory,
    chain: DescriptorChain<&GuestMemory>,
    payload: &mut Vec<u8>,
) -> TxPacket {
    payload.clear();
    let mut plain = chain.clone();
    if let Ok(packet) = VsockPacket::from_tx_virtq_chain(mem, &mut plain, MAX_PAYLOAD_BYTES as u32)
    {
        let header = header_of(&packet);
        if let Some(slice) = packet.data_slice() {
            payload.resize(slice.len(), 0);
            if slice.read_slice(payload, 0).is_err() {
                return TxPacket::Garbage;
            }
        }
        return TxPacket::Packet(header);
    }
    gather_tx(mem, chain, payload)
}

/// Reads a packet whose header or payload is spread over more descriptors than `virtio-vsock` takes
/// (the framing is the driver's business, 2.7.4), or finds out what is wrong with it.
fn gather_tx(
    mem: &GuestMemory,
    chain: DescriptorChain<&GuestMemory>,
    payload: &mut Vec<u8>,
) -> TxPacket {
    let Ok(mut reader) = chain.reader(mem) else {
        return TxPacket::Garbage;
    };
    let mut raw = [0u8; PKT_HEADER_SIZE];
    if reader.read_exact(&mut raw).is_err() {
        return TxPacket::Garbage;
    }
    let header = parse_header(&raw);
    let len = header.len as usize;
    if len > MAX_PAYLOAD_BYTES || len > reader.available_bytes() {
        return TxPacket::BadLength(header);
    }
    payload.resize(len, 0);
    match reader.read_exact(payload) {
        Ok(()) => TxPacket::Packet(header),
        Err(_) => TxPacket::Garbage,
    }
}

/// A header as it is in memory: packed, little-endian.
fn parse_header(raw: &[u8; PKT_HEADER_SIZE]) -> Header {
    fn field<const N: usize>(raw: &[u8; PKT_HEADER_SIZE], at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&raw[at..at + N]);
        bytes
    }
    Header {
        src_cid: u64::from_le_bytes(field(raw, 0)),
        dst_cid: u64::from_le_bytes(field(raw, 8)),
        src_port: u32::from_le_bytes(field(raw, 16)),
        dst_port: u32::from_le_bytes(field(raw, 20)),
        len: u32::from_le_bytes(field(raw, 24)),
        type_: u16::from_le_bytes(field(raw, 28)),
        op: u16::from_le_bytes(field(raw, 30)),
        flags: u32::from_le_bytes(field(raw, 32)),
        buf_alloc: u32::from_le_bytes(field(raw, 36)),
        fwd_cnt: u32::from_le_bytes(field(raw, 40)),
    }
}

/// A buffer of the receive queue that a packet can be put into.
pub(super) struct RxBuffer<'a> {
    packet: VsockPacket<'a, BS<'a, DirtyBitmap>>,
    capacity_bytes: usize,
}

impl<'a> RxBuffer<'a> {
    /// The buffer of a receive chain, or `None` if it cannot hold a packet with payload.
    pub(super) fn new(
        mem: &'a GuestMemory,
        chain: &mut DescriptorChain<&GuestMemory>,
    ) -> Option<Self> {
        let packet = VsockPacket::from_rx_virtq_chain(mem, chain, u32::MAX).ok()?;
        let capacity_bytes = packet.data_slice()?.len().min(MAX_PAYLOAD_BYTES);
        Some(Self {
            packet,
            capacity_bytes,
        })
    }

    /// Bytes of payload that fit; at least 1.
    pub(super) fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }

    /// Writes the packet and returns the bytes that it takes. `payload` fits.
    pub(super) fn fill(&mut self, header: &Header, payload: &[u8]) -> u32 {
        let len = payload.len().min(self.capacity_bytes) as u32;
        self.packet
            .set_src_cid(header.src_cid)
            .set_dst_cid(header.dst_cid)
            .set_src_port(header.src_port)
            .set_dst_port(header.dst_port)
            .set_len(len)
            .set_type(header.type_)
            .set_op(header.op)
            .set_flags(header.flags)
            .set_buf_alloc(header.buf_alloc)
            .set_fwd_cnt(header.fwd_cnt);
        if let Some(slice) = self.packet.data_slice() {
            slice.copy_from(&payload[..len as usize]);
        }
        PKT_HEADER_SIZE as u32 + len
    }
}
