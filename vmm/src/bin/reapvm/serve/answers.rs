//! What the server says of itself.

use rustix::param::page_size;
use serde_json::{Value, json};

use super::server::Server;

impl Server {
    /// The snapshots that are served.
    pub(super) fn list(&self) -> Value {
        let templates: Vec<Value> = self
            .templates
            .values()
            .map(|template| {
                let config = template.config();
                json!({
                    "name": template.name,
                    "dir": template.dir,
                    "snapshot_id": template.id(),
                    "function": config.and_then(|config| config.function.as_ref()),
                    "memory_mib": config.map(|config| config.memory_bytes() >> 20),
                    "vcpus": config.map(|config| config.machine_config.vcpu_count),
                    "workers": self.stages(Some(&template.name)),
                    "dormant": template.is_dormant,
                    "reloads": template.reloads,
                    "last_error": template.last_error,
                })
            })
            .collect();
        json!({ "templates": templates })
    }

    /// What the server is doing.
    pub(super) fn status(&self) -> Value {
        let workers = self
            .workers
            .values()
            .filter_map(|worker| worker.child.as_ref())
            .map(|child| resident_kib(&child.id().to_string()))
            .sum::<u64>();
        json!({
            "pid": std::process::id(),
            "uptime_s": self.started.elapsed().as_secs(),
            "running": self.job_count(),
            "queued": self.queue.len(),
            "clients": self.clients.len(),
            "workers": self.stages(None),
            "counts": self.counts,
            "resident_kib": resident_kib("self"),
            "workers_resident_kib": workers,
            "max_running": self.options.max_running,
            "max_queued": self.options.max_queued,
            "max_reading": self.options.max_reading,
            "ready": self.options.ready,
            "stopping": self.is_stopping(),
        })
    }
}

/// Resident memory of a process; 0 if it has gone. Source: proc(5), `/proc/pid/statm`.
fn resident_kib(pid: &str) -> u64 {
    std::fs::read_to_string(format!("/proc/{pid}/statm"))
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok())
        .map_or(0, |pages| pages * (page_size() as u64 >> 10))
}
