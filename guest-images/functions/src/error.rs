//! What can go wrong when a function is started or invoked.

use alloc::string::String;
use core::fmt;

/// Why a function could not be initialised or invoked.
///
/// Written by hand: the derive that the host's crates use is pinned with std there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FunctionError {
    /// No function of this name is built in.
    UnknownFunction {
        /// The name that was asked for.
        name: String,
    },
    /// The input is valid JSON, but no object.
    InputNotAnObject,
    /// The input has a field that the function does not know.
    UnknownField {
        /// The field's name, cut to a length that fits an error message.
        field: String,
        /// The fields that the function knows, separated by commas.
        known: String,
    },
    /// A field is something else than an integer from 0 to 2^64-1.
    FieldNotAnInteger {
        /// The field's name.
        field: &'static str,
    },
    /// A size is outside of its range.
    FieldOutOfRange {
        /// The field's name.
        field: &'static str,
        /// The value that was given.
        value: u64,
        /// The smallest value that is allowed.
        minimum: u64,
        /// The largest value that is allowed.
        maximum: u64,
    },
    /// A module of the runtime's library, or a template, does not parse.
    Source {
        /// Where and why.
        message: String,
    },
    /// The interpreted part of a request failed.
    Execution {
        /// The traceback, innermost call first.
        traceback: String,
    },
    /// A codec or model refused its data.
    Data {
        /// What was done with what.
        operation: &'static str,
        /// What the codec said.
        message: String,
    },
}

impl fmt::Display for FunctionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownFunction { name } => {
                write!(f, "no function is named {name:?}: use one of")?;
                let all = crate::FUNCTIONS.iter().chain(&crate::EXTRA_FUNCTIONS);
                for (index, info) in all.enumerate() {
                    let separator = if index == 0 { " " } else { ", " };
                    write!(f, "{separator}{}", info.name)?;
                }
                Ok(())
            }
            Self::InputNotAnObject => {
                f.write_str("the input is no JSON object: send one such as {\"seed\":1}")
            }
            Self::UnknownField { field, known } => {
                write!(
                    f,
                    "the input has an unknown field {field:?}: this function knows {known}"
                )
            }
            Self::FieldNotAnInteger { field } => {
                write!(
                    f,
                    "input field {field:?} is no integer from 0 to 18446744073709551615"
                )
            }
            Self::FieldOutOfRange {
                field,
                value,
                minimum,
                maximum,
            } => {
                write!(
                    f,
                    "input field {field:?} is {value}: it must be from {minimum} to {maximum}"
                )
            }
            Self::Source { message } => write!(f, "the runtime's source does not parse: {message}"),
            Self::Execution { traceback } => write!(f, "the request handler failed: {traceback}"),
            Self::Data { operation, message } => write!(f, "{operation} failed: {message}"),
        }
    }
}

impl core::error::Error for FunctionError {}
