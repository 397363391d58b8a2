//! `reflowd send`.

use std::{io, path::Path, time::Duration};

use anyhow::{Context as _, anyhow};
use bytes::{Buf as _, Bytes, BytesMut};
use clap::Args;
use clap_complete::ArgValueCandidates;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{StatusCode, body::Frame};
use reflowd_runtime::{PortRef, Type, check_json};
use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt as _},
};

use super::{
    Client, Exit, Outcome, Stop,
    client::{Body, escaped, json, text, whole},
    complete, note, print, progress,
};

use crate::connector::BYTE_ORDER_MARK;

/// How much of a stream leaves in one piece.
const PIECE: usize = 64 << 10;

/// What to send, and where.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Send {
    /// The inport: `ACTOR.PORT`
    #[arg(value_name = "ACTOR.PORT", add = ArgValueCandidates::new(complete::inports))]
    to: PortRef,
    /// JSON; `@FILE` for a file's content (`.jsonl` and `.ndjson`: one message a line);
    /// `-` for JSON lines from standard input; nothing for a signal without data
    #[arg(allow_hyphen_values = true)]
    value: Option<String>,
    /// The message's type, such as Float; otherwise the port's or what the value looks like.
    /// With String the value is text, in quotes or not
    #[arg(long, value_parser = message_type, value_name = "TYPE", add = ArgValueCandidates::new(complete::types))]
    r#type: Option<Type>,
    /// Wait for what comes out of this port for the message: `PORT` or `ACTOR.PORT`
    #[arg(long, value_name = "PORT", add = ArgValueCandidates::new(complete::outports))]
    wait: Option<String>,
    /// How long to wait for it
    #[arg(long, value_parser = humantime::parse_duration, requires = "wait", default_value = "30s")]
    timeout: Duration,
    /// With many messages: stop at a full mailbox rather than wait for room
    #[arg(long)]
    no_block: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  reflowd send counter.increment 5
  reflowd send greeter.name '\"Ada\"'
  reflowd send greeter.name Ada --type String --wait out
  reflowd send filter.in @event.json
  reflowd send filter.in - <events.jsonl";

fn message_type(name: &str) -> Result<Type, String> {
    let all = || Type::ALL.map(Type::name).join(", ");
    Type::from_name(name).ok_or_else(|| format!("the types are {}", all()))
}

/// Where the messages come from.
#[derive(Debug, PartialEq, Eq)]
enum Source<'a> {
    /// The JSON text of one.
    One(String),
    /// One, in a file.
    File(&'a Path),
    /// One a line, in a file.
    LinesOf(&'a Path),
    /// One a line, from standard input.
    Lines,
}

/// Sends.
pub(super) async fn send(client: &mut Client, send: Send) -> Outcome {
    let source =
        source(send.value.as_deref(), send.r#type).map_err(|error| Stop::new(Exit::Data, error))?;
    let (content, body) = body(&source).await?;
    let many = matches!(source, Source::Lines | Source::LinesOf(_));
    if many && send.wait.is_some() {
        let error = anyhow!("--wait takes one message only");
        return Err(Stop::new(Exit::Usage, error));
    }
    let mut path = format!(
        "/v1/actors/{}/ports/{}?",
        escaped(send.to.actor.as_str()),
        escaped(send.to.port.as_str())
    );
    match send.r#type {
        Some(ty) => path.push_str(&format!("type={ty}")),
        None => path.push_str("plain=true"),
    }
    if many && !send.no_block {
        path.push_str("&block=true");
    }
    if let Some(port) = &send.wait {
        let timeout = humantime::format_duration(send.timeout).to_string();
        path.push_str(&format!("&wait={}&timeout={}", escaped(port), escaped(&timeout)));
    }
    let what = match &send.wait {
        Some(port) => format!("waiting for what comes out of {port}"),
        None => format!("sending to {}", send.to),
    };
    let post = client.post(&path, Some((content, body)));
    let response = progress::watched(&what, post).await?;
    if response.status() == StatusCode::NO_CONTENT {
        note("nothing came of it: all that the message led to is done");
        return Ok(Exit::Failed);
    }
    if send.wait.is_some() {
        let message = text(response.into_body()).await?;
        print(&format!("{}\n", String::from_utf8_lossy(&message)))?;
        return Ok(Exit::Done);
    }
    let answer: Value = json(response).await?;
    let line = match (&answer["id"], &answer["accepted"]) {
        _ if send.json => answer.to_string(),
        (Value::String(id), _) => id.clone(),
        (_, accepted) => format!("{accepted} accepted"),
    };
    print(&format!("{line}\n"))?;
    Ok(Exit::Done)
}

/// What the value on the command line means.
fn source(value: Option<&str>, ty: Option<Type>) -> anyhow::Result<Source<'_>> {
    let value = match value {
        None => return Ok(Source::One("null".into())),
        Some("-") => return Ok(Source::Lines),
        Some(value) => value,
    };
    if let Some(path) = value.strip_prefix('@') {
        let path = Path::new(path);
        let lines = path.extension().is_some_and(|e| e == "jsonl" || e == "ndjson");
        return Ok(if lines { Source::LinesOf(path) } else { Source::File(path) });
    }
    let textual = matches!(ty, Some(Type::String | Type::Error));
    // Looked at and not read: what a daemon takes is for one rule to say, here as there.
    if serde_json::from_str::<IgnoredAny>(value).is_ok()
        && (!textual || value.trim_ascii_start().starts_with('"'))
    {
        check_json(value.as_bytes())?;
        return Ok(Source::One(value.into()));
    }
    if textual {
        return Ok(Source::One(Value::from(value).to_string()));
    }
    Err(anyhow!(
        "`{value}` is not JSON; to send it as text, quote it ('\"{value}\"') or add --type String"
    ))
}

async fn body(source: &Source<'_>) -> Result<(&'static str, Body), Stop> {
    const ONE: &str = "application/json";
    const LINES: &str = "application/x-ndjson";
    let read = |path: &Path| format!("cannot read `{}`", path.display());
    Ok(match source {
        Source::One(text) => (ONE, whole(text.clone())),
        Source::File(path) => {
            let mut bytes = tokio::fs::read(path).await.with_context(|| read(path))?;
            if bytes.starts_with(BYTE_ORDER_MARK) {
                bytes.drain(..BYTE_ORDER_MARK.len());
            }
            (ONE, whole(bytes))
        }
        Source::LinesOf(path) => {
            let file = File::open(path).await.with_context(|| read(path))?;
            (LINES, streamed(file))
        }
        Source::Lines => (LINES, streamed(tokio::io::stdin())),
    })
}

/// A body that is read as it leaves.
fn streamed(reader: impl AsyncRead + Unpin + std::marker::Send + 'static) -> Body {
    let pieces = stream::try_unfold((reader, BYTE_ORDER_MARK), |(mut reader, mark)| async move {
        let mut piece = BytesMut::with_capacity(PIECE);
        let read = reader.read_buf(&mut piece).await?;
        if piece.starts_with(mark) {
            piece.advance(mark.len());
        }
        // Only what comes first can be the mark.
        let frame = (read > 0).then(|| (Frame::data(Bytes::from(piece)), (reader, &b""[..])));
        Ok::<_, io::Error>(frame)
    });
    StreamBody::new(pieces).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: Option<&str>, ty: Option<Type>, expected: Source<'_>) {
        assert_eq!(source(value, ty).unwrap(), expected, "{value:?} {ty:?}");
    }

    #[test]
    fn a_value_is_json_a_file_or_standard_input() {
        check(None, None, Source::One("null".into()));
        check(Some("5"), None, Source::One("5".into()));
        check(Some("-5"), None, Source::One("-5".into()));
        check(Some("\"a\""), None, Source::One("\"a\"".into()));
        check(Some("-"), None, Source::Lines);
        check(Some("@a.json"), None, Source::File(Path::new("a.json")));
        check(Some("@a.jsonl"), None, Source::LinesOf(Path::new("a.jsonl")));
    }

    #[test]
    fn a_value_that_no_reader_takes_is_not_sent_and_is_not_called_text() {
        for (value, why) in [
            ("1e400", "the number 1e400 fits neither a 64-bit integer nor a finite"),
            ("{\"a\":[1,-1e999]}", "the number -1e999 at `/a/1` fits neither"),
            ("\"\\ud800\"", "the string has \\ud800"),
            (&"[".repeat(101), "is not JSON"),
        ] {
            let error = source(Some(value), None).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert_eq!(error.contains("--type String"), why == "is not JSON", "{error}");
        }
        let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
        check(Some(&deep), None, Source::One(deep.clone()));
        let huge = "123456789012345678901234567890";
        check(Some(huge), None, Source::One(huge.into()));
        check(Some("1e400"), Some(Type::String), Source::One("\"1e400\"".into()));
    }

    #[test]
    fn text_needs_quotes_or_a_type() {
        let error = source(Some("Ada"), None).unwrap_err().to_string();
        assert!(error.contains("--type String"), "{error}");
        check(Some("Ada"), Some(Type::String), Source::One("\"Ada\"".into()));
        check(Some("5"), Some(Type::String), Source::One("\"5\"".into()));
        check(Some("\"a\""), Some(Type::String), Source::One("\"a\"".into()));
    }
}
