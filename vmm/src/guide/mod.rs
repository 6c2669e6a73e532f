//! How to use reapvm, for three kinds of readers.
//!
//! | you want to | read |
//! |---|---|
//! | start virtual machines from your own program | [`launch`] |
//! | try another prefetcher, another page store, another format | [`fork`] |
//! | know which pages a function touches, and when | [`trace`] |
//!
//! The programs in these chapters are the ones in `vmm/examples/`, whole: the build compiles them,
//! and a test runs each on KVM. [`stability`] says what may change.

pub mod fork;
pub mod launch;
pub mod stability;
pub mod trace;
