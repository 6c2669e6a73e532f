//! Independent checks of the functions' results, for the host.
//!
//! Each check computes what a function should have found in another way: in f64 instead of f32,
//! with another decoder or a textbook cipher, from the drawn data instead of the text that was
//! made of them, and without the interpreter and the template engine. What it shares with the
//! functions is their input: the seeded generators and what is drawn from them.

mod aes;
mod audit;
mod images;
mod memory;
mod networks;
mod regression;
mod texts;

use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use crate::serde_json::Value;

/// Checks the `result` of an invocation of the function called `name` with `input`.
///
/// # Errors
/// What is wrong: an unknown name, an input that the function would refuse, a field of the result
/// that is missing or differs from the independent computation.
pub fn check(name: &str, input: &Value, result: &Value) -> Result<(), String> {
    let info = crate::find(name).ok_or_else(|| format!("no function is named {name:?}"))?;
    let case = Case::read(info, input, result)?;
    if matches!(name, "memory_touch_8" | "memory_touch_96") {
        return memory::memory_touch(&case);
    }
    case.expect_text("audit", &format!("{:016x}", audit::digest(input)?))?;
    match name {
        "helloworld" => texts::helloworld(&case),
        "chameleon" => texts::chameleon(&case),
        "pyaes" => aes::pyaes(&case),
        "image_rotate" => images::image_rotate(&case),
        "json_serdes" => texts::json_serdes(&case),
        "lr_serving" => regression::lr_serving(&case),
        "cnn_serving" => networks::cnn_serving(&case),
        "rnn_serving" => networks::rnn_serving(&case),
        "lr_training" => regression::lr_training(&case),
        "video_processing" => images::video_processing(&case),
        other => Err(format!("function {other:?} has no check")),
    }
}

/// An input as the function should have understood it, and what it returned.
struct Case<'r> {
    seed: u64,
    sizes: Vec<usize>,
    result: &'r Value,
}

impl<'r> Case<'r> {
    fn read(info: &crate::FunctionInfo, input: &Value, result: &'r Value) -> Result<Self, String> {
        let fields = input.as_object().ok_or("the input is no object")?;
        let known = |field: &str| field == "seed" || info.sizes.iter().any(|s| s.name == field);
        if let Some(unknown) = fields.keys().find(|field| !known(field)) {
            return Err(format!(
                "the function should have refused the field {unknown:?}"
            ));
        }
        let number = |name: &str, default: u64| match fields.get(name) {
            None => Ok(default),
            Some(value) => value
                .as_u64()
                .ok_or(format!("input field {name:?} is {value}")),
        };
        let mut sizes = Vec::new();
        for size in info.sizes {
            let value = number(size.name, size.default)?;
            if value < size.minimum || value > size.maximum {
                return Err(format!(
                    "the function should have refused {} {value}",
                    size.name
                ));
            }
            sizes.push(value as usize);
        }
        Ok(Self {
            seed: number("seed", 1)?,
            sizes,
            result,
        })
    }

    fn field(&self, name: &str) -> Result<&'r Value, String> {
        self.result
            .get(name)
            .ok_or_else(|| format!("the result has no field {name:?}"))
    }

    fn text(&self, name: &str) -> Result<&'r str, String> {
        self.field(name)?
            .as_str()
            .ok_or_else(|| format!("result field {name:?} is no text"))
    }

    fn integer(&self, name: &str) -> Result<u64, String> {
        self.field(name)?
            .as_u64()
            .ok_or_else(|| format!("result field {name:?} is no integer"))
    }

    fn number(&self, name: &str) -> Result<f64, String> {
        self.field(name)?
            .as_f64()
            .ok_or_else(|| format!("result field {name:?} is no number"))
    }

    fn numbers(&self, name: &str, count: usize) -> Result<Vec<f64>, String> {
        let items = self.field(name)?.as_array();
        let numbers: Option<Vec<f64>> =
            items.and_then(|items| items.iter().map(Value::as_f64).collect());
        let numbers = numbers.ok_or_else(|| format!("result field {name:?} lists no numbers"))?;
        if numbers.len() != count {
            return Err(format!(
                "result field {name:?} has {} items, not {count}",
                numbers.len()
            ));
        }
        Ok(numbers)
    }

    fn expect_text(&self, name: &str, expected: &str) -> Result<(), String> {
        let found = self.text(name)?;
        if found == expected {
            return Ok(());
        }
        Err(format!(
            "result field {name:?} is {found:?}, not {expected:?}"
        ))
    }

    fn expect_integer(&self, name: &str, expected: usize) -> Result<(), String> {
        let found = self.integer(name)?;
        if found == expected as u64 {
            return Ok(());
        }
        Err(format!("result field {name:?} is {found}, not {expected}"))
    }

    /// Expects the length and the SHA-256 of `expected` in the fields `NAME_bytes`, `NAME_sha256`.
    fn expect_digest(&self, name: &str, expected: &[u8]) -> Result<(), String> {
        self.expect_integer(&format!("{name}_bytes"), expected.len())?;
        self.expect_text(
            &format!("{name}_sha256"),
            &crate::digest::sha256_hex(expected),
        )
    }
}

/// Expects `found` within `tolerance` of `expected`; not a number is never near.
fn near(what: impl ToString, found: f64, expected: f64, tolerance: f64) -> Result<(), String> {
    if (found - expected).abs() <= tolerance {
        return Ok(());
    }
    let what = what.to_string();
    Err(format!(
        "{what} is {found}, which is not within {tolerance} of {expected}"
    ))
}

/// The probabilities of `scores`.
fn softmax(scores: &[f64]) -> Vec<f64> {
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - highest).exp()).sum();
    scores
        .iter()
        .map(|score| (score - highest).exp() / sum)
        .collect()
}

fn sigmoid(value: f64) -> f64 {
    1.0 / (1.0 + (-value).exp())
}
