//! A limit on the time that a test may take, so that a hang is a failure and not a hung CI.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// What a test may take, whatever it does: far more than any needs, even on a slow disk or an emulated
/// processor.
pub const LIMIT: Duration = Duration::from_secs(900);

/// Runs `test` in a thread of its own and fails if it has not ended after [`LIMIT`].
///
/// # Panics
/// If `test` panics or does not end in time.
pub fn guarded(test: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel::<()>();
    let name = thread::current().name().unwrap_or("test").to_owned();
    let thread = thread::Builder::new()
        .name(name)
        .spawn(move || {
            let _done = done;
            test();
        })
        .unwrap();
    // The sender is dropped when the test ends, however it does.
    if ended.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("the test had not ended after {} s", LIMIT.as_secs());
    }
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
