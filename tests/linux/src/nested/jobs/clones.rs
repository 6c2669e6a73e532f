//! Clones of one snapshot draw different random bytes: the kernel hears of the new generation id.
//! Debian's 6.1 has no driver for it.

use reapvm_guest_init::protocol::Request;

use crate::nested::{say, snapshot};

/// Restores one snapshot several times.
pub(super) fn run(series: &str) {
    let snapshot = snapshot::create(series, &[], &Request::Random {});
    let mut drawn = Vec::new();
    for mode in ["ondemand", "file", "ondemand"] {
        let report = snapshot::invoke(&snapshot, mode, &Request::Random {});
        let bytes = report["response"]["result"]["bytes"]
            .as_str()
            .unwrap()
            .to_owned();
        say(&format!("{series}, {mode}: {bytes}"));
        assert!(
            !drawn.contains(&bytes),
            "{bytes} was drawn before: {drawn:?}"
        );
        drawn.push(bytes);
    }
}
