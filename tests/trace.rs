//! Turns as spans, as a collector gets them.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::mpsc,
    thread,
};

use serde_json::{Value, json};

use crate::rig::{Daemon, PATIENCE, World, guest, request_at};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

const CONFIG: &str = r#"
[daemon]
modules = "../modules"
data = "../data"
quiet = "10ms"
autostart = false
[actors.first]
module = "relay"
[actors.second]
module = "relay"
[[wires]]
from = "first.out"
to = "second.in"
"#;

fn world() -> World {
    let world = World::new(CONFIG);
    world.module("relay", &guest("relay"));
    world
}

/// A collector that takes everything, and hands on the spans and the headers that came with them.
pub(crate) fn collector() -> (String, mpsc::Receiver<(String, Value)>) {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    collector_that(move |_| ok.into())
}

/// The same, of a collector that answers its n-th request in its own way.
fn collector_that(
    answer: impl Fn(usize) -> String + Send + 'static,
) -> (String, mpsc::Receiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::sync_channel(1000);
    thread::spawn(move || {
        for (at, stream) in listener.incoming().enumerate() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                let from = head.len();
                if reader.read_line(&mut head).unwrap() == 0 {
                    break;
                }
                let line = head[from..].to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            reader.get_mut().write_all(answer(at).as_bytes()).unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            // What is no batch of spans is handed on as it is.
            let spans = &body["resourceSpans"][0]["scopeSpans"][0]["spans"];
            let spans = spans.as_array().cloned().unwrap_or_else(|| vec![body.clone()]);
            for span in &spans {
                if sender.send((head.clone(), span.clone())).is_err() {
                    return;
                }
            }
        }
    });
    (url, receiver)
}

#[test]
fn each_turn_is_a_span_at_the_collector() {
    let (url, spans) = collector();
    let world = world();
    let mut command = world.command(&[]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", url);
    command.env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer mine");
    let daemon = world.start_as(command);
    let mut stream = daemon.connect();
    let body = r#"{"type":"Integer","data":1}"#;
    let head = format!(
        "POST /v1/actors/first/ports/in HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         traceparent: 00-{TRACE}-00f067aa0ba902b7-03\r\ntracestate: a=1\r\ntracestate: b=2\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(crate::rig::read_response(&mut BufReader::new(stream)).status, 202);
    let mut found = BTreeMap::new();
    while found.len() < 2 {
        let (head, span) = spans.recv_timeout(PATIENCE).unwrap();
        assert!(head.to_lowercase().contains("authorization: bearer mine\r\n"), "{head}");
        found.insert(span["name"].as_str().unwrap().to_owned(), span);
    }
    let (first, second) = (&found["process first"], &found["process second"]);
    assert_eq!((first["traceId"].as_str(), second["traceId"].as_str()), (Some(TRACE), Some(TRACE)));
    assert_eq!(first["parentSpanId"], "00f067aa0ba902b7");
    assert_eq!(second["parentSpanId"], first["spanId"]);
    for span in [first, second] {
        assert_eq!((&span["traceState"], &span["flags"]), (&json!("a=1,b=2"), &json!(3)), "{span}");
    }
    daemon.until("it counts them", |d| d.sum("reflowd_spans_total") == 2.0);
    // A message without a context begins a trace, which its id names.
    let sent = daemon.post("/v1/actors/first/ports/in", body).json();
    let (_, span) = spans.recv_timeout(PATIENCE).unwrap();
    assert_eq!(span["traceId"], sent["id"]);
}

/// Sends a message with a context of its own, and with what else is to be in its head.
fn send_traced(daemon: &Daemon, to: &str, more: &str) {
    let mut stream = daemon.connect();
    let body = r#"{"type":"Integer","data":1}"#;
    let head = format!(
        "POST /v1/actors/{to} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n{more}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(crate::rig::read_response(&mut BufReader::new(stream)).status, 202);
}

#[test]
fn a_request_with_two_contexts_begins_a_trace() {
    let (url, spans) = collector();
    let world = world();
    let mut command = world.command(&[]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", url);
    let daemon = world.start_as(command);
    send_traced(
        &daemon,
        "second/ports/in",
        &format!("traceparent: 00-{TRACE}-1111111111111111-01\r\n"),
    );
    let (_, span) = spans.recv_timeout(PATIENCE).unwrap();
    assert_ne!(span["traceId"], TRACE);
    assert_eq!(span["parentSpanId"], Value::Null);
}

#[test]
fn a_request_to_a_server_is_a_span_in_that_of_its_turn_and_carries_it_on() {
    let (url, spans) = collector();
    let (receiver, requests) = collector_that(|_| {
        "HTTP/1.1 500 Broken\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into()
    });
    let to = receiver.strip_prefix("http://").unwrap();
    let world = World::new(&format!(
        "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\nautostart = false\n\
         [actors.out]\nmodule = \"std:http-out\"\nretries = 0\n\
         config = {{ url = \"http://user:hush@{to}/path?key=hush\" }}\n"
    ));
    let mut command = world.command(&[]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", url);
    let daemon = world.start_as(command);
    send_traced(&daemon, "out/ports/in", "tracestate: a=1\r\n");
    let mut found = BTreeMap::new();
    while found.len() < 2 {
        let (_, span) = spans.recv_timeout(PATIENCE).unwrap();
        found.insert(span["kind"].as_u64().unwrap(), span);
    }
    let (turn, request) = (&found[&5], &found[&3]);
    assert_eq!((&request["traceId"], &request["parentSpanId"]), (&json!(TRACE), &turn["spanId"]));
    let attribute = |key: &str| {
        let all = request["attributes"].as_array().unwrap();
        all.iter().find(|attribute| attribute["key"] == key).map(|found| found["value"].clone())
    };
    assert_eq!(attribute("http.request.method"), Some(json!({"stringValue": "POST"})));
    assert_eq!(attribute("url.full"), Some(json!({"stringValue": format!("http://{to}/path")})));
    assert_eq!(attribute("http.response.status_code"), Some(json!({"intValue": "500"})));
    assert_eq!(request["status"]["code"], 2);
    let head = requests.recv_timeout(PATIENCE).unwrap().0.to_lowercase();
    let span = request["spanId"].as_str().unwrap();
    assert!(head.contains(&format!("traceparent: 00-{TRACE}-{span}-01\r\n")), "{head}");
    assert!(head.contains("tracestate: a=1\r\n"), "{head}");
}

#[test]
fn a_collector_that_is_busy_is_asked_again_and_what_it_rejects_is_counted() {
    let (url, spans) = collector_that(|at| match at {
        0 => {
            "HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                .into()
        }
        1 => "HTTP/1.1 429 Slow\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into(),
        _ => {
            let body = r#"{"partialSuccess":{"rejectedSpans":"1","errorMessage":"too old"}}"#;
            let length = body.len();
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            )
        }
    });
    let world = world();
    let mut command = world.command(&[]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", url).env("OTEL_BSP_MAX_QUEUE_SIZE", "1");
    // For others: nothing listens there.
    command.env("http_proxy", "http://127.0.0.1:1").env("ALL_PROXY", "http://127.0.0.1:1");
    let daemon = world.start_as(command);
    daemon.send("second.in", "1");
    let of = |d: &Daemon, fate: &str| {
        d.metrics().get(&format!("reflowd_spans_total{{fate=\"{fate}\"}}")).copied()
    };
    daemon.until("it is counted", |d| of(d, "rejected") == Some(1.0));
    assert_eq!((of(&daemon, "sent"), of(&daemon, "not-taken")), (Some(0.0), Some(0.0)));
    assert_eq!(spans.try_iter().count(), 3, "it was sent three times");
    daemon.until("it says so", |d| d.log_text().contains("too old"));
    daemon.logs("OTEL_BSP_MAX_QUEUE_SIZE");
}

#[test]
fn a_collector_that_is_not_there_costs_nothing_but_the_spans() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let world = world();
    let mut command = world.command(&[]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", url);
    let daemon = world.start_as(command);
    let lines = "{\"type\":\"Integer\",\"data\":1}\n".repeat(1000);
    let path = "/v1/actors/first/ports/in?block=true";
    let sent =
        request_at(&daemon.world.socket(), "POST", path, "application/x-ndjson", lines.as_bytes());
    assert_eq!(sent.json()["accepted"], 1000);
    daemon.until("all is done", |d| d.sum("reflowd_messages_completed_total") == 2000.0);
    daemon.until("what is lost is counted", |d| {
        d.metrics().get("reflowd_spans_total{fate=\"not-taken\"}") == Some(&2000.0)
    });
    daemon.until("it says so", |d| d.log_text().contains("does not take spans"));
    let said = daemon.log_text().matches("does not take spans").count();
    assert_eq!(said, 1, "once, not for each batch: {}", daemon.log_text());
}

#[test]
fn a_variable_that_makes_no_sense_is_refused() {
    let world = world();
    let mut command = world.command(&[]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{error}");
}
