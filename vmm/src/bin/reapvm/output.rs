//! What the program says on standard error.

use std::error::Error;
use std::io::IsTerminal;

pub(crate) use reapvm_reap::error_chain as chain;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What is told of a machine that runs for long, unless another filter is given: what goes wrong
/// while it goes on.
pub(crate) fn warnings() -> Targets {
    Targets::new().with_default(tracing::level_filters::LevelFilter::WARN)
}

/// Logging costs nothing on the start path unless it is asked for.
pub(crate) fn set_up_logging(filter: Option<Targets>) {
    let Some(filter) = filter else { return };
    tracing_subscriber::registry()
        .with(filter)
        .with(
            tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(std::io::stderr().is_terminal()),
        )
        .init();
}

/// Prints an error and the chain of its causes on one line.
pub(crate) fn print_error(error: &(dyn Error + 'static)) {
    eprintln!("error: {}", chain(error));
}
