//! A guest that speaks vsock, for the tests of the device.

mod protocol;
mod restore;
mod sockets;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use proptest::prelude::*;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INTERRUPT_ACK;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::connection::BUF_ALLOC_BYTES;
use super::device::{EVENT_QUEUE, RX_QUEUE, TX_QUEUE};
use super::muxer::{FIRST_HOST_PORT, MAX_HANDSHAKES};
use super::packet::*;
use super::*;
use crate::test_driver::{
    Driver, EVENT_IDX, Piece, QUEUE_SIZE, avail_gpa, buffer_gpa, evt, memory,
};
use crate::virtio::{MmioTransport, MmioTransportState};

const PORT: u32 = 5000;
const HEADER_BYTES: u32 = 44;
const RX_BUFFER_BYTES: u32 = 0x4000;

/// A guest that speaks vsock over the registers and rings.
struct Guest {
    driver: Driver,
    handle: VsockHandle,
    buf_alloc: u32,
    fwd_cnt: u32,
}

fn config(uds_path: Option<&Path>) -> VsockConfig {
    VsockConfig {
        uds_path: uds_path.map(Into::into),
        ..VsockConfig::default()
    }
}

impl Guest {
    fn boot(uds_path: Option<&Path>) -> Self {
        let vsock = Vsock::new(config(uds_path)).unwrap();
        let handle = vsock.handle();
        let mut guest = Self {
            driver: Driver::booted(Box::new(vsock), EVENT_IDX),
            handle,
            buf_alloc: 1 << 20,
            fwd_cnt: 0,
        };
        for _ in 0..8 {
            guest.post_rx();
        }
        guest.driver.kick(RX_QUEUE);
        guest.driver.run();
        guest.driver.interrupts();
        guest
    }

    /// The same guest on a restored device.
    fn restore(mut self) -> Self {
        // A driver that has handled its interrupts: one that is pending is raised again.
        self.driver.write(VIRTIO_MMIO_INTERRUPT_ACK, 3);
        let state = self.driver.transport.save().unwrap();
        let vsock = Vsock::new(VsockConfig::default()).unwrap();
        let handle = vsock.handle();
        let irq = evt();
        let transport = MmioTransport::restore(
            self.driver.mem.clone(),
            Box::new(vsock),
            irq.try_clone().unwrap(),
            &state,
        )
        .unwrap();
        let mut expected = state.clone();
        let crate::virtio::VirtioDeviceState::Vsock(vsock) = &state.device else {
            panic!("not a vsock state");
        };
        // The event that is due wants the event queue to be looked at.
        expected.queues[EVENT_QUEUE].kick_pending |= vsock.reset_needed;
        assert_eq!(transport.save().unwrap(), expected);
        let rings = self.driver.rings.clone();
        let mut driver = Driver::over(self.driver.mem, transport, irq);
        driver.rings = rings;
        Self {
            driver,
            handle,
            ..self
        }
    }

    fn post_rx(&mut self) {
        let chain = self.driver.rings[RX_QUEUE].avail_idx % crate::test_driver::CHAINS;
        let piece = Piece {
            gpa: buffer_gpa(RX_QUEUE, chain),
            len: RX_BUFFER_BYTES,
            writable: true,
        };
        self.driver.offer(RX_QUEUE, &[piece]);
    }

    /// The packets that came; their buffers are made available again.
    fn recv(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.driver.run();
        let mut packets = Vec::new();
        while let Some((chain, used)) = self.driver.take_used(RX_QUEUE) {
            assert!(used >= HEADER_BYTES);
            let bytes = self
                .driver
                .bytes(buffer_gpa(RX_QUEUE, chain), used as usize);
            let (header, payload) = (header_from(&bytes), bytes[44..].to_vec());
            assert_eq!(header.len as usize, payload.len());
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, 3));
            packets.push((header, payload));
            self.post_rx();
            self.driver.kick(RX_QUEUE);
            self.driver.run();
        }
        packets
    }

    fn recv_ops(&mut self) -> Vec<u16> {
        self.recv().iter().map(|(header, _)| header.op).collect()
    }

    fn recv_one(&mut self) -> (Header, Vec<u8>) {
        let mut packets = self.recv();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    fn send_raw(&mut self, header: &Header, payload: &[u8], pieces: &[u32]) {
        let chain = self.driver.rings[TX_QUEUE].avail_idx % crate::test_driver::CHAINS;
        let mut gpa = buffer_gpa(TX_QUEUE, chain);
        let mut bytes = header_bytes(header).to_vec();
        bytes.extend_from_slice(payload);
        self.driver
            .mem
            .write_slice(&bytes, GuestAddress(gpa))
            .unwrap();
        let mut list = Vec::new();
        for &len in pieces {
            list.push(Piece {
                gpa,
                len,
                writable: false,
            });
            gpa += u64::from(len);
        }
        // As drivers do: what was sent is collected in passing, not on an interrupt.
        let used_event = self.driver.rings[TX_QUEUE].last_used.wrapping_add(0x8000);
        let used_event_gpa = avail_gpa(TX_QUEUE) + 4 + u64::from(QUEUE_SIZE) * 2;
        self.driver.put_u16(used_event_gpa, used_event);
        self.driver.offer(TX_QUEUE, &list);
        self.driver.kick(TX_QUEUE);
        self.driver.run();
        assert!(self.driver.take_used(TX_QUEUE).is_some());
    }

    fn send(&mut self, header: &Header, payload: &[u8]) {
        let len = HEADER_BYTES + payload.len() as u32;
        self.send_raw(header, payload, &[len]);
    }

    /// A packet of the guest in the connection of `to`, which came from the host.
    fn answer(&mut self, to: &Header, op: u16, flags: u32, payload: &[u8]) {
        let header = Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: to.dst_port,
            dst_port: to.src_port,
            len: payload.len() as u32,
            type_: TYPE_STREAM,
            op,
            flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        };
        self.send(&header, payload);
    }

    /// An established connection: the host's half, and the header of its REQUEST.
    fn connected(&mut self) -> (UnixStream, Header) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.handle.connect(PORT, theirs).unwrap();
        let (request, _) = self.recv_one();
        assert_eq!((request.op, request.dst_port), (op::REQUEST, PORT));
        self.answer(&request, op::RESPONSE, 0, &[]);
        ours.set_nonblocking(true).unwrap();
        (ours, request)
    }
}

fn header_bytes(header: &Header) -> [u8; 44] {
    let mut out = [0; 44];
    out[..8].copy_from_slice(&header.src_cid.to_le_bytes());
    out[8..16].copy_from_slice(&header.dst_cid.to_le_bytes());
    out[16..20].copy_from_slice(&header.src_port.to_le_bytes());
    out[20..24].copy_from_slice(&header.dst_port.to_le_bytes());
    out[24..28].copy_from_slice(&header.len.to_le_bytes());
    out[28..30].copy_from_slice(&header.type_.to_le_bytes());
    out[30..32].copy_from_slice(&header.op.to_le_bytes());
    out[32..36].copy_from_slice(&header.flags.to_le_bytes());
    out[36..40].copy_from_slice(&header.buf_alloc.to_le_bytes());
    out[40..].copy_from_slice(&header.fwd_cnt.to_le_bytes());
    out
}

fn header_from(b: &[u8]) -> Header {
    let u32_at = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap());
    Header {
        src_cid: u64_at(0),
        dst_cid: u64_at(8),
        src_port: u32_at(16),
        dst_port: u32_at(20),
        len: u32_at(24),
        type_: u32_at(28) as u16,
        op: (u32_at(28) >> 16) as u16,
        flags: u32_at(32),
        buf_alloc: u32_at(36),
        fwd_cnt: u32_at(40),
    }
}

fn read_now(stream: &mut UnixStream) -> Vec<u8> {
    let mut out = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return out,
            Ok(len) => out.extend_from_slice(&chunk[..len]),
            Err(err) if err.kind() == ErrorKind::WouldBlock => return out,
            Err(err) => panic!("{err}"),
        }
    }
}

fn is_at_end(stream: &mut UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    match stream.read(&mut [0]) {
        Ok(len) => len == 0,
        // Bytes that the other side never read turn a close into this.
        Err(err) => err.kind() == ErrorKind::ConnectionReset,
    }
}

/// A directory for sockets, and the path of the device's.
fn socket_dir() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    (dir, path)
}

/// A client that has sent its line.
fn client(path: &Path, line: &str) -> UnixStream {
    let mut client = UnixStream::connect(path).unwrap();
    client.write_all(line.as_bytes()).unwrap();
    client.set_nonblocking(true).unwrap();
    client
}

/// A REQUEST of the guest to `port` of the host.
fn guest_request(port: u32) -> Header {
    Header {
        src_cid: 3,
        dst_cid: HOST_CID,
        src_port: 77,
        dst_port: port,
        type_: TYPE_STREAM,
        op: op::REQUEST,
        buf_alloc: 1 << 16,
        ..Header::default()
    }
}
