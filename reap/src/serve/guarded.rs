//! Calls of code that is not the pager's own: a panic in it is an error that names it.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};

use super::ServeError;
use crate::hooks::{FaultInfo, PolicyState};
use crate::page_states::PageAccount;
use crate::region::RegionMap;
use crate::source::{Page, PageSource};

/// The page at `gpa`. After a panic the source is not asked again: the pager ends.
pub(super) fn read_page(source: &mut dyn PageSource, gpa: u64) -> Result<Page<'_>, ServeError> {
    let read = AssertUnwindSafe(move || {
        // Moved in, so that the page may outlive the call.
        let source = source;
        source.read_page(gpa)
    });
    panic::catch_unwind(read)
        .map_err(|payload| ServeError::SourcePanicked {
            gpa,
            reason: reason_of(&*payload),
        })?
        .map_err(|source| ServeError::Source { gpa, source })
}

/// Asks the policy about `fault`. After a panic it is not asked again: the pager ends.
pub(super) fn consult(
    policy: &mut PolicyState,
    fault: &FaultInfo,
    regions: &RegionMap,
    account: &PageAccount,
) -> Result<(), ServeError> {
    panic::catch_unwind(AssertUnwindSafe(|| {
        policy.consult(fault, regions, account);
    }))
    .map_err(|payload| ServeError::PolicyPanicked {
        gpa: fault.gpa,
        reason: reason_of(&*payload),
    })
}

fn reason_of(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it did not say why").to_owned()
}
