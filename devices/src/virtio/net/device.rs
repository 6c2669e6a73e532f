//! The network device: its queues, its configuration, and what a snapshot keeps of it.

use std::os::fd::RawFd;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;

use super::header::{FEATURES, Offloads};
use super::mac::MacAddress;
use super::rx::Receiver;
use super::tap::Tap;
use super::tx::Transmitter;
use super::{NetConfig, NetError, NetState, RX_QUEUE, TX_QUEUE};
use crate::rate_limiter::{RateLimiter, RateLimiterConfig};
use crate::virtio::device::{
    ActivateError, DeviceError, DeviceIo, DeviceUpdate, Progress, RestoreDeviceError,
    SaveDeviceError, UpdateDeviceError, VirtioDevice, VirtioDeviceState,
};

const QUEUE_MAX_SIZES: [u16; 2] = [256, 256];

/// A descriptor that the device waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Tap,
    RxTimer,
    TxTimer,
}

/// A network device.
#[derive(Debug)]
pub struct Net {
    config: NetConfig,
    tap: Tap,
    mac: MacAddress,
    rx: Receiver,
    tx: Transmitter,
    offloads: Offloads,
}

fn limiter(
    id: &str,
    direction: &'static str,
    config: &RateLimiterConfig,
) -> Result<RateLimiter, NetError> {
    RateLimiter::new(config).map_err(|source| NetError::RateLimiter {
        id: id.to_owned(),
        direction,
        source,
    })
}

impl Net {
    /// A network device on the tap interface of the configuration.
    ///
    /// # Errors
    /// When the tap cannot be used or made, or the host has no timer or random bytes.
    pub fn new(config: NetConfig) -> Result<Self, NetError> {
        let tap = Tap::open(&config.tap)?;
        Self::with_tap(config, tap)
    }

    /// A network device on something that gives and takes frames as a tap does.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn over(config: NetConfig, fd: std::os::fd::OwnedFd) -> Result<Self, NetError> {
        Self::with_tap(config, Tap::over(fd))
    }

    fn with_tap(config: NetConfig, tap: Tap) -> Result<Self, NetError> {
        let mac = match config.mac {
            Some(mac) => mac,
            None => MacAddress::random().map_err(|err| NetError::RandomMac {
                id: config.id.clone(),
                reason: err.to_string(),
            })?,
        };
        let rx_limiter = limiter(&config.id, "receive", &config.rx_rate_limiter)?;
        let tx_limiter = limiter(&config.id, "transmit", &config.tx_rate_limiter)?;
        Ok(Self {
            config,
            tap,
            mac,
            rx: Receiver::new(rx_limiter),
            tx: Transmitter::new(tx_limiter),
            offloads: Offloads::default(),
        })
    }

    /// The MAC address in the configuration space.
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    fn events(&self) -> impl Iterator<Item = (RawFd, Event)> {
        [
            (self.tap.event_fd(), Event::Tap),
            (self.rx.limiter.event_fd(), Event::RxTimer),
            (self.tx.limiter.event_fd(), Event::TxTimer),
        ]
        .into_iter()
    }
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn device_features(&self) -> u64 {
        FEATURES
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_MAX_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `u8 mac[6]` is all there is with these features (5.1.4).
        let config = self.mac.bytes();
        for (at, byte) in (offset..).zip(data) {
            let value = usize::try_from(at).ok().and_then(|at| config.get(at));
            *byte = value.copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn event_fds(&self) -> Vec<RawFd> {
        self.events().map(|(fd, _)| fd).collect()
    }

    fn events_are_edge_triggered(&self) -> bool {
        // Frames stay in the tap while the guest has no buffers.
        true
    }

    fn activate(&mut self, acked_features: u64) -> Result<(), ActivateError> {
        self.offloads = Offloads::of(acked_features);
        self.tap.set_offloads(self.offloads).map_err(|err| {
            ActivateError(format!(
                "tap '{}' does not take the offloads of the guest: {err}",
                self.tap.name()
            ))
        })
    }

    fn process_queue(
        &mut self,
        io: &mut DeviceIo<'_>,
        queue_index: usize,
    ) -> Result<Progress, DeviceError> {
        match queue_index {
            RX_QUEUE => self.rx.run(io, &self.tap, self.offloads),
            TX_QUEUE => self.tx.run(io, &self.tap),
            _ => Ok(Progress::Done),
        }
    }

    fn process_event(
        &mut self,
        io: Option<&mut DeviceIo<'_>>,
        event_index: usize,
    ) -> Result<Progress, DeviceError> {
        let Some((_, event)) = self.events().nth(event_index) else {
            return Ok(Progress::Done);
        };
        let goes_on = match event {
            Event::Tap => {
                self.rx.on_tap_readable();
                true
            }
            Event::RxTimer => self.rx.limiter.on_timer(),
            Event::TxTimer => self.tx.limiter.on_timer(),
        };
        if !goes_on {
            return Ok(Progress::Done);
        }
        match (io, event) {
            (None, _) => Ok(Progress::Done),
            (Some(io), Event::Tap | Event::RxTimer) => self.rx.run(io, &self.tap, self.offloads),
            (Some(io), Event::TxTimer) => self.tx.run(io, &self.tap),
        }
    }

    fn reset(&mut self) {
        self.rx.reset();
        self.offloads = Offloads::default();
    }

    fn update(
        &mut self,
        _io: Option<&mut DeviceIo<'_>>,
        update: DeviceUpdate,
    ) -> Result<Vec<usize>, UpdateDeviceError> {
        let DeviceUpdate::Net {
            rx_rate_limiter,
            tx_rate_limiter,
        } = update
        else {
            return Err(UpdateDeviceError::OtherDevice);
        };
        // Both or none.
        RateLimiter::new(&rx_rate_limiter)?;
        self.tx.limiter.change(&tx_rate_limiter)?;
        self.rx.limiter.change(&rx_rate_limiter)?;
        let config = &mut self.config;
        config.rx_rate_limiter = config.rx_rate_limiter.changed_by(&rx_rate_limiter);
        config.tx_rate_limiter = config.tx_rate_limiter.changed_by(&tx_rate_limiter);
        // What waited for a timer that does not expire any more.
        Ok(vec![RX_QUEUE, TX_QUEUE])
    }

    fn save(&self) -> Result<VirtioDeviceState, SaveDeviceError> {
        Ok(VirtioDeviceState::Net(NetState {
            id: self.config.id.clone(),
            tap: self.tap.name().to_owned(),
            mac: self.mac,
            rx_rate_limiter: self.rx.limiter.save(),
            tx_rate_limiter: self.tx.limiter.save(),
            tx_waits: self.tx.limiter.is_blocked(),
        }))
    }

    fn restore(&mut self, state: &VirtioDeviceState) -> Result<Vec<usize>, RestoreDeviceError> {
        let VirtioDeviceState::Net(state) = state else {
            return Err(RestoreDeviceError::OtherDevice { expected: "net" });
        };
        let invalid = |reason: String| RestoreDeviceError::Invalid {
            device: "net",
            reason,
        };
        if state.id != self.config.id {
            return Err(invalid(format!(
                "it is that of '{}', the device is '{}'",
                state.id, self.config.id
            )));
        }
        let limiter = |config, state| {
            RateLimiter::restore(config, state).map_err(|err| invalid(err.to_string()))
        };
        self.rx = Receiver::new(limiter(
            &self.config.rx_rate_limiter,
            &state.rx_rate_limiter,
        )?);
        self.tx = Transmitter::new(limiter(
            &self.config.tx_rate_limiter,
            &state.tx_rate_limiter,
        )?);
        if self.config.mac.is_none() {
            self.mac = state.mac;
        }
        // A restored limiter is not blocked: nothing else would make the queue go on.
        Ok(if state.tx_waits {
            vec![TX_QUEUE]
        } else {
            Vec::new()
        })
    }
}
