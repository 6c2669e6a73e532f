//! The header before each frame (5.1.6), and which offloads it may ask for.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
};

/// Bytes of the header: with `VIRTIO_F_VERSION_1` it always has `num_buffers`.
pub(super) const HEADER_BYTES: usize = 12;
const FLAGS: usize = 0;
const GSO_TYPE: usize = 1;
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;

/// The feature bits that the device offers.
pub(super) const FEATURES: u64 = 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6;

/// What the guest takes, of the features that it acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offloads {
    /// Frames with an unfinished checksum.
    pub(super) csum: bool,
    /// Unsegmented TCP over IPv4.
    pub(super) tso4: bool,
    /// Unsegmented TCP over IPv6.
    pub(super) tso6: bool,
    /// Frames spread over several buffers.
    pub(super) mergeable: bool,
}

impl Offloads {
    pub(super) fn of(acked_features: u64) -> Self {
        let has = |bit: u32| acked_features & (1 << bit) != 0;
        let csum = has(VIRTIO_NET_F_GUEST_CSUM);
        Self {
            csum,
            // Segmentation needs the checksum (5.1.3.1): alone it is not taken.
            tso4: csum && has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: csum && has(VIRTIO_NET_F_GUEST_TSO6),
            mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
        }
    }

    /// The argument of `TUNSETOFFLOAD`.
    pub(super) fn tun_flags(self) -> libc::c_uint {
        let mut flags = 0;
        for (on, flag) in [
            (self.csum, libc::TUN_F_CSUM),
            (self.tso4, libc::TUN_F_TSO4),
            (self.tso6, libc::TUN_F_TSO6),
        ] {
            if on {
                flags |= flag;
            }
        }
        flags
    }

    /// Whether the guest takes the frame with this header; takes out of the header what it did
    /// not ask for. The host may have queued frames under the offloads of a driver that is gone.
    pub(super) fn admit(self, header: &mut [u8]) -> bool {
        let gso_type = u32::from(header[GSO_TYPE]);
        let gso_taken = match gso_type {
            VIRTIO_NET_HDR_GSO_NONE => true,
            VIRTIO_NET_HDR_GSO_TCPV4 => self.tso4,
            VIRTIO_NET_HDR_GSO_TCPV6 => self.tso6,
            _ => false,
        };
        if self.csum {
            return gso_taken;
        }
        let unfinished = u32::from(header[FLAGS]) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
        header[FLAGS] = 0;
        gso_taken && !unfinished
    }
}

/// Says over how many buffers the frame is spread.
pub(super) fn set_num_buffers(header: &mut [u8], num_buffers: u16) {
    header[NUM_BUFFERS].copy_from_slice(&num_buffers.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segmentation_without_checksums_is_not_taken() {
        let tso_only = Offloads::of(1 << VIRTIO_NET_F_GUEST_TSO4);
        assert_eq!(tso_only.tun_flags(), 0);
        let all = Offloads::of(FEATURES);
        assert_eq!(all.tun_flags(), 7);
        assert!(all.mergeable);
    }

    #[test]
    fn a_frame_that_needs_more_than_was_negotiated_is_refused() {
        let header = |flags: u8, gso_type: u8| {
            let mut header = [0; HEADER_BYTES];
            (header[0], header[1]) = (flags, gso_type);
            header
        };
        let none = Offloads::default();
        let all = Offloads::of(FEATURES);
        assert!(none.admit(&mut header(0, 0)));
        assert!(!none.admit(&mut header(1, 0)));
        assert!(!none.admit(&mut header(0, 1)));
        // That the checksum was seen to be right is news for those only who asked.
        let mut valid = header(2, 0);
        assert!(none.admit(&mut valid));
        assert_eq!(valid, header(0, 0));
        for (gso_type, taken) in [(0, true), (1, true), (4, true), (3, false), (0x81, false)] {
            let mut given = header(1, gso_type);
            assert_eq!(all.admit(&mut given), taken, "gso type {gso_type}");
            assert_eq!(given, header(1, gso_type));
        }
    }
}
