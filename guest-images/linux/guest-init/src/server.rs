//! Requests in lines, a thread for each connection.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::Arc;
use std::thread;

use reapvm_guest_init::protocol::{MAX_REQUEST_BYTES, Request};
use serde_json::{Value, json};

use crate::operations::Operations;
use crate::vsock::Listener;

/// Serves until connections cannot be taken any more.
pub(crate) fn serve(listener: &Listener) {
    let operations = Arc::new(Operations::default());
    loop {
        match listener.accept() {
            Ok(stream) => {
                let operations = Arc::clone(&operations);
                thread::spawn(move || {
                    // A peer that has gone away is no concern of the next one.
                    let _ = converse(&stream, &operations);
                });
            }
            // A restore resets the connections that were open, those not yet taken among them.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                println!("init: cannot take a connection: {error}");
                return;
            }
        }
    }
}

fn converse(stream: &File, operations: &Operations) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let limit = MAX_REQUEST_BYTES as u64 + 1;
        if reader.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let too_long = line.len() > MAX_REQUEST_BYTES;
        let reply = if too_long {
            failure(format!(
                "a request is longer than {MAX_REQUEST_BYTES} bytes"
            ))
        } else {
            answer(&line, operations)
        };
        let mut writer = stream;
        writer.write_all(format!("{reply}\n").as_bytes())?;
        if too_long {
            return Ok(());
        }
    }
}

fn failure(error: String) -> Value {
    json!({"ok": false, "error": error})
}

fn answer(line: &[u8], operations: &Operations) -> Value {
    // Read twice, for the name in the answer.
    let value: Value = match serde_json::from_slice(line) {
        Ok(value) => value,
        Err(error) => return failure(format!("this is not JSON: {error}")),
    };
    let op = value["op"].clone();
    match serde_json::from_value::<Request>(value) {
        Err(error) => failure(format!("this is no request: {error}")),
        Ok(request) => match operations.perform(request) {
            Ok(result) => json!({"ok": true, "op": op, "result": result}),
            Err(error) => failure(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_request_is_answered_with_the_reason() {
        let operations = Operations::default();
        for (line, needle) in [
            (&b"{"[..], "JSON"),
            (b"[]", "request"),
            (b"{\"op\":\"nonesuch\"}", "nonesuch"),
            (b"{\"op\":\"echo\",\"value\":1,\"more\":2}", "more"),
            (
                b"{\"op\":\"memory_digest\",\"pages\":18446744073709551615,\"seed\":1}",
                "pages",
            ),
            (
                b"{\"op\":\"sequence\",\"requests\":[{\"op\":\"sequence\",\"requests\":[]}]}",
                "sequence",
            ),
            (b"{\"op\":\"sleep\",\"ms\":18446744073709551615}", "ms"),
        ] {
            let reply = answer(line, &operations);
            assert_eq!(reply["ok"], false, "{reply}");
            assert!(reply["error"].as_str().unwrap().contains(needle), "{reply}");
        }
    }

    #[test]
    fn a_sequence_gives_a_result_for_each_of_its_requests_or_the_first_error() {
        let operations = Operations::default();
        let echo = |value: u8| json!({"op": "echo", "value": value});
        let ask = |requests: Value| {
            let line = json!({"op": "sequence", "requests": requests}).to_string();
            answer(line.as_bytes(), &operations)
        };
        assert_eq!(ask(json!([echo(1), echo(2)]))["result"], json!([1, 2]));
        let refused = ask(json!([echo(1), {"op": "sleep", "ms": u64::MAX}]));
        assert!(
            refused["error"].as_str().unwrap().contains("ms"),
            "{refused}"
        );
        assert_eq!(ask(Value::Array(vec![echo(1); 17]))["ok"], false);
    }

    #[test]
    fn an_echo_comes_back() {
        let reply = answer(
            br#"{"op":"echo","value":{"a":[1]}}"#,
            &Operations::default(),
        );
        assert_eq!(
            reply,
            json!({"ok": true, "op": "echo", "result": {"a": [1]}})
        );
    }
}
