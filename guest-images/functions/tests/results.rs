//! Each function's results, against the independent computations of `reference`.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use reapvm_functions::{
    EXTRA_FUNCTIONS, FUNCTIONS, Function, find, initialise, protocol, reference,
};
use serde_json_alloc::{self as serde_json, Value, json};

/// Serves `input` as the guest does and returns the result.
fn serve(function: &mut dyn Function, input: &Value) -> Value {
    let line = protocol::handle_request(function, input.to_string().as_bytes());
    assert!(line.len() < 4096, "a reply of {} bytes", line.len());
    let reply: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(reply["ok"], true, "{input}: {reply}");
    assert_eq!(reply["function"], function.name());
    reply["result"].clone()
}

/// Checks the results for several seeds and for these `sizes`, that they depend on the seed, and
/// that they do not depend on what was served before.
fn check(name: &str, sizes: &[Value]) {
    let info = find(name).unwrap();
    let mut function = initialise(name).unwrap();
    let default: Value = serde_json::from_str(info.default_input).unwrap();
    let seeds = [2, 77, u64::MAX].map(|seed| {
        let mut input = default.clone();
        input["seed"] = seed.into();
        input
    });
    let mut results = Vec::new();
    for input in [&[default], &seeds[..], sizes].concat() {
        let result = serve(&mut *function, &input);
        reference::check(name, &input, &result).unwrap_or_else(|e| panic!("{name} {input}: {e}"));
        assert!(
            results
                .iter()
                .all(|(_, earlier)| work(earlier) != work(&result)),
            "{name} {input}"
        );
        results.push((input, result));
    }
    for (input, result) in results.iter().rev() {
        assert_eq!(serve(&mut *function, input), *result, "{name} {input}");
    }
    // A result that is wrong in any field is found.
    let (input, result) = &results[0];
    for field in result.as_object().unwrap().keys() {
        // These digests are of lossy encodings, which another decoder does not reproduce.
        if ["jpeg_sha256", "encoded_sha256"].contains(&field.as_str()) {
            continue;
        }
        let mut wrong = result.clone();
        falsify(&mut wrong[field.as_str()]);
        assert!(
            reference::check(name, input, &wrong).is_err(),
            "{name}: {field} {wrong}"
        );
    }
    // So is the work of another seed, even under the right audit digest.
    let mut wrong = result.clone();
    wrong["audit"] = results[1].1["audit"].clone();
    assert!(reference::check(name, &seeds[0], &wrong).is_err());
}

/// A result without the digest that tells every input from every other.
fn work(result: &Value) -> Value {
    let mut work = result.clone();
    work.as_object_mut().unwrap().remove("audit");
    work
}

/// Makes a value wrong: by as much as a real fault would at least.
fn falsify(value: &mut Value) {
    match value {
        Value::Array(items) => falsify(items.last_mut().unwrap()),
        Value::String(text) => {
            let last = if text.ends_with('0') { '1' } else { '0' };
            text.pop();
            text.push(last);
        }
        Value::Number(number) if number.is_u64() => {
            *value = json!(number.as_u64().unwrap() * 2 + 17);
        }
        Value::Number(number) => *value = json!(number.as_f64().unwrap() * 1.5 + 0.1),
        other => panic!("{other} in a result"),
    }
}

#[test]
fn helloworld() {
    check(
        "helloworld",
        &[json!({"greetings": 1}), json!({"greetings": 64, "seed": 9})],
    );
}

#[test]
fn chameleon() {
    check(
        "chameleon",
        &[
            json!({"rows": 1, "columns": 1}),
            json!({"rows": 7, "columns": 40}),
        ],
    );
}

#[test]
fn pyaes() {
    check(
        "pyaes",
        &[
            json!({"records": 1, "record_bytes": 1}),
            json!({"records": 33, "record_bytes": 1000}),
        ],
    );
}

#[test]
fn image_rotate() {
    let sizes =
        [0, 1, 2, 3].map(|turns| json!({"width": 65, "height": 97, "quarter_turns": turns}));
    check("image_rotate", &sizes);
}

#[test]
fn json_serdes() {
    check(
        "json_serdes",
        &[json!({"orders": 1}), json!({"orders": 5000})],
    );
}

#[test]
fn lr_serving() {
    check(
        "lr_serving",
        &[json!({"words": 1}), json!({"words": 20_000})],
    );
}

#[test]
fn cnn_serving() {
    check("cnn_serving", &[json!({"images": 3, "seed": 5})]);
}

#[test]
fn rnn_serving() {
    check(
        "rnn_serving",
        &[json!({"characters": 1}), json!({"characters": 40})],
    );
}

#[test]
fn lr_training() {
    check(
        "lr_training",
        &[
            json!({"documents": 10, "epochs": 1}),
            json!({"documents": 200, "epochs": 60}),
        ],
    );
}

#[test]
fn video_processing() {
    check(
        "video_processing",
        &[json!({"frames": 1}), json!({"frames": 17})],
    );
}

#[test]
fn memory_touch() {
    check("memory_touch_8", &[json!({"mib": 1})]);
    check("memory_touch_96", &[json!({"mib": 3})]);
}

#[test]
fn what_is_known_of_the_functions_is_consistent() {
    for info in FUNCTIONS.iter().chain(&EXTRA_FUNCTIONS) {
        assert!((128..=256).contains(&info.mem_mib), "{}", info.name);
        assert!(find(info.name).is_some() && !info.description.contains('\n'));
        // The default input spells out the seed and every size.
        let input: Value = serde_json::from_str(info.default_input).unwrap();
        assert_eq!(
            input.as_object().unwrap().len(),
            1 + info.sizes.len(),
            "{}",
            info.name
        );
        assert_eq!(input["seed"], 1);
        for size in info.sizes {
            assert_eq!(
                input[size.name], size.default,
                "{} {}",
                info.name, size.name
            );
            assert!(size.minimum <= size.default && size.default <= size.maximum);
        }
    }
}

#[test]
fn an_unknown_function_is_refused_with_the_names_of_all() {
    let Err(error) = initialise("hello") else {
        panic!("it was started")
    };
    let error = error.to_string();
    assert!(
        FUNCTIONS
            .iter()
            .chain(&EXTRA_FUNCTIONS)
            .all(|info| error.contains(info.name)),
        "{error}"
    );
    assert!(reference::check("hello", &json!({}), &json!({})).is_err());
}
