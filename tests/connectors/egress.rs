//! `std:http-out`: a request for each message.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
};

use serde_json::Value;

use super::{HEAD, Meets, Receiver, header, listener};
use crate::rig::{Daemon, World, guest};

/// A relay, what sends, and the screen for what comes back.
fn start(url: &str, more: &str) -> Daemon {
    start_with(url, "timeout = \"20s\"", more)
}

/// The same with other keys for what sends.
fn start_with(url: &str, keys: &str, more: &str) -> Daemon {
    let world = World::new(&format!(
        r#"{HEAD}
        [actors.a]
        module = "relay"
        [actors.send]
        module = "std:http-out"
        env = {{ TOKEN = {{ file = "token" }} }}
        config = {{ url = "{url}", {keys}, headers = {{ Authorization = "Bearer ${{TOKEN}}" }} }}
        [actors.screen]
        module = "std:stdout"
        [[wires]]
        from = "a.out"
        to = "send.in"
        [[wires]]
        from = "send.response"
        to = "screen.in"
        {more}
        "#
    ));
    world.module("relay", &guest("relay"));
    fs::write(world.path("config/token"), "planted-token\n").unwrap();
    world.start()
}

fn url(receiver: &Receiver) -> String {
    format!("http://{}/hook?x=1", receiver.address)
}

#[test]
fn a_message_is_a_request_and_the_answer_a_message() {
    let receiver = Receiver::new(&[(200, r#"{"ok": true}"#), (204, "")]);
    let mut daemon = start(&url(&receiver), "");
    daemon.send("a.in", r#"{"n":1.0}"#);
    let (head, body) = receiver.next();
    assert!(head.starts_with("POST /hook?x=1 HTTP/1.1\r\n"), "{head}");
    assert_eq!(body, r#"{"n":1.0}"#);
    assert_eq!(header(&head, "content-type").unwrap(), "application/json");
    assert_eq!(header(&head, "authorization").unwrap(), "Bearer planted-token");
    let key = header(&head, "idempotency-key").unwrap();
    assert_eq!(key.len(), 34, "{key}");
    let answer: Value = serde_json::from_str(&daemon.line().unwrap()).unwrap();
    assert_eq!((&answer["status"], &answer["body"]["ok"]), (&200.into(), &true.into()));
    assert_eq!(answer["headers"]["content-type"], "application/json");
    daemon.send("a.in", "2");
    let (head, body) = receiver.next();
    assert_eq!(body, "2");
    assert_ne!(header(&head, "idempotency-key").unwrap(), key);
    assert!(daemon.line().unwrap().contains("\"status\":204"));
}

#[test]
fn a_receiver_that_breaks_is_asked_again_with_the_same_key() {
    let receiver = Receiver::new(&[(500, "first"), (0, ""), (200, "{}")]);
    let mut daemon = start(&url(&receiver), "");
    daemon.send("a.in", "1");
    let keys: Vec<_> =
        (0..3).map(|_| header(&receiver.next().0, "idempotency-key").unwrap()).collect();
    assert!(keys[0] == keys[1] && keys[1] == keys[2], "{keys:?}");
    assert!(daemon.line().unwrap().contains("\"status\":200"));
    assert_eq!(daemon.sum("reflowd_messages_dead_lettered_total"), 0.0);
}

#[test]
fn a_message_on_which_a_receiver_always_breaks_becomes_a_dead_letter() {
    let receiver = Receiver::new(&[(500, "no"), (500, "no"), (500, "never"), (200, "{}")]);
    let mut daemon = start(&url(&receiver), "");
    daemon.send("a.in", "1");
    daemon.send("a.in", "2");
    let bodies: Vec<_> = (0..4).map(|_| receiver.next().1).collect();
    assert_eq!(bodies, ["1", "1", "1", "2"]);
    assert!(daemon.line().unwrap().contains("\"status\":200"));
    let letters = daemon.get("/v1/dead-letters").body;
    assert!(letters.contains("remote") && letters.contains("answered 500"), "{letters}");
}

#[test]
fn a_receiver_that_is_away_is_waited_for() {
    // An address at which nobody listens yet.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    drop(listener);
    let mut daemon = start(&format!("http://{at}/"), "");
    daemon.send("a.in", "1");
    daemon.send("a.in", "2");
    // Events stay, whatever the actor has come to since.
    let failed = |with: &str| {
        let mut events = daemon.events(0);
        let why = |event: &Value| event["why"].as_str().unwrap_or_default().to_owned();
        let fits = |event: &Value| event["event"] == "failed" && why(event).contains(with);
        why(&events.find(fits))
    };
    let why = failed("refused");
    assert!(why.contains(&at.to_string()), "{why}");
    // Then one that is busy, and at last one that has time.
    let listener = TcpListener::bind(at).unwrap();
    let receiver = Receiver::answering(listener, &[(503, "later"), (200, "1"), (200, "2")]);
    daemon.post("/v1/actors/send/retry", "");
    let key = |(head, body): (String, String)| (header(&head, "idempotency-key").unwrap(), body);
    let first = key(receiver.next());
    failed("503");
    daemon.post("/v1/actors/send/retry", "");
    assert_eq!(key(receiver.next()), first);
    assert_eq!(receiver.next().1, "2");
    for n in ["1", "2"] {
        assert!(daemon.line().unwrap().ends_with(&format!("\"body\":{n}}}")));
    }
    assert_eq!(daemon.sum("reflowd_messages_dead_lettered_total"), 0.0);
}

/// Waits until the actor that sends shows that it waits, for a reason with these words in it.
#[track_caller]
fn waits(daemon: &Daemon, words: &str) {
    daemon.until(&format!("it waits: {words}"), |daemon| {
        daemon.actor("send")["why"].as_str().is_some_and(|why| why.contains(words))
    });
}

#[test]
fn a_receiver_is_left_alone_for_as_long_as_it_asks() {
    let busy = |status, lines| Meets::With(status, lines, String::new());
    let receiver = Receiver::meeting(
        listener(),
        vec![
            busy(429, "Retry-After: 1800\r\n"),
            busy(
                503,
                "Date: Sun, 06 Nov 1994 08:49:30 GMT\r\nRetry-After: Sun, 06 Nov 1994 08:50:00 GMT\r\n",
            ),
            busy(500, "Retry-After: 1500\r\n"),
            busy(429, "Retry-After: 86400\r\n"),
            Meets::With(200, "", "1".into()),
        ],
    );
    let mut daemon = start(&url(&receiver), "");
    daemon.send("a.in", "1");
    for asks in ["429 Too Many Requests; it asks to wait for 1800s", "503", "answered 500", "429"] {
        receiver.next();
        waits(&daemon, asks);
        if asks == "503" {
            waits(&daemon, "it asks to wait for 30s");
        }
        daemon.post("/v1/actors/send/retry", "");
    }
    receiver.next();
    assert!(daemon.line().unwrap().contains("\"status\":200"));
    assert_eq!(daemon.sum("reflowd_messages_dead_lettered_total"), 0.0);
}

#[test]
fn a_receiver_can_ask_for_no_more_than_the_configuration_lets_it() {
    let receiver = Receiver::meeting(
        listener(),
        vec![
            Meets::With(429, "Retry-After: 86400\r\n", String::new()),
            Meets::With(200, "", "1".into()),
        ],
    );
    let mut daemon = start_with(&url(&receiver), "max_retry_after = \"1s\"", "");
    daemon.send("a.in", "1");
    // Nobody says `retry`.
    assert!(daemon.line().unwrap().contains("\"status\":200"));
    receiver.next();
    receiver.next();
}

#[test]
fn a_receiver_whose_connections_break_is_waited_for() {
    // As attempts, these three would use up the message's `retries`, and make it a dead letter.
    let broken = [Meets::Resets, Meets::Closes, Meets::Resets];
    let answer = Meets::With(200, "", "1".into());
    let receiver = Receiver::meeting(listener(), broken.into_iter().chain([answer]).collect());
    let mut daemon = start(&url(&receiver), "");
    daemon.send("a.in", "1");
    assert!(daemon.line().unwrap().contains("\"status\":200"));
    let failures = "reflowd_turns_total{actor=\"send\",outcome=\"unavailable\"}";
    assert_eq!(daemon.metrics()[failures], 3.0);
    assert_eq!(daemon.sum("reflowd_messages_dead_lettered_total"), 0.0);
}

#[test]
fn a_connection_that_was_kept_and_is_closed_is_no_outage() {
    let receiver = Receiver::new(&[(200, "1"), (0, ""), (200, "2"), (408, ""), (200, "3")]);
    let mut daemon = start(&url(&receiver), "");
    for n in ["1", "2", "3"] {
        daemon.send("a.in", n);
        assert!(daemon.line().unwrap().ends_with(&format!("\"body\":{n}}}")));
    }
    let failures = "reflowd_turns_total{actor=\"send\",outcome=\"unavailable\"}";
    assert_eq!(daemon.metrics()[failures], 0.0);
}

#[test]
fn an_answer_whose_body_does_not_come_is_an_answer() {
    let receiver = Receiver::meeting(
        listener(),
        vec![Meets::Stalls(5, "{\"n\":".into()), Meets::With(200, "", "2".into())],
    );
    let mut daemon = start_with(&url(&receiver), "timeout = \"1s\"", "");
    daemon.send("a.in", "1");
    let answer: Value = serde_json::from_str(&daemon.line().unwrap()).unwrap();
    assert_eq!((&answer["status"], &answer["truncated"]), (&200.into(), &true.into()));
    assert_eq!(answer["body"], "{\"n\":");
    daemon.send("a.in", "2");
    assert!(daemon.line().unwrap().ends_with("\"body\":2}"));
    assert_eq!((receiver.next().1, receiver.next().1), ("1".into(), "2".into()));
}

#[test]
fn a_status_that_says_try_again_is_tried_again() {
    let receiver = Receiver::new(&[(408, ""), (421, ""), (425, ""), (200, "1")]);
    let mut daemon = start(&url(&receiver), "");
    daemon.send("a.in", "1");
    let mut events = daemon.events(0);
    for status in ["408", "421", "425"] {
        receiver.next();
        let why = format!(
            "std:http-out: POST http://{}: the receiver answered {status} ",
            receiver.address
        );
        events.find(|event| {
            event["event"] == "failed" && event["why"].as_str().unwrap().starts_with(&why)
        });
        daemon.post("/v1/actors/send/retry", "");
    }
    assert!(daemon.line().unwrap().contains("\"status\":200"));
    assert_eq!(daemon.sum("reflowd_messages_dead_lettered_total"), 0.0);
}

#[test]
fn a_message_that_is_refused_is_no_error_of_a_guest() {
    let receiver = Receiver::new(&[(404, "nothing here")]);
    let daemon = start(&url(&receiver), "");
    daemon.send("a.in", "1");
    daemon.until("it is a dead letter", |d| d.sum("reflowd_messages_dead_lettered_total") == 1.0);
    let letter = daemon.get("/v1/dead-letters").json();
    assert_eq!(letter["class"], "refused");
    let reason = letter["reason"].as_str().unwrap();
    let expected = format!(
        "std:http-out: POST http://{}: the receiver answered 404 Not Found: nothing here",
        receiver.address
    );
    assert_eq!(reason, expected);
    let turns = "reflowd_turns_total{actor=\"send\",outcome=\"refused\"}";
    assert_eq!(daemon.metrics()[turns], 1.0);
}

#[test]
fn a_password_in_the_url_is_what_its_escapes_stand_for() {
    let receiver = Receiver::new(&[(200, "{}")]);
    let world = World::new(&format!(
        r#"{HEAD}
        [actors.send]
        module = "std:http-out"
        config = {{ url = "http://user:p%40ss@{}/" }}
        "#,
        receiver.address
    ));
    let daemon = world.start();
    daemon.send("send.in", "1");
    let (head, _) = receiver.next();
    // user:p@ss
    assert_eq!(header(&head, "authorization").unwrap(), "Basic dXNlcjpwQHNz");
    assert!(head.starts_with("POST / HTTP/1.1\r\n"), "{head}");
    assert_eq!(header(&head, "host").unwrap(), receiver.address.to_string());
    assert!(!daemon.log_text().contains("p%40ss"));
}

#[test]
fn a_body_that_is_too_large_for_a_receiver_is_refused_and_not_waited_for() {
    // It closes before it has read the body, as nginx does.
    let listener = listener();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                if reader.read_line(&mut line).unwrap() == 0 {
                    break;
                }
            }
            let answer = "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            _ = reader.get_mut().write_all(answer.as_bytes());
        }
    });
    let daemon = start(&format!("http://{at}/"), "");
    daemon.send("a.in", &format!("\"{}\"", "x".repeat(8 << 20)));
    daemon.until("it is a dead letter", |d| d.sum("reflowd_messages_dead_lettered_total") == 1.0);
    let letters = daemon.get("/v1/dead-letters").body;
    assert!(letters.contains("answered 413"), "{letters}");
}

#[test]
fn a_no_is_an_answer_on_the_error_port() {
    let receiver = Receiver::new(&[(404, "no such planted-token"), (302, "elsewhere")]);
    let mut daemon = start(&url(&receiver), "[[wires]]\nfrom = \"send.error\"\nto = \"screen.in\"");
    daemon.send("a.in", "1");
    let line = daemon.line().unwrap();
    assert!(line.contains("answered 404"), "{line}");
    // What the receiver throws back of the secret is masked.
    assert!(line.contains("***") && !line.contains("planted-token"), "{line}");
    daemon.send("a.in", "2");
    assert!(daemon.line().unwrap().contains("answered 302"));
    assert_eq!(daemon.sum("reflowd_messages_dead_lettered_total"), 0.0);
    assert!(!daemon.log_text().contains("planted-token"));
}

#[test]
fn the_trace_of_a_message_goes_with_its_request() {
    let receiver = Receiver::new(&[(200, "{}")]);
    let world = World::new(&format!(
        r#"{HEAD}
        [actors.door]
        module = "std:http-in"
        config = {{ listen = "127.0.0.1:0", routes = [{{ path = "/in", port = "in", wait = "send.response" }}] }}
        [actors.send]
        module = "std:http-out"
        config = {{ url = "{}" }}
        [[wires]]
        from = "door.in"
        to = "send.in"
        "#,
        url(&receiver)
    ));
    let daemon = world.start();
    let mut client = super::Client::new(super::address(&daemon, "door"));
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let headers = format!(
        "Content-Type: application/json\r\ntraceparent: 00-{trace}-00f067aa0ba902b7-01\r\n"
    );
    client.write("POST", "/in", &headers, "1");
    let (head, _) = receiver.next();
    assert!(header(&head, "traceparent").unwrap().contains(trace), "{head}");
    let reply = client.read();
    assert_eq!((reply.status, &reply.json()["status"]), (200, &200.into()), "{reply:?}");
}
