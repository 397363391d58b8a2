//! Turns as spans, as a collector gets them.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::mpsc,
    thread,
};

use serde_json::Value;

use crate::rig::{PATIENCE, World, guest, request_at};

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
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::sync_channel(1000);
    thread::spawn(move || {
        for stream in listener.incoming() {
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
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
            reader.get_mut().write_all(answer).unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            let spans = &body["resourceSpans"][0]["scopeSpans"][0]["spans"];
            for span in spans.as_array().unwrap() {
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
         traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
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
    daemon.until("it counts them", |d| d.sum("reflowd_spans_total") == 2.0);
    // A message without a context begins a trace, which its id names.
    let sent = daemon.post("/v1/actors/first/ports/in", body).json();
    let (_, span) = spans.recv_timeout(PATIENCE).unwrap();
    assert_eq!(span["traceId"], sent["id"]);
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
