//! The functions that are built in: what the host knows of them and how the guest starts one.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::string::String;

use crate::FunctionError;
use crate::functions::{
    Workload, chameleon, cnn_serving, helloworld, image_rotate, json_serdes, lr_serving,
    lr_training, memory_touch, pyaes, rnn_serving, video_processing,
};
use crate::parameters::{Parameters, SizeParameter};
use crate::runtime::Runtime;
use crate::serde_json::{Map, Value};

/// A function that has been initialised.
pub trait Function {
    /// The name that [`initialise`] was given.
    fn name(&self) -> &'static str;

    /// Does the work that `input` asks for: a JSON object with `seed` and the function's sizes.
    ///
    /// The same input gives the same result, however many invocations came before.
    ///
    /// # Errors
    /// An input that is no object, has an unknown field or a size out of range; never a panic.
    fn invoke(&mut self, input: &Value) -> Result<Value, FunctionError>;
}

/// What is known of a function without starting it.
#[derive(Debug, Clone, Copy)]
pub struct FunctionInfo {
    /// FunctionBench's name.
    pub name: &'static str,
    /// What it does, in one line.
    pub description: &'static str,
    /// The memory of its VM in MiB.
    pub mem_mib: u32,
    /// An input with the default sizes, as JSON.
    pub default_input: &'static str,
    /// The sizes that an input can set beside `seed`.
    pub sizes: &'static [SizeParameter],
}

/// The ten functions, in the order in which tables show them.
pub const FUNCTIONS: [FunctionInfo; 10] = [
    FunctionInfo {
        name: "helloworld",
        description: "greets in several languages from a message catalogue",
        mem_mib: 256,
        default_input: r#"{"seed":1,"greetings":8}"#,
        sizes: &helloworld::SIZES,
    },
    FunctionInfo {
        name: "chameleon",
        description: "renders a page with an HTML table from parsed templates",
        mem_mib: 256,
        default_input: r#"{"seed":1,"rows":120,"columns":10}"#,
        sizes: &chameleon::SIZES,
    },
    FunctionInfo {
        name: "pyaes",
        description: "encrypts the records of a message with AES-128 in counter mode",
        mem_mib: 256,
        default_input: r#"{"seed":1,"records":400,"record_bytes":256}"#,
        sizes: &pyaes::SIZES,
    },
    FunctionInfo {
        name: "image_rotate",
        description: "decodes a JPEG, manages its colours, rotates it and encodes it again",
        mem_mib: 256,
        default_input: r#"{"seed":1,"width":256,"height":192,"quarter_turns":1}"#,
        sizes: &image_rotate::SIZES,
    },
    FunctionInfo {
        name: "json_serdes",
        description: "serialises and parses a JSON document and joins it with a catalogue",
        mem_mib: 256,
        default_input: r#"{"seed":1,"orders":600}"#,
        sizes: &json_serdes::SIZES,
    },
    FunctionInfo {
        name: "lr_serving",
        description: "classifies a review by TF-IDF and logistic regression",
        mem_mib: 256,
        default_input: r#"{"seed":1,"words":4000}"#,
        sizes: &lr_serving::SIZES,
    },
    FunctionInfo {
        name: "cnn_serving",
        description: "classifies an image with a convolutional network",
        mem_mib: 256,
        default_input: r#"{"seed":1,"images":1}"#,
        sizes: &cnn_serving::SIZES,
    },
    FunctionInfo {
        name: "rnn_serving",
        description: "writes a text with a gated recurrent character network",
        mem_mib: 256,
        default_input: r#"{"seed":1,"characters":10}"#,
        sizes: &rnn_serving::SIZES,
    },
    FunctionInfo {
        name: "lr_training",
        description: "trains a logistic regression on reviews by gradient descent",
        mem_mib: 256,
        default_input: r#"{"seed":1,"documents":3000,"epochs":8}"#,
        sizes: &lr_training::SIZES,
    },
    FunctionInfo {
        name: "video_processing",
        description: "decodes the frames of a clip, turns them grey and encodes them again",
        mem_mib: 256,
        default_input: r#"{"seed":1,"frames":12}"#,
        sizes: &video_processing::SIZES,
    },
];

/// Functions that are none of the paper's, for measurements: they are not meant where all functions
/// are, and their results have no `audit`.
pub const EXTRA_FUNCTIONS: [FunctionInfo; 2] = [
    FunctionInfo {
        name: "memory_touch_8",
        description: "reads 8 MiB of memory that was written before",
        mem_mib: 256,
        default_input: r#"{"seed":1,"mib":8}"#,
        sizes: &memory_touch::SIZES_8,
    },
    FunctionInfo {
        name: "memory_touch_96",
        description: "reads 96 MiB of memory that was written before",
        mem_mib: 256,
        default_input: r#"{"seed":1,"mib":96}"#,
        sizes: &memory_touch::SIZES_96,
    },
];

/// What is known of the function called `name`, one of [`FUNCTIONS`] or [`EXTRA_FUNCTIONS`].
#[must_use]
pub fn find(name: &str) -> Option<&'static FunctionInfo> {
    const TABLE: &[FunctionInfo; 10] = &FUNCTIONS;
    const EXTRA: &[FunctionInfo; 2] = &EXTRA_FUNCTIONS;
    TABLE.iter().chain(EXTRA).find(|info| info.name == name)
}

/// Loads what the function of `info` holds. Beside [`FUNCTIONS`] and not in it: a host that reads
/// the table would otherwise carry the code of all ten.
fn start(info: &FunctionInfo) -> Result<Box<dyn Workload>, FunctionError> {
    match info.name {
        "helloworld" => helloworld::start(),
        "chameleon" => chameleon::start(),
        "pyaes" => pyaes::start(),
        "image_rotate" => image_rotate::start(),
        "json_serdes" => json_serdes::start(),
        "lr_serving" => lr_serving::start(),
        "cnn_serving" => cnn_serving::start(),
        "rnn_serving" => rnn_serving::start(),
        "lr_training" => lr_training::start(),
        "video_processing" => video_processing::start(),
        "memory_touch_8" | "memory_touch_96" => memory_touch::start(),
        other => Err(FunctionError::UnknownFunction {
            name: other.to_owned(),
        }),
    }
}

/// Starts the runtime and loads what the function called `name` holds: models, dictionaries,
/// templates. Tens of MiB of heap; about a second at most.
///
/// # Errors
/// A name that is not built in, with the names that are.
pub fn initialise(name: &str) -> Result<Box<dyn Function>, FunctionError> {
    let info = find(name).ok_or_else(|| FunctionError::UnknownFunction {
        name: name.to_owned(),
    })?;
    let is_extra = EXTRA_FUNCTIONS.iter().any(|extra| extra.name == info.name);
    let runtime = (!is_extra).then(Runtime::start).transpose()?;
    let workload = start(info)?;
    Ok(Box::new(Service {
        info,
        runtime,
        workload,
    }))
}

/// A function behind its request handler.
struct Service {
    info: &'static FunctionInfo,
    /// None: what the function touches is its own.
    runtime: Option<Runtime>,
    workload: Box<dyn Workload>,
}

impl Function for Service {
    fn name(&self) -> &'static str {
        self.info.name
    }

    fn invoke(&mut self, input: &Value) -> Result<Value, FunctionError> {
        let parameters = Parameters::parse(input, self.info.sizes)?;
        let Some(runtime) = &mut self.runtime else {
            return Ok(Value::Object(self.workload.run(&parameters)?));
        };
        // Keys are sorted in it, so that inputs which say the same have the same audit digest.
        let canonical: String = alloc::string::ToString::to_string(input);
        let audit = runtime.handle(&canonical)?;
        let mut result: Map<String, Value> = self.workload.run(&parameters)?;
        result.insert(
            "audit".to_owned(),
            Value::String(alloc::format!("{audit:016x}")),
        );
        Ok(Value::Object(result))
    }
}
