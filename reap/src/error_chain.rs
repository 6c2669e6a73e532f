//! An error in one line.

use std::error::Error;

/// `error` and its causes in one line, without repeating a cause that the error already quotes.
#[must_use]
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("cannot read the file")]
        Read(#[source] io::Error),
        #[error("cannot start: {0}")]
        Start(#[source] Box<Failure>),
    }

    #[test]
    fn causes_follow_and_are_said_once() {
        let read = Failure::Read(io::Error::other("disk on fire"));
        assert_eq!(error_chain(&read), "cannot read the file: disk on fire");
        let start = Failure::Start(Box::new(read));
        assert_eq!(
            error_chain(&start),
            "cannot start: cannot read the file: disk on fire"
        );
    }
}
