//! Which threads the numbers in a trace are, looked up when it ends.
//!
//! Source: `proc_pid_comm(5)`, `proc_pid_task(5)`.

use std::fs;
use std::path::Path;

use super::{ThreadKind, TraceThread};

/// Threads that a trace names at most: its end block must not grow with what a guest does.
const MAX_THREADS: usize = 4096;

/// Names each of `thread_ids`, in the order in which they first come.
///
/// To be called while the threads still run: the number of one that has ended may be another's.
#[must_use]
pub fn name_threads(thread_ids: impl IntoIterator<Item = u32>) -> Vec<TraceThread> {
    let mut threads: Vec<TraceThread> = Vec::new();
    let mut last = None;
    for thread_id in thread_ids {
        // Neighbours in a trace are mostly of one thread.
        if last.replace(thread_id) == Some(thread_id)
            || threads.len() == MAX_THREADS
            || threads.iter().any(|thread| thread.thread_id == thread_id)
        {
            continue;
        }
        threads.push(name_thread(Path::new("/proc"), thread_id));
    }
    threads
}

fn name_thread(proc: &Path, thread_id: u32) -> TraceThread {
    let name_in = |dir: &Path| {
        let name = fs::read_to_string(dir.join(thread_id.to_string()).join("comm")).ok()?;
        Some(name.trim_end().to_owned())
    };
    let unknown = TraceThread {
        thread_id,
        kind: ThreadKind::Unknown,
        vcpu: None,
        name: None,
    };
    if thread_id == 0 {
        return unknown;
    }
    if let Some(name) = name_in(&proc.join("self/task")) {
        let vcpu = name
            .strip_prefix("vcpu-")
            .and_then(|index| index.parse().ok());
        let kind = match name.as_str() {
            _ if vcpu.is_some() => ThreadKind::Vcpu,
            "devices" => ThreadKind::Device,
            // The kernel's own threads for the disk's io_uring.
            name if name.starts_with("iou-") => ThreadKind::Device,
            _ => ThreadKind::Vmm,
        };
        return TraceThread {
            kind,
            vcpu,
            name: Some(name),
            ..unknown
        };
    }
    match name_in(proc) {
        Some(name) => TraceThread {
            kind: ThreadKind::Kernel,
            name: Some(name),
            ..unknown
        },
        None => unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc_with(threads: &[(&str, &str)]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        for (place, name) in threads {
            let dir = proc.path().join(place);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("comm"), format!("{name}\n")).unwrap();
        }
        proc
    }

    #[test]
    fn threads_are_told_apart() {
        let proc = proc_with(&[
            ("self/task/11", "vcpu-3"),
            ("self/task/12", "devices"),
            ("self/task/13", "iou-wrk-12"),
            ("self/task/14", "main"),
            ("99", "kworker/0:1"),
        ]);
        let kind = |id| {
            let thread = name_thread(proc.path(), id);
            (thread.kind, thread.vcpu, thread.label())
        };
        assert_eq!(kind(11), (ThreadKind::Vcpu, Some(3), "vcpu-3".into()));
        assert_eq!(kind(12), (ThreadKind::Device, None, "devices".into()));
        assert_eq!(kind(13), (ThreadKind::Device, None, "iou-wrk-12".into()));
        assert_eq!(kind(14), (ThreadKind::Vmm, None, "main".into()));
        assert_eq!(kind(99), (ThreadKind::Kernel, None, "[kworker/0:1]".into()));
        assert_eq!(
            kind(7),
            (ThreadKind::Unknown, None, "(thread 7, gone)".into())
        );
        assert_eq!(kind(0), (ThreadKind::Unknown, None, "(not known)".into()));
    }

    #[test]
    fn each_thread_is_named_once_and_this_one_by_its_name() {
        let own = rustix::thread::gettid().as_raw_pid().unsigned_abs();
        let threads = name_threads([own, own, 0, own]);
        assert_eq!(threads.len(), 2);
        let name = fs::read_to_string("/proc/thread-self/comm").unwrap();
        assert_eq!(threads[0].name.as_deref(), Some(name.trim_end()));
        assert_eq!(threads[0].kind, ThreadKind::Vmm);
    }
}
