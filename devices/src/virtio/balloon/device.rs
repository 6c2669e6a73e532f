//! The balloon device: its queues, its configuration, and what a snapshot keeps of it.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use super::handle::Shared;
use super::pages::{self, MAX_PAGES_PER_LIST, PageRelease};
use super::{
    BalloonConfig, BalloonError, BalloonHandle, BalloonState, DEFLATE_QUEUE, GuestMemoryStats,
    INFLATE_QUEUE, STATS_QUEUE, pages_of,
};
use crate::virtio::device::{
    ActivateError, DeviceError, DeviceIo, DeviceUpdate, Progress, RestoreDeviceError,
    SaveDeviceError, UpdateDeviceError, VirtioDevice, VirtioDeviceState,
};

/// `VIRTIO_BALLOON_F_STATS_VQ` (5.5.3).
pub(super) const F_STATS_VQ: u64 = 1 << 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM` (5.5.3).
pub(super) const F_DEFLATE_ON_OOM: u64 = 1 << 2;

const QUEUE_MAX_SIZES: [u16; 3] = [256; 3];
/// Lists of one queue that are handled in one turn.
const MAX_LISTS_PER_TURN: usize = 64;
/// Offset of `actual` in the configuration space (5.5.4).
const ACTUAL_OFFSET: u64 = 4;

/// `event_fds()[0]`: the host set the target. The other one is the timer of the statistics.
const TARGET_EVENT: usize = 0;

/// A balloon device.
pub struct Balloon {
    config: BalloonConfig,
    shared: Arc<Shared>,
    release: PageRelease,
    /// Asks for statistics. None if they are off.
    timer: Option<OwnedFd>,
    /// Whether the driver took part in the statistics.
    stats_negotiated: bool,
    pfns: Vec<u32>,
    /// It was said that pages cannot be released.
    failure_reported: bool,
}

impl std::fmt::Debug for Balloon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Balloon")
            .field("config", &self.config)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl Balloon {
    /// A balloon device that gives pages back by `release`.
    ///
    /// # Errors
    /// When the balloon is too large, or the host has no eventfd or timerfd left.
    pub fn new(config: BalloonConfig, release: PageRelease) -> Result<Self, BalloonError> {
        let shared = Shared::new(pages_of(config.amount_mib)?).map_err(BalloonError::Io)?;
        let timer = if config.stats_polling_interval_s == 0 {
            None
        } else {
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags);
            Some(timer.map_err(|err| BalloonError::Io(err.into()))?)
        };
        Ok(Self {
            config,
            shared: Arc::new(shared),
            release,
            timer,
            stats_negotiated: false,
            pfns: Vec::new(),
            failure_reported: false,
        })
    }

    /// A handle by which any thread sets and reads the balloon.
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(Arc::clone(&self.shared))
    }

    /// Lets the timer of the statistics run, or stops it.
    fn set_timer(&self, interval_s: u16) -> Result<(), rustix::io::Errno> {
        let Some(timer) = &self.timer else {
            return Ok(());
        };
        let interval = Timespec {
            tv_sec: interval_s.into(),
            tv_nsec: 0,
        };
        let spec = Itimerspec {
            it_interval: interval,
            it_value: interval,
        };
        timerfd_settime(timer, TimerfdTimerFlags::empty(), &spec).map(drop)
    }

    fn inflate(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceError> {
        let mut pages = 0;
        for _ in 0..MAX_LISTS_PER_TURN {
            let Some(chain) = io.pop(INFLATE_QUEUE)? else {
                if io.enable_notification(INFLATE_QUEUE)? {
                    continue;
                }
                return Ok(Progress::Done);
            };
            let head_index = chain.head_index();
            pages::read_list(io.mem(), chain, &mut self.pfns);
            pages += self.pfns.len();
            if let Err(err) = pages::release(io.mem(), &mut self.pfns, &mut self.release)
                && !self.failure_reported
            {
                self.failure_reported = true;
                tracing::warn!(%err, "balloon: the host does not take pages of the guest back");
            }
            io.add_used(INFLATE_QUEUE, head_index, 0)?;
            if pages >= MAX_PAGES_PER_LIST {
                break;
            }
        }
        Ok(Progress::More {
            queue_index: INFLATE_QUEUE,
        })
    }

    /// Nothing has to be done for pages that the guest takes back: an access makes them be there.
    fn deflate(io: &mut DeviceIo<'_>) -> Result<Progress, DeviceError> {
        for _ in 0..MAX_LISTS_PER_TURN {
            let Some(chain) = io.pop(DEFLATE_QUEUE)? else {
                if io.enable_notification(DEFLATE_QUEUE)? {
                    continue;
                }
                return Ok(Progress::Done);
            };
            io.add_used(DEFLATE_QUEUE, chain.head_index(), 0)?;
        }
        Ok(Progress::More {
            queue_index: DEFLATE_QUEUE,
        })
    }

    /// Reads the buffer of statistics and leaves it in the ring: giving it back is how new ones are
    /// asked for (5.5.6.3).
    fn read_stats(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        if !self.stats_negotiated {
            return Ok(());
        }
        let mut chain = io.pop(STATS_QUEUE)?;
        if chain.is_none() && io.enable_notification(STATS_QUEUE)? {
            chain = io.pop(STATS_QUEUE)?;
        }
        let Some(chain) = chain else {
            return Ok(());
        };
        let stats = GuestMemoryStats::read(io.mem(), chain);
        self.shared.set_guest_stats(Some(stats));
        // The buffer after this one is news.
        let _ = io.enable_notification(STATS_QUEUE)?;
        io.undo_pop(STATS_QUEUE);
        Ok(())
    }

    /// Asks for new statistics. A driver that has not answered the last time is not asked again.
    fn request_stats(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        if !self.stats_negotiated {
            return Ok(());
        }
        if let Some(chain) = io.pop(STATS_QUEUE)? {
            io.add_used(STATS_QUEUE, chain.head_index(), 0)?;
        }
        if io.enable_notification(STATS_QUEUE)? {
            self.read_stats(io)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Balloon {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn device_features(&self) -> u64 {
        let mut features = 0;
        if self.timer.is_some() {
            features |= F_STATS_VQ;
        }
        if self.config.deflate_on_oom {
            features |= F_DEFLATE_ON_OOM;
        }
        features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        if self.timer.is_some() {
            &QUEUE_MAX_SIZES
        } else {
            &QUEUE_MAX_SIZES[..STATS_QUEUE]
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `le32 num_pages`, `le32 actual`; the rest belongs to features that are not offered.
        let target = self.shared.target_pages.load(Ordering::SeqCst);
        let actual = self.shared.actual_pages.load(Ordering::SeqCst);
        let config = (u64::from(actual) << 32 | u64::from(target)).to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            let value = usize::try_from(at).ok().and_then(|at| config.get(at));
            *byte = value.copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut actual = self
            .shared
            .actual_pages
            .load(Ordering::SeqCst)
            .to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            let at = at.checked_sub(ACTUAL_OFFSET).map(usize::try_from);
            if let Some(Ok(at)) = at
                && let Some(to) = actual.get_mut(at)
            {
                *to = *byte;
            }
        }
        let actual = u32::from_le_bytes(actual);
        self.shared.actual_pages.store(actual, Ordering::SeqCst);
    }

    fn event_fds(&self) -> Vec<RawFd> {
        let target = self.shared.evt.as_raw_fd();
        let timer = self.timer.as_ref().map(AsRawFd::as_raw_fd);
        std::iter::once(target).chain(timer).collect()
    }

    fn activate(&mut self, acked_features: u64) -> Result<(), ActivateError> {
        self.stats_negotiated = acked_features & F_STATS_VQ != 0;
        if self.stats_negotiated {
            self.set_timer(self.config.stats_polling_interval_s)
                .map_err(|err| {
                    ActivateError(format!("the timer of the statistics cannot be set: {err}"))
                })?;
        }
        Ok(())
    }

    fn process_queue(
        &mut self,
        io: &mut DeviceIo<'_>,
        queue_index: usize,
    ) -> Result<Progress, DeviceError> {
        match queue_index {
            INFLATE_QUEUE => self.inflate(io),
            DEFLATE_QUEUE => Self::deflate(io),
            STATS_QUEUE => {
                self.read_stats(io)?;
                Ok(Progress::Done)
            }
            _ => Ok(Progress::Done),
        }
    }

    fn process_event(
        &mut self,
        io: Option<&mut DeviceIo<'_>>,
        event_index: usize,
    ) -> Result<Progress, DeviceError> {
        if event_index == TARGET_EVENT {
            // Without a driver nobody has to be told: one that comes reads the target.
            if self.shared.evt.read().is_ok()
                && let Some(io) = io
            {
                io.notify_config_change();
            }
            return Ok(Progress::Done);
        }
        let mut expirations = [0; 8];
        if let Some(timer) = &self.timer
            && rustix::io::read(timer, &mut expirations).is_ok()
            && let Some(io) = io
        {
            self.request_stats(io)?;
        }
        Ok(Progress::Done)
    }

    fn reset(&mut self) {
        // A driver that comes has all of its memory, and says what it gives up.
        self.shared.actual_pages.store(0, Ordering::SeqCst);
        self.shared.set_guest_stats(None);
        self.stats_negotiated = false;
        if let Err(err) = self.set_timer(0) {
            // Its events do nothing while no driver is up.
            tracing::warn!(%err, "balloon: the timer of the statistics cannot be stopped");
        }
    }

    fn update(
        &mut self,
        _io: Option<&mut DeviceIo<'_>>,
        update: DeviceUpdate,
    ) -> Result<Vec<usize>, UpdateDeviceError> {
        let DeviceUpdate::Balloon {
            stats_polling_interval_s,
        } = update
        else {
            return Err(UpdateDeviceError::OtherDevice);
        };
        if (stats_polling_interval_s == 0) != self.timer.is_none() {
            return Err(UpdateDeviceError::StatisticsSwitch);
        }
        if self.stats_negotiated {
            self.set_timer(stats_polling_interval_s).map_err(|err| {
                DeviceError::Host(format!("the timer of the statistics cannot be set: {err}"))
            })?;
        }
        self.config.stats_polling_interval_s = stats_polling_interval_s;
        Ok(Vec::new())
    }

    fn save(&self) -> Result<VirtioDeviceState, SaveDeviceError> {
        // An eventfd cannot be looked at without taking its events: they are put back.
        let target_is_news = self.shared.evt.read().is_ok();
        if target_is_news {
            self.shared
                .announce()
                .map_err(|err| SaveDeviceError(format!("its eventfd fails: {err}")))?;
        }
        Ok(VirtioDeviceState::Balloon(BalloonState {
            target_pages: self.shared.target_pages.load(Ordering::SeqCst),
            actual_pages: self.shared.actual_pages.load(Ordering::SeqCst),
            target_is_news,
        }))
    }

    fn restore(&mut self, state: &VirtioDeviceState) -> Result<Vec<usize>, RestoreDeviceError> {
        let VirtioDeviceState::Balloon(state) = state else {
            return Err(RestoreDeviceError::OtherDevice {
                expected: "balloon",
            });
        };
        let (target, actual) = (state.target_pages, state.actual_pages);
        self.shared.target_pages.store(target, Ordering::SeqCst);
        self.shared.actual_pages.store(actual, Ordering::SeqCst);
        if state.target_is_news {
            self.shared
                .announce()
                .map_err(|err| RestoreDeviceError::Invalid {
                    device: "balloon",
                    reason: format!("the guest cannot be told of it: {err}"),
                })?;
        }
        Ok(Vec::new())
    }
}
