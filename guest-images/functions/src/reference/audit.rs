//! The audit digest, from the library's description instead of its source.

use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use crate::runtime::INITIAL_STATE;
use crate::runtime::library::{MODULE_COUNT, Rule, function_spec, module_spec};
use crate::serde_json::Value;

/// The digest of a request with `input`.
pub(super) fn digest(input: &Value) -> Result<u64, String> {
    let fields = input.as_object().ok_or("the input is no object")?;
    let mut fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("\"{name}\":{value}"))
        .collect();
    fields.sort();
    let text = format!("{{{}}}", fields.join(","));
    let mut state = INITIAL_STATE;
    for module in 0..MODULE_COUNT {
        let hook = module_spec(module).hook;
        if !hook.enabled {
            continue;
        }
        for call in hook.calls {
            state = apply(
                &function_spec(call.module, call.function).rule,
                state,
                &text,
            );
        }
        state = mix(state, hook.constant);
    }
    Ok(state as u64)
}

fn hash(text: &str) -> i64 {
    let mut hash = 14_695_981_039_346_656_037u64;
    for byte in text.bytes() {
        hash ^= u64::from(byte);
        hash = hash.wrapping_mul(1_099_511_628_211);
    }
    hash as i64
}

fn finalise(mut value: u64) -> u64 {
    value ^= value >> 30;
    value = value.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value ^= value >> 27;
    value = value.wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn mix(left: i64, right: i64) -> i64 {
    finalise((left as u64).rotate_left(17) ^ finalise(right as u64)) as i64
}

fn apply(rule: &Rule, state: i64, text: &str) -> i64 {
    let length = text.len() as i64;
    match rule {
        Rule::Limit { limit, penalty, .. } if length > *limit => {
            state.wrapping_add((length - limit) * penalty)
        }
        Rule::Limit { otherwise, .. } => state ^ otherwise,
        Rule::Fold { bytes, start } => {
            let modulus = 1u64 << 32;
            let sum = text
                .bytes()
                .take(*bytes as usize)
                .fold(*start as u64, |sum, byte| {
                    (sum * 31 + u64::from(byte)) % modulus
                });
            state ^ sum as i64
        }
        Rule::Weigh { buckets, weights } => {
            let bucket = state.rem_euclid(*buckets) as usize;
            state.wrapping_add(weights[bucket % weights.len()])
        }
        Rule::Label { prefix, mask } => mix(
            state,
            hash(&[*prefix, &(state & mask).to_string()].join("-")),
        ),
        Rule::Locate {
            word,
            missing,
            factor,
        } => match text.find(word) {
            None => state.wrapping_add(*missing),
            Some(position) => mix(state, position as i64 * factor),
        },
        Rule::Scale {
            factor,
            divisor,
            low,
            high,
        } => {
            let scaled = state.rem_euclid(65_536) * factor / divisor;
            state.wrapping_add(scaled.clamp(*low, *high))
        }
        Rule::Flag { thresholds } => {
            let flags: i64 = (0..4)
                .map(|bit| i64::from(length >= thresholds[bit]) << bit)
                .sum();
            mix(state, flags)
        }
        Rule::Rename { word, bytes } => {
            let start: String = text.chars().take(*bytes as usize).collect();
            mix(hash(&format!("{word}.{start}").to_uppercase()), state)
        }
    }
}
