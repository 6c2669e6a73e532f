//! The thread `devices`, on which all device events are handled.

use std::io;
use std::os::fd::AsRawFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::vcpu::panic_text;

/// A device on the event loop.
pub(super) type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// The event loop cannot be set up.
#[derive(Debug, Error)]
pub enum EventLoopError {
    /// No epoll.
    #[error("cannot set up the event loop: {0}")]
    Manager(event_manager::Error),
    /// No eventfd or no thread.
    #[error("cannot start the event loop's thread")]
    Thread(#[source] io::Error),
}

/// The running event loop; stopped when dropped.
pub(super) struct EventLoop {
    stop: Arc<AtomicBool>,
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

/// Wakes the loop, so that it sees that it is to stop.
struct Wake(EventFd);

impl MutEventSubscriber for Wake {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        // Only its arrival counts.
        let _ = self.0.read();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.0, EventSet::IN)) {
            tracing::error!(%error, "the event loop cannot watch its own wake-up");
        }
    }
}

/// Calls a function each time an eventfd is signalled.
pub(super) struct OnEvent {
    event: EventFd,
    action: Box<dyn FnMut() + Send>,
}

impl OnEvent {
    /// `event` should be non-blocking.
    pub(super) fn new(event: EventFd, action: impl FnMut() + Send + 'static) -> Self {
        Self {
            event,
            action: Box::new(action),
        }
    }
}

impl MutEventSubscriber for OnEvent {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        if self.event.read().is_ok() {
            (self.action)();
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.event, EventSet::IN)) {
            tracing::error!(%error, fd = self.event.as_raw_fd(), "cannot watch an event");
        }
    }
}

impl EventLoop {
    /// Starts the loop with its subscribers; no more can be added. `on_failure` is called on its
    /// thread if it cannot go on: the machine must end then, as its devices are dead.
    ///
    /// # Errors
    /// [`EventLoopError`].
    pub(super) fn start(
        subscribers: Vec<Subscriber>,
        on_failure: impl FnOnce(String) + Send + 'static,
    ) -> Result<Self, EventLoopError> {
        let mut manager = EventManager::<Subscriber>::new().map_err(EventLoopError::Manager)?;
        let wake = EventFd::new(EFD_NONBLOCK).map_err(EventLoopError::Thread)?;
        let watched = wake.try_clone().map_err(EventLoopError::Thread)?;
        manager.add_subscriber(Arc::new(Mutex::new(Wake(watched))));
        for subscriber in subscribers {
            manager.add_subscriber(subscriber);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("devices".into())
            .stack_size(512 << 10)
            .spawn(move || {
                let handled = panic::catch_unwind(AssertUnwindSafe(|| {
                    while !stopped.load(Ordering::Acquire) {
                        match manager.run() {
                            Ok(_) => {}
                            // A signal; there is nothing to handle but to wait again.
                            Err(event_manager::Error::Epoll(error))
                                if error.errno() == libc::EINTR => {}
                            Err(error) => return Err(error.to_string()),
                        }
                    }
                    Ok(())
                }));
                let result = handled.unwrap_or_else(|payload| {
                    Err(format!("a device panicked: {}", panic_text(&*payload)))
                });
                if let Err(reason) = result {
                    on_failure(reason);
                }
            })
            .map_err(EventLoopError::Thread)?;
        Ok(Self {
            stop,
            wake,
            thread: Some(thread),
        })
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Cannot fail but by an overflow of the counter, in which case the loop is awake.
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_device_that_panics_is_a_failure_of_the_machine() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let device = OnEvent::new(event.try_clone().unwrap(), || panic!("no such state"));
        let (sender, failures) = channel();
        let event_loop = EventLoop::start(vec![Arc::new(Mutex::new(device))], move |reason| {
            sender.send(reason).unwrap();
        })
        .unwrap();
        event.write(1).unwrap();
        let reason = failures.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(reason, "a device panicked: no such state");
        drop(event_loop);
    }
}
