//! What the threads of a process are doing: for the log, when it does not do what it should.

use std::fs;
use std::path::Path;

/// Fields of `/proc/PID/task/TID/stat` behind the name and its bracket (proc_pid_stat(5)): the state,
/// and ticks in user mode and in the kernel.
const STATE: usize = 0;
const USER_TICKS: usize = 11;
const KERNEL_TICKS: usize = 12;

/// A line for each thread of the process `pid`, with the kernel's stack, innermost first, if it is in
/// the kernel. A thread that ends meanwhile is left out.
pub fn describe(pid: u32) -> Vec<String> {
    let tasks = Path::new("/proc").join(pid.to_string()).join("task");
    let Ok(entries) = fs::read_dir(tasks) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|task| describe_thread(&task.path()))
        .collect()
}

fn describe_thread(task: &Path) -> Option<String> {
    let name = fs::read_to_string(task.join("comm")).ok()?;
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    // Only the superuser may read it, whom the first program runs as.
    let stack = fs::read_to_string(task.join("stack")).unwrap_or_default();
    Some(line(name.trim(), &stat, &stack))
}

fn line(name: &str, stat: &str, stack: &str) -> String {
    // A name may have spaces and brackets in it.
    let (_, fields) = stat.rsplit_once(") ").unwrap_or_default();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |index: usize| fields.get(index).copied().unwrap_or("?");
    let stack: Vec<&str> = stack
        .lines()
        .filter_map(|line| line.split_once("] "))
        .map(|(_, function)| function)
        .collect();
    format!(
        "{name}: {}, {} ticks in user mode, {} in the kernel: {}",
        field(STATE),
        field(USER_TICKS),
        field(KERNEL_TICKS),
        stack.join(" < ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_where_a_thread_is() {
        let stat = "12 (vcpu) 0) S 1 2 3 4 5 6 7 8 9 10 77 88 0 0 20 0";
        let stack = "[<0>] kvm_vcpu_block+0x30/0xa0 [kvm]\n[<0>] kvm_vcpu_halt+0x90/0x1f0 [kvm]\n";
        assert_eq!(
            line("vcpu-0", stat, stack),
            "vcpu-0: S, 77 ticks in user mode, 88 in the kernel: \
             kvm_vcpu_block+0x30/0xa0 [kvm] < kvm_vcpu_halt+0x90/0x1f0 [kvm]"
        );
    }

    #[test]
    fn the_threads_of_this_process_are_found() {
        let lines = describe(std::process::id());
        assert!(lines.iter().any(|line| line.contains(": R, ")), "{lines:?}");
    }
}
