//! What a trace says of itself after its records: what is known only then.

use serde::{Deserialize, Serialize};

/// What kind of thread touched guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ThreadKind {
    /// A vCPU.
    Vcpu,
    /// A thread of the virtual machine that serves devices.
    Device,
    /// Another thread of the virtual machine.
    Vmm,
    /// A thread of the kernel: it fetches pages for KVM, or does input and output.
    Kernel,
    /// One that is gone, or is not visible from here.
    Unknown,
}

/// A thread that touched guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceThread {
    /// Its number (`gettid`), as records have it.
    pub thread_id: u32,
    /// What it is.
    pub kind: ThreadKind,
    /// The vCPU's number, if it is one.
    pub vcpu: Option<u32>,
    /// The name that it had at the end of the trace.
    pub name: Option<String>,
}

impl TraceThread {
    /// A name to show: the thread's own, or what is known of it.
    #[must_use]
    pub fn label(&self) -> String {
        match (&self.name, self.kind) {
            (Some(name), ThreadKind::Kernel) => format!("[{name}]"),
            (Some(name), _) => name.clone(),
            (None, _) if self.thread_id == 0 => "(not known)".to_owned(),
            (None, _) => format!("(thread {}, gone)", self.thread_id),
        }
    }
}

/// What a trace says of itself after its records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceSummary {
    /// Records in the file.
    pub records: u64,
    /// Touches that found the buffer full and left no record.
    pub dropped: u64,
    /// The threads that the records name.
    pub threads: Vec<TraceThread>,
    /// What a reader has to know beside that: why there are no records, for one.
    pub notes: Vec<String>,
}
