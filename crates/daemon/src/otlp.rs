//! Sends the spans of turns to an OpenTelemetry collector, as OTLP over HTTP in JSON.
//!
//! Told what to do by the variables that OpenTelemetry has for it; without an endpoint
//! there is nothing of this. Turns hand their spans to a queue and never wait: what the
//! queue or the collector does not take is counted, and gone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use reflowd_runtime::{SpanSink, TurnSpan};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::spawn_blocking, time};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use ureq::{Agent, config::Config, http::Uri};

/// Spans that may wait for the collector.
const QUEUE: usize = 8 << 10;

/// Spans that are sent together.
const BATCH: usize = 512;

/// How long spans wait for others to be sent with them.
const LINGER: Duration = Duration::from_secs(1);

/// How long a collector may take for a batch.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the variables ask for.
#[derive(Debug, PartialEq)]
struct Wish {
    url: String,
    headers: Vec<(String, String)>,
    /// Of a million traces that begin here, how many are collected.
    sample: u32,
    service: String,
}

impl Wish {
    /// Nothing, where no collector is named.
    fn read(var: impl Fn(&str) -> Option<String>) -> anyhow::Result<Option<Self>> {
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let url = match var("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            Some(url) => Some(url),
            None => var("OTEL_EXPORTER_OTLP_ENDPOINT")
                .map(|base| format!("{}/v1/traces", base.trim_end_matches('/'))),
        };
        let disabled = var("OTEL_SDK_DISABLED").is_some_and(|value| value == "true");
        let Some(url) = url.filter(|_| !disabled) else { return Ok(None) };
        let uri: Uri = url.parse().with_context(|| {
            format!("`{url}` is no URL; set OTEL_EXPORTER_OTLP_ENDPOINT to one such as http://127.0.0.1:4318")
        })?;
        anyhow::ensure!(
            matches!(uri.scheme_str(), Some("http" | "https")),
            "spans go by http or https, not to `{url}`; set OTEL_EXPORTER_OTLP_ENDPOINT to a URL such as http://127.0.0.1:4318"
        );
        let list =
            var("OTEL_EXPORTER_OTLP_TRACES_HEADERS").or_else(|| var("OTEL_EXPORTER_OTLP_HEADERS"));
        let headers = list.iter().flat_map(|list| list.split(',')).map(|pair| {
            let (name, value) = pair.split_once('=').context(
                "OTEL_EXPORTER_OTLP_HEADERS has a part without `=`; write `name=value,name=value`",
            )?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        });
        let ratio = var("OTEL_TRACES_SAMPLER_ARG").unwrap_or_else(|| "1".into());
        let share: f64 = ratio
            .trim()
            .parse()
            .ok()
            .filter(|share| (0.0..=1.0).contains(share))
            .with_context(|| {
                format!("OTEL_TRACES_SAMPLER_ARG is `{ratio}`, and a share from 0 to 1 is needed")
            })?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "from 0 to a million"
        )]
        let sample = (share * 1e6).round() as u32;
        let service = var("OTEL_SERVICE_NAME").unwrap_or_else(|| "reflowd".into());
        Ok(Some(Self { url, headers: headers.collect::<anyhow::Result<_>>()?, sample, service }))
    }
}

/// What has become of spans.
#[derive(Debug, Default)]
struct Tally {
    sent: AtomicU64,
    no_room: AtomicU64,
    not_taken: AtomicU64,
}

/// Takes spans from turns.
struct Spans {
    queue: mpsc::Sender<TurnSpan>,
    sample: u32,
    tally: Arc<Tally>,
}

impl SpanSink for Spans {
    fn samples(&self, trace: u128) -> bool {
        // Ids count up in their low half; mixed, any share of them is a fair one.
        let mixed = trace.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) >> 96;
        mixed % 1_000_000 < u128::from(self.sample)
    }

    fn take(&self, span: TurnSpan) {
        if self.queue.try_send(span).is_err() {
            self.tally.no_room.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counts(&self) -> Vec<(&'static str, u64)> {
        let Tally { sent, no_room, not_taken } = &*self.tally;
        let counts = [("sent", sent), ("no-room", no_room), ("not-taken", not_taken)];
        counts.map(|(fate, count)| (fate, count.load(Ordering::Relaxed))).to_vec()
    }
}

/// Brings spans to the collector.
pub(crate) struct Exporter {
    wish: Wish,
    agent: Agent,
    queue: mpsc::Receiver<TurnSpan>,
    tally: Arc<Tally>,
    /// Whether the last batch was not taken, which has been said.
    failing: AtomicBool,
}

/// What the environment asks for: where turns put their spans, and what brings them on.
/// Nothing, where it names no collector.
///
/// # Errors
/// A variable makes no sense.
pub(crate) fn from_env() -> anyhow::Result<Option<(Arc<dyn SpanSink>, Exporter)>> {
    let wish = Wish::read(|name| std::env::var(name).ok())?;
    Ok(wish.map(|wish| {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let tally = Arc::<Tally>::default();
        let spans: Arc<dyn SpanSink> =
            Arc::new(Spans { queue, sample: wish.sample, tally: Arc::clone(&tally) });
        let config = Config::builder().timeout_global(Some(PATIENCE)).max_redirects(0).build();
        let agent = config.new_agent();
        (spans, Exporter { wish, agent, queue: receiver, tally, failing: AtomicBool::new(false) })
    }))
}

impl Exporter {
    /// Sends spans until stopped, and then what is left, once.
    pub(crate) async fn run(mut self, stopping: CancellationToken) {
        info!(to = %self.wish.url, "spans of turns go to a collector");
        let mut batch = Vec::with_capacity(BATCH);
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
            self.send(&mut batch).await;
        }
        self.queue.close();
        while self.queue.recv_many(&mut batch, BATCH).await > 0 {
            self.send(&mut batch).await;
        }
    }

    async fn send(&self, batch: &mut Vec<TurnSpan>) {
        let count = batch.len() as u64;
        let body = encode(&self.wish.service, batch).to_string();
        batch.clear();
        let mut request = self.agent.post(&self.wish.url).content_type("application/json");
        for (name, value) in &self.wish.headers {
            request = request.header(name, value);
        }
        let sent = spawn_blocking(move || request.send(body)).await;
        let failed = match sent {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        let counter = if failed.is_none() { &self.tally.sent } else { &self.tally.not_taken };
        counter.fetch_add(count, Ordering::Relaxed);
        let before = self.failing.swap(failed.is_some(), Ordering::Relaxed);
        match failed {
            Some(error) if !before => {
                warn!(to = %self.wish.url, error, "the collector does not take spans; they are lost until it does");
            }
            None if before => info!(to = %self.wish.url, "the collector takes spans again"),
            _ => {}
        }
    }
}

/// A batch as OTLP has it in JSON.
fn encode(service: &str, batch: &[TurnSpan]) -> Value {
    let text = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    let spans: Vec<Value> = batch
        .iter()
        .map(|span| {
            let actor = span.actor.as_str();
            let mut attributes = vec![
                text("messaging.system", "reflowd"),
                text("messaging.operation.type", "process"),
                text("messaging.destination.name", actor),
                text("messaging.message.id", &span.message.to_string()),
                // 64 bits are text in JSON.
                json!({"key": "reflowd.generation", "value": {"intValue": span.generation.to_string()}}),
            ];
            let mut status = json!({});
            if let Some((class, error)) = &span.failure {
                attributes.push(text("error.type", class));
                status = json!({"code": 2, "message": error});
            }
            let mut encoded = json!({
                "traceId": format!("{:032x}", span.context.trace),
                "spanId": format!("{:016x}", span.context.span),
                "name": format!("process {actor}"),
                "kind": 5,
                "startTimeUnixNano": span.began.to_string(),
                "endTimeUnixNano": span.ended.to_string(),
                "attributes": attributes,
                "status": status,
            });
            if let Some(parent) = span.parent {
                encoded["parentSpanId"] = format!("{parent:016x}").into();
            }
            encoded
        })
        .collect();
    json!({"resourceSpans": [{
        "resource": {"attributes": [
            text("service.name", service),
            text("service.version", env!("CARGO_PKG_VERSION")),
        ]},
        "scopeSpans": [{"scope": {"name": "reflowd"}, "spans": spans}],
    }]})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(vars: &[(&str, &str)]) -> anyhow::Result<Option<Wish>> {
        let vars: BTreeMap<_, _> = vars.iter().copied().collect();
        Wish::read(|name| vars.get(name).map(ToString::to_string))
    }

    #[test]
    fn the_usual_variables_are_understood() {
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).unwrap(), None);
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318/");
        let wish = read(&[endpoint]).unwrap().unwrap();
        assert_eq!(wish.url, "http://127.0.0.1:4318/v1/traces");
        assert_eq!((wish.sample, wish.service.as_str()), (1_000_000, "reflowd"));
        assert_eq!(read(&[endpoint, ("OTEL_SDK_DISABLED", "true")]).unwrap(), None);
        let more = [
            endpoint,
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector/traces"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer x, a = b"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_SERVICE_NAME", "mine"),
        ];
        let wish = read(&more).unwrap().unwrap();
        assert_eq!(wish.url, "https://collector/traces");
        assert_eq!(wish.headers[1], ("a".to_owned(), "b".to_owned()));
        assert_eq!((wish.sample, wish.service.as_str()), (250_000, "mine"));
    }

    #[test]
    fn a_variable_that_makes_no_sense_is_refused() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        for (vars, part) in [
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318")][..], "http"),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://x")], "http or https"),
            (&[endpoint, ("OTEL_TRACES_SAMPLER_ARG", "2")], "from 0 to 1"),
            (&[endpoint, ("OTEL_EXPORTER_OTLP_HEADERS", "x")], "without `=`"),
        ] {
            let error = format!("{:#}", read(vars).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_share_of_the_traces_is_collected() {
        let spans = |sample| Spans { queue: mpsc::channel(1).0, sample, tally: Arc::default() };
        let of = |sample| (1..=100_000).filter(|trace| spans(sample).samples(*trace)).count();
        assert_eq!((of(0), of(1_000_000)), (0, 100_000));
        let quarter = of(250_000);
        assert!((24_000..26_000).contains(&quarter), "{quarter}");
    }
}
