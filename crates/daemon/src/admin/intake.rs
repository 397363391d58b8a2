//! Messages that come in over the API.
//!
//! One message, or a stream of them as JSON lines. A stream is taken line by
//! line as it arrives: it is never held as a whole, and where the caller asks
//! for it, a full mailbox makes the stream wait, so that pressure reaches the
//! caller through its own socket.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use reflowd_runtime::{
    Actor, ERROR_PORT, Message, MessageError, MessageId, PortName, PortRef, SendError, Trace, Type,
};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    task::coop,
    time::{self, Instant},
};

use super::{
    Admin, Answered, InPath, Phase, Problem, actors, answered, flag,
    lines::{Line, Lines, TooLong},
    query,
};
use crate::{
    coding::must_be_plain,
    receipt::{BODY_TIMEOUT, Receipt, ReceiveError},
};

/// The largest message, in bytes: as much as one turn may put out.
const MAX_MESSAGE: usize = 16 << 20;

/// How long a caller waits for an answer unless it says otherwise.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);

/// The longest that a caller may wait for an answer.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wanted {
    /// The data is plain, of this type.
    r#type: Option<String>,
    /// The data is plain, of the type that its port declares or that it looks like.
    #[serde(deserialize_with = "flag")]
    plain: bool,
    /// Wait for room rather than answer that there is none.
    #[serde(deserialize_with = "flag")]
    block: bool,
    /// Wait for what comes out of this port for the message.
    wait: Option<String>,
    /// How long: `10s`.
    timeout: Option<String>,
}

/// `POST /v1/actors/{actor}/ports/{port}`.
pub(super) async fn take(
    State(admin): State<Admin>,
    InPath((actor, port)): InPath<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let wanted: Wanted = query(&uri)?;
    // A stop within the start could not save it.
    if *admin.phase.borrow() == Phase::Starting {
        return Err(Problem::not_ready());
    }
    let actor = actors::running(&admin, &actor)?;
    let to = PortRef {
        actor: actor.name().clone(),
        port: port
            .parse()
            .map_err(|_| Problem::bad_request("port", "bad port", "a port's name is empty"))?,
    };
    let reading = Reading::new(&wanted, declared(&actor, &to)?)?;
    let intake = Intake { to, reading, block: wanted.block, trace: trace(&headers), admin };
    match (content(&headers)?, wanted.wait.as_deref()) {
        (Content::Lines, None) => intake.lines(body).await,
        (Content::Lines, Some(_)) => Err(cannot("one waits for the answer to one message only")),
        (Content::One, Some(_)) if wanted.block => {
            Err(cannot("`wait` and `block` do not go together"))
        }
        (Content::One, Some(port)) => {
            let port = answer_port(&intake.admin, &actor, port)?;
            let timeout = timeout(wanted.timeout.as_deref())?;
            let (message, receipt) = intake.one(body).await?;
            intake.ask(message, receipt, port, timeout).await
        }
        (Content::One, None) => {
            let (message, _receipt) = intake.one(body).await?;
            let id = intake.send(message).await.map_err(refused)?;
            Ok((StatusCode::ACCEPTED, Json(json!({ "id": id }))).into_response())
        }
    }
}

/// One request with messages for one port.
struct Intake {
    admin: Admin,
    to: PortRef,
    reading: Reading,
    block: bool,
    trace: Option<Arc<Trace>>,
}

impl Intake {
    async fn send(&self, message: Message) -> Result<MessageId, SendError> {
        if self.block {
            self.admin.system.send_waiting(&self.to, message, self.trace.clone()).await
        } else {
            self.admin.system.send(&self.to, message, self.trace.clone())
        }
    }

    /// The body as one message, with its share of what may come in at once.
    async fn one(&self, body: Body) -> Result<(Message, Receipt), Problem> {
        let (bytes, receipt) = self.admin.receipts.read(body, MAX_MESSAGE).await?;
        let message = self.reading.message(&bytes, &bytes).map_err(|error| unread(&error))?;
        Ok((message, receipt))
    }

    /// The body as messages, one a line, until one is not accepted.
    async fn lines(&self, mut body: Body) -> Result<Response, Problem> {
        let mut lines = Lines::new(MAX_MESSAGE);
        let mut receipt = self.admin.receipts.begin();
        let mut accepted = 0u64;
        // Until when a line that has begun may end. The next one may begin whenever it likes.
        let mut until = None;
        loop {
            let frame = match until {
                None => body.frame().await,
                Some(until) => time::timeout_at(until, body.frame())
                    .await
                    .map_err(|_| Problem::from(ReceiveError::TooSlow).with("accepted", accepted))?,
            };
            let Some(frame) = frame else { break };
            let broken = |error: axum::Error| {
                Problem::bad_request("body", "broken body", error.to_string())
                    .with("accepted", accepted)
            };
            let Ok(piece) = frame.map_err(broken)?.into_data() else { continue };
            lines.feed(piece);
            let long = |TooLong { number }, accepted: u64| {
                too_large("a line").with("accepted", accepted).with("line", number)
            };
            while let Some(line) = lines.next().map_err(|error| long(error, accepted))? {
                accepted += self.line(&line, accepted).await?;
                until = None;
                receipt.release();
            }
            let crowded = |crowded| Problem::from(crowded).with("accepted", accepted);
            receipt.grow_to(lines.begun()).map_err(crowded)?;
            until = (lines.begun() > 0).then(|| until.unwrap_or(Instant::now() + BODY_TIMEOUT));
            // A sender whose lines never run out must not keep the thread to itself.
            coop::consume_budget().await;
        }
        if let Some(line) = lines.last() {
            accepted += self.line(&line, accepted).await?;
        }
        Ok((StatusCode::ACCEPTED, Json(json!({ "accepted": accepted }))).into_response())
    }

    /// How many messages came of a line: one, or none where it is empty.
    async fn line(&self, line: &Line, accepted: u64) -> Result<u64, Problem> {
        let text = line.text();
        if text.is_empty() {
            return Ok(0);
        }
        let at = |problem: Problem| problem.with("accepted", accepted).with("line", line.number);
        let message =
            self.reading.message(&line.whole, text).map_err(|error| at(unread(&error)))?;
        self.send(message).await.map_err(|error| at(refused(error)))?;
        Ok(1)
    }

    /// Sends a message and waits for what comes out of `port` for it.
    async fn ask(
        &self,
        message: Message,
        receipt: Receipt,
        port: PortRef,
        timeout: Duration,
    ) -> Result<Response, Problem> {
        let system = &self.admin.system;
        let asked =
            system.ask(&self.to, message, self.trace.clone(), port.clone()).map_err(refused)?;
        // It is in a mailbox by now, and counted there.
        drop(receipt);
        let (id, stopping) = (asked.0, &self.admin.stopping);
        match answered(system, asked, &port, timeout, stopping).await? {
            Answered::Message(message) => {
                let headers = [
                    (header::CONTENT_TYPE, "application/json".to_owned()),
                    (header::HeaderName::from_static("reflowd-message-id"), id.to_string()),
                ];
                Ok((headers, message.encode()).into_response())
            }
            Answered::Nothing => Ok(StatusCode::NO_CONTENT.into_response()),
        }
    }
}

/// How bytes become messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// `{"type": …, "data": …}`.
    Encoded,
    /// The data alone, of this type.
    Of(Type),
    /// The data alone, for a port of this type.
    Plain(Type),
}

impl Reading {
    fn new(wanted: &Wanted, declared: Type) -> Result<Self, Problem> {
        match (&wanted.r#type, wanted.plain) {
            (None, false) => Ok(Self::Encoded),
            (None, true) => Ok(Self::Plain(declared)),
            (Some(_), true) => Err(cannot("`type` and `plain` do not go together")),
            (Some(name), false) => match Type::from_name(name) {
                Some(ty) => Ok(Self::Of(ty)),
                None => Err(unread(&MessageError::UnknownType(name.chars().take(40).collect()))),
            },
        }
    }

    /// The message in `part`, which lies within `whole`.
    fn message(self, whole: &Bytes, part: &[u8]) -> Result<Message, MessageError> {
        match self {
            Self::Encoded => Message::from_slice_of(whole, part),
            Self::Of(ty) => Message::new(ty, Bytes::copy_from_slice(part)),
            Self::Plain(port) => {
                let message = Message::from_plain(whole, part)?;
                if port == Type::Any || message.ty() == port || is_encoded(&message, part) {
                    return Ok(message);
                }
                // What looks like an Integer is a Float to a port that takes Floats, and `1.0` an
                // Integer to one that takes those.
                Ok(Message::new(port, message.data().clone()).unwrap_or(message))
            }
        }
    }
}

/// Whether plain data was a message in full, and so says its type itself.
fn is_encoded(message: &Message, part: &[u8]) -> bool {
    message.data().len() != part.trim_ascii().len()
}

enum Content {
    One,
    Lines,
}

/// A body must say what it is: pages cannot send these types unasked.
fn content(headers: &HeaderMap) -> Result<Content, Problem> {
    must_be_plain(headers)?;
    match media_type(headers).as_str() {
        one if is_json(one) => Ok(Content::One),
        "application/x-ndjson" | "application/jsonl" | "application/ndjson" => Ok(Content::Lines),
        _ => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content-type",
            "unknown content type",
            "send a message as application/json, or messages as application/x-ndjson",
        )),
    }
}

/// What a body says that it is, without parameters and in small letters; empty where it does not.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// Whether a media type is JSON, under a name of its own (RFC 6839) or none.
pub(crate) fn is_json(media_type: &str) -> bool {
    media_type == "application/json"
        || media_type.strip_suffix("+json").is_some_and(|name| name.contains('/'))
}

/// The type of an inport, or the problem that there is no such port.
fn declared(actor: &Actor, to: &PortRef) -> Result<Type, Problem> {
    let metadata = actor.metadata();
    if let Some(port) = metadata.inport(to.port.as_str()) {
        return Ok(port.port_type);
    }
    let names: Vec<_> = metadata.inports.iter().map(|port| port.name.as_str()).collect();
    let has = match names.join("`, `") {
        none if none.is_empty() => "takes no messages".to_owned(),
        names => format!("has `{names}`"),
    };
    let detail = format!("`{}` has no inport `{}`; it {has}", to.actor, to.port);
    let problem = Problem::not_found("no-port", "no such port", detail);
    Err(problem.with("actor", to.actor.as_str()).with("ports", names))
}

/// `PORT` or `ACTOR.PORT`: where the answer is to come out.
fn answer_port(admin: &Admin, actor: &Actor, text: &str) -> Result<PortRef, Problem> {
    let known = |actor: &Actor, port: &str| {
        let wired = |wire: &Arc<reflowd_runtime::Wire>| {
            wire.from().actor == *actor.name() && wire.from().port.as_str() == port
        };
        port == ERROR_PORT
            || actor.metadata().outport(port).is_some()
            || admin.system.wires().iter().any(wired)
    };
    let port: PortName = text
        .parse()
        .map_err(|_| Problem::bad_request("port", "bad port", "`wait` names an outport"))?;
    // A port's own name may have a dot in it.
    if known(actor, text) {
        return Ok(PortRef { actor: actor.name().clone(), port });
    }
    let named = text.parse::<PortRef>().ok();
    let stranger =
        named.as_ref().filter(|named| admin.system.actor(named.actor.as_str()).is_none());
    let stranger = stranger.map(|named| format!(", and there is no actor `{}`", named.actor));
    let other = named.and_then(|port| Some((admin.system.actor(port.actor.as_str())?, port)));
    let (at, port) = match other {
        Some((other, port)) if known(&other, port.port.as_str()) => return Ok(port),
        Some((other, port)) => (Some(other), port.port),
        None => (None, port),
    };
    let at = at.as_deref().unwrap_or(actor);
    let metadata = at.metadata();
    let names: Vec<_> = metadata.outports.iter().map(|port| port.name.as_str()).collect();
    let has = match names.join("`, `") {
        none if none.is_empty() => "puts nothing out".to_owned(),
        names => format!("has `{names}`"),
    };
    let stranger = stranger.unwrap_or_default();
    let detail = format!("`{}` has no outport `{port}`; it {has}{stranger}", at.name());
    let problem = Problem::not_found("no-port", "no such port", detail);
    Err(problem.with("actor", at.name().as_str()).with("ports", names))
}

fn timeout(text: Option<&str>) -> Result<Duration, Problem> {
    text.map_or(Ok(DEFAULT_WAIT), wait_of)
}

/// How long somebody is ready to wait.
pub(super) fn wait_of(text: &str) -> Result<Duration, Problem> {
    // The library takes a bare 0, and no other number without a unit.
    let bare = text.bytes().all(|byte| byte.is_ascii_digit());
    match humantime::parse_duration(text) {
        Ok(_) if bare => Err(cannot("`timeout` is a duration such as `10s`")),
        Ok(timeout) if timeout <= LONGEST_WAIT => Ok(timeout),
        Ok(_) => Err(cannot("`timeout` is an hour at most")),
        Err(error) => Err(cannot(&format!("`timeout` is a duration such as `10s`: {error}"))),
    }
}

/// The trace that a request belongs to, as its headers say.
pub(crate) fn trace(headers: &HeaderMap) -> Option<Arc<Trace>> {
    let all = |name| headers.get_all(name).iter();
    // One that is no text must not be passed over: with another beside it, neither counts.
    let parents = all("traceparent").map(|value| value.to_str().unwrap_or_default());
    let states = all("tracestate").map(|value| value.to_str().unwrap_or_default());
    Trace::of_headers(parents, states).map(Arc::new)
}

fn cannot(why: &str) -> Problem {
    Problem::bad_request("query", "bad query", why)
}

fn too_large(what: &str) -> Problem {
    let detail = format!("{what} is larger than {MAX_MESSAGE} bytes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "too large", detail)
        .with("max", MAX_MESSAGE)
}

/// The bytes are no message.
fn unread(error: &MessageError) -> Problem {
    let status = match error {
        MessageError::NotJson(_) | MessageError::Shape(_) => StatusCode::BAD_REQUEST,
        MessageError::UnknownType(_) | MessageError::Unfit { .. } | MessageError::Fault(_) => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
    };
    Problem::new(status, "bad-message", "bad message", error.to_string())
}

/// The message was not taken.
fn refused(error: SendError) -> Problem {
    let detail = error.to_string();
    match error {
        SendError::Full { actor, .. } => Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "mailbox-full",
            "the mailbox is full",
            detail,
        )
        .with("actor", actor.as_str()),
        SendError::OverBudget { .. } => {
            let status = StatusCode::TOO_MANY_REQUESTS;
            Problem::new(status, "over-budget", "the daemon's queues are full", detail)
        }
        SendError::NoActor { actor, .. } => {
            Problem::not_found("no-actor", "no such actor", detail).with("actor", actor.as_str())
        }
        SendError::NoPort { actor, .. } => {
            Problem::not_found("no-port", "no such port", detail).with("actor", actor.as_str())
        }
        SendError::Type { wants, found, .. } => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "wrong-type",
            "the port takes another type",
            detail,
        )
        .with("wants", wants.name())
        .with("found", found.name()),
        SendError::Draining { actor, .. } => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "draining", "stopping", detail)
                .with("actor", actor.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(port: Type, text: &str, expected: &str) {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let message = Reading::Plain(port).message(&bytes, &bytes).unwrap();
        assert_eq!(message.encode(), expected, "{text} for {port}");
    }

    #[test]
    fn plain_data_takes_the_type_of_its_port_where_it_can() {
        check(Type::Float, "5", r#"{"type":"Float","data":5}"#);
        check(Type::Integer, "5", r#"{"type":"Integer","data":5}"#);
        check(Type::Any, "5", r#"{"type":"Integer","data":5}"#);
        check(Type::Flow, "null", r#"{"type":"Flow","data":null}"#);
        check(Type::Event, r#"{"a":1}"#, r#"{"type":"Event","data":{"a":1}}"#);
        check(Type::Stream, " [1,2] ", r#"{"type":"Stream","data":[1,2]}"#);
        check(Type::Error, r#""x""#, r#"{"type":"Error","data":"x"}"#);
        // What does not fit keeps its own type, for the port to refuse.
        check(Type::Integer, r#""x""#, r#"{"type":"String","data":"x"}"#);
        // What says its type is of that type.
        check(Type::Event, r#"{"type":"Float","data":1}"#, r#"{"type":"Float","data":1}"#);
    }

    #[test]
    fn a_trace_context_is_taken_only_well_formed_and_alone() {
        let of = |headers: &[(&'static str, &str)]| {
            let headers = headers.iter().map(|(name, value)| {
                (header::HeaderName::from_static(name), value.parse().unwrap())
            });
            let trace = trace(&HeaderMap::from_iter(headers))?;
            Some((trace.context.to_string(), trace.state.as_deref().map(ToOwned::to_owned)))
        };
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(of(&[("traceparent", good)]), Some((good.into(), None)));
        assert_eq!(of(&[("traceparent", &good.to_uppercase())]), None);
        assert_eq!(of(&[("traceparent", &good[1..])]), None);
        assert_eq!(of(&[("traceparent", good), ("traceparent", good)]), None);
        assert_eq!(of(&[("traceparent", good), ("traceparent", "é")]), None);
        assert_eq!(of(&[("tracestate", "a=1")]), None);
        let states = [("traceparent", good), ("tracestate", "a=1"), ("tracestate", "b=2")];
        assert_eq!(of(&states), Some((good.into(), Some("a=1,b=2".into()))));
    }
}
