//! `std:http-out`: a request for each message.
//!
//! At least once: whatever a request came to, the message is done when an answer says so,
//! and the next attempt carries the same `Idempotency-Key`, so that a receiver can tell. What
//! follows from an attempt is decided in one place, [`Outcome`]: a receiver that is not there
//! is waited for, and the message with it; one that breaks is asked again, `retries` times;
//! one that says no has answered. The status decides; the body is taken as far as it arrives.

mod target;

use std::{
    collections::BTreeMap,
    io::Read,
    mem,
    sync::Arc,
    time::{self, Duration},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use reflowd_loader::is_reserved_header;
use reflowd_runtime::{
    Context, Digest, Effects, Engine, Failure, FailureKind, HttpRequest, InstantiateError, Message,
    Metadata, PortName, Program, Setback, Turn, TurnTrace, Type, check_json_within, excerpt,
    panic::blocking,
};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};
use tokio::time::Instant;
use ureq::{Agent, Body};

use self::target::Target;
use super::{Builtin, Prepared, Setting, port, port_name, sink::What};
use crate::retry_after::retry_after;

/// How long a request may take unless its configuration says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit for resolving the receiver's name, and again for connecting to it.
const CONNECT: Duration = Duration::from_secs(5);

/// Default for the longest `Retry-After` to obey: enough for hourly quotas, while a date that is
/// years ahead by mistake does not block the actor for longer.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Larger bodies are sent with `Expect: 100-continue`, so that a receiver can refuse them before
/// they are sent. Otherwise it may close the connection halfway, which looks like an outage. The
/// threshold is curl's.
const ASKS_FIRST: usize = 1 << 20;

/// Bytes of an answer that are passed on; the rest is cut.
const MAX_ANSWER: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Where requests go. `${NAME}` stands for a value of the actor's `env`.
    url: String,
    /// `POST`, `PUT` or `PATCH`.
    #[serde(default = "post")]
    method: String,
    /// Headers by name. `${NAME}` stands for a value of the actor's `env`.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// How long a request may take, from the name's resolution to the answer's last byte.
    timeout: Option<String>,
    /// The longest `Retry-After` to obey.
    max_retry_after: Option<String>,
    /// What of a message is sent.
    #[serde(default)]
    what: What,
}

fn post() -> String {
    "POST".into()
}

pub(super) fn metadata() -> Metadata {
    Metadata {
        component: "std:http-out".into(),
        description: "sends each message to a URL, as JSON".into(),
        inports: vec![port("in", "what is to be sent", Type::Any)],
        outports: vec![port(
            "response",
            "{\"status\": 200, \"headers\": {…}, \"body\": JSON, or a string where it is none}",
            Type::Object,
        )],
        config_schema: Some(json!({
            "type": "object",
            "properties": {
                "url": { "type": "string", "description": "http or https; user and password are percent-encoded; ${NAME} stands for a value of the actor's env" },
                "method": { "enum": ["POST", "PUT", "PATCH"], "default": "POST" },
                "headers": {
                    "type": "object",
                    "additionalProperties": { "type": "string" },
                    "description": "${NAME} stands for a value of the actor's env",
                },
                "timeout": { "type": "string", "default": "10s", "description": "how long a request may take" },
                "max_retry_after": {
                    "type": "string",
                    "default": "1h",
                    "description": "the longest pause that a receiver may ask for with Retry-After; 0s for none",
                },
                "what": What::schema(),
            },
            "required": ["url"],
            "additionalProperties": false,
        })),
        version: None,
    }
}

pub(super) fn prepare(
    builtin: Builtin,
    config: Config,
    setting: &Setting<'_>,
) -> Result<Prepared, String> {
    let env = &setting.keys.env;
    let target = Target::read(&config.url, env).map_err(|why| format!("`url`: {why}"))?;
    let method = match config.method.as_str() {
        "POST" => Method::POST,
        "PUT" => Method::PUT,
        "PATCH" => Method::PATCH,
        _ => return Err("`method` is POST, PUT or PATCH".into()),
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in &config.headers {
        let in_header = |why: String| format!("the header `{name}`: {why}");
        let key: HeaderName = name.parse().map_err(|_| in_header("it is no header name".into()))?;
        if is_reserved_header(key.as_str()) || key == IDEMPOTENCY_KEY {
            return Err(in_header("reflowd sets it itself".into()));
        }
        let mut value: HeaderValue = filled(value, env)
            .map_err(in_header)?
            .parse()
            .map_err(|_| in_header("its value has characters that no header may have".into()))?;
        value.set_sensitive(true);
        headers.insert(key, value);
    }
    if let Some(authorization) = target.authorization
        && headers.insert(header::AUTHORIZATION, authorization).is_some()
    {
        return Err("`url` has a user, and `headers` have an Authorization: leave one out".into());
    }
    let timeout = duration("timeout", config.timeout.as_deref())?.unwrap_or(TIMEOUT);
    if timeout.is_zero() {
        return Err("`timeout` is 0; it is a duration such as 10s".into());
    }
    let max_retry_after = duration("max_retry_after", config.max_retry_after.as_deref())?;
    let request = Request {
        url: target.url,
        method,
        headers,
        timeout,
        max_retry_after: max_retry_after.unwrap_or(MAX_RETRY_AFTER),
        what: config.what,
    };
    Ok(Prepared::Sink(Arc::new(HttpOut {
        digest: builtin.digest(),
        metadata: metadata(),
        request: Arc::new(request),
    })))
}

fn duration(key: &str, text: Option<&str>) -> Result<Option<Duration>, String> {
    let read = |text| humantime::parse_duration(text);
    let bad = |_| format!("`{key}` is {}; it is a duration such as 10s", text.unwrap_or_default());
    text.map(read).transpose().map_err(bad)
}

/// A part of a text with placeholders.
enum TemplatePiece<'t> {
    /// As it is written.
    Text(&'t str),
    /// The value that `${NAME}` stands for.
    Value(&'t str),
}

/// Takes a text apart at the values of `env` that it names as `${NAME}`.
fn fill(
    text: &str,
    env: &BTreeMap<String, String>,
    mut take: impl FnMut(TemplatePiece<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, behind)) = after.split_once('}') else {
            return Err("`${` has no `}`".into());
        };
        let Some(value) = env.get(name) else {
            return Err(format!("there is no `{name}` in the actor's `env`"));
        };
        take(TemplatePiece::Text(before))?;
        take(TemplatePiece::Value(value.trim()))?;
        rest = behind;
    }
    take(TemplatePiece::Text(rest))
}

/// A text with the values of `env` where it names them.
fn filled(text: &str, env: &BTreeMap<String, String>) -> Result<String, String> {
    let mut filled = String::new();
    fill(text, env, |piece| {
        let (TemplatePiece::Text(text) | TemplatePiece::Value(text)) = piece;
        filled.push_str(text);
        Ok(())
    })?;
    Ok(filled)
}

/// By which a receiver knows that it has seen a message before.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What all requests of an actor have in common.
struct Request {
    url: Uri,
    method: Method,
    headers: HeaderMap,
    timeout: Duration,
    max_retry_after: Duration,
    what: What,
}

struct HttpOut {
    digest: Digest,
    metadata: Metadata,
    request: Arc<Request>,
}

impl Program for HttpOut {
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
        let sender = Sender {
            request: Arc::clone(&self.request),
            agent: new_agent(),
            keeps: Keeps::Nothing,
            response: port_name("response"),
        };
        Box::pin(async move { Ok(Box::new(sender) as Box<dyn Engine>) })
    }
}

fn new_agent() -> Agent {
    // Where requests go is the operator's to say, not the environment's or the receiver's.
    let config = Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .user_agent(concat!("reflowd/", env!("CARGO_PKG_VERSION")))
        .build();
    Agent::new_with_config(config)
}

/// Sends, over a connection that it keeps.
struct Sender {
    request: Arc<Request>,
    agent: Agent,
    keeps: Keeps,
    response: PortName,
}

/// Set once the agent may hold a connection of an earlier request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keeps {
    Nothing,
    Connection,
}

impl Engine for Sender {
    fn turn(mut self: Box<Self>, context: Context, deadline: Instant) -> BoxFuture<'static, Turn> {
        Box::pin(async move {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = self.request.timeout.min(left);
            let sent = blocking(move || {
                let outcome = self.send(&context, timeout);
                (self, outcome)
            });
            let (sender, outcome) = sent.await;
            match outcome {
                Outcome::Done(message) => {
                    let outputs = vec![(sender.response.clone(), message)];
                    Ok((sender as Box<dyn Engine>, Effects { outputs, state: None }))
                }
                Outcome::Lost(kind) | Outcome::Said(kind) => {
                    Err(Failure { kind, engine: Some(sender) })
                }
            }
        })
    }
}

impl Sender {
    /// Sends a message and reads what comes back. Blocks.
    fn send(&mut self, context: &Context, timeout: Duration) -> Outcome {
        let began = time::Instant::now();
        let mut left = timeout;
        loop {
            let outcome = self.request.send(&self.agent, context, left);
            if !matches!(outcome, Outcome::Lost(_)) {
                self.keeps = Keeps::Connection;
                return outcome;
            }
            self.agent = new_agent();
            left = timeout.saturating_sub(began.elapsed());
            // The receiver may have closed an idle connection, which is no outage: try once more
            // on a fresh one.
            let kept = mem::replace(&mut self.keeps, Keeps::Nothing);
            if kept == Keeps::Nothing || left.is_zero() {
                return outcome;
            }
        }
    }
}

/// What came of an attempt.
#[derive(Debug)]
enum Outcome {
    /// The receiver has it.
    Done(Message),
    /// No usable answer on this connection; another one may do.
    Lost(FailureKind),
    /// Anything else.
    Said(FailureKind),
}

impl Request {
    fn send(&self, agent: &Agent, context: &Context, timeout: Duration) -> Outcome {
        let mut body = Vec::new();
        for (_, message) in &context.payload {
            match self.what {
                What::Data => body.extend_from_slice(message.data()),
                What::Message => message.encode_to(&mut body),
            }
        }
        let span = context.trace.as_ref().map(TurnTrace::request);
        let mut request =
            http::Request::builder().method(self.method.clone()).uri(self.url.clone());
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers.clone());
            if body.len() > ASKS_FIRST {
                headers.insert(header::EXPECT, HeaderValue::from_static("100-continue"));
            }
            let key = format!("\"{}\"", context.message);
            let key = key.parse().expect("digits and quotes are a header's value");
            headers.insert(IDEMPOTENCY_KEY, key);
            // A configured context goes alone: what vendors have added belongs to the other.
            if let Some(span) = span.as_ref().filter(|_| !headers.contains_key("traceparent")) {
                let parent = span.traceparent().parse().expect("digits make a header's value");
                headers.insert("traceparent", parent);
                if let Some(state) = span.tracestate().and_then(|state| state.parse().ok()) {
                    headers.entry("tracestate").or_insert(state);
                }
            }
        }
        let request = request.body(&body[..]).expect("every part was checked before");
        // Half each, so that the overall limit never hides that the receiver is away.
        let connect = CONNECT.min(timeout / 2);
        let request = agent
            .configure_request(request)
            .timeout_global(Some(timeout))
            .timeout_resolve(Some(connect))
            .timeout_connect(Some(connect))
            .build();
        let sent = agent.run(request);
        if let Some(span) = span {
            let status = sent.as_ref().ok().map(|response| response.status().as_u16());
            let failure = sent.as_ref().err().map(|error| ("http", error.to_string()));
            let about = HttpRequest::of(self.method.as_str(), &self.url.to_string());
            span.end(HttpRequest { status, ..about }, failure);
        }
        match sent {
            Ok(response) => self.outcome(read(response)),
            Err(error) => self.failed(&error),
        }
    }

    /// What follows where there was no answer.
    fn failed(&self, error: &ureq::Error) -> Outcome {
        let why = self.told(&error.to_string());
        match error {
            // No failure before the response, from a failed DNS lookup to an expired
            // certificate, is the message's fault.
            ureq::Error::Io(_)
            | ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::Tls(_)
            | ureq::Error::Rustls(_)
            | ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
                Outcome::Lost(FailureKind::Unavailable(why.into()))
            }
            _ => Outcome::Said(FailureKind::Remote(why.into())),
        }
    }

    /// The outcome of an answer.
    fn outcome(&self, answer: Answer) -> Outcome {
        match Verdict::of(answer.status, answer.retry_after) {
            Verdict::Done => Outcome::Done(answer.message()),
            Verdict::Refused => Outcome::Said(FailureKind::Refused(self.complaint(&answer))),
            Verdict::Broken => Outcome::Said(FailureKind::Remote(self.setback(&answer))),
            Verdict::Later => Outcome::Said(FailureKind::Unavailable(self.setback(&answer))),
            Verdict::Elsewhere => Outcome::Lost(FailureKind::Unavailable(self.setback(&answer))),
        }
    }

    /// A failed delivery, with the pause that the receiver asks for as far as it is obeyed.
    fn setback(&self, answer: &Answer) -> Setback {
        let pause = answer.retry_after.map(|pause| pause.min(self.max_retry_after));
        let pause = pause.filter(|_| !self.max_retry_after.is_zero());
        Setback { why: self.complaint(answer), pause }
    }

    /// The receiver's answer as a reason.
    fn complaint(&self, answer: &Answer) -> String {
        let shown = excerpt(&answer.body);
        let why = format!("the receiver answered {}: {}", answer.status, shown.trim());
        self.told(why.trim_end_matches(": "))
    }

    /// A reason with the connector and the receiver, without the path, which may hold a secret.
    fn told(&self, why: &str) -> String {
        let scheme = self.url.scheme_str().unwrap_or_default();
        let authority = self.url.authority().map_or("", http::uri::Authority::as_str);
        format!("std:http-out: {} {scheme}://{authority}: {why}", self.method)
    }
}

/// The consequence of a response for its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The receiver has it.
    Done,
    /// It may come again later.
    Later,
    /// The same on another connection, at once or later.
    Elsewhere,
    /// The receiver has broken on it.
    Broken,
    /// The receiver does not want it.
    Refused,
}

impl Verdict {
    fn of(status: StatusCode, retry_after: Option<Duration>) -> Self {
        match status.as_u16() {
            200..=299 => Self::Done,
            // 408: the server gave up waiting, often on an idle connection, and closes it. 421:
            // this connection leads to the wrong server.
            408 | 421 => Self::Elsewhere,
            // 425: too early. 429: too many requests.
            425 | 429 | 502..=504 => Self::Later,
            // Temporary if it says until when (RFC 9110, 15.5.14).
            413 if retry_after.is_some() => Self::Later,
            500..=599 => Self::Broken,
            _ => Self::Refused,
        }
    }
}

/// What a receiver has answered.
struct Answer {
    status: StatusCode,
    headers: Map<String, Value>,
    retry_after: Option<Duration>,
    body: Vec<u8>,
    is_cut: bool,
}

fn read(response: http::Response<Body>) -> Answer {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let mut headers = Map::new();
    for name in response.headers().keys() {
        let values = response.headers().get_all(name).into_iter();
        let values: Vec<_> =
            values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        headers.insert(name.as_str().into(), values.join(", ").into());
    }
    let mut body = Vec::new();
    // The status has decided, so a body that breaks off is kept as far as it came.
    let came = response.into_body().into_reader().take(MAX_ANSWER + 1).read_to_end(&mut body);
    let is_over = body.len() as u64 > MAX_ANSWER;
    if is_over {
        body.pop();
    }
    Answer { status, headers, retry_after, body, is_cut: is_over || came.is_err() }
}

impl Answer {
    fn message(self) -> Message {
        let json = serde_json::from_slice::<&RawValue>(&self.body).ok();
        // It will be one level deeper in the message.
        let json = json.filter(|json| check_json_within(json.get().as_bytes(), 1).is_ok());
        let body = match json {
            Some(json) => json.get().to_owned(),
            None => Value::from(String::from_utf8_lossy(&self.body)).to_string(),
        };
        let cut = if self.is_cut { ",\"truncated\":true" } else { "" };
        let headers = Value::Object(self.headers);
        let status = self.status.as_u16();
        let data = format!("{{\"status\":{status},\"headers\":{headers},\"body\":{body}{cut}}}");
        Message::new(Type::Object, Bytes::from(data)).expect("an object is an Object")
    }
}

#[cfg(test)]
mod tests {
    use reflowd_runtime::MAX_DEPTH;

    use super::*;

    #[test]
    fn values_of_the_environment_stand_where_they_are_named() {
        let env = BTreeMap::from([("TOKEN".to_owned(), "s3cret\n".to_owned())]);
        #[track_caller]
        fn check(text: &str, env: &BTreeMap<String, String>, expected: Result<&str, &str>) {
            assert_eq!(filled(text, env).as_deref().map_err(String::as_str), expected);
        }
        check("plain $TOKEN", &env, Ok("plain $TOKEN"));
        check("Bearer ${TOKEN}", &env, Ok("Bearer s3cret"));
        check("${TOKEN}${TOKEN}", &env, Ok("s3crets3cret"));
        check("${TOKEN", &env, Err("`${` has no `}`"));
        check("${OTHER}", &env, Err("there is no `OTHER` in the actor's `env`"));
    }

    #[test]
    fn a_status_says_what_follows() {
        use Verdict::{Broken, Done, Elsewhere, Later, Refused};
        for (status, expected) in [
            (200, Done),
            (202, Done),
            (204, Done),
            (301, Refused),
            (400, Refused),
            (404, Refused),
            (408, Elsewhere),
            (409, Refused),
            (413, Refused),
            (421, Elsewhere),
            (425, Later),
            (429, Later),
            (500, Broken),
            (501, Broken),
            (502, Later),
            (503, Later),
            (504, Later),
        ] {
            let verdict = Verdict::of(StatusCode::from_u16(status).unwrap(), None);
            assert_eq!(verdict, expected, "{status}");
        }
        assert_eq!(Verdict::of(StatusCode::PAYLOAD_TOO_LARGE, Some(Duration::ZERO)), Later);
    }

    fn request(max_retry_after: Duration) -> Request {
        Request {
            url: "https://h:8/hook/secret".parse().unwrap(),
            method: Method::POST,
            headers: HeaderMap::new(),
            timeout: TIMEOUT,
            max_retry_after,
            what: What::Data,
        }
    }

    fn answer(status: u16, retry_after: Option<u64>, body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: Map::new(),
            retry_after: retry_after.map(Duration::from_secs),
            body: body.as_bytes().to_vec(),
            is_cut: false,
        }
    }

    #[test]
    fn a_pause_is_as_long_as_it_is_asked_for_but_for_a_bound() {
        #[track_caller]
        fn check(status: u16, asked: Option<u64>, bound: u64, expected: Option<u64>) {
            let request = request(Duration::from_secs(bound));
            let (Outcome::Said(kind) | Outcome::Lost(kind)) =
                request.outcome(answer(status, asked, ""))
            else {
                panic!("it was delivered")
            };
            assert_eq!(kind.pause(), expected.map(Duration::from_secs), "{status}");
        }
        for status in [408, 413, 421, 425, 429, 500, 502, 503, 504] {
            check(status, Some(8), 60, Some(8));
            check(status, Some(u64::MAX), 60, Some(60));
            check(status, Some(0), 60, Some(0));
            check(status, None, 60, None);
            check(status, Some(8), 0, None);
        }
        check(404, Some(8), 60, None);
    }

    #[test]
    fn a_reason_names_the_connector_and_not_the_path() {
        let request = request(MAX_RETRY_AFTER);
        for status in [404, 408, 429, 500] {
            let (Outcome::Said(kind) | Outcome::Lost(kind)) =
                request.outcome(answer(status, None, "why"))
            else {
                panic!("it was delivered")
            };
            let why = kind.to_string();
            let begin = format!("std:http-out: POST https://h:8: the receiver answered {status} ");
            assert!(why.starts_with(&begin) && why.ends_with(": why"), "{why}");
        }
        let Outcome::Lost(kind) = request.failed(&ureq::Error::HostNotFound) else {
            panic!("it was answered")
        };
        assert!(kind.to_string().starts_with("std:http-out: POST https://h:8: "), "{kind}");
    }

    #[test]
    fn what_breaks_before_an_answer_is_an_outage() {
        use std::io::{Error, ErrorKind};
        #[track_caller]
        fn check(error: ureq::Error, expected: &str) {
            let (Outcome::Said(kind) | Outcome::Lost(kind)) =
                request(MAX_RETRY_AFTER).failed(&error)
            else {
                panic!("it was delivered")
            };
            assert_eq!(kind.class(), expected, "{error}");
        }
        for kind in [
            ErrorKind::ConnectionRefused,
            ErrorKind::ConnectionReset,
            ErrorKind::ConnectionAborted,
            ErrorKind::BrokenPipe,
            ErrorKind::UnexpectedEof,
            ErrorKind::HostUnreachable,
            ErrorKind::TimedOut,
            // As a certificate that is over.
            ErrorKind::InvalidData,
        ] {
            check(ureq::Error::Io(kind.into()), "unavailable");
        }
        // As the resolver says it, in a kind of error that has no name.
        let name = Error::other("failed to lookup address information: Try again");
        check(ureq::Error::Io(name), "unavailable");
        check(ureq::Error::Timeout(ureq::Timeout::Resolve), "unavailable");
        check(ureq::Error::Timeout(ureq::Timeout::Connect), "unavailable");
        check(ureq::Error::Timeout(ureq::Timeout::Global), "remote");
        check(ureq::Error::LargeResponseHeader(2, 1), "remote");
    }

    #[test]
    fn an_answer_is_json_where_it_can_be() {
        fn said(body: &str) -> String {
            let answer = answer(200, None, body);
            String::from_utf8(answer.message().data().to_vec()).unwrap()
        }
        assert_eq!(said("{\"a\": 1.0}"), r#"{"status":200,"headers":{},"body":{"a": 1.0}}"#);
        // A body that is not strict JSON is passed on as text.
        assert_eq!(said("1e400"), r#"{"status":200,"headers":{},"body":"1e400"}"#);
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let deep = nested(MAX_DEPTH - 1);
        assert_eq!(said(&deep), format!(r#"{{"status":200,"headers":{{}},"body":{deep}}}"#));
        let deeper = nested(MAX_DEPTH);
        assert_eq!(said(&deeper), format!(r#"{{"status":200,"headers":{{}},"body":"{deeper}"}}"#));
        assert_eq!(said("fine\""), r#"{"status":200,"headers":{},"body":"fine\""}"#);
        assert_eq!(said(""), r#"{"status":200,"headers":{},"body":""}"#);
    }

    #[test]
    fn a_header_that_comes_twice_is_told_whole() {
        let response = http::Response::builder()
            .header("via", "1.1 a")
            .header("via", "1.1 b")
            .body(Body::builder().data("1"))
            .unwrap();
        let answer = read(response);
        assert_eq!(Value::Object(answer.headers), json!({ "via": "1.1 a, 1.1 b" }));
    }
}
