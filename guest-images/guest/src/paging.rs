//! The final page tables: identity, and only what is there.
//!
//! All of it is for ring 3 too, in pages of 2 MiB, marked accessed and dirty beforehand, so that
//! running costs no writes to the tables. Nothing below the stack is mapped: a null pointer and a
//! stack that grows too far are page faults, not silent damage.

use crate::supervisor;
use core::cell::UnsafeCell;
use core::ops::Range;
use reapvm_guest::cmdline::MmioDevice;

/// Where the stack begins (it ends where the image begins, at 16 MiB), in bytes.
pub(crate) const STACK_BOTTOM: u64 = 14 << 20;

const BIG_PAGE_BYTES: u64 = 2 << 20;
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const BIG: u64 = 1 << 7;

const TABLE: u64 = PRESENT | WRITABLE | USER | ACCESSED;
const MEMORY: u64 = TABLE | DIRTY | BIG;
const DEVICE: u64 = MEMORY | WRITE_THROUGH | CACHE_DISABLE;

#[repr(C, align(4096))]
struct Table([u64; 512]);

impl Table {
    const EMPTY: Self = Self([0; 512]);
}

#[repr(C)]
struct Tables {
    /// One for each of the first four GiB.
    directories: [Table; 4],
    pointers: Table,
    root: Table,
}

struct TablesCell(UnsafeCell<Tables>);

// SAFETY: there is one thread, and only `install` uses the tables, once.
unsafe impl Sync for TablesCell {}

static TABLES: TablesCell = TablesCell(UnsafeCell::new(Tables {
    directories: [Table::EMPTY; 4],
    pointers: Table::EMPTY,
    root: Table::EMPTY,
}));

/// Maps `memory` (from [`STACK_BOTTOM`] up, below 4 GiB; the last part of a big page is left out)
/// and the registers of `devices`, and makes that the current mapping.
///
/// # Safety
/// Called once; `memory` holds the image, the stack and everything else in use.
pub(crate) unsafe fn install(memory: Range<u64>, devices: impl Iterator<Item = MmioDevice>) {
    // SAFETY: called once, so nothing else refers to the tables.
    let tables = unsafe { &mut *TABLES.0.get() };
    let Tables {
        directories,
        pointers,
        root,
    } = tables;
    let first = memory.start / BIG_PAGE_BYTES;
    for page in first..memory.end / BIG_PAGE_BYTES {
        map(directories, page, MEMORY);
    }
    for device in devices {
        let last = (device.base + device.size_bytes - 1) / BIG_PAGE_BYTES;
        for page in device.base / BIG_PAGE_BYTES..=last {
            map(directories, page, DEVICE);
        }
    }
    // Only directories with something in them: the others' pages are never touched.
    for (pointer, directory) in pointers.0.iter_mut().zip(directories.iter()) {
        if directory.0.iter().any(|entry| *entry != 0) {
            *pointer = address(directory) | TABLE;
        }
    }
    root.0[0] = address(pointers) | TABLE;
    // SAFETY: the caller vouches that what is in use was mapped above, at its own address.
    unsafe { supervisor::load_page_tables(address(root)) };
}

fn map(directories: &mut [Table; 4], page: u64, flags: u64) {
    let page = page as usize;
    if let Some(directory) = directories.get_mut(page / 512) {
        directory.0[page % 512] = (page as u64 * BIG_PAGE_BYTES) | flags;
    }
}

fn address(table: &Table) -> u64 {
    table as *const Table as u64
}
