//! What others can hang into a pager: who decides what a fault installs, and who hears of faults.

mod fault_around;
mod listener;
mod policy;

pub use fault_around::FaultAround;
pub use listener::{FaultListener, FaultSender, ListenError, fault_channel};
pub use policy::{FaultInfo, FaultPlan, FaultPolicy};

pub(crate) use listener::LiveFeed;
pub(crate) use policy::PolicyState;

/// What is hung into a pager; by default nothing, which costs a branch a fault.
#[derive(Default)]
pub struct PagerHooks {
    /// Decides which pages are put in place with one that was touched. Without it that is the page
    /// alone.
    pub policy: Option<Box<dyn FaultPolicy>>,
    /// Hears of each fault that was served.
    pub listener: Option<FaultSender>,
}
