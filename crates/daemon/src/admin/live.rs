//! Answers that go on for as long as somebody reads: server-sent events, or JSON lines
//! for callers that ask for them.
//!
//! What is told is one JSON value on one line either way, so both forms are the same
//! values in other clothes.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use serde::Serialize;

/// How long nothing is said before a sign of life, so that both sides notice when the
/// other is gone.
pub(super) const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// How values are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Server-sent events.
    Events,
    /// JSON lines.
    Lines,
}

impl Form {
    /// The one that the caller asks for.
    pub(super) fn wanted(headers: &HeaderMap) -> Self {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        let lines = ["application/x-ndjson", "application/ndjson", "application/jsonl"];
        match accept {
            Some(accept) if lines.iter().any(|name| accept.contains(name)) => Self::Lines,
            _ => Self::Events,
        }
    }

    /// Adds a value; as an event, it is called `name`.
    pub(super) fn put(self, out: &mut Vec<u8>, name: &str, value: &impl Serialize) {
        if self == Self::Events {
            out.extend_from_slice(format!("event: {name}\ndata: ").as_bytes());
        }
        let start = out.len();
        serde_json::to_writer(&mut *out, value).expect("what is told has no map with odd keys");
        // Data keeps the spaces in which it came. Outside of strings an end of line is one
        // of them; inside, JSON has it escaped.
        for byte in &mut out[start..] {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        out.extend_from_slice(if self == Self::Events { b"\n\n" } else { b"\n" });
    }

    /// Says nothing, so that the connection is seen to stand.
    pub(super) fn sign_of_life(self) -> Bytes {
        Bytes::from_static(if self == Self::Events { b":\n\n" } else { b"\n" })
    }

    /// The answer that consists of these pieces.
    pub(super) fn answer(self, pieces: impl Stream<Item = Bytes> + Send + 'static) -> Response {
        let content = match self {
            Self::Events => "text/event-stream",
            Self::Lines => "application/x-ndjson",
        };
        let body = Body::from_stream(pieces.map(Ok::<_, Infallible>));
        let headers = [(header::CONTENT_TYPE, content), (header::CACHE_CONTROL, "no-store")];
        (headers, body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[test]
    fn a_value_is_on_one_line_in_both_forms() {
        let value: Box<RawValue> = serde_json::from_str("{\n\"a\": \"b\\n\"\r\n}").unwrap();
        for (form, expected) in [
            (Form::Lines, "{ \"a\": \"b\\n\"  }\n"),
            (Form::Events, "event: x\ndata: { \"a\": \"b\\n\"  }\n\n"),
        ] {
            let mut out = Vec::new();
            form.put(&mut out, "x", &value);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
