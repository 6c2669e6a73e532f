//! Work that threads take from one list, piece by piece, until it is done or one of them fails.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::{InstallError, InstallReport, STACK_BYTES, THREAD_NAME};

/// Whose turn is next, and whether to go on.
#[derive(Debug, Default)]
pub(super) struct Turns {
    next: AtomicUsize,
    has_failed: AtomicBool,
}

impl Turns {
    /// The next of the `items`, for the caller alone; none when all are taken or a thread has
    /// failed.
    pub(super) fn take<'a, T>(&self, items: &'a [T]) -> Option<&'a T> {
        if self.has_failed.load(Ordering::Relaxed) {
            return None;
        }
        items.get(self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn fail(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` on this thread and others, `threads` together and at least this one, and adds what
/// they did to `report`. The error is that of one of them.
pub(super) fn run_on(
    threads: usize,
    report: &mut InstallReport,
    work: impl Fn(&Turns) -> Result<InstallReport, InstallError> + Sync,
) -> Result<(), InstallError> {
    let turns = Turns::default();
    let run = || {
        let result = work(&turns);
        if result.is_err() {
            turns.fail();
        }
        result
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map(|_| {
                thread::Builder::new()
                    .name(THREAD_NAME.to_owned())
                    .stack_size(STACK_BYTES)
                    .spawn_scoped(scope, run)
                    .map_err(|error| {
                        turns.fail();
                        InstallError::Spawn(error)
                    })
            })
            .collect();
        let own = run();
        // All are waited for before any error is looked at: the scope would panic for a thread
        // that did and was not joined.
        let results: Vec<_> = others
            .into_iter()
            .map(|other| other?.join().unwrap_or(Err(InstallError::Panicked)))
            .collect();
        report.add(&own?);
        for result in results {
            report.add(&result?);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_taken_once_and_all_that_was_done_is_added_up() {
        let items: Vec<u64> = (1..=1000).collect();
        for threads in [0, 1, 2, 7] {
            let mut report = InstallReport::default();
            run_on(threads, &mut report, |turns| {
                let mut report = InstallReport {
                    threads: 1,
                    ..InstallReport::default()
                };
                while let Some(item) = turns.take(&items) {
                    report.pages += item;
                }
                Ok(report)
            })
            .unwrap();
            assert_eq!(report.pages, 500_500);
            assert_eq!(report.threads, threads.max(1) as u64);
        }
    }

    #[test]
    fn an_error_or_a_panic_of_one_ends_all() {
        let items = [0; 1000];
        for panics in [false, true] {
            let has_failed = AtomicBool::new(false);
            let error = run_on(3, &mut InstallReport::default(), |turns| {
                while turns.take(&items).is_some() {
                    if !has_failed.swap(true, Ordering::Relaxed) {
                        // On whichever thread it is; this one must not panic.
                        let is_other = thread::current().name() == Some(THREAD_NAME);
                        assert!(!(panics && is_other), "one that is meant");
                        return Err(InstallError::PagerEnded);
                    }
                }
                Ok(InstallReport::default())
            })
            .unwrap_err();
            assert!(
                matches!(error, InstallError::PagerEnded)
                    || panics && matches!(error, InstallError::Panicked),
                "{error}"
            );
        }
    }
}
