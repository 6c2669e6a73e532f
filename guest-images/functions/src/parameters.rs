//! The input of an invocation: a seed and sizes, each with a default and a range.

use alloc::borrow::ToOwned;
use alloc::string::String;

use crate::FunctionError;
use crate::serde_json::{Map, Value};

/// A size that an input can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeParameter {
    /// The name of the field.
    pub name: &'static str,
    /// What it counts, for help texts.
    pub description: &'static str,
    /// The value if the input leaves it out.
    pub default: u64,
    /// The smallest value that is allowed.
    pub minimum: u64,
    /// The largest value that is allowed: bounds time and memory of one invocation.
    pub maximum: u64,
}

/// How many sizes a function has at most.
const SIZES_MAX: usize = 4;
/// The longest part of an unknown field's name that an error repeats, in characters.
const FIELD_NAME_CHARACTERS: usize = 40;

/// A validated input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) seed: u64,
    sizes: [usize; SIZES_MAX],
}

impl Parameters {
    /// Reads `input`, which may set `seed` and any of `sizes` and nothing else.
    pub(crate) fn parse(input: &Value, sizes: &[SizeParameter]) -> Result<Self, FunctionError> {
        let Value::Object(fields) = input else {
            return Err(FunctionError::InputNotAnObject);
        };
        for field in fields.keys() {
            if field != "seed" && !sizes.iter().any(|size| size.name == field) {
                return Err(FunctionError::UnknownField {
                    field: field.chars().take(FIELD_NAME_CHARACTERS).collect(),
                    known: known_fields(sizes),
                });
            }
        }
        let mut parsed = Self {
            seed: integer(fields, "seed")?.unwrap_or(1),
            sizes: [0; SIZES_MAX],
        };
        for (size, slot) in sizes.iter().zip(&mut parsed.sizes) {
            let value = integer(fields, size.name)?.unwrap_or(size.default);
            if !(size.minimum..=size.maximum).contains(&value) {
                return Err(FunctionError::FieldOutOfRange {
                    field: size.name,
                    value,
                    minimum: size.minimum,
                    maximum: size.maximum,
                });
            }
            *slot = value as usize;
        }
        Ok(parsed)
    }

    /// The size that stands at `index` in the function's declaration.
    pub(crate) fn size(&self, index: usize) -> usize {
        self.sizes[index]
    }
}

fn integer(fields: &Map<String, Value>, name: &'static str) -> Result<Option<u64>, FunctionError> {
    match fields.get(name) {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            .map(Some)
            .ok_or(FunctionError::FieldNotAnInteger { field: name }),
    }
}

fn known_fields(sizes: &[SizeParameter]) -> String {
    let mut known = "seed".to_owned();
    for size in sizes {
        known.push_str(", ");
        known.push_str(size.name);
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serde_json::json;

    const ROWS: SizeParameter = SizeParameter {
        name: "rows",
        description: "rows",
        default: 5,
        minimum: 1,
        maximum: 10,
    };

    #[test]
    fn defaults_apply_and_given_values_win() {
        let parsed = Parameters::parse(&json!({}), &[ROWS]).unwrap();
        assert_eq!((parsed.seed, parsed.size(0)), (1, 5));
        let parsed = Parameters::parse(&json!({"seed": u64::MAX, "rows": 10}), &[ROWS]).unwrap();
        assert_eq!((parsed.seed, parsed.size(0)), (u64::MAX, 10));
    }

    #[test]
    fn wrong_inputs_are_refused() {
        let refused = |input: Value| Parameters::parse(&input, &[ROWS]).unwrap_err();
        assert_eq!(refused(json!([1])), FunctionError::InputNotAnObject);
        assert!(matches!(
            refused(json!({"row": 3})),
            FunctionError::UnknownField { .. }
        ));
        for wrong in [json!(-1), json!(1.5), json!("1"), json!(null), json!([1])] {
            assert_eq!(
                refused(json!({"rows": wrong})),
                FunctionError::FieldNotAnInteger { field: "rows" }
            );
        }
        for value in [0, 11, u64::MAX] {
            assert!(matches!(
                refused(json!({"rows": value})),
                FunctionError::FieldOutOfRange {
                    field: "rows",
                    minimum: 1,
                    maximum: 10,
                    ..
                }
            ));
        }
    }
}
