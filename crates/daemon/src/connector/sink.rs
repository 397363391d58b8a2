//! What the connectors that write lines have in common: a turn is one line.
//!
//! Such an actor is an engine like any other, so its mailbox, its place in `ps`
//! and its pressure on the flow are those of any actor. What it writes to may not
//! be there for a while; that is no fault of the message, which stays and is
//! tried again.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use reflowd_runtime::{
    Context, Digest, Effects, Engine, Failure, FailureKind, InstantiateError, Message, Metadata,
    Program, Turn,
};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::{Builtin, Prepared};

/// What of a message is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum What {
    /// Its data.
    #[default]
    Data,
    /// `{"type":…,"data":…}`.
    Message,
}

impl What {
    /// The schema of the key.
    pub(super) fn schema() -> serde_json::Value {
        json!({
            "enum": ["data", "message"],
            "default": "data",
            "description": "a message's data alone, or {\"type\", \"data\"}",
        })
    }

    /// Appends a message as one line.
    fn append(self, message: &Message, line: &mut Vec<u8>) {
        let start = line.len();
        match self {
            Self::Data => line.extend_from_slice(message.data()),
            Self::Message => message.encode_to(line),
        }
        // Data keeps the spaces in which it came. Outside of strings an end of line
        // is one of them; inside, JSON has it escaped.
        for byte in &mut line[start..] {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        line.push(b'\n');
    }
}

/// Something that takes lines.
pub(super) trait Lines: Send + Sync + 'static {
    /// Writes one line, its end included, as a whole or not at all.
    ///
    /// An error says why it cannot be written now.
    fn write<'a>(&'a self, line: &'a [u8], deadline: Instant) -> BoxFuture<'a, Result<(), String>>;
}

/// An actor that writes a line for each message.
pub(super) struct Sink<L> {
    digest: Digest,
    metadata: Metadata,
    what: What,
    lines: Arc<L>,
}

impl<L: Lines> Sink<L> {
    /// A sink that writes to `lines`.
    pub(super) fn prepare(builtin: Builtin, what: What, lines: L) -> Prepared {
        Prepared::Sink(Arc::new(Self {
            digest: builtin.digest(),
            metadata: builtin.metadata(),
            what,
            lines: Arc::new(lines),
        }))
    }
}

impl<L: Lines> Program for Sink<L> {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn acts_outside(&self) -> bool {
        true
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Engine>, InstantiateError>> {
        let (what, lines) = (self.what, Arc::clone(&self.lines));
        Box::pin(async move { Ok(Box::new(Writer { what, lines }) as Box<dyn Engine>) })
    }
}

struct Writer<L> {
    what: What,
    lines: Arc<L>,
}

impl<L: Lines> Engine for Writer<L> {
    fn turn(self: Box<Self>, context: Context, deadline: Instant) -> BoxFuture<'static, Turn> {
        Box::pin(async move {
            let mut line = Vec::new();
            for (_, message) in &context.payload {
                self.what.append(message, &mut line);
            }
            match self.lines.write(&line, deadline).await {
                Ok(()) => Ok((self as Box<dyn Engine>, Effects::default())),
                Err(why) => {
                    Err(Failure { kind: FailureKind::Unavailable(why.into()), engine: Some(self) })
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use reflowd_runtime::Type;

    use super::*;

    #[track_caller]
    fn check(what: What, data: &str, expected: &str) {
        let message = Message::new(Type::Any, Bytes::copy_from_slice(data.as_bytes())).unwrap();
        let mut line = Vec::new();
        what.append(&message, &mut line);
        assert_eq!(String::from_utf8(line).unwrap(), expected);
    }

    #[test]
    fn a_message_is_one_line() {
        check(What::Data, r#"{"b":1.0, "a":1e2}"#, "{\"b\":1.0, \"a\":1e2}\n");
        check(What::Data, "[1,\r\n2]", "[1,  2]\n");
        check(What::Data, r#""a\nb""#, "\"a\\nb\"\n");
        check(What::Message, "1", "{\"type\":\"Any\",\"data\":1}\n");
    }
}
