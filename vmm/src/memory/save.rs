//! Writing guest memory into a snapshot, whole or what differs from the last one.

use std::sync::{MutexGuard, PoisonError};

use reapvm_reap::{MemoryRegion, Page, PageSource, PageState, PageStates, Pager, SharedSource};
use reapvm_snapshot::{MemoryReader, MemoryWriter, PAGE_SIZE, SnapshotId};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::dirty_pages::DirtyPages;
use super::hooks::PageOrigin;
use super::{CHUNK_BYTES, MemoryError, MemoryManager};
use crate::pagemap::{PAGES_A_READ, Pagemap};

const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// From where a page that is saved is taken.
enum Origin<'a> {
    /// It is as in the base of the diff.
    Unchanged,
    /// It is zero, and nobody has to look.
    Zero,
    /// From guest memory.
    Memory,
    /// From the snapshot that the machine was restored from: it was never touched.
    Snapshot(&'a MemoryReader),
    /// As it was saved too, but from a source of another kind.
    Other(&'a SharedSource),
}

impl MemoryManager {
    /// The snapshot from which memory differs in no other pages than the dirty ones: the one that
    /// the machine was restored from or that was last made of it. None if there is none yet, or
    /// dirty pages are not tracked.
    pub fn diff_base(&self) -> Option<SnapshotId> {
        self.dirty().and_then(|dirty| dirty.base())
    }

    /// Whether it is known which pages are written.
    pub fn tracks_dirty_pages(&self) -> bool {
        self.dirty.is_some()
    }

    /// Memory with all changes up to the last [`collect_writes`](Self::collect_writes) is in
    /// snapshot `id`.
    pub(crate) fn saved_as(&self, id: SnapshotId) {
        if let Some(mut dirty) = self.dirty() {
            dirty.reset(id);
        }
    }

    pub(super) fn dirty(&self) -> Option<MutexGuard<'_, DirtyPages>> {
        let dirty = self.dirty.as_ref()?;
        // Nothing panics between taking marks from their source and keeping them here.
        Some(dirty.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes all of guest memory. vCPUs and devices must be at rest.
    ///
    /// Pages that a machine with a pager has never touched are taken from its snapshot, checked,
    /// and stay untouched.
    ///
    /// # Errors
    /// Guest memory, the snapshot that the machine was restored from, or the new file cannot be
    /// accessed; or a page of that snapshot is damaged.
    pub fn write_to(&self, writer: &mut MemoryWriter<'_>) -> Result<(), MemoryError> {
        self.write_pages(writer, None)
    }

    /// As [`write_to`](Self::write_to), but only the dirty pages, as a diff.
    ///
    /// # Errors
    /// As [`write_to`](Self::write_to).
    pub(crate) fn write_dirty_to(&self, writer: &mut MemoryWriter<'_>) -> Result<(), MemoryError> {
        self.write_pages(writer, self.dirty().as_deref())
    }

    fn write_pages(
        &self,
        writer: &mut MemoryWriter<'_>,
        dirty: Option<&DirtyPages>,
    ) -> Result<(), MemoryError> {
        let states = self.pager.as_ref().map(Pager::page_states);
        let mut untouched = Untouched::of(self);
        let mut buffer = vec![0_u8; CHUNK_BYTES];
        for region in &self.regions {
            let mut done = 0_u64;
            while done < region.size_bytes {
                let file_offset = region.file_offset + done;
                let (origin, pages) = self.run_at(region, done, dirty, states.as_ref());
                let length = pages * PAGE_BYTES;
                let chunk = &mut buffer[..length as usize];
                match origin {
                    Origin::Unchanged => writer.write_unchanged_pages(file_offset, length)?,
                    Origin::Zero => writer.write_zero_pages(file_offset, length)?,
                    Origin::Memory if untouched.has(region.hva + done, pages) => {
                        writer.write_zero_pages(file_offset, length)?;
                    }
                    Origin::Memory => {
                        let gpa = GuestAddress(region.gpa + done);
                        self.memory.read_slice(chunk, gpa)?;
                        writer.write_pages(file_offset, chunk)?;
                    }
                    Origin::Snapshot(snapshot) => {
                        let index = snapshot.index()?;
                        let first = file_offset / PAGE_BYTES;
                        if (first..first + pages).all(|page| index.is_zero(page)) {
                            writer.write_zero_pages(file_offset, length)?;
                        } else {
                            snapshot.read_pages(first, chunk)?;
                            writer.write_pages(file_offset, chunk)?;
                        }
                    }
                    Origin::Other(source) => {
                        write_from(writer, &mut source.clone(), region, done, pages)?;
                    }
                }
                done += length;
            }
        }
        Ok(())
    }

    /// From where the page at `offset` of `region` is taken, and how many pages, a chunk at most,
    /// are taken from there.
    fn run_at(
        &self,
        region: &MemoryRegion,
        offset: u64,
        dirty: Option<&DirtyPages>,
        states: Option<&PageStates>,
    ) -> (Origin<'_>, u64) {
        let left = (region.size_bytes - offset).min(CHUNK_BYTES as u64) / PAGE_BYTES;
        let page = (region.file_offset + offset) / PAGE_BYTES;
        let (is_dirty, pages) = dirty.map_or((true, left), |dirty| dirty.run_at(page, left));
        if !is_dirty {
            return (Origin::Unchanged, pages);
        }
        let state = states.and_then(|states| states.run_at(region.gpa + offset, pages));
        let (Some((state, pages)), Some(source)) = (state, &self.source) else {
            return (Origin::Memory, pages);
        };
        let origin = match state {
            PageState::Installed => Origin::Memory,
            PageState::Dropped => Origin::Zero,
            PageState::Missing => match source {
                PageOrigin::Snapshot(memory) => Origin::Snapshot(memory),
                PageOrigin::Other(source) => Origin::Other(source),
            },
        };
        (origin, pages)
    }
}

/// Where nobody has to look, because nothing was ever there: a machine of many GiB has touched
/// little of them when it is saved, and a look would be a fault for each page.
struct Untouched(Option<Pagemap>);

impl Untouched {
    /// Of memory in which a page that this process does not have is zero: one without a pager, and
    /// without a file behind it.
    fn of(manager: &MemoryManager) -> Self {
        let mut regions = manager.memory.iter();
        let is_anonymous = regions.all(|region| region.file_offset().is_none());
        let is_zero_where_missing = manager.pager.is_none() && is_anonymous;
        // Without it all of memory is looked at.
        Self(
            is_zero_where_missing
                .then(Pagemap::open)
                .and_then(Result::ok),
        )
    }

    /// Whether none of the `pages` pages from host address `hva` on is there.
    fn has(&mut self, hva: u64, pages: u64) -> bool {
        pages <= PAGES_A_READ
            && self.0.as_mut().is_some_and(|pagemap| {
                pagemap
                    .are_there(hva, pages)
                    .is_ok_and(|mut are_there| !are_there.any(|is_there| is_there))
            })
    }
}

/// Writes the `pages` pages from `offset` of `region` on, as `source` gives them.
fn write_from(
    writer: &mut MemoryWriter<'_>,
    source: &mut dyn PageSource,
    region: &MemoryRegion,
    offset: u64,
    pages: u64,
) -> Result<(), MemoryError> {
    for at in (offset..).step_by(PAGE_SIZE).take(pages as usize) {
        let file_offset = region.file_offset + at;
        match source.read_page(region.gpa + at)? {
            Page::Zero => writer.write_zero_pages(file_offset, PAGE_BYTES)?,
            Page::Data(bytes) => writer.write_pages(file_offset, bytes)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use reapvm_snapshot::SnapshotWriter;

    use super::*;
    use crate::residency::resident_bytes;

    #[test]
    fn saving_leaves_untouched_what_nobody_has_touched() {
        let scratch = tempfile::tempdir().unwrap();
        let size_bytes = 64_u64 << 20;
        let manager = MemoryManager::new(size_bytes, false).unwrap();
        let touched = [0, 5 << 20, (5 << 20) + 4096, size_bytes - 1];
        for gpa in touched {
            manager.memory.write_obj(7_u8, GuestAddress(gpa)).unwrap();
        }
        let resident = resident_bytes(&manager.host_ranges());
        let dir = scratch.path().join("snap");
        let mut snapshot = SnapshotWriter::create(&dir).unwrap();
        let mut writer = snapshot.memory_writer(size_bytes).unwrap();
        manager.write_to(&mut writer).unwrap();
        writer.finish().unwrap();
        // No more than the pieces that hold something.
        let pieces = 3 * CHUNK_BYTES as u64;
        assert!(resident_bytes(&manager.host_ranges()) <= resident + pieces);

        // What was written is whole, wherever it lies until the snapshot is finished.
        let file = std::fs::read_dir(scratch.path())
            .unwrap()
            .map(|entry| entry.unwrap().path().join("memory"))
            .find(|path| path.exists())
            .unwrap();
        let memory = std::fs::read(file).unwrap();
        assert_eq!(memory.len() as u64, size_bytes);
        let at: Vec<u64> = (0..size_bytes)
            .filter(|&at| memory[at as usize] != 0)
            .collect();
        assert_eq!(at, touched);
    }
}
