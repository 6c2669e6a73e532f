//! A request of the driver (5.2.6), read from its descriptor chain and checked.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

use super::SECTOR_BYTES;
use super::disk::Disk;
use crate::GuestMemory;

/// Entries of the queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Pieces of data that a request may have: with header and status, what fits in the queue.
pub(super) const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Sectors that one discard or one writing of zeroes may have: 2 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 4 << 20;

/// `le32 type; le32 reserved; le64 sector`
const HEADER_BYTES: usize = 16;
/// `le64 sector; le32 num_sectors; le32 flags` (5.2.6)
const RANGE_BYTES: usize = 16;
/// Descriptors of a chain: a driver that splits the header into bytes is odd, but right (2.6.4).
const MAX_DESCS: usize = QUEUE_SIZE as usize + HEADER_BYTES;

/// What a driver is told in the last byte of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoErr = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// A range of guest memory that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) gpa: GuestAddress,
    pub(super) len: u32,
}

/// What is to be done. The data is in the [`Chain`] that it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Read { offset: u64 },
    Write { offset: u64 },
    Flush,
    GetId,
    Discard { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64, unmap: bool },
}

/// Where a request's outcome goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) head_index: u16,
    pub(super) status_gpa: GuestAddress,
    /// Bytes for the driver before the status byte.
    pub(super) writable_bytes: u32,
}

impl Ticket {
    /// The length for the used ring, when the first `written_bytes` bytes for the driver were
    /// written: the status byte counts only if all before it does (2.7.8.2).
    pub(super) fn used_len(&self, written_bytes: u32) -> u32 {
        if written_bytes == self.writable_bytes {
            written_bytes.saturating_add(1)
        } else {
            written_bytes
        }
    }
}

/// Room for the pieces of one chain; used again for the next.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// What the driver wrote, after the header.
    pub(super) readable: Vec<Segment>,
    /// What the driver will read, before the status byte.
    pub(super) writable: Vec<Segment>,
}

impl Chain {
    /// Takes a request apart. The outer error is a chain that cannot be answered at all; the inner
    /// one is the answer to a request that is not done.
    pub(super) fn read(
        &mut self,
        mem: &GuestMemory,
        chain: DescriptorChain<&GuestMemory>,
        disk: &Disk,
        acked_features: u64,
    ) -> Result<(Ticket, Result<Action, Status>), String> {
        let head_index = chain.head_index();
        let all_there = self.collect(mem, chain)?;
        let status_gpa = self.take_status()?;
        let ticket = Ticket {
            head_index,
            status_gpa,
            writable_bytes: total_bytes(&self.writable),
        };
        if !mem.check_range(status_gpa, 1, Permissions::Write) {
            return Err("the status byte of a request is not in guest memory".to_owned());
        }
        let action = if all_there {
            self.action(mem, disk, acked_features)
        } else {
            Err(Status::IoErr)
        };
        Ok((ticket, action))
    }

    /// Collects the pieces. `false`: not all of them are in guest memory.
    fn collect(
        &mut self,
        mem: &GuestMemory,
        mut chain: DescriptorChain<&GuestMemory>,
    ) -> Result<bool, String> {
        self.readable.clear();
        self.writable.clear();
        let mut all_there = true;
        let mut count = 0;
        loop {
            let Some(desc) = chain.next() else {
                return Err("a request's descriptor chain has no end".to_owned());
            };
            count += 1;
            if count > MAX_DESCS {
                return Err(format!("a request has more than {MAX_DESCS} descriptors"));
            }
            let segment = Segment {
                gpa: desc.addr(),
                len: desc.len(),
            };
            if segment.len > 0 {
                let (pieces, access) = if desc.is_write_only() {
                    (&mut self.writable, Permissions::Write)
                } else if self.writable.is_empty() {
                    (&mut self.readable, Permissions::Read)
                } else {
                    return Err(
                        "a request has something to read after what is to be written \
                                (2.7.4.2)"
                            .to_owned(),
                    );
                };
                all_there &= mem.check_range(segment.gpa, segment.len as usize, access);
                pieces.push(segment);
            }
            if !desc.has_next() {
                return Ok(all_there);
            }
        }
    }

    /// The status is the last byte for the driver to read.
    fn take_status(&mut self) -> Result<GuestAddress, String> {
        let none = || "a request has no status byte to be written".to_owned();
        let last = self.writable.last_mut().ok_or_else(none)?;
        last.len -= 1;
        let offset = u64::from(last.len);
        let gpa = last.gpa.0.checked_add(offset).ok_or_else(none)?;
        if last.len == 0 {
            self.writable.pop();
        }
        Ok(GuestAddress(gpa))
    }

    /// Reads the first bytes of what the driver wrote, and takes them away from it.
    fn take_bytes<const N: usize>(&mut self, mem: &GuestMemory) -> Result<[u8; N], Status> {
        let mut bytes = [0; N];
        let mut filled = 0;
        let mut emptied = 0;
        for segment in &mut self.readable {
            let len = (segment.len as usize).min(N - filled);
            mem.read_slice(&mut bytes[filled..filled + len], segment.gpa)
                .map_err(|_| Status::IoErr)?;
            filled += len;
            segment.len -= len as u32;
            // Within guest memory, which was checked.
            segment.gpa.0 = segment.gpa.0.wrapping_add(len as u64);
            if segment.len > 0 {
                break;
            }
            emptied += 1;
            if filled == N {
                break;
            }
        }
        self.readable.drain(..emptied);
        if filled == N {
            Ok(bytes)
        } else {
            Err(Status::IoErr)
        }
    }

    fn action(
        &mut self,
        mem: &GuestMemory,
        disk: &Disk,
        acked_features: u64,
    ) -> Result<Action, Status> {
        let header: [u8; HEADER_BYTES] = self.take_bytes(mem)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let read_bytes = total_bytes(&self.readable);
        let write_bytes = total_bytes(&self.writable);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN if read_bytes == 0 => Ok(Action::Read {
                offset: data_range(disk, sector, write_bytes, self.writable.len())?,
            }),
            VIRTIO_BLK_T_OUT if write_bytes == 0 => {
                let offset = data_range(disk, sector, read_bytes, self.readable.len())?;
                writable(disk)?;
                Ok(Action::Write { offset })
            }
            VIRTIO_BLK_T_FLUSH if read_bytes == 0 && write_bytes == 0 => Ok(Action::Flush),
            VIRTIO_BLK_T_GET_ID if read_bytes == 0 => Ok(Action::GetId),
            VIRTIO_BLK_T_DISCARD if write_bytes == 0 => {
                negotiated(acked_features, VIRTIO_BLK_F_DISCARD)?;
                // The flag is for the writing of zeroes.
                let (offset, len, _) = self.range(mem, disk, 0)?;
                Ok(Action::Discard { offset, len })
            }
            VIRTIO_BLK_T_WRITE_ZEROES if write_bytes == 0 => {
                negotiated(acked_features, VIRTIO_BLK_F_WRITE_ZEROES)?;
                let (offset, len, flags) =
                    self.range(mem, disk, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)?;
                Ok(Action::WriteZeroes {
                    offset,
                    len,
                    unmap: flags != 0,
                })
            }
            VIRTIO_BLK_T_IN
            | VIRTIO_BLK_T_OUT
            | VIRTIO_BLK_T_FLUSH
            | VIRTIO_BLK_T_GET_ID
            | VIRTIO_BLK_T_DISCARD
            | VIRTIO_BLK_T_WRITE_ZEROES => Err(Status::IoErr),
            _ => Err(Status::Unsupported),
        }
    }

    /// The one range of a discard or a writing of zeroes: offset and length in bytes, and flags.
    fn range(
        &mut self,
        mem: &GuestMemory,
        disk: &Disk,
        known_flags: u32,
    ) -> Result<(u64, u64, u32), Status> {
        writable(disk)?;
        let range: [u8; RANGE_BYTES] = self.take_bytes(mem)?;
        if !self.readable.is_empty() {
            return Err(Status::IoErr);
        }
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = range;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes(flags);
        if flags & !known_flags != 0 {
            return Err(Status::Unsupported);
        }
        if sectors == 0 || sectors > MAX_RANGE_SECTORS {
            return Err(Status::IoErr);
        }
        let offset = on_disk(disk, sector, sectors.into())?;
        Ok((offset, u64::from(sectors) * SECTOR_BYTES, flags))
    }
}

fn negotiated(acked_features: u64, feature: u32) -> Result<(), Status> {
    if acked_features & (1 << feature) == 0 {
        return Err(Status::Unsupported);
    }
    Ok(())
}

fn writable(disk: &Disk) -> Result<(), Status> {
    if disk.read_only {
        return Err(Status::IoErr);
    }
    Ok(())
}

/// The offset in bytes of `sectors` sectors from `sector` on, if the disk has them.
fn on_disk(disk: &Disk, sector: u64, sectors: u64) -> Result<u64, Status> {
    let end = sector.checked_add(sectors).ok_or(Status::IoErr)?;
    if end > disk.nsectors {
        return Err(Status::IoErr);
    }
    // The disk's length in bytes is an i64 of the host.
    Ok(sector * SECTOR_BYTES)
}

fn data_range(disk: &Disk, sector: u64, len: u32, segments: usize) -> Result<u64, Status> {
    let len = u64::from(len);
    if len == 0 || !len.is_multiple_of(SECTOR_BYTES) || segments > SEG_MAX as usize {
        return Err(Status::IoErr);
    }
    on_disk(disk, sector, len / SECTOR_BYTES)
}

/// A chain is below 4 GiB in all: the iterator over its descriptors sees to it.
pub(super) fn total_bytes(segments: &[Segment]) -> u32 {
    segments
        .iter()
        .fold(0, |sum, segment| sum.saturating_add(segment.len))
}
