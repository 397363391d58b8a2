//! `std:http-out`: a request for each message.
//!
//! At least once: whatever a request came to, the message is done when an answer says so,
//! and the next attempt carries the same `Idempotency-Key`, so that a receiver can tell. What
//! follows from an attempt is decided in one place, [`Outcome`]: a receiver that is not there
//! is waited for, and the message with it; one that breaks is asked again, `retries` times;
//! one that says no has answered.

use std::{collections::BTreeMap, io::Read, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use reflowd_loader::is_reserved_header;
use reflowd_runtime::{
    Context, Digest, Effects, Engine, Failure, FailureKind, InstantiateError, Message, Metadata,
    PortName, Program, Turn, Type, excerpt,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::{task::spawn_blocking, time::Instant};
use ureq::{Agent, Body};

use super::{Builtin, Prepared, Setting, port, port_name, sink::What};

/// How long a request may take unless its configuration says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long it may take of that to come to the receiver at all.
const CONNECT: Duration = Duration::from_secs(5);

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
                "url": { "type": "string", "description": "http or https; ${NAME} stands for a value of the actor's env" },
                "method": { "enum": ["POST", "PUT", "PATCH"], "default": "POST" },
                "headers": {
                    "type": "object",
                    "additionalProperties": { "type": "string" },
                    "description": "${NAME} stands for a value of the actor's env",
                },
                "timeout": { "type": "string", "default": "10s", "description": "how long a request may take" },
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
    let url: Uri = filled(&config.url, env)
        .map_err(|why| format!("`url`: {why}"))?
        .parse()
        .map_err(|error| format!("`url` is no URL: {error}"))?;
    if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) {
        return Err("`url` begins with http:// or https:// and a host".into());
    }
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
    let timeout = match &config.timeout {
        None => TIMEOUT,
        Some(text) => humantime::parse_duration(text)
            .ok()
            .filter(|timeout| !timeout.is_zero())
            .ok_or_else(|| format!("`timeout` is {text}; it is a duration such as 10s"))?,
    };
    let request = Request { url, method, headers, timeout, what: config.what };
    Ok(Prepared::Sink(Arc::new(HttpOut {
        digest: builtin.digest(),
        metadata: metadata(),
        request: Arc::new(request),
    })))
}

/// A text with the values of `env` where it names them as `${NAME}`.
fn filled(text: &str, env: &BTreeMap<String, String>) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, behind)) = after.split_once('}') else {
            return Err("`${` has no `}`".into());
        };
        let Some(value) = env.get(name) else {
            return Err(format!("there is no `{name}` in the actor's `env`"));
        };
        filled.push_str(before);
        filled.push_str(value.trim());
        rest = behind;
    }
    filled.push_str(rest);
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
        // Where requests go is the operator's to say, not the environment's or the receiver's.
        let config = Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("reflowd/", env!("CARGO_PKG_VERSION")))
            .build();
        let (request, agent) = (Arc::clone(&self.request), Agent::new_with_config(config));
        let response = port_name("response");
        Box::pin(
            async move { Ok(Box::new(Sender { request, agent, response }) as Box<dyn Engine>) },
        )
    }
}

/// Sends, over connections that it keeps.
struct Sender {
    request: Arc<Request>,
    agent: Agent,
    response: PortName,
}

impl Engine for Sender {
    fn turn(self: Box<Self>, context: Context, deadline: Instant) -> BoxFuture<'static, Turn> {
        Box::pin(async move {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = self.request.timeout.min(left);
            let (request, agent) = (Arc::clone(&self.request), self.agent.clone());
            let sent = spawn_blocking(move || request.send(&agent, &context, timeout)).await;
            match sent.expect("sending a request does not panic") {
                Outcome::Done(message) => {
                    let outputs = vec![(self.response.clone(), message)];
                    Ok((self as Box<dyn Engine>, Effects { outputs, state: None }))
                }
                Outcome::Said(kind) => Err(Failure { kind, engine: Some(self) }),
            }
        })
    }
}

/// What came of an attempt.
#[derive(Debug)]
enum Outcome {
    /// The receiver has it.
    Done(Message),
    /// Anything else.
    Said(FailureKind),
}

impl Request {
    /// Sends a message and reads what comes back. Blocks.
    fn send(&self, agent: &Agent, context: &Context, timeout: Duration) -> Outcome {
        let mut body = Vec::new();
        for (_, message) in &context.payload {
            match self.what {
                What::Data => body.extend_from_slice(message.data()),
                What::Message => message.encode_to(&mut body),
            }
        }
        let mut request =
            http::Request::builder().method(self.method.clone()).uri(self.url.clone());
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers.clone());
            let key = format!("\"{}\"", context.message);
            let key = key.parse().expect("digits and quotes are a header's value");
            headers.insert(IDEMPOTENCY_KEY, key);
            let trace = context.traceparent.as_deref().and_then(|text| text.parse().ok());
            if let Some(trace) = trace
                && !headers.contains_key("traceparent")
            {
                headers.insert("traceparent", trace);
            }
        }
        let request = request.body(&body[..]).expect("every part was checked before");
        let request = agent
            .configure_request(request)
            .timeout_global(Some(timeout))
            .timeout_connect(Some(timeout.min(CONNECT)))
            .build();
        match agent.run(request) {
            Ok(response) => match read(response) {
                Ok(answer) => answer.outcome(),
                Err(error) => {
                    let why = format!("{}: the answer broke off: {error}", self.place());
                    Outcome::Said(FailureKind::Remote(why))
                }
            },
            Err(error) => Outcome::Said(self.failed(&error)),
        }
    }

    /// What follows where there was no answer.
    fn failed(&self, error: &ureq::Error) -> FailureKind {
        let why = format!("{}: {error}", self.place());
        match error {
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => {
                FailureKind::Unavailable(why)
            }
            ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
                FailureKind::Unavailable(why)
            }
            ureq::Error::Io(io) if is_away(io) => FailureKind::Unavailable(why),
            _ => FailureKind::Remote(why),
        }
    }

    /// The receiver, without what may be secret in its path.
    fn place(&self) -> String {
        let scheme = self.url.scheme_str().unwrap_or_default();
        let authority = self.url.authority().map_or("", http::uri::Authority::as_str);
        let authority = authority.rsplit('@').next().unwrap_or_default();
        format!("{} {scheme}://{authority}", self.method)
    }
}

/// Whether nobody is there to be asked, so that nothing can have come of it.
fn is_away(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable,
    };
    let kinds =
        [AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable];
    kinds.contains(&error.kind())
}

/// What a receiver has answered.
struct Answer {
    status: StatusCode,
    headers: Map<String, Value>,
    body: Vec<u8>,
    is_cut: bool,
}

fn read(response: http::Response<Body>) -> std::io::Result<Answer> {
    let status = response.status();
    let mut headers = Map::new();
    for name in response.headers().keys() {
        let values = response.headers().get_all(name).into_iter();
        let values: Vec<_> =
            values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        headers.insert(name.as_str().into(), values.join(", ").into());
    }
    let mut body = Vec::new();
    response.into_body().into_reader().take(MAX_ANSWER + 1).read_to_end(&mut body)?;
    let is_cut = body.len() as u64 > MAX_ANSWER;
    if is_cut {
        body.pop();
    }
    Ok(Answer { status, headers, body, is_cut })
}

impl Answer {
    /// What follows from an answer: 2xx is done; 429, 502, 503 and 504 say to come later;
    /// other 5xx that it went wrong; the rest is a no, and so is a redirect.
    fn outcome(self) -> Outcome {
        let status = self.status;
        if status.is_success() {
            return Outcome::Done(self.message());
        }
        let shown = excerpt(&self.body);
        let why = format!("the receiver answered {status}: {}", shown.trim());
        let why = why.trim_end_matches(": ").to_owned();
        Outcome::Said(match status.as_u16() {
            429 | 502..=504 => FailureKind::Unavailable(why),
            500..=599 => FailureKind::Remote(why),
            _ => FailureKind::Guest(why),
        })
    }

    fn message(self) -> Message {
        let body = match serde_json::from_slice::<&serde_json::value::RawValue>(&self.body) {
            Ok(json) => json.get().to_owned(),
            Err(_) => Value::from(String::from_utf8_lossy(&self.body)).to_string(),
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
        fn said(status: u16) -> &'static str {
            let status = StatusCode::from_u16(status).unwrap();
            let body = b"why".to_vec();
            let answer = Answer { status, headers: Map::new(), body, is_cut: false };
            match answer.outcome() {
                Outcome::Done(_) => "done",
                Outcome::Said(kind) => kind.class(),
            }
        }
        for (status, expected) in [
            (200, "done"),
            (202, "done"),
            (204, "done"),
            (301, "guest-error"),
            (400, "guest-error"),
            (404, "guest-error"),
            (409, "guest-error"),
            (429, "unavailable"),
            (500, "remote"),
            (501, "remote"),
            (502, "unavailable"),
            (503, "unavailable"),
            (504, "unavailable"),
        ] {
            assert_eq!(said(status), expected, "{status}");
        }
    }

    #[test]
    fn an_answer_is_json_where_it_can_be() {
        fn said(body: &str) -> String {
            let (status, body) = (StatusCode::OK, body.as_bytes().to_vec());
            let answer = Answer { status, headers: Map::new(), body, is_cut: false };
            String::from_utf8(answer.message().data().to_vec()).unwrap()
        }
        assert_eq!(said("{\"a\": 1.0}"), r#"{"status":200,"headers":{},"body":{"a": 1.0}}"#);
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
        let answer = read(response).unwrap();
        assert_eq!(Value::Object(answer.headers), json!({ "via": "1.1 a, 1.1 b" }));
    }
}
