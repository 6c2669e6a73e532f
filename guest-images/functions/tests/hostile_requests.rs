//! Lines that are no good requests: each is answered with an error, and the next one is served.

#![allow(clippy::unwrap_used, missing_docs)]

use std::cell::RefCell;

use proptest::prelude::*;
use reapvm_functions::{FUNCTIONS, Function, initialise, protocol};
use serde_json_alloc::{self as serde_json, Value, json};

fn reply(function: &mut dyn Function, line: &[u8]) -> Value {
    let reply = protocol::handle_request(function, line);
    assert!(reply.len() < 4096);
    assert_eq!(
        reply.iter().position(|&byte| byte == b'\n'),
        Some(reply.len() - 1)
    );
    serde_json::from_slice(&reply).unwrap()
}

thread_local! {
    static FUNCTION: RefCell<Box<dyn Function>> =
        RefCell::new(initialise("helloworld").unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn garbage_is_answered(line in proptest::collection::vec(any::<u8>(), 0..200)) {
        FUNCTION.with_borrow_mut(|function| {
            let answer = reply(&mut **function, &line);
            assert!(answer["ok"].is_boolean());
        });
    }

    #[test]
    fn almost_json_is_answered(line in r#"[{}\[\]":,0-9seed\\u -]{0,60}"#) {
        FUNCTION.with_borrow_mut(|function| {
            let answer = reply(&mut **function, line.as_bytes());
            assert!(answer["ok"].is_boolean());
        });
    }
}

#[test]
fn wrong_fields_are_refused_by_every_function() {
    for info in FUNCTIONS {
        let mut function = initialise(info.name).unwrap();
        let mut wrong = vec![
            json!(null),
            json!([]),
            json!("seed"),
            json!({"seed": "1"}),
            json!({"seed": -1}),
            json!({"seed": 1.0}),
            json!({"seed": 1, "sed": 2}),
            json!({ ("x".repeat(60_000)): 1 }),
        ];
        for size in info.sizes {
            for value in [
                json!(size.maximum + 1),
                json!(size.minimum as i64 - 1),
                json!({}),
            ] {
                if value != json!(-1) || size.minimum == 0 {
                    wrong.push(json!({ size.name: value }));
                }
            }
        }
        for input in wrong {
            let answer = reply(&mut *function, input.to_string().as_bytes());
            assert_eq!(answer["ok"], false, "{} {input}", info.name);
            assert_eq!(answer["function"], info.name);
            assert!(!answer["error"].as_str().unwrap().is_empty());
        }
        let long = vec![b'1'; protocol::MAX_REQUEST_BYTES + 1];
        assert_eq!(reply(&mut *function, &long)["ok"], false);
        let minimum: serde_json::Map<String, Value> = info
            .sizes
            .iter()
            .map(|size| (size.name.to_owned(), size.minimum.into()))
            .collect();
        let answer = reply(
            &mut *function,
            Value::Object(minimum).to_string().as_bytes(),
        );
        assert_eq!(answer["ok"], true, "{}", info.name);
    }
}
