//! Pages that the guest gives up, and how their memory goes back to the host.

use std::io;

use rustix::mm::{Advice, madvise};
use virtio_queue::DescriptorChain;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemory as _, GuestUsize, Permissions, bitmap::Bitmap,
};

use crate::{GuestMemory, GuestSlice};

/// Bytes of a page of the device (5.5.6).
const PAGE_BYTES: usize = 4096;
/// Bytes of a page's number in a list.
const PFN_BYTES: usize = 4;
/// Pages of one list that are looked at. Linux sends 256 at most; of a longer list, the rest stays
/// with the guest's memory, as if the guest had not inflated by it.
pub(super) const MAX_PAGES_PER_LIST: usize = 1024;

/// Gives whole pages of guest memory, in one piece of host memory, back to the host. The guest
/// does not use them, and expects no content in them.
pub type PageRelease = Box<dyn FnMut(&GuestSlice<'_>) -> io::Result<()> + Send>;

/// Gives the pages back by `MADV_DONTNEED`: right for private anonymous memory. The next access
/// finds zeroes.
///
/// Where a userfaultfd asked for removals, the call waits until its reader has read the removal,
/// so that must not be the calling thread.
///
/// # Errors
/// When the host refuses, as it does with locked pages, or the piece is not one of whole pages.
pub fn release_anonymous(pages: &GuestSlice<'_>) -> io::Result<()> {
    let guard = pages.ptr_guard_mut();
    if !is_whole_pages(pages) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the piece is memory that is mapped and may be written as long as `guard` lives, and
    // the call changes nothing beyond it, for it begins and ends with a page. Other bytes in it are
    // what any writer through the `GuestSlice` may leave there.
    unsafe { madvise(guard.as_ptr().cast(), guard.len(), Advice::LinuxDontNeed) }?;
    Ok(())
}

fn is_whole_pages(slice: &GuestSlice<'_>) -> bool {
    let addr = slice.ptr_guard().as_ptr().addr();
    addr.is_multiple_of(PAGE_BYTES) && slice.len().is_multiple_of(PAGE_BYTES)
}

/// Reads the list of pages in the chain. Whatever the descriptors cut it into, it is one list of
/// little-endian numbers.
pub(super) fn read_list(
    mem: &GuestMemory,
    chain: DescriptorChain<&GuestMemory>,
    pfns: &mut Vec<u32>,
) {
    let mut bytes = Vec::new();
    for desc in chain.readable() {
        let at = bytes.len();
        let len = (desc.len() as usize).min(MAX_PAGES_PER_LIST * PFN_BYTES - at);
        if len < desc.len() as usize {
            tracing::debug!("balloon: a list of more than {MAX_PAGES_PER_LIST} pages is cut");
        }
        if !mem.check_range(desc.addr(), len, Permissions::Read) {
            break;
        }
        bytes.resize(at + len, 0);
        if mem.read_slice(&mut bytes[at..], desc.addr()).is_err() {
            bytes.truncate(at);
            break;
        }
    }
    pfns.clear();
    let numbers = bytes.as_chunks::<PFN_BYTES>().0;
    pfns.extend(numbers.iter().map(|number| u32::from_le_bytes(*number)));
}

/// The pages of the list as runs: where each begins, and its bytes. Pages that are not in guest
/// memory, and repetitions, are left out.
fn runs(mem: &GuestMemory, pfns: &mut Vec<u32>) -> Vec<(GuestAddress, usize)> {
    pfns.sort_unstable();
    pfns.dedup();
    let mut runs: Vec<(GuestAddress, usize)> = Vec::new();
    for &pfn in pfns.iter() {
        let gpa = GuestAddress(u64::from(pfn) * PAGE_BYTES as u64);
        if !mem.check_range(gpa, PAGE_BYTES, Permissions::Write) {
            continue;
        }
        match runs.last_mut() {
            Some((start, len)) if start.checked_add(*len as GuestUsize) == Some(gpa) => {
                *len += PAGE_BYTES;
            }
            _ => runs.push((gpa, PAGE_BYTES)),
        }
    }
    runs
}

/// Releases the pages of the list, adjoining ones together.
///
/// # Errors
/// The first that the host gave. The other pages are released nevertheless.
pub(super) fn release(
    mem: &GuestMemory,
    pfns: &mut Vec<u32>,
    release: &mut PageRelease,
) -> io::Result<()> {
    let mut result = Ok(());
    for (gpa, len) in runs(mem, pfns) {
        let Ok(slices) = mem.get_slices(gpa, len, Permissions::Write) else {
            continue;
        };
        for slice in slices.flatten().filter(is_whole_pages) {
            result = result.and(release(&slice));
            // What was in it is gone: that is a change as any write is.
            slice.bitmap().mark_dirty(0, slice.len());
        }
    }
    result
}
