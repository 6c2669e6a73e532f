//! The work behind each name.

pub(crate) mod chameleon;
pub(crate) mod checkpoint;
pub(crate) mod cnn_serving;
pub(crate) mod helloworld;
pub(crate) mod image_rotate;
pub(crate) mod jpeg;
pub(crate) mod json_serdes;
pub(crate) mod lr_serving;
pub(crate) mod lr_training;
pub(crate) mod memory_touch;
pub(crate) mod pyaes;
pub(crate) mod rnn_serving;
pub(crate) mod video_processing;
pub(crate) mod vocabulary;

use crate::FunctionError;
use crate::parameters::Parameters;
use crate::serde_json::{Map, Value};

/// What a function holds between its invocations, and the work of one.
pub(crate) trait Workload {
    /// Does the work and returns the fields of the result.
    fn run(&mut self, parameters: &Parameters) -> Result<Map<String, Value>, FunctionError>;
}

use alloc::borrow::ToOwned;
use alloc::string::String;

/// A result of these fields.
pub(crate) fn fields<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// `value` rounded to six decimals: what a result shows of a float.
pub(crate) fn rounded(value: f32) -> Value {
    Value::from(libm::round(f64::from(value) * 1e6) / 1e6)
}
