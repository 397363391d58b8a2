//! Sends the spans of turns and requests to an OpenTelemetry collector, as OTLP over HTTP in
//! JSON.
//!
//! The variables of OpenTelemetry configure it ([`Settings`]); without an endpoint no spans are
//! made. Turns put their spans into a queue and never wait: spans that the queue or the collector
//! rejects are counted and dropped. A collector that is temporarily unavailable is retried a few
//! times, as the protocol specifies.

mod settings;

use std::{
    collections::BTreeMap,
    io::Read as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use reflowd_runtime::{HttpRequest, Span, SpanSink, Spanning, TraceFlags, panic::Boundary};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use ureq::{
    Agent,
    config::Config,
    http::{Response, StatusCode},
};

use self::settings::{Sampler, Settings};
use crate::retry_after::retry_after;

/// Spans that may wait for the collector.
const QUEUE: usize = 8 << 10;

/// Spans that are sent together.
const BATCH: usize = 512;

/// How long spans wait for others to be sent with them.
const LINGER: Duration = Duration::from_secs(1);

/// Attempts to send a batch before it is dropped.
const TRIES: u32 = 5;

/// The pause before the second try; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause that a collector may ask for: spans that arrive meanwhile need a bound.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The bytes of a collector's answer that are read.
const MAX_ANSWER: u64 = 64 << 10;

/// The counts of spans by their fate.
#[derive(Debug, Default)]
struct Tally {
    sent: AtomicU64,
    no_room: AtomicU64,
    not_taken: AtomicU64,
    rejected: AtomicU64,
}

/// Takes spans from turns.
struct Spans {
    queue: mpsc::Sender<Span>,
    sampler: Sampler,
    tally: Arc<Tally>,
}

impl SpanSink for Spans {
    fn samples(&self, trace: u128, caller: Option<TraceFlags>) -> bool {
        match (self.sampler, caller) {
            (Sampler::ParentBased { .. }, Some(caller)) => caller.sampled(),
            (Sampler::ParentBased { root: share } | Sampler::Own(share), _) => share.has(trace),
        }
    }

    fn take(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.tally.no_room.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counts(&self) -> Vec<(&'static str, u64)> {
        let Tally { sent, no_room, not_taken, rejected } = &*self.tally;
        let counts = [
            ("sent", sent),
            ("no-room", no_room),
            ("not-taken", not_taken),
            ("rejected", rejected),
        ];
        counts.map(|(fate, count)| (fate, count.load(Ordering::Relaxed))).to_vec()
    }
}

/// Sends spans to the collector.
pub(crate) struct Exporter {
    settings: Settings,
    agent: Agent,
    queue: mpsc::Receiver<Span>,
    tally: Arc<Tally>,
    /// Set once the log has said that batches are not accepted.
    failing: AtomicBool,
    /// Set once the log has said that batches are accepted only in part.
    rejecting: AtomicBool,
}

/// The sink for the spans of turns, and its exporter, as the environment configures them; `None` if
/// it names no collector.
///
/// # Errors
/// A variable is malformed.
pub(crate) fn from_env() -> anyhow::Result<Option<(Arc<dyn SpanSink>, Exporter)>> {
    // A variable that is not UTF-8 is not one of these.
    let variables: BTreeMap<_, _> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let settings = Settings::read(&variables)?;
    Ok(settings.map(|settings| {
        for warning in &settings.warnings {
            warn!("{warning}");
        }
        let (queue, receiver) = mpsc::channel(QUEUE);
        let tally = Arc::<Tally>::default();
        let spans: Arc<dyn SpanSink> =
            Arc::new(Spans { queue, sampler: settings.sampler, tally: Arc::clone(&tally) });
        let config = Config::builder()
            // Proxy variables are meant for other clients: spans go to the named endpoint only.
            .proxy(None)
            .timeout_global(Some(settings.timeout))
            .max_redirects(0)
            .http_status_as_error(false)
            .build();
        let exporter = Exporter {
            settings,
            agent: config.new_agent(),
            queue: receiver,
            tally,
            failing: AtomicBool::new(false),
            rejecting: AtomicBool::new(false),
        };
        (spans, exporter)
    }))
}

impl Exporter {
    /// Sends spans until stopped, and then what is left, once.
    pub(crate) async fn run(self, stopping: CancellationToken) {
        info!(to = %self.settings.url, "spans of turns go to a collector");
        // Only one run holds it at a time: the next begins after the last has ended.
        let exporter = tokio::sync::Mutex::new(self);
        let run = || async { exporter.lock().await.bring(&stopping).await };
        Boundary::Spans.keep(run).await;
    }

    async fn bring(&mut self, stopping: &CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        Boundary::Spans.works();
        while !stopping.is_cancelled() {
            tokio::select! {
                () = stopping.cancelled() => break,
                taken = self.queue.recv_many(&mut batch, BATCH) => if taken == 0 { return },
            }
            let linger = time::sleep(LINGER);
            tokio::pin!(linger);
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                tokio::select! {
                    () = &mut linger => break,
                    () = stopping.cancelled() => break,
                    taken = self.queue.recv_many(&mut batch, room) => if taken == 0 { break },
                }
            }
            self.send(&mut batch, stopping).await;
        }
        self.queue.close();
        while self.queue.recv_many(&mut batch, BATCH).await > 0 {
            self.send(&mut batch, stopping).await;
        }
    }

    /// Sends a batch, again where the collector asks for that; once, in a stop.
    async fn send(&self, batch: &mut Vec<Span>, stopping: &CancellationToken) {
        let count = batch.len() as u64;
        let body: Arc<str> = encode(&self.settings.resource, batch).to_string().into();
        batch.clear();
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let failure = match self.post(&body).await {
                Sent::Taken(rejected) => return self.taken(count, rejected),
                Sent::Failed(failure) => failure,
            };
            let known = self.failing.swap(true, Ordering::Relaxed);
            if !known {
                warn!(to = %self.settings.url, error = failure.why, "the collector does not take spans; they are lost until it does");
            }
            let wait = match failure.again {
                Again::Never => break,
                // A collector that did not answer the previous batch gets one attempt.
                Again::Away if known && attempt == 1 => break,
                Again::Away => pause,
                Again::Later(asked) => asked.unwrap_or(pause).min(LONGEST_PAUSE),
            };
            if attempt == TRIES {
                break;
            }
            tokio::select! {
                () = time::sleep(wait) => {}
                () = stopping.cancelled() => break,
            }
            pause *= 2;
        }
        self.tally.not_taken.fetch_add(count, Ordering::Relaxed);
    }

    async fn post(&self, body: &Arc<str>) -> Sent {
        let mut request = self.agent.post(&self.settings.url).content_type("application/json");
        for (name, value) in &self.settings.headers {
            request = request.header(name, value);
        }
        let body = Arc::clone(body);
        let sent = Boundary::Spans.aside(move || request.send(&*body).map(answered)).await;
        let failed = |why, again| Sent::Failed(Failed { why, again });
        let sent = match sent {
            Ok(Ok(sent)) => sent,
            Ok(Err(error)) => failed(error.to_string(), Again::Away),
            Err(panic) => return failed(panic.to_string(), Again::Never),
        };
        Boundary::Spans.works();
        sent
    }

    /// The collector has taken a batch but for what it rejected.
    fn taken(&self, count: u64, Rejected { spans, why }: Rejected) {
        let rejected = spans.min(count);
        self.tally.sent.fetch_add(count - rejected, Ordering::Relaxed);
        self.tally.rejected.fetch_add(rejected, Ordering::Relaxed);
        if self.failing.swap(false, Ordering::Relaxed) {
            info!(to = %self.settings.url, "the collector takes spans again");
        }
        let before = self.rejecting.swap(rejected > 0 || !why.is_empty(), Ordering::Relaxed);
        if (rejected > 0 || !why.is_empty()) && !before {
            warn!(to = %self.settings.url, rejected, why, "the collector rejects some spans");
        }
    }
}

/// The outcome of sending a batch.
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    Taken(Rejected),
    Failed(Failed),
}

/// The part of a batch that the collector has rejected.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rejected {
    spans: u64,
    why: String,
}

/// A batch was not taken.
#[derive(Debug, PartialEq, Eq)]
struct Failed {
    why: String,
    again: Again,
}

/// Whether a rejected batch may be sent again.
#[derive(Debug, PartialEq, Eq)]
enum Again {
    /// The collector will never take it.
    Never,
    /// Nothing answered.
    Away,
    /// The collector cannot take it now, and may say when it can.
    Later(Option<Duration>),
}

/// Classifies an answer (OTLP/HTTP, "Response").
fn answered(response: Response<ureq::Body>) -> Sent {
    let status = response.status();
    if !status.is_success() {
        let asked = retry_after(response.headers());
        let passing = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
        );
        let again = if passing { Again::Later(asked) } else { Again::Never };
        return Sent::Failed(Failed { why: format!("it answers {status}"), again });
    }
    let mut body = Vec::new();
    // The spans are accepted, whether or not the rest of the answer can be read.
    _ = response.into_body().into_reader().take(MAX_ANSWER).read_to_end(&mut body);
    Sent::Taken(rejected(&body))
}

/// `{"partialSuccess": {"rejectedSpans": "3", "errorMessage": "…"}}`; 64 bits are text in
/// JSON, and some write them as a number.
fn rejected(body: &[u8]) -> Rejected {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let partial = &answer["partialSuccess"];
    let spans = &partial["rejectedSpans"];
    let spans = spans.as_u64().or_else(|| spans.as_str()?.parse().ok()).unwrap_or(0);
    let why = partial["errorMessage"].as_str().unwrap_or_default().chars().take(200).collect();
    Rejected { spans, why }
}

/// A batch as OTLP has it in JSON.
fn encode(resource: &BTreeMap<String, String>, batch: &[Span]) -> Value {
    let mut attributes: Vec<_> = resource.iter().map(|(key, value)| text(key, value)).collect();
    if !resource.contains_key("service.version") {
        attributes.push(text("service.version", env!("CARGO_PKG_VERSION")));
    }
    json!({"resourceSpans": [{
        "resource": {"attributes": attributes},
        "scopeSpans": [{
            "scope": {"name": "reflowd"},
            "spans": batch.iter().map(encoded).collect::<Vec<_>>(),
        }],
    }]})
}

/// An attribute.
fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// An attribute; 64 bits are text in JSON.
fn number(key: &str, value: u64) -> Value {
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

/// Kinds of spans, as OTLP numbers them.
const CLIENT: u8 = 3;
const CONSUMER: u8 = 5;

/// A span, with the names of OpenTelemetry's conventions for messaging and HTTP.
fn encoded(span: &Span) -> Value {
    let actor = span.actor.as_str();
    let (name, kind, mut attributes) = match &span.what {
        Spanning::Turn { message } => {
            let attributes = vec![
                text("messaging.system", "reflowd"),
                text("messaging.operation.type", "process"),
                text("messaging.destination.name", actor),
                text("messaging.message.id", &message.to_string()),
            ];
            (format!("process {actor}"), CONSUMER, attributes)
        }
        Spanning::Request(HttpRequest { method, url, host, port, status }) => {
            let mut attributes = vec![
                text("http.request.method", method),
                text("url.full", url),
                text("server.address", host),
                text("reflowd.actor", actor),
            ];
            attributes.extend(port.map(|port| number("server.port", port.into())));
            attributes
                .extend(status.map(|status| number("http.response.status_code", status.into())));
            (method.clone(), CLIENT, attributes)
        }
    };
    attributes.push(number("reflowd.generation", span.generation));
    let mut status = json!({});
    if let Some((class, error)) = &span.failure {
        attributes.push(text("error.type", class));
        status = json!({"code": 2, "message": error});
    }
    let mut encoded = json!({
        "traceId": format!("{:032x}", span.context.trace),
        "spanId": format!("{:016x}", span.context.span),
        "flags": span.context.flags.bits(),
        "name": name,
        "kind": kind,
        "startTimeUnixNano": span.began.to_string(),
        "endTimeUnixNano": span.ended.to_string(),
        "attributes": attributes,
        "status": status,
    });
    if let Some(state) = &span.state {
        encoded["traceState"] = (**state).into();
    }
    if let Some(parent) = span.parent {
        encoded["parentSpanId"] = format!("{parent:016x}").into();
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_collector_rejects_is_read_as_text_and_as_a_number() {
        let check = |body: &str, spans, why: &str| {
            let expected = Rejected { spans, why: why.into() };
            assert_eq!(rejected(body.as_bytes()), expected, "{body}");
        };
        check(r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"old"}}"#, 3, "old");
        check(r#"{"partialSuccess":{"rejectedSpans":3}}"#, 3, "");
        check(r#"{"partialSuccess":{"errorMessage":"slow down"}}"#, 0, "slow down");
        check("{}", 0, "");
        check("", 0, "");
        check("<html>", 0, "");
    }
}
