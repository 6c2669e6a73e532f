//! What the nested host says on its console to the runner outside.

/// Begins every line that is for the runner.
pub const PREFIX: &str = "reapvm-test: ";
/// The job has passed.
pub const PASSED: &str = "passed";
/// The job has failed; the reason was said before.
pub const FAILED: &str = "failed";
/// The nested host's first program still runs: said again and again, so that silence means that it
/// does not.
pub const ALIVE: &str = "alive";
/// Kernel parameter that names the job.
pub const JOB_PARAMETER: &str = "reapvm.job";

/// The part of a console line that is for the runner.
pub fn message(line: &str) -> Option<&str> {
    // A message of the kernel may stand before it, without an end of line.
    line.split_once(PREFIX)
        .map(|(_, message)| message.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_with_the_prefix_are_messages() {
        assert_eq!(message("reapvm-test: passed\r"), Some(PASSED));
        assert_eq!(message("[ 1.0] reapvm-test: a check"), Some("a check"));
        assert_eq!(message("passed"), None);
    }
}
