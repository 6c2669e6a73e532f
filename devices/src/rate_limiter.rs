//! Rate limits for devices: token buckets for bytes and operations, in the vocabulary of
//! Firecracker's API.
//!
//! A device asks [`RateLimiter::try_consume`] before each request. Once that said no, the device
//! leaves its queue alone until the limiter's timer is readable.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

const NS_PER_MS: u64 = 1_000_000;
const NS_PER_S: u64 = 1_000_000_000;
/// What one request costs at most: a descriptor chain is shorter than 4 GiB (2.7.5). It bounds how
/// far a request that is larger than its bucket takes the bucket below empty.
const MAX_REQUEST_TOKENS: u64 = u32::MAX as u64;
/// A blocked device does not wake up for every token: a wakeup costs more than a small request.
/// No bucket can be full sooner, so this does not lower any limit.
const MIN_WAIT_NS: u64 = NS_PER_MS;

/// A token bucket: holds `size` tokens, gets them anew in `refill_time_ms`, evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucketConfig {
    /// Tokens that the bucket holds: bytes, or operations. 0 is no limit.
    pub size: u64,
    /// Tokens that there are once, beside those of `size`; they are spent first.
    #[serde(default)]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket is full again. 0 is no limit.
    #[serde(rename = "refill_time")]
    pub refill_time_ms: u64,
}

/// Limits of one direction of a device. Without a bucket there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiterConfig {
    /// Bytes.
    #[serde(default)]
    pub bandwidth: Option<TokenBucketConfig>,
    /// Operations: requests of a disk, packets of a network.
    #[serde(default)]
    pub ops: Option<TokenBucketConfig>,
}

impl TokenBucketConfig {
    fn is_unlimited(&self) -> bool {
        self.size == 0 || self.refill_time_ms == 0
    }
}

impl RateLimiterConfig {
    /// These limits with the buckets of `changes` in the place of those that it has: a bucket that
    /// it does not name stays, one whose size or refill time is 0 goes.
    #[must_use]
    pub fn changed_by(&self, changes: &Self) -> Self {
        let change = |now: Option<TokenBucketConfig>, change: Option<TokenBucketConfig>| {
            change.or(now).filter(|bucket| !bucket.is_unlimited())
        };
        Self {
            bandwidth: change(self.bandwidth, changes.bandwidth),
            ops: change(self.ops, changes.ops),
        }
    }
}

/// Why there is no such rate limiter.
#[derive(Debug, Error)]
pub enum RateLimiterError {
    /// A bucket is larger than what can be counted.
    #[error(
        "a token bucket of {what} with {tokens} tokens is too large: at most {}",
        i64::MAX
    )]
    TooLarge {
        /// "size" or "one_time_burst".
        what: &'static str,
        /// What was asked for.
        tokens: u64,
    },
    /// No timer.
    #[error("cannot make or set a timerfd for a rate limiter")]
    Timer(#[source] std::io::Error),
    /// No limiter can be in that state.
    #[error("the saved rate limiter is not valid: its {bucket} bucket holds {budget} tokens")]
    InvalidState {
        /// "bandwidth" or "ops".
        bucket: &'static str,
        /// What the state says.
        budget: i64,
    },
}

/// What a snapshot keeps of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBucketState {
    /// Tokens in the bucket; below 0 after a request that was larger than the bucket.
    pub budget: i64,
    /// What is left of the one-time burst, in tokens.
    pub burst: u64,
}

/// What a snapshot keeps of a rate limiter. Time stands still between save and restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimiterState {
    /// The bucket of bytes.
    pub bandwidth: Option<TokenBucketState>,
    /// The bucket of operations.
    pub ops: Option<TokenBucketState>,
}

/// A bucket at work. It is told the time and does not ask for it.
#[derive(Clone, Debug)]
struct TokenBucket {
    size: u64,
    refill_ns: u128,
    budget: i64,
    burst: u64,
    /// The time up to which the budget has its tokens.
    filled_until_ns: u64,
}

impl TokenBucket {
    /// A full bucket, or none if there is no limit.
    fn new(config: &TokenBucketConfig, now_ns: u64) -> Result<Option<Self>, RateLimiterError> {
        let burst = config.one_time_burst.unwrap_or(0);
        let budget = countable("size", config.size)?;
        countable("one_time_burst", burst)?;
        if config.is_unlimited() {
            return Ok(None);
        }
        Ok(Some(Self {
            size: config.size,
            refill_ns: u128::from(config.refill_time_ms) * u128::from(NS_PER_MS),
            budget,
            burst,
            filled_until_ns: now_ns,
        }))
    }

    fn refill(&mut self, now_ns: u64) {
        let elapsed_ns = now_ns.saturating_sub(self.filled_until_ns);
        let size = u128::from(self.size);
        let tokens = u128::from(elapsed_ns) * size / self.refill_ns;
        let lacking = (i128::from(self.size) - i128::from(self.budget)).unsigned_abs();
        if tokens >= lacking {
            self.budget = self.size as i64;
            self.filled_until_ns = self.filled_until_ns.max(now_ns);
        } else {
            // Rounded up, so that fractions of a token do not add up to more than the limit.
            let spent_ns = (tokens * self.refill_ns).div_ceil(size);
            self.budget += tokens as i64;
            self.filled_until_ns += spent_ns as u64;
        }
    }

    /// Nanoseconds until the bucket has what `tokens` need; 0 is now. What is larger than the
    /// bucket needs a full one, or it would never be let through.
    fn wait_ns(&self, tokens: u64, now_ns: u64) -> u64 {
        let from_budget = tokens.saturating_sub(self.burst).min(self.size);
        let lacking = i128::from(from_budget) - i128::from(self.budget);
        let Some(lacking) = u128::try_from(lacking).ok().filter(|&lacking| lacking > 0) else {
            return 0;
        };
        let fill_ns = lacking
            .saturating_mul(self.refill_ns)
            .div_ceil(u128::from(self.size));
        let gone_ns = u128::from(now_ns.saturating_sub(self.filled_until_ns));
        u64::try_from(fill_ns.saturating_sub(gone_ns))
            .unwrap_or(u64::MAX)
            .max(1)
    }

    fn take(&mut self, tokens: u64) {
        let from_burst = tokens.min(self.burst);
        self.burst -= from_burst;
        self.budget -= (tokens - from_burst) as i64;
    }

    fn save(&self) -> TokenBucketState {
        TokenBucketState {
            budget: self.budget,
            burst: self.burst,
        }
    }

    fn load(
        &mut self,
        bucket: &'static str,
        state: &TokenBucketState,
    ) -> Result<(), RateLimiterError> {
        let budget = state.budget;
        if budget < -(MAX_REQUEST_TOKENS as i64) {
            // It would block the device for ever.
            return Err(RateLimiterError::InvalidState { bucket, budget });
        }
        // The limits may be others than when it was saved.
        self.budget = budget.min(self.size as i64);
        self.burst = self.burst.min(state.burst);
        Ok(())
    }
}

fn countable(what: &'static str, tokens: u64) -> Result<i64, RateLimiterError> {
    i64::try_from(tokens).map_err(|_| RateLimiterError::TooLarge { what, tokens })
}

/// The two buckets together: a request passes both or none.
#[derive(Clone, Debug, Default)]
struct Buckets {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
}

impl Buckets {
    fn new(config: &RateLimiterConfig, now_ns: u64) -> Result<Self, RateLimiterError> {
        let bucket = |config: Option<TokenBucketConfig>| match config {
            Some(config) => TokenBucket::new(&config, now_ns),
            None => Ok(None),
        };
        Ok(Self {
            bandwidth: bucket(config.bandwidth)?,
            ops: bucket(config.ops)?,
        })
    }

    fn is_unlimited(&self) -> bool {
        self.bandwidth.is_none() && self.ops.is_none()
    }

    /// Takes the tokens, or says how many nanoseconds are to be waited.
    fn try_consume(&mut self, bytes: u64, ops: u64, now_ns: u64) -> Result<(), u64> {
        let bytes = bytes.min(MAX_REQUEST_TOKENS);
        let ops = ops.min(MAX_REQUEST_TOKENS);
        let mut wait_ns = 0;
        for (bucket, tokens) in [(&mut self.bandwidth, bytes), (&mut self.ops, ops)] {
            if let Some(bucket) = bucket {
                bucket.refill(now_ns);
                wait_ns = wait_ns.max(bucket.wait_ns(tokens, now_ns));
            }
        }
        if wait_ns > 0 {
            return Err(wait_ns);
        }
        for (bucket, tokens) in [(&mut self.bandwidth, bytes), (&mut self.ops, ops)] {
            if let Some(bucket) = bucket {
                bucket.take(tokens);
            }
        }
        Ok(())
    }
}

/// A rate limiter: tells whether a request may go on now, and by its timer when to ask again.
#[derive(Debug)]
pub struct RateLimiter {
    buckets: Buckets,
    /// Also without a limit: one may be set while the device works.
    timer: OwnedFd,
    blocked: bool,
}

impl RateLimiter {
    /// A rate limiter with full buckets. A bucket whose size or refill time is 0 is no limit.
    ///
    /// # Errors
    /// When a bucket is above `i64::MAX` tokens, or the host has no timerfd left.
    pub fn new(config: &RateLimiterConfig) -> Result<Self, RateLimiterError> {
        let buckets = Buckets::new(config, now_ns())?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(|err| RateLimiterError::Timer(err.into()))?;
        Ok(Self {
            buckets,
            timer,
            blocked: false,
        })
    }

    /// Whether a request of `bytes` bytes and `ops` operations may go on, and if so, counts it.
    ///
    /// `false`: it may not, nothing is counted, the timer is armed, and every further call returns
    /// `false` until [`on_timer`](Self::on_timer). A request that is larger than a bucket goes on
    /// when the bucket is full, and those after it wait until it is paid for.
    pub fn try_consume(&mut self, bytes: u64, ops: u64) -> bool {
        if self.blocked {
            return false;
        }
        if self.buckets.is_unlimited() {
            return true;
        }
        let Err(wait_ns) = self.buckets.try_consume(bytes, ops, now_ns()) else {
            return true;
        };
        match self.arm(wait_ns.max(MIN_WAIT_NS)) {
            Ok(()) => {
                self.blocked = true;
                false
            }
            Err(err) => {
                // Nothing would wake the device up again: a hang is worse than a limit that fails.
                tracing::error!(%err, "rate limiter: its timer cannot be armed, a request passes");
                true
            }
        }
    }

    /// Has the timer expire once after `wait_ns`; 0: not any more.
    fn arm(&self, wait_ns: u64) -> Result<(), Errno> {
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: (wait_ns / NS_PER_S) as i64,
                tv_nsec: (wait_ns % NS_PER_S) as i64,
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).map(drop)
    }

    /// Replaces the buckets that `changes` names by full ones; one whose size or refill time is 0
    /// is no limit any more. The others keep their tokens. Afterwards the limiter is not blocked:
    /// the device has to ask.
    ///
    /// # Errors
    /// When a bucket is above `i64::MAX` tokens, or the timer fails; nothing is changed then.
    pub fn change(&mut self, changes: &RateLimiterConfig) -> Result<(), RateLimiterError> {
        let new = Buckets::new(changes, now_ns())?;
        self.arm(0)
            .map_err(|err| RateLimiterError::Timer(err.into()))?;
        if changes.bandwidth.is_some() {
            self.buckets.bandwidth = new.bandwidth;
        }
        if changes.ops.is_some() {
            self.buckets.ops = new.ops;
        }
        self.blocked = false;
        Ok(())
    }

    /// The timer: readable when a blocked device may ask again. The same for the limiter's life.
    pub fn event_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Takes the timer's event. Afterwards the limiter is not blocked, unless the timer has not
    /// expired yet: `true` if it has, and there may be something to go on with.
    pub fn on_timer(&mut self) -> bool {
        let mut expirations = [0; 8];
        let expired = rustix::io::read(&self.timer, &mut expirations).is_ok();
        if expired {
            self.blocked = false;
        }
        expired
    }

    /// Whether the device has to wait for the timer.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The tokens that are left.
    pub fn save(&self) -> RateLimiterState {
        let mut buckets = self.buckets.clone();
        let now_ns = now_ns();
        let save = |bucket: &mut Option<TokenBucket>| {
            bucket.as_mut().map(|bucket| {
                bucket.refill(now_ns);
                bucket.save()
            })
        };
        RateLimiterState {
            bandwidth: save(&mut buckets.bandwidth),
            ops: save(&mut buckets.ops),
        }
    }

    /// A rate limiter with the tokens of `state`. The limits of `config` may be others than when
    /// it was saved: a bucket that was not there is full, one that is smaller now is cut. It is
    /// not blocked: the device has to ask.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when no limiter can be in that state.
    pub fn restore(
        config: &RateLimiterConfig,
        state: &RateLimiterState,
    ) -> Result<Self, RateLimiterError> {
        let mut new = Self::new(config)?;
        for (name, bucket, state) in [
            ("bandwidth", &mut new.buckets.bandwidth, &state.bandwidth),
            ("ops", &mut new.buckets.ops, &state.ops),
        ] {
            if let (Some(bucket), Some(state)) = (bucket, state) {
                bucket.load(name, state)?;
            }
        }
        Ok(new)
    }
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64)
        .saturating_mul(NS_PER_S)
        .saturating_add(now.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn bucket(size: u64, burst: u64, refill_time_ms: u64) -> TokenBucketConfig {
        TokenBucketConfig {
            size,
            one_time_burst: Some(burst),
            refill_time_ms,
        }
    }

    fn bytes(size: u64, burst: u64, refill_time_ms: u64) -> RateLimiterConfig {
        RateLimiterConfig {
            bandwidth: Some(bucket(size, burst, refill_time_ms)),
            ops: None,
        }
    }

    #[test]
    fn without_buckets_there_is_no_limit() {
        for config in [
            RateLimiterConfig::default(),
            bytes(0, 5, 100),
            bytes(100, 5, 0),
        ] {
            let mut limiter = RateLimiter::new(&config).unwrap();
            assert!(limiter.try_consume(u64::MAX, u64::MAX));
            assert_eq!(limiter.save(), RateLimiterState::default());
        }
        assert!(matches!(
            RateLimiter::new(&bytes(u64::MAX, 0, 1)),
            Err(RateLimiterError::TooLarge { what: "size", .. })
        ));
    }

    #[test]
    fn a_bucket_refills_evenly_and_the_burst_is_spent_once() {
        let mut buckets = Buckets::new(&bytes(1000, 500, 1000), 7).unwrap();
        assert_eq!(buckets.try_consume(1500, 0, 7), Ok(()));
        assert_eq!(buckets.try_consume(1, 0, 7), Err(NS_PER_MS));
        assert_eq!(buckets.try_consume(10, 0, 7), Err(10 * NS_PER_MS));
        let later = 7 + 10 * NS_PER_MS;
        assert_eq!(buckets.try_consume(10, 0, later), Ok(()));
        assert_eq!(buckets.try_consume(10, 0, later), Err(10 * NS_PER_MS));
        // However long it waits, it holds its size.
        let much_later = u64::MAX / 2;
        assert_eq!(buckets.try_consume(1000, 0, much_later), Ok(()));
        assert_eq!(buckets.try_consume(1, 0, much_later), Err(NS_PER_MS));
        // A clock that goes back gives nothing.
        assert!(buckets.try_consume(1, 0, 7).is_err());
    }

    #[test]
    fn a_request_passes_both_buckets_or_none() {
        let config = RateLimiterConfig {
            bandwidth: Some(bucket(1000, 0, 1000)),
            ops: Some(bucket(2, 0, 1000)),
        };
        let mut buckets = Buckets::new(&config, 0).unwrap();
        assert_eq!(buckets.try_consume(10, 1, 0), Ok(()));
        assert_eq!(buckets.try_consume(10, 1, 0), Ok(()));
        assert_eq!(buckets.try_consume(10, 1, 0), Err(500 * NS_PER_MS));
        assert_eq!(buckets.bandwidth.unwrap().budget, 980);
    }

    #[test]
    fn a_request_larger_than_the_bucket_passes_and_is_paid_for() {
        let mut buckets = Buckets::new(&bytes(100, 0, 100), 0).unwrap();
        assert_eq!(buckets.try_consume(250, 0, 0), Ok(()));
        assert_eq!(buckets.try_consume(1, 0, 0), Err(151 * NS_PER_MS));
        assert!(buckets.try_consume(250, 0, 249 * NS_PER_MS).is_err());
        assert_eq!(buckets.try_consume(250, 0, 250 * NS_PER_MS), Ok(()));
        // Nor does the largest request that can be overflow anything.
        let mut buckets = Buckets::new(&bytes(1, 0, u64::MAX), 0).unwrap();
        assert_eq!(buckets.try_consume(u64::MAX, 0, 0), Ok(()));
        assert_eq!(buckets.try_consume(u64::MAX, 0, u64::MAX), Err(u64::MAX));
    }

    #[test]
    fn the_timer_unblocks() {
        let mut limiter = RateLimiter::new(&bytes(100, 0, 5)).unwrap();
        assert!(limiter.try_consume(100, 1));
        assert!(!limiter.try_consume(100, 1));
        assert!(limiter.is_blocked());
        assert!(!limiter.try_consume(0, 0));
        let mut waits = 0;
        while limiter.is_blocked() {
            waits += 1;
            assert!(waits < 10, "the timer is readable and does not unblock");
            let timer = &limiter.timer;
            let forever = None;
            poll(&mut [PollFd::new(timer, PollFlags::IN)], forever).unwrap();
            limiter.on_timer();
        }
        assert!(limiter.try_consume(100, 1));
    }

    #[test]
    fn changed_buckets_are_full_and_the_others_keep_their_tokens() {
        let hour = 3_600_000;
        let both = RateLimiterConfig {
            bandwidth: Some(bucket(100, 0, hour)),
            ops: Some(bucket(10, 0, hour)),
        };
        let mut limiter = RateLimiter::new(&both).unwrap();
        assert!(limiter.try_consume(100, 4));
        assert!(!limiter.try_consume(1, 1));
        let wider = bytes(200, 0, hour);
        limiter.change(&wider).unwrap();
        assert!(!limiter.is_blocked());
        let budgets = |limiter: &RateLimiter| {
            let state = limiter.save();
            [state.bandwidth, state.ops].map(|bucket| bucket.map(|bucket| bucket.budget))
        };
        assert_eq!(budgets(&limiter), [Some(200), Some(6)]);
        assert_eq!(
            both.changed_by(&wider),
            RateLimiterConfig {
                bandwidth: wider.bandwidth,
                ..both
            }
        );
        // One that cannot be leaves all as it is.
        assert!(limiter.change(&bytes(u64::MAX, 0, 1)).is_err());
        assert_eq!(budgets(&limiter), [Some(200), Some(6)]);
        let none = RateLimiterConfig {
            bandwidth: Some(bucket(0, 0, 0)),
            ops: Some(bucket(1, 0, 0)),
        };
        limiter.change(&none).unwrap();
        assert!(limiter.try_consume(u64::MAX, u64::MAX));
        assert_eq!(both.changed_by(&none), RateLimiterConfig::default());
        // And back: the timer was there all the time.
        let timer = limiter.event_fd();
        limiter.change(&wider).unwrap();
        assert!(limiter.try_consume(200, 1) && !limiter.try_consume(1, 1));
        assert_eq!(limiter.event_fd(), timer);
    }

    #[test]
    fn a_timer_that_has_not_expired_does_not_unblock() {
        let mut limiter = RateLimiter::new(&bytes(100, 0, 3_600_000)).unwrap();
        assert!(limiter.try_consume(100, 1));
        assert!(!limiter.try_consume(100, 1));
        limiter.on_timer();
        assert!(limiter.is_blocked());
    }

    #[test]
    fn a_saved_limiter_goes_on_where_it_was() {
        let hour = 3_600_000;
        let config = RateLimiterConfig {
            bandwidth: Some(bucket(1000, 50, hour)),
            ops: Some(bucket(10, 0, hour)),
        };
        let mut limiter = RateLimiter::new(&config).unwrap();
        assert!(limiter.try_consume(1050, 1));
        let state = limiter.save();
        assert_eq!(state.bandwidth.map(|b| b.burst), Some(0));
        let mut restored = RateLimiter::restore(&config, &state).unwrap();
        assert!(!restored.is_blocked());
        assert!(!restored.try_consume(900, 1));
        // Other limits than then.
        let smaller = bytes(3, 9, hour);
        let full = RateLimiterState {
            bandwidth: Some(TokenBucketState {
                budget: 1000,
                burst: 50,
            }),
            ops: None,
        };
        let restored = RateLimiter::restore(&smaller, &full).unwrap().save();
        assert_eq!(
            restored.bandwidth.map(|b| (b.budget, b.burst)),
            Some((3, 9))
        );
        // One that never lets anything pass.
        let dead = RateLimiterState {
            bandwidth: Some(TokenBucketState {
                budget: i64::MIN,
                burst: 0,
            }),
            ops: None,
        };
        assert!(matches!(
            RateLimiter::restore(&smaller, &dead),
            Err(RateLimiterError::InvalidState { .. })
        ));
    }

    #[test]
    fn unknown_fields_of_a_configuration_are_refused() {
        // The formats that the crate's users read are theirs; here any one that names its fields.
        use serde::de::IntoDeserializer;
        use serde::de::value::{Error, MapDeserializer};
        let parse = |fields: &[(&'static str, u64)]| {
            let fields = fields.iter().map(|&(k, v)| (k, v.into_deserializer()));
            TokenBucketConfig::deserialize(MapDeserializer::<_, Error>::new(fields))
        };
        let config = parse(&[("size", 1), ("refill_time", 2)]).unwrap();
        assert_eq!((config.size, config.refill_time_ms), (1, 2));
        assert_eq!(config.one_time_burst, None);
        assert!(parse(&[("size", 1), ("refill_time", 2), ("speed", 3)]).is_err());
        assert!(parse(&[("size", 1)]).is_err());
    }

    proptest! {
        /// In any time, no more passes than the limit, and one request that is larger than the
        /// bucket.
        #[test]
        fn never_lets_more_through_than_the_limit(
            size in 1u64..10_000,
            burst in 0u64..10_000,
            refill_time_ms in 1u64..5_000,
            requests in prop::collection::vec((0u64..20_000, 0u64..2_000_000_000), 1..200),
        ) {
            let mut buckets = Buckets::new(&bytes(size, burst, refill_time_ms), 0).unwrap();
            let (mut now_ns, mut passed, mut largest) = (0u64, 0u128, 0u64);
            for (tokens, pause_ns) in requests {
                now_ns += pause_ns;
                if buckets.try_consume(tokens, 0, now_ns).is_ok() {
                    passed += u128::from(tokens);
                    largest = largest.max(tokens);
                }
                let refilled = u128::from(now_ns) * u128::from(size)
                    / (u128::from(refill_time_ms) * u128::from(NS_PER_MS));
                let over = u128::from(largest.saturating_sub(size));
                prop_assert!(passed <= u128::from(size) + u128::from(burst) + refilled + over);
            }
        }

        /// Who waits as long as was said, passes.
        #[test]
        fn the_wait_is_enough_and_no_shorter_one_is(
            size in 1u64..1_000_000,
            refill_time_ms in 1u64..5_000,
            requests in prop::collection::vec(0u64..2_000_000, 1..100),
        ) {
            let mut buckets = Buckets::new(&bytes(size, 0, refill_time_ms), 0).unwrap();
            let mut now_ns = 0u64;
            for tokens in requests {
                if let Err(wait_ns) = buckets.try_consume(tokens, 0, now_ns) {
                    let early = now_ns + wait_ns - 1;
                    prop_assert!(buckets.clone().try_consume(tokens, 0, early).is_err());
                    now_ns += wait_ns;
                    prop_assert_eq!(buckets.try_consume(tokens, 0, now_ns), Ok(()));
                }
            }
        }
    }
}
