//! What a program that uses this library can put in place of, or beside, the pager's own ways.

use std::sync::Arc;

use reapvm_reap::{
    FaultPolicy, FaultSender, MemoryRestoreMode, PageSource, PagerHooks, SharedSource,
    SnapshotPageSource, VerifiedSource,
};
use reapvm_snapshot::{MemoryReader, Snapshot};

use super::{MemoryError, MemoryManager};

/// What is hung into the memory of a machine that is restored by faults (modes `ondemand`, `record`
/// and `prefetch`); the other modes refuse it with [`MemoryError::HooksNeedPager`].
///
/// ```
/// use std::num::NonZeroU64;
/// use reapvm::machine::RestoreOptions;
/// use reapvm::memory::MemoryHooks;
/// use reapvm_reap::{FaultAround, MemoryRestoreMode, fault_channel};
///
/// let (sender, listener) = fault_channel(4096);
/// let block = NonZeroU64::new(16).expect("it is not zero");
/// let hooks = MemoryHooks::new()
///     .fault_policy(FaultAround::new(block))
///     .fault_listener(sender);
/// let options = RestoreOptions::new(MemoryRestoreMode::OnDemand).hooks(hooks);
/// # drop((options, listener));
/// ```
#[derive(Default)]
pub struct MemoryHooks {
    source: Option<OtherSource>,
    pager: PagerHooks,
}

/// A page source that is not the snapshot's memory file.
struct OtherSource {
    source: Box<dyn PageSource>,
    is_verified: bool,
}

impl MemoryHooks {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the pages from `source` instead of the snapshot's memory file, which is not read then.
    /// Each is compared with the checksum that the snapshot has of it, and pages that the snapshot
    /// knows to be zero are not asked for: see [`VerifiedSource`].
    ///
    /// A working set is installed from its own file as ever; a page that it has is not asked of the
    /// source. The install method `memory-file` is an error.
    #[must_use]
    pub fn page_source(self, source: impl PageSource + 'static) -> Self {
        self.with_source(source, true)
    }

    /// As [`page_source`](Self::page_source), but the pages are taken as they come, whatever the
    /// snapshot says of them: for memory that is not what was saved.
    #[must_use]
    pub fn unverified_page_source(self, source: impl PageSource + 'static) -> Self {
        self.with_source(source, false)
    }

    fn with_source(mut self, source: impl PageSource + 'static, is_verified: bool) -> Self {
        self.source = Some(OtherSource {
            source: Box::new(source),
            is_verified,
        });
        self
    }

    /// Has `policy` decide what is put in place with a page that was touched. Not while recording
    /// ([`MemoryError::PolicyRecords`]): the guest would not fault on what the policy has brought,
    /// and the working set would lack it.
    #[must_use]
    pub fn fault_policy(mut self, policy: impl FaultPolicy + 'static) -> Self {
        self.pager.policy = Some(Box::new(policy));
        self
    }

    /// Tells of each fault that is served through `sender`: see [`reapvm_reap::fault_channel`].
    #[must_use]
    pub fn fault_listener(mut self, sender: FaultSender) -> Self {
        self.pager.listener = Some(sender);
        self
    }

    /// Whether they can be used in `mode`.
    pub(super) fn check(&self, mode: MemoryRestoreMode) -> Result<(), MemoryError> {
        let PagerHooks { policy, listener } = &self.pager;
        let is_empty = self.source.is_none() && policy.is_none() && listener.is_none();
        if !is_empty && !mode.uses_pager() {
            return Err(MemoryError::HooksNeedPager { mode });
        }
        if policy.is_some() && mode.records() {
            return Err(MemoryError::PolicyRecords);
        }
        Ok(())
    }

    /// The source of another kind, ready for several users, and what the pager takes.
    pub(super) fn split(self, snapshot: &Arc<Snapshot>) -> (Option<SharedSource>, PagerHooks) {
        let source = self.source.map(|other| match other.is_verified {
            true => SharedSource::new(VerifiedSource::new(other.source, Arc::clone(snapshot))),
            false => SharedSource::new(other.source),
        });
        (source, self.pager)
    }
}

/// Where the pages come from that are not in place yet.
pub(super) enum PageOrigin {
    /// The snapshot's memory file.
    Snapshot(Arc<MemoryReader>),
    /// A source of another kind.
    Other(SharedSource),
}

impl PageOrigin {
    /// A source for one more user.
    pub(super) fn source(&self) -> Box<dyn PageSource> {
        match self {
            Self::Snapshot(memory) => Box::new(SnapshotPageSource::from(Arc::clone(memory))),
            Self::Other(source) => Box::new(source.clone()),
        }
    }

    /// The snapshot's memory file, if that is where they come from.
    pub(super) fn memory(&self) -> Option<&Arc<MemoryReader>> {
        match self {
            Self::Snapshot(memory) => Some(memory),
            Self::Other(_) => None,
        }
    }
}

impl MemoryManager {
    /// Hangs `hooks` in, before [`MemoryManager::restore`].
    pub(crate) fn set_hooks(&mut self, hooks: MemoryHooks) {
        self.hooks = hooks;
    }

    /// The pages as they were saved, from where the pager takes them; none without a pager.
    pub fn page_source(&self) -> Option<Box<dyn PageSource>> {
        self.source.as_ref().map(PageOrigin::source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reapvm_reap::{FaultInfo, FaultPlan, fault_channel};

    #[test]
    fn hooks_are_refused_where_nobody_would_use_them() {
        let policy = |_: &FaultInfo, _: &mut FaultPlan<'_>| {};
        let listener = || MemoryHooks::new().fault_listener(fault_channel(1).0);
        for mode in MemoryRestoreMode::ALL {
            assert!(MemoryHooks::new().check(mode).is_ok());
            let is_refused = matches!(mode, MemoryRestoreMode::Copy | MemoryRestoreMode::File);
            assert_eq!(listener().check(mode).is_err(), is_refused, "{mode}");
            let result = MemoryHooks::new().fault_policy(policy).check(mode);
            match mode {
                MemoryRestoreMode::Record => {
                    assert!(matches!(result, Err(MemoryError::PolicyRecords)));
                }
                _ => assert_eq!(result.is_err(), is_refused, "{mode}"),
            }
        }
    }
}
