//! `std:http-out`: a request for each message.

use std::{fs, net::TcpListener};

use serde_json::Value;

use super::{HEAD, Receiver, header};
use crate::rig::{Daemon, World, guest};

/// A relay, what sends, and the screen for what comes back.
fn start(url: &str, more: &str) -> Daemon {
    let world = World::new(&format!(
        r#"{HEAD}
        [actors.a]
        module = "relay"
        [actors.send]
        module = "std:http-out"
        env = {{ TOKEN = {{ file = "token" }} }}
        config = {{ url = "{url}", timeout = "20s", headers = {{ Authorization = "Bearer ${{TOKEN}}" }} }}
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
