//! What clients and the server say to each other: one JSON object a line. docs/serve.md describes
//! it for those who write clients.

use reapvm_reap::{InstallMethod, MemoryRestoreMode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// Longest request line, in bytes.
pub(crate) const MAX_REQUEST_BYTES: usize = 1 << 20;

/// What a client asks for.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Start a machine and call its function.
    Invoke(Invocation),
    /// Which snapshots are served.
    List {},
    /// What the server is doing.
    Status {},
    /// Give up prepared machines, of one snapshot or of all.
    Trim {
        /// Its name.
        template: Option<String>,
    },
    /// End the server.
    Shutdown {},
}

fn default_timeout_s() -> f64 {
    30.0
}

fn default_true() -> bool {
    true
}

/// A machine to start and a function to call.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Invocation {
    /// The snapshot's name.
    pub(crate) template: String,
    /// The function's input.
    #[serde(default)]
    pub(crate) input: Value,
    /// How memory comes back, unless as the server was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mode: Option<MemoryRestoreMode>,
    /// How prefetch installs the working set, unless as the server was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) install: Option<InstallMethod>,
    /// The snapshot that is meant, if no other will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot_id: Option<String>,
    /// How long the response may take, in seconds.
    #[serde(default = "default_timeout_s")]
    pub(crate) timeout_s: f64,
    /// Whether a recording replaces the snapshot's working set.
    #[serde(default = "default_true")]
    pub(crate) keep_recording: bool,
    /// Whether resident memory is counted, which takes a millisecond.
    #[serde(default)]
    pub(crate) count_resident: bool,
}

/// Why a request was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ErrorKind {
    /// It is no request.
    BadRequest,
    /// No snapshot has this name.
    NoTemplate,
    /// The snapshot cannot be used, or is another one than was asked for.
    Snapshot,
    /// Too many requests wait.
    Busy,
    /// The machine cannot be started, or its function failed.
    Failed,
    /// The process of the machine ended without an answer.
    Crashed,
    /// The server is ending.
    Stopping,
}

/// The answer to a request that was not served.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

/// The answer to an invocation.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct InvocationResult {
    pub(crate) template: String,
    /// The snapshot that was started.
    pub(crate) snapshot_id: String,
    /// Whether a prepared machine was there when the request came.
    pub(crate) prepared: bool,
    /// From the request to the moment when it was handed to its machine, in ms.
    pub(crate) queued_ms: f64,
    /// Of that, how long a machine was prepared and waited for its turn to read its memory, in ms.
    pub(crate) turn_ms: f64,
    /// From the request to the first KVM_RUN in ms, without the waits for its turn and for the
    /// working set.
    pub(crate) control_ms: f64,
    /// A `ColdStartReport`; its times count from the arrival of the request.
    pub(crate) report: Box<RawValue>,
}

/// Reads a request line: the client's id for it, null if it has none, and the request.
pub(crate) fn parse(line: &[u8]) -> (Value, Result<Request, Refusal>) {
    let bad = |error: serde_json::Error| {
        Refusal::new(
            ErrorKind::BadRequest,
            format!("this is not a request: {error}"),
        )
    };
    let mut object: Map<String, Value> = match serde_json::from_slice(line) {
        Ok(object) => object,
        Err(error) => return (Value::Null, Err(bad(error))),
    };
    let id = object.remove("id").unwrap_or_default();
    if !matches!(id, Value::Null | Value::Number(_) | Value::String(_)) {
        let refusal = Refusal::new(ErrorKind::BadRequest, "an id is a number or a string");
        return (Value::Null, Err(refusal));
    }
    let request = serde_json::from_value(Value::Object(object)).map_err(bad);
    (id, request)
}

/// The line that answers `id`.
pub(crate) fn answer(id: &Value, result: Result<&impl Serialize, &Refusal>) -> String {
    #[derive(Serialize)]
    struct Answer<'a, T> {
        id: &'a Value,
        ok: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        result: Option<&'a T>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a Refusal>,
    }
    let answer = Answer {
        id,
        ok: result.is_ok(),
        result: result.ok(),
        error: result.err(),
    };
    serde_json::to_string(&answer).unwrap_or_else(|error| {
        json!({"id": id, "ok": false,
               "error": {"kind": ErrorKind::Failed, "message": error.to_string()}})
        .to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_with_its_id() {
        let (id, request) = parse(br#"{"id":7,"op":"invoke","template":"f","mode":"ondemand"}"#);
        assert_eq!(id, 7);
        let Ok(Request::Invoke(invocation)) = request else {
            panic!("{request:?}");
        };
        assert_eq!(invocation.mode, Some(MemoryRestoreMode::OnDemand));
        assert!(matches!(
            parse(br#"{"op":"list"}"#),
            (Value::Null, Ok(Request::List {}))
        ));
    }

    #[test]
    fn what_is_no_request_is_refused_with_the_id_that_can_be_read() {
        for bad in [
            &b""[..],
            b"\xff",
            b"[]",
            b"7",
            b"{}",
            br#"{"op":"fly"}"#,
            br#"{"op":"list","colour":1}"#,
            br#"{"op":"invoke"}"#,
            br#"{"op":"invoke","template":"f","mode":"fast"}"#,
            br#"{"op":"invoke","template":"f","speed":1}"#,
            br#"{"id":{},"op":"list"}"#,
        ] {
            let (_, request) = parse(bad);
            assert_eq!(
                request.unwrap_err().kind,
                ErrorKind::BadRequest,
                "{}",
                String::from_utf8_lossy(bad)
            );
        }
        assert_eq!(parse(br#"{"id":"x","op":"fly"}"#).0, "x");
    }

    #[test]
    fn an_answer_has_a_result_or_an_error() {
        let id = json!("a");
        assert_eq!(
            answer(&id, Ok(&json!({"n": 1}))),
            r#"{"id":"a","ok":true,"result":{"n":1}}"#
        );
        let refusal = Refusal::new(ErrorKind::NoTemplate, "why");
        assert_eq!(
            answer(&id, Err::<&Value, _>(&refusal)),
            r#"{"id":"a","ok":false,"error":{"kind":"no-template","message":"why"}}"#
        );
    }
}
