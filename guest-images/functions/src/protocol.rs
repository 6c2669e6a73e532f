//! Newline-delimited JSON over vsock: a request a line, a reply a line, in order.
//!
//! Request: `{"seed":1, ...sizes}`; the function is fixed when the guest boots. Reply:
//! `{"ok":true,"function":NAME,"result":{...}}` or `{"ok":false,"function":NAME,"error":TEXT}`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::Function;
use crate::serde_json::{self, Map, Value};

/// The vsock port that the guest listens on.
pub const PORT: u32 = 5000;

/// The longest request line, in bytes, without its newline. A guest drops a connection whose line
/// grows past it after having sent the reply of [`handle_request`], which says so.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// Serves the request `line` (with or without its newline) and returns the reply with its newline.
///
/// Never fails: what is wrong with a request is said in the reply.
pub fn handle_request(function: &mut dyn Function, line: &[u8]) -> Vec<u8> {
    let name = function.name();
    let mut reply = Map::new();
    reply.insert("function".to_string(), Value::from(name));
    match serve(function, line) {
        Ok(result) => {
            reply.insert("ok".to_string(), Value::Bool(true));
            reply.insert("result".to_string(), result);
        }
        Err(error) => {
            reply.insert("ok".to_string(), Value::Bool(false));
            reply.insert("error".to_string(), Value::String(error));
        }
    }
    let mut bytes = Value::Object(reply).to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

fn serve(function: &mut dyn Function, line: &[u8]) -> Result<Value, String> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    if line.len() > MAX_REQUEST_BYTES {
        return Err(format!(
            "the request line is longer than {MAX_REQUEST_BYTES} bytes: send a shorter one"
        ));
    }
    let input = serde_json::from_slice(line)
        .map_err(|error| format!("the request line is no valid JSON: {error}"))?;
    function.invoke(&input).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FunctionError;

    struct Echo;

    impl Function for Echo {
        fn name(&self) -> &'static str {
            "echo"
        }

        fn invoke(&mut self, input: &Value) -> Result<Value, FunctionError> {
            if input.is_object() {
                Ok(input.clone())
            } else {
                Err(FunctionError::InputNotAnObject)
            }
        }
    }

    fn reply(line: &[u8]) -> Value {
        let reply = handle_request(&mut Echo, line);
        assert_eq!(reply.iter().filter(|&&byte| byte == b'\n').count(), 1);
        assert_eq!(reply.last(), Some(&b'\n'));
        serde_json::from_slice(&reply).unwrap()
    }

    #[test]
    fn a_request_is_answered_with_and_without_its_newline() {
        let expected = serde_json::json!({"ok": true, "function": "echo", "result": {"seed": 3}});
        assert_eq!(reply(b"{\"seed\":3}"), expected);
        assert_eq!(reply(b"{\"seed\":3}\n"), expected);
        assert_eq!(reply(b" {\"seed\": 3} \r\n"), expected);
    }

    #[test]
    fn wrong_lines_are_answered_with_an_error() {
        let deep = alloc::vec![b'['; MAX_REQUEST_BYTES];
        for line in [
            &b""[..],
            b"\n",
            b"{",
            b"\xff\xfe",
            b"{}{}",
            b"[1]",
            b"{\"a\":1e999}",
            &deep,
        ] {
            let reply = reply(line);
            assert_eq!(reply["ok"], false, "{line:?}");
            assert!(!reply["error"].as_str().unwrap().is_empty());
        }
    }

    #[test]
    fn the_length_of_a_line_is_capped() {
        let mut line = alloc::vec![b' '; MAX_REQUEST_BYTES];
        line[..2].copy_from_slice(b"{}");
        assert_eq!(reply(&line)["ok"], true);
        line.push(b' ');
        let refused = reply(&line);
        assert_eq!(refused["ok"], false);
        assert!(refused["error"].as_str().unwrap().contains("65536 bytes"));
    }
}
