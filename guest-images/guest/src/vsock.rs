//! The virtio socket device (virtio 1.2, section 5.10): three queues and their buffers.
//!
//! Made to cost few exits. The device is told of new buffers and packets once a batch; its
//! interrupts are wanted only while the guest waits for something; used packets are collected when
//! there is time. `VIRTIO_F_EVENT_IDX` is not negotiated: with it, a queue whose entries are
//! collected could not be kept from interrupting.

use crate::memory::Identity;
use alloc::boxed::Box;
use core::alloc::Layout;
use core::fmt;
use core::ptr::NonNull;
use reapvm_guest::cmdline::MmioDevice;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};

const RECEIVE_QUEUE: u16 = 0;
const SEND_QUEUE: u16 = 1;
const EVENT_QUEUE: u16 = 2;

const RECEIVE_BUFFERS: usize = 8;
const RECEIVE_BUFFER_BYTES: usize = 2048;
const SEND_BUFFERS: usize = 8;
/// The longest packet that can be sent, header included.
pub(crate) const SEND_BUFFER_BYTES: usize = 4096;
const EVENT_BUFFERS: usize = 2;

/// `VIRTIO_F_VERSION_1`.
const VERSION_1: u64 = 1 << 32;
/// Offset of the device ID register (virtio 1.2, section 4.2.2).
const DEVICE_ID: usize = 0x008;
/// Offset of the interrupt acknowledge register (virtio 1.2, section 4.2.2).
const INTERRUPT_ACK: usize = 0x64;

/// Page-aligned, so that a batch of packets lies in as few pages as it can.
#[repr(C, align(4096))]
struct Buffers {
    send: [[u8; SEND_BUFFER_BYTES]; SEND_BUFFERS],
    receive: [[u8; RECEIVE_BUFFER_BYTES]; RECEIVE_BUFFERS],
    event: [[u8; 4]; EVENT_BUFFERS],
}

impl Buffers {
    /// Zeros where they are going to lie: not by way of the stack, and without touching memory
    /// that no packet comes to.
    fn new() -> Box<Self> {
        let layout = Layout::new::<Self>();
        // SAFETY: the layout is not empty; the block comes from the allocator that `Box` gives it
        // back to, and the bytes of arrays of numbers may all be zero.
        unsafe {
            let block = alloc::alloc::alloc_zeroed(layout).cast::<Self>();
            if block.is_null() {
                alloc::alloc::handle_alloc_error(layout);
            }
            Box::from_raw(block)
        }
    }
}

/// Why the device could not be used.
pub(crate) enum VsockError {
    /// No announced device is a socket.
    NotFound,
    /// The device does not offer `VIRTIO_F_VERSION_1`, or took not what was asked for.
    Refused,
    /// A queue could not be set up.
    Queue(virtio_drivers::Error),
}

impl fmt::Display for VsockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str(
                "no virtio socket among the virtio_mmio.device= announcements: give the machine \
                 a vsock",
            ),
            Self::Refused => f.write_str(
                "the virtio socket refuses the features of virtio 1.0: give the machine a modern \
                 device",
            ),
            Self::Queue(error) => {
                write!(f, "a queue of the virtio socket cannot be set up: {error}")
            }
        }
    }
}

/// The device, ready for use.
pub(crate) struct Vsock {
    registers: MmioDevice,
    transport: MmioTransport<'static>,
    receive: VirtQueue<Identity, RECEIVE_BUFFERS>,
    send: VirtQueue<Identity, SEND_BUFFERS>,
    event: VirtQueue<Identity, EVENT_BUFFERS>,
    buffers: Box<Buffers>,
    /// Which buffer each descriptor chain holds, by the queue's token.
    receive_slots: [u8; RECEIVE_BUFFERS],
    event_slots: [u8; EVENT_BUFFERS],
    send_slots: [(u8, usize); SEND_BUFFERS],
    /// Buffers to send from; the last one is used next, to stay on few pages.
    free_send: [u8; SEND_BUFFERS],
    free_send_count: usize,
    /// Packets handed to the device that it was not told of.
    send_untold: bool,
    /// Receive buffers handed back that the device was not told of.
    receive_untold: usize,
    /// An interrupt may have come that was not acknowledged.
    unacknowledged: bool,
}

impl Vsock {
    /// Finds the socket among the announced devices and sets it up.
    ///
    /// # Safety
    /// The devices' registers are mapped at their own addresses, and nothing else uses them.
    pub(crate) unsafe fn find(
        mut devices: impl Iterator<Item = MmioDevice>,
    ) -> Result<Self, VsockError> {
        let (registers, transport) = devices
            .find_map(|device| {
                // Asked first: a transport resets its device when it is dropped, and other
                // devices are to be left as they are.
                // SAFETY: the caller vouches for the registers, `cmdline` for their alignment.
                let id =
                    unsafe { ((device.base as usize + DEVICE_ID) as *const u32).read_volatile() };
                if id != DeviceType::Socket as u32 {
                    return None;
                }
                let header = NonNull::new(device.base as *mut VirtIOHeader)?;
                // SAFETY: as above.
                let transport =
                    unsafe { MmioTransport::new(header, device.size_bytes as usize) }.ok()?;
                Some((device, transport))
            })
            .ok_or(VsockError::NotFound)?;
        Self::new(registers, transport)
    }

    fn new(
        registers: MmioDevice,
        mut transport: MmioTransport<'static>,
    ) -> Result<Self, VsockError> {
        // One step at a time: there are devices that take no two of them at once.
        transport.set_status(DeviceStatus::empty());
        transport.set_status(DeviceStatus::ACKNOWLEDGE);
        let status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(status);
        if transport.read_device_features() & VERSION_1 == 0 {
            return Err(VsockError::Refused);
        }
        transport.write_driver_features(VERSION_1);
        let status = status | DeviceStatus::FEATURES_OK;
        transport.set_status(status);
        if !transport.get_status().contains(DeviceStatus::FEATURES_OK) {
            return Err(VsockError::Refused);
        }
        let queue_error = VsockError::Queue;
        let receive =
            VirtQueue::new(&mut transport, RECEIVE_QUEUE, false, false).map_err(queue_error)?;
        let mut send =
            VirtQueue::new(&mut transport, SEND_QUEUE, false, false).map_err(queue_error)?;
        let event =
            VirtQueue::new(&mut transport, EVENT_QUEUE, false, false).map_err(queue_error)?;
        send.set_dev_notify(false);
        transport.set_status(status | DeviceStatus::DRIVER_OK);

        let mut vsock = Self {
            registers,
            transport,
            receive,
            send,
            event,
            buffers: Buffers::new(),
            receive_slots: [0; RECEIVE_BUFFERS],
            event_slots: [0; EVENT_BUFFERS],
            send_slots: [(0, 0); SEND_BUFFERS],
            free_send: core::array::from_fn(|slot| (SEND_BUFFERS - 1 - slot) as u8),
            free_send_count: SEND_BUFFERS,
            send_untold: false,
            receive_untold: 0,
            unacknowledged: false,
        };
        for slot in 0..RECEIVE_BUFFERS {
            vsock.post_receive(slot).map_err(queue_error)?;
        }
        for slot in 0..EVENT_BUFFERS {
            vsock.post_event(slot).map_err(queue_error)?;
        }
        vsock.transport.notify(EVENT_QUEUE);
        vsock.transport.notify(RECEIVE_QUEUE);
        vsock.receive_untold = 0;
        Ok(vsock)
    }

    /// The interrupt line.
    pub(crate) fn irq(&self) -> u32 {
        self.registers.irq
    }

    /// Sets the device up anew. The device was reset or wants to be: what was in its queues is
    /// lost, and every connection with it.
    pub(crate) fn restart(self) -> Result<Self, VsockError> {
        let registers = self.registers;
        let header = NonNull::new(registers.base as *mut VirtIOHeader);
        // Resets the device, so that it uses none of the old queues and buffers any more.
        drop(self);
        let header = header.ok_or(VsockError::NotFound)?;
        // SAFETY: these registers were in use until now, by the value just dropped alone.
        let transport = unsafe { MmioTransport::new(header, registers.size_bytes as usize) }
            .map_err(|_| VsockError::NotFound)?;
        Self::new(registers, transport)
    }

    /// Gives the next packet that arrived to `take`; false if there is none.
    pub(crate) fn receive(&mut self, take: impl FnOnce(&[u8])) -> bool {
        let Some(token) = self.receive.peek_used() else {
            return false;
        };
        let Some(slot) = self.receive_slots.get(usize::from(token)).copied() else {
            return false;
        };
        let slot = usize::from(slot);
        let buffer = &mut self.buffers.receive[slot][..];
        // SAFETY: the buffer with this token is the one that was posted in `post_receive`.
        let used = unsafe { self.receive.pop_used(token, &[], &mut [&mut *buffer]) };
        let Ok(length) = used else {
            return false;
        };
        take(&buffer[..buffer.len().min(length as usize)]);
        // The queue has room: a buffer was just taken out.
        self.post_receive(slot).is_ok()
    }

    fn post_receive(&mut self, slot: usize) -> virtio_drivers::Result<()> {
        let buffer = &mut self.buffers.receive[slot][..];
        // SAFETY: the buffer lives as long as the queue, and is left alone until it is popped.
        let token = unsafe { self.receive.add(&[], &mut [buffer]) }?;
        self.receive_slots[usize::from(token)] = slot as u8;
        self.receive_untold += 1;
        Ok(())
    }

    fn post_event(&mut self, slot: usize) -> virtio_drivers::Result<()> {
        let buffer = &mut self.buffers.event[slot][..];
        // SAFETY: as in `post_receive`.
        let token = unsafe { self.event.add(&[], &mut [buffer]) }?;
        self.event_slots[usize::from(token)] = slot as u8;
        Ok(())
    }

    /// Whether the device said that its transport was reset (its one event), as it does after a
    /// snapshot was restored: all connections are gone.
    pub(crate) fn take_reset_event(&mut self) -> bool {
        let mut any = false;
        while let Some(token) = self.event.peek_used() {
            let Some(slot) = self.event_slots.get(usize::from(token)).copied() else {
                break;
            };
            let slot = usize::from(slot);
            let buffer = &mut self.buffers.event[slot][..];
            // SAFETY: the buffer with this token is the one that was posted in `post_event`.
            if unsafe { self.event.pop_used(token, &[], &mut [buffer]) }.is_err()
                || self.post_event(slot).is_err()
            {
                break;
            }
            any = true;
        }
        if any {
            self.transport.notify(EVENT_QUEUE);
        }
        any
    }

    /// Lets `fill` write a packet into a free buffer (it returns the length, or `None` if it has
    /// no packet) and hands it to the device. False if nothing was sent.
    pub(crate) fn send(&mut self, fill: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        if self.free_send_count == 0 {
            self.collect_sent();
        }
        let Some(top) = self.free_send_count.checked_sub(1) else {
            return false;
        };
        let slot = self.free_send[top];
        let buffer = &mut self.buffers.send[usize::from(slot)][..];
        let Some(length) = fill(buffer) else {
            return false;
        };
        // SAFETY: the buffer lives as long as the queue, and is left alone until it is popped.
        match unsafe { self.send.add(&[&buffer[..length]], &mut []) } {
            Ok(token) => {
                self.send_slots[usize::from(token)] = (slot, length);
                self.free_send_count = top;
                self.send_untold = true;
                true
            }
            // There are as many descriptors as buffers.
            Err(_) => false,
        }
    }

    /// Takes back the buffers of packets that the device has sent; false if there were none.
    pub(crate) fn collect_sent(&mut self) -> bool {
        let mut any = false;
        while let Some(token) = self.send.peek_used() {
            let Some((slot, length)) = self.send_slots.get(usize::from(token)).copied() else {
                break;
            };
            let buffer = &self.buffers.send[usize::from(slot)][..length];
            // SAFETY: the buffer with this token is the one that was added in `send`.
            if unsafe { self.send.pop_used(token, &[buffer], &mut []) }.is_err() {
                break;
            }
            self.free_send[self.free_send_count] = slot;
            self.free_send_count += 1;
            any = true;
        }
        any
    }

    /// Tells the device of what was handed to it, where that cannot wait.
    pub(crate) fn notify(&mut self) {
        if self.send_untold {
            self.send_untold = false;
            if self.send.should_notify() {
                self.transport.notify(SEND_QUEUE);
            }
        }
        // Half of the buffers are always with the device: it cannot be stuck for want of one.
        if self.receive_untold >= RECEIVE_BUFFERS / 2 {
            self.receive_untold = 0;
            if self.receive.should_notify() {
                self.transport.notify(RECEIVE_QUEUE);
            }
        }
    }

    /// Waits for an interrupt, unless there is something to do already; false if the wait ended
    /// with nothing new in any queue.
    pub(crate) fn wait(&mut self) -> bool {
        self.receive.set_dev_notify(true);
        // Sent packets matter only to someone who wants to send and cannot.
        let send_blocked = self.free_send_count == 0;
        self.send.set_dev_notify(send_blocked);
        if self.unacknowledged {
            self.unacknowledged = false;
            self.acknowledge();
        }
        // Looked at after the device was asked for interrupts: what came before caused none.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        if !self.has_news(send_blocked) {
            crate::supervisor::wait_for_interrupt();
            self.unacknowledged = true;
        }
        self.receive.set_dev_notify(false);
        self.has_news(send_blocked)
    }

    fn has_news(&self, sent_too: bool) -> bool {
        self.receive.can_pop() || self.event.can_pop() || sent_too && self.send.can_pop()
    }

    /// Whether the device has stopped and wants a reset. Costs an exit.
    pub(crate) fn needs_restart(&self) -> bool {
        let status = self.transport.get_status();
        status.contains(DeviceStatus::DEVICE_NEEDS_RESET)
            || !status.contains(DeviceStatus::DRIVER_OK)
    }

    /// Acknowledges whatever interrupts there are. Which ones they are is not read, as that is
    /// another exit: the queues themselves say what is new.
    fn acknowledge(&mut self) {
        let register = (self.registers.base as usize + INTERRUPT_ACK) as *mut u32;
        // SAFETY: the register of the device that this value has for itself, mapped and aligned.
        unsafe { register.write_volatile(0b11) };
    }
}
