//! The block device: its configuration, its queue, and what a snapshot keeps of it.

use std::os::fd::{AsRawFd, RawFd};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::DescriptorChain;
use vm_memory::Bytes;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::disk::{Disk, Replacement};
use super::request::{
    Action, Chain, MAX_RANGE_SECTORS, QUEUE_SIZE, SEG_MAX, Status, Ticket, total_bytes,
};
use super::ring::{Failure, Finished, Operation, Ring};
use super::{BlockConfig, BlockError, BlockState, MAX_ID_BYTES, SECTOR_BYTES};
use crate::GuestMemory;
use crate::rate_limiter::{RateLimiter, RateLimiterConfig};
use crate::virtio::device::{
    ActivateError, DeviceError, DeviceIo, DeviceUpdate, Progress, RestoreDeviceError,
    SaveDeviceError, UpdateDeviceError, VirtioDevice, VirtioDeviceState,
};
use crate::virtio::queue::QueueError;

const QUEUE: usize = 0;
const QUEUE_MAX_SIZES: [u16; 1] = [QUEUE_SIZE];
/// Requests that are taken in one turn.
const MAX_REQUESTS_PER_TURN: usize = 64;

/// Index of the ring's eventfd in `event_fds()`; the rate limiter's timer is the one after it.
const COMPLETIONS: usize = 0;

/// Bytes of `struct virtio_blk_config` (5.2.4) up to what discards and zeroes need.
const CONFIG_BYTES: usize = 60;
/// Sectors that the start of a discard should be a multiple of: file systems make holes of whole
/// blocks, of 4 KiB as a rule.
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;

const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// A disk.
#[derive(Debug)]
pub struct Block {
    /// Made when the driver is up. Dropped before the disk: it may have to hand in requests once
    /// more.
    ring: Option<Ring>,
    disk: Disk,
    id: [u8; MAX_ID_BYTES],
    config_space: [u8; CONFIG_BYTES],
    completions: EventFd,
    limits: RateLimiterConfig,
    limiter: RateLimiter,
    acked_features: u64,
    chain: Chain,
    /// The device did not come to the end of the available ring: it goes on by itself, with a
    /// completion or the timer, and the driver need not notify it.
    requests_waiting: bool,
    /// The host's errors are told once: a guest could fill a log with them.
    told_of_error: bool,
}

impl Block {
    /// A disk; opens the file and locks it, for writing against everybody, for reading against
    /// those who write.
    ///
    /// # Errors
    /// When the file cannot be a disk or is in use, the host lets no io_uring be used, or the
    /// configuration is not usable.
    pub fn new(config: &BlockConfig) -> Result<Self, BlockError> {
        Ring::check_available().map_err(BlockError::NoIoUring)?;
        Self::over(Disk::open(config)?, &config.id, config.rate_limiter)
    }

    pub(super) fn over(
        disk: Disk,
        id: &str,
        limits: RateLimiterConfig,
    ) -> Result<Self, BlockError> {
        let mut id_bytes = [0; MAX_ID_BYTES];
        let printable = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
        match id_bytes.get_mut(..id.len()) {
            Some(bytes) if id.bytes().all(printable) => bytes.copy_from_slice(id.as_bytes()),
            _ => return Err(BlockError::Id(id.to_owned())),
        }
        Ok(Self {
            ring: None,
            config_space: config_space(&disk),
            disk,
            id: id_bytes,
            completions: EventFd::new(EFD_NONBLOCK).map_err(BlockError::EventFd)?,
            limiter: RateLimiter::new(&limits)?,
            limits,
            acked_features: 0,
            chain: Chain::default(),
            requests_waiting: false,
            told_of_error: false,
        })
    }

    /// Sectors of 512 bytes that the disk has.
    pub fn nsectors(&self) -> u64 {
        self.disk.nsectors
    }

    fn has_feature(&self, feature: u32) -> bool {
        self.acked_features & (1 << feature) != 0
    }

    /// Gives back what the kernel is done with, takes new requests, hands them in.
    fn serve(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceError> {
        self.finish(io)?;
        self.take_requests(io)?;
        // What was in the page cache is done already: one interrupt for all.
        self.finish(io)?;
        if self.requests_waiting && self.can_take() {
            return Ok(Progress::More { queue_index: QUEUE });
        }
        Ok(Progress::Done)
    }

    fn can_take(&self) -> bool {
        !self.limiter.is_blocked() && self.ring.as_ref().is_some_and(Ring::has_room)
    }

    fn take_requests(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        self.requests_waiting = true;
        for _ in 0..MAX_REQUESTS_PER_TURN {
            if !self.can_take() {
                break;
            }
            match io.pop(QUEUE)? {
                Some(chain) => {
                    if !self.take_request(io, chain)? {
                        io.undo_pop(QUEUE);
                        break;
                    }
                }
                None if io.enable_notification(QUEUE)? => {}
                None => {
                    self.requests_waiting = false;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Begins a request, or answers it at once. `false`: the rate limiter does not let it pass.
    fn take_request(
        &mut self,
        io: &mut DeviceIo<'_>,
        chain: DescriptorChain<&GuestMemory>,
    ) -> Result<bool, DeviceError> {
        let mem = io.mem();
        let (ticket, action) = self
            .chain
            .read(mem, chain, &self.disk, self.acked_features)
            .map_err(|reason| DeviceError::Queue {
                index: QUEUE,
                source: QueueError::Ring(reason),
            })?;
        let action = match action {
            Ok(action) => action,
            Err(status) => {
                answer(io, &ticket, status, 0)?;
                return Ok(true);
            }
        };
        let segments = match action {
            Action::Read { .. } => self.chain.writable.as_slice(),
            Action::Write { .. } => self.chain.readable.as_slice(),
            _ => &[],
        };
        if !self.limiter.try_consume(total_bytes(segments).into(), 1) {
            return Ok(false);
        }
        // Without that feature a driver takes what is written for what is on the disk (5.2.6.2).
        let sync = !self.has_feature(VIRTIO_BLK_F_FLUSH);
        let operation = match action {
            Action::GetId => {
                let written_bytes = self.write_id(mem);
                answer(io, &ticket, Status::Ok, written_bytes)?;
                return Ok(true);
            }
            Action::Read { offset } => Operation::Read { offset },
            Action::Write { offset } => Operation::Write { offset, sync },
            Action::Flush => Operation::Sync,
            Action::Discard { offset, len }
            | Action::WriteZeroes {
                offset,
                len,
                unmap: true,
            } => Operation::Allocate {
                offset,
                len,
                mode: PUNCH_HOLE,
                sync,
            },
            Action::WriteZeroes { offset, len, .. } => Operation::Allocate {
                offset,
                len,
                mode: ZERO_RANGE,
                sync,
            },
        };
        let pushed = self
            .ring
            .as_mut()
            .is_some_and(|ring| ring.push(&self.disk.file, mem, ticket, operation, segments));
        if !pushed {
            // There is room, so it is its pieces.
            answer(io, &ticket, Status::IoErr, 0)?;
        }
        Ok(true)
    }

    /// Waits for all that the kernel has, and gives it back.
    fn drain(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let Some(ring) = &mut self.ring else {
            return Ok(());
        };
        let mut broken = Ok(());
        let (disk, told_of_error) = (&self.disk, &mut self.told_of_error);
        let drained = ring.drain(&disk.file, |finished| {
            if broken.is_ok() {
                broken = give_back(io, &finished, disk, told_of_error);
            }
        });
        if let Err(err) = drained {
            self.ring = None;
            // The driver learns it by the next event.
            let _ = self.completions.write(1);
            return Err(DeviceError::Host(format!(
                "requests of the disk '{}' do not come back: {err}",
                self.disk.path.display()
            )));
        }
        broken
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.disk.file.sync_data().map_err(|err| {
            DeviceError::Host(format!(
                "the disk '{}' cannot be flushed: {err}",
                self.disk.path.display()
            ))
        })
    }

    /// Lets go of the file when all that was begun with it has ended, and tells the driver of the
    /// other capacity.
    fn replace_disk(
        &mut self,
        mut io: Option<&mut DeviceIo<'_>>,
        replacement: Replacement,
    ) -> Result<(), DeviceError> {
        if let Some(io) = &mut io {
            self.drain(io)?;
        }
        match replacement {
            Replacement::Same { nsectors, path } => {
                self.disk.nsectors = nsectors;
                self.disk.path = path;
            }
            Replacement::Other(disk) => {
                // What the driver wrote and did not flush yet would not be flushed by what it does
                // with the other file. A file that fails must be replaceable nevertheless.
                if !self.disk.read_only
                    && let Err(err) = self.flush()
                {
                    tracing::warn!("block: {err}; its replacement takes its place");
                }
                self.disk = disk;
            }
        }
        self.config_space = config_space(&self.disk);
        self.told_of_error = false;
        if let Some(io) = io {
            io.notify_config_change();
        }
        Ok(())
    }

    /// Writes the disk's id to where the driver wants it, and returns the bytes written.
    fn write_id(&self, mem: &GuestMemory) -> u32 {
        let mut written = 0;
        for segment in &self.chain.writable {
            let len = (segment.len as usize).min(self.id.len() - written);
            let bytes = &self.id[written..written + len];
            if len == 0 || mem.write_slice(bytes, segment.gpa).is_err() {
                break;
            }
            written += len;
        }
        written as u32
    }

    /// Hands in what was readied and gives back what the kernel is done with.
    fn finish(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let Some(ring) = &mut self.ring else {
            return Err(DeviceError::Host("the disk's io_uring was lost".to_owned()));
        };
        let host = |err| DeviceError::Host(format!("the disk's io_uring takes no requests: {err}"));
        ring.submit().map_err(host)?;
        while let Some(finished) = ring.next_finished(&self.disk.file) {
            give_back(io, &finished, &self.disk, &mut self.told_of_error)?;
        }
        // What was done in part goes in once more.
        ring.submit().map_err(host)
    }
}

fn answer(
    io: &mut DeviceIo<'_>,
    ticket: &Ticket,
    status: Status,
    written_bytes: u32,
) -> Result<(), DeviceError> {
    // The address was checked, and guest memory does not shrink.
    io.mem()
        .write_obj(status as u8, ticket.status_gpa)
        .map_err(|err| DeviceError::Queue {
            index: QUEUE,
            source: QueueError::Ring(err.to_string()),
        })?;
    io.add_used(QUEUE, ticket.head_index, ticket.used_len(written_bytes))
}

fn give_back(
    io: &mut DeviceIo<'_>,
    finished: &Finished,
    disk: &Disk,
    told_of_error: &mut bool,
) -> Result<(), DeviceError> {
    let status = match finished.outcome {
        Ok(()) => Status::Ok,
        // The driver does without, or writes zeroes.
        Err(Failure::Unsupported) => Status::Unsupported,
        Err(failure) => {
            if !*told_of_error {
                *told_of_error = true;
                let reason = match failure {
                    Failure::Errno(errno) => errno.to_string(),
                    _ => "the file is shorter than it was".to_owned(),
                };
                tracing::warn!(
                    "block: a request to the disk '{}' failed: {reason}; further ones are not told",
                    disk.path.display()
                );
            }
            Status::IoErr
        }
    };
    // Bytes of a write are not bytes for the driver.
    let written_bytes = finished.done_bytes.min(finished.ticket.writable_bytes);
    answer(io, &finished.ticket, status, written_bytes)
}

fn config_space(disk: &Disk) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    let mut put = |offset: usize, bytes: &[u8]| {
        space[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &disk.nsectors.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &(SECTOR_BYTES as u32).to_le_bytes());
    if !disk.read_only {
        put(36, &MAX_RANGE_SECTORS.to_le_bytes()); // max_discard_sectors
        put(40, &1_u32.to_le_bytes()); // max_discard_seg
        put(44, &DISCARD_ALIGNMENT_SECTORS.to_le_bytes());
        put(48, &MAX_RANGE_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
        put(52, &1_u32.to_le_bytes()); // max_write_zeroes_seg
        put(56, &[1]); // write_zeroes_may_unmap
    }
    space
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn device_features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE;
        if self.disk.read_only {
            always | 1 << VIRTIO_BLK_F_RO
        } else {
            always
                | 1 << VIRTIO_BLK_F_FLUSH
                | 1 << VIRTIO_BLK_F_DISCARD
                | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_MAX_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let value = usize::try_from(at)
                .ok()
                .and_then(|at| self.config_space.get(at));
            *byte = value.copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn event_fds(&self) -> Vec<RawFd> {
        vec![self.completions.as_raw_fd(), self.limiter.event_fd()]
    }

    fn activate(&mut self, acked_features: u64) -> Result<(), ActivateError> {
        self.acked_features = acked_features;
        if self.ring.is_none() {
            let ring = Ring::new(&self.completions).map_err(|err| {
                ActivateError(format!(
                    "the host does not set up an io_uring for it: {err}"
                ))
            })?;
            self.ring = Some(ring);
        }
        Ok(())
    }

    fn process_queue(
        &mut self,
        io: &mut DeviceIo<'_>,
        _queue_index: usize,
    ) -> Result<Progress, DeviceError> {
        self.serve(io)
    }

    fn process_event(
        &mut self,
        io: Option<&mut DeviceIo<'_>>,
        event_index: usize,
    ) -> Result<Progress, DeviceError> {
        if event_index == COMPLETIONS {
            // Only its arrival counts.
            let _ = self.completions.read();
        } else {
            self.limiter.on_timer();
        }
        match io {
            Some(io) if self.requests_waiting => self.serve(io),
            // Without a look at the queue: it may cost a page fault.
            Some(io) => self.finish(io).map(|()| Progress::Done),
            None => Ok(Progress::Done),
        }
    }

    fn reset(&mut self) {
        if let Some(ring) = &mut self.ring
            && let Err(err) = ring.discard()
        {
            tracing::error!(%err, "block: requests are left with the kernel; a new ring is made");
            self.ring = None;
        }
        // The events of what was discarded.
        let _ = self.completions.read();
        self.acked_features = 0;
        self.requests_waiting = false;
    }

    fn update(
        &mut self,
        io: Option<&mut DeviceIo<'_>>,
        update: DeviceUpdate,
    ) -> Result<Vec<usize>, UpdateDeviceError> {
        let DeviceUpdate::Block { file, rate_limiter } = update else {
            return Err(UpdateDeviceError::OtherDevice);
        };
        let replacement = match file {
            Some(file) if file.is_read_only() != self.disk.read_only => {
                return Err(UpdateDeviceError::Access {
                    read_only: self.disk.read_only,
                });
            }
            Some(file) => Some(self.disk.replacement(file)?),
            None => None,
        };
        self.limiter.change(&rate_limiter)?;
        self.limits = self.limits.changed_by(&rate_limiter);
        if let Some(replacement) = replacement {
            self.replace_disk(io, replacement)?;
        }
        Ok(if self.requests_waiting {
            vec![QUEUE]
        } else {
            Vec::new()
        })
    }

    fn prepare_save(&mut self, io: Option<&mut DeviceIo<'_>>) -> Result<(), DeviceError> {
        let Some(io) = io else {
            return Ok(());
        };
        if self.ring.is_none() {
            return Ok(());
        }
        self.drain(io)?;
        if !self.disk.read_only {
            // What the guest was told is done must be there when the snapshot is used, even if
            // the host goes down before.
            self.flush()?;
        }
        if self.requests_waiting {
            // No completion is to come that would make this device go on.
            self.completions
                .write(1)
                .map_err(|err| DeviceError::Host(format!("an eventfd fails: {err}")))?;
        }
        Ok(())
    }

    fn save(&self) -> Result<VirtioDeviceState, SaveDeviceError> {
        let in_flight = self.ring.as_ref().map_or(0, Ring::in_flight);
        if in_flight > 0 {
            return Err(SaveDeviceError(format!(
                "{in_flight} requests of the disk are in flight; bring it to rest first"
            )));
        }
        Ok(VirtioDeviceState::Block(BlockState {
            nsectors: self.disk.nsectors,
            read_only: self.disk.read_only,
            requests_waiting: self.requests_waiting,
            rate_limiter: self.limiter.save(),
        }))
    }

    fn restore(&mut self, state: &VirtioDeviceState) -> Result<Vec<usize>, RestoreDeviceError> {
        let VirtioDeviceState::Block(state) = state else {
            return Err(RestoreDeviceError::OtherDevice { expected: "block" });
        };
        let invalid = |reason: String| RestoreDeviceError::Invalid {
            device: "block",
            reason,
        };
        if state.nsectors != self.disk.nsectors {
            return Err(invalid(format!(
                "its disk had {} sectors of 512 bytes, but '{}' has {}: give it the disk of the \
                 snapshot, or a copy",
                state.nsectors,
                self.disk.path.display(),
                self.disk.nsectors
            )));
        }
        if state.read_only != self.disk.read_only {
            let kind = |read_only| if read_only { "read-only" } else { "writable" };
            return Err(invalid(format!(
                "its disk was {}, but '{}' is attached {}",
                kind(state.read_only),
                self.disk.path.display(),
                kind(self.disk.read_only)
            )));
        }
        self.limiter = RateLimiter::restore(&self.limits, &state.rate_limiter)
            .map_err(|err| invalid(err.to_string()))?;
        self.requests_waiting = state.requests_waiting;
        Ok(if state.requests_waiting {
            vec![QUEUE]
        } else {
            Vec::new()
        })
    }
}
