//! The header of a virtio-vsock packet (virtio 1.2, section 5.10.6: `struct virtio_vsock_hdr`).

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 44;

/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub const TYPE_STREAM: u16 = 1;
/// The peer will receive no more (a flag of [`Operation::Shutdown`]).
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// The peer will send no more (a flag of [`Operation::Shutdown`]).
pub const SHUTDOWN_SEND: u32 = 2;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Operation {
    /// Asks for a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// Ends one at once, or refuses it.
    Reset = 3,
    /// Says which directions end.
    Shutdown = 4,
    /// Carries data.
    ReadWrite = 5,
    /// Says how much may be sent.
    CreditUpdate = 6,
    /// Asks for a credit update.
    CreditRequest = 7,
}

impl TryFrom<u16> for Operation {
    type Error = u16;

    fn try_from(number: u16) -> Result<Self, u16> {
        Ok(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => return Err(other),
        })
    }
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Context identifier: which machine.
    pub cid: u64,
    /// Port on that machine.
    pub port: u32,
}

/// A packet's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who sends.
    pub source: Address,
    /// Who receives.
    pub destination: Address,
    /// Bytes of data behind the header.
    pub length_bytes: u32,
    /// [`TYPE_STREAM`], or something that is not served here.
    pub socket_type: u16,
    /// An [`Operation`]'s number, or any other.
    pub operation: u16,
    /// The operation's flags.
    pub flags: u32,
    /// The sender's receive buffer in bytes.
    pub buffer_bytes: u32,
    /// Bytes that the sender has consumed so far (free-running).
    pub consumed_bytes: u32,
}

impl Header {
    /// Splits a packet; `None` if it is shorter than its header and the data that this announces.
    pub fn parse(packet: &[u8]) -> Option<(Self, &[u8])> {
        let (header, rest) = packet.split_first_chunk::<HEADER_BYTES>()?;
        let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let header = Self {
            source: Address {
                cid: u64_at(0),
                port: u32_at(16),
            },
            destination: Address {
                cid: u64_at(8),
                port: u32_at(20),
            },
            length_bytes: u32_at(24),
            socket_type: u16_at(28),
            operation: u16_at(30),
            flags: u32_at(32),
            buffer_bytes: u32_at(36),
            consumed_bytes: u32_at(40),
        };
        let data = rest.get(..header.length_bytes as usize)?;
        Some((header, data))
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..8].copy_from_slice(&self.source.cid.to_le_bytes());
        out[8..16].copy_from_slice(&self.destination.cid.to_le_bytes());
        out[16..20].copy_from_slice(&self.source.port.to_le_bytes());
        out[20..24].copy_from_slice(&self.destination.port.to_le_bytes());
        out[24..28].copy_from_slice(&self.length_bytes.to_le_bytes());
        out[28..30].copy_from_slice(&self.socket_type.to_le_bytes());
        out[30..32].copy_from_slice(&self.operation.to_le_bytes());
        out[32..36].copy_from_slice(&self.flags.to_le_bytes());
        out[36..40].copy_from_slice(&self.buffer_bytes.to_le_bytes());
        out[40..44].copy_from_slice(&self.consumed_bytes.to_le_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        let header = Header {
            source: Address {
                cid: 0x0102_0304_0506_0708,
                port: 0x1112_1314,
            },
            destination: Address { cid: 3, port: 5000 },
            length_bytes: 1,
            socket_type: TYPE_STREAM,
            operation: Operation::ReadWrite as u16,
            flags: 0x2122_2324,
            buffer_bytes: 0x3132_3334,
            consumed_bytes: 0x4142_4344,
        };
        let bytes = header.encode();
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[8..16], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..20], [0x14, 0x13, 0x12, 0x11]);
        assert_eq!(bytes[20..32], [0x88, 0x13, 0, 0, 1, 0, 0, 0, 1, 0, 5, 0]);
        assert_eq!(bytes[40..], [0x44, 0x43, 0x42, 0x41]);
    }

    proptest! {
        #[test]
        fn any_header_survives(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some((header, data)) = Header::parse(&packet) {
                prop_assert_eq!(&header.encode()[..], &packet[..HEADER_BYTES]);
                prop_assert_eq!(data, &packet[HEADER_BYTES..HEADER_BYTES + data.len()]);
                prop_assert_eq!(data.len(), header.length_bytes as usize);
            }
        }
    }
}
