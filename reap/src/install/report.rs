//! What an install did.

use serde::{Deserialize, Serialize};

use super::InstallMethod;

/// How pages were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadPath {
    /// Past the page cache, several reads at a time, by io_uring.
    IoUring,
    /// Past the page cache, one read after the other.
    #[default]
    Pread,
    /// Through the page cache.
    PageCache,
}

/// **Unstable.** What decides how many pages are in place when a guest is let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeadRule {
    /// The method waits for all.
    #[default]
    All,
    /// The working set says when the guest needs its pages, by its own clock: so many that at the
    /// rate of the install each of the others comes before that.
    Trace,
    /// The working set does not say that: so many that at the rate of the install the others come
    /// no later than to a guest which takes a page every 3 us.
    Pace,
}

/// **Unstable.** What an install did and where its time went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InstallReport {
    /// How it was done: never [`InstallMethod::Auto`] but in a report of nothing.
    pub method: InstallMethod,
    /// How the pages were read.
    pub read_path: ReadPath,
    /// Pages put in place.
    pub pages: u64,
    /// How many of them are zero: neither in the file nor read.
    pub zero_pages: u64,
    /// Contiguous runs of pages in the working set.
    pub extents: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Time spent waiting for reads, summed over the threads that read.
    pub read_ns: u64,
    /// Time to verify the pages, summed over the threads.
    pub verify_ns: u64,
    /// Time to put the pages into guest memory, summed over the threads.
    pub copy_ns: u64,
    /// How many threads read, verified and copied.
    pub threads: u64,
    /// Time of the whole.
    pub total_ns: u64,
    /// Pages that were in place when the guest was let go; all of them where it waits for all.
    pub lead_pages: u64,
    /// What decided that.
    pub lead_rule: LeadRule,
    /// Why the rest of the working set was given up and is served on demand, if that was allowed
    /// and happened.
    pub fell_back: Option<String>,
}

impl InstallReport {
    /// Adds what another thread did for the same install.
    pub(super) fn add(&mut self, other: &Self) {
        self.pages += other.pages;
        self.zero_pages += other.zero_pages;
        self.bytes_read += other.bytes_read;
        self.read_ns += other.read_ns;
        self.verify_ns += other.verify_ns;
        self.copy_ns += other.copy_ns;
        self.threads += other.threads;
    }
}
