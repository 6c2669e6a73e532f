#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use reapvm_tests::fuzzed;
use tempfile::TempDir;

static SCRATCH: LazyLock<TempDir> = LazyLock::new(|| TempDir::new().unwrap());

fuzz_target!(|bytes: &[u8]| fuzzed::drive("study", bytes, SCRATCH.path()));
