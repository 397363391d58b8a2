//! What becomes of messages.

use crate::rig::{Daemon, World, guest};

/// `a -> b -> c -> screen`, each of them the relay, which passes everything on.
fn three_relays() -> Daemon {
    let world = World::new(
        r#"
        [daemon]
        modules = "../modules"
        data = "../data"
        [actors]
        a = { module = "relay" }
        b = { module = "relay" }
        c = { module = "relay" }
        screen = { module = "std:stdout" }
        [[wires]]
        from = "a.out"
        to = "b.in"
        [[wires]]
        from = "b.out"
        to = "c.in"
        [[wires]]
        from = "c.out"
        to = "screen.in"
        "#,
    );
    world.module("relay", &guest("relay"));
    world.start()
}

#[test]
fn data_crosses_three_hops_byte_for_byte() {
    let mut daemon = three_relays();
    let data = r#"{"b":1.0, "a":1e2,"n":123456789012345678901234567890}"#;
    let response = daemon.post("/v1/actors/a/ports/in?type=Object", data);
    assert_eq!(response.status, 202, "{response:?}");
    assert_eq!(daemon.line().unwrap(), data);
    daemon.check_books();
}

#[test]
fn a_bad_message_gets_a_clear_answer_and_nothing_is_lost() {
    let mut daemon = three_relays();
    let bad = [
        ("/v1/actors/a/ports/in", r#"{"type":"Integer","data":"7"}"#),
        ("/v1/actors/a/ports/in", r#"{"type":"Int","data":7}"#),
        ("/v1/actors/a/ports/in", "{"),
        ("/v1/actors/a/ports/in?type=Boolean", "7"),
    ];
    for (path, body) in bad {
        let response = daemon.post(path, body);
        assert!((400..500).contains(&response.status), "{body}: {response:?}");
        assert!(response.json()["detail"].is_string(), "{response:?}");
    }
    assert_eq!(daemon.post("/v1/actors/nobody/ports/in", r#"{"type":"Flow"}"#).status, 404);
    assert_eq!(daemon.post("/v1/actors/a/ports/other", r#"{"type":"Flow"}"#).status, 404);
    daemon.send("a.in", "1");
    assert_eq!(daemon.line().unwrap(), "1");
}

#[test]
fn a_full_mailbox_is_an_answer() {
    let mut daemon = {
        let world = World::new(
            r#"
            [daemon]
            modules = "../modules"
            data = "../data"
            [actors.a]
            module = "relay"
            mailbox = 10
            [actors.screen]
            module = "std:stdout"
            [[wires]]
            from = "a.out"
            to = "screen.in"
            "#,
        );
        world.module("relay", &guest("relay"));
        world.start()
    };
    assert_eq!(daemon.post("/v1/actors/a/pause", "").status / 100, 2);
    daemon.until("a is paused", |d| d.actor("a")["state"] == "paused");
    let lines: String =
        (0..25).map(|n| format!("{{\"type\":\"Integer\",\"data\":{n}}}\n")).collect();
    let path = "/v1/actors/a/ports/in";
    let response = daemon.request("POST", path, "application/x-ndjson", lines.as_bytes());
    assert_eq!(response.status, 429, "{response:?}");
    assert_eq!(response.json()["accepted"], 10, "{response:?}");
    assert_eq!(daemon.post("/v1/actors/a/resume", "").status / 100, 2);
    for n in 0..10 {
        assert_eq!(daemon.line().unwrap(), n.to_string());
    }
}

#[test]
fn a_closed_stdout_loses_nothing() {
    let mut daemon = three_relays();
    daemon.send("a.in", "1");
    assert_eq!(daemon.line().unwrap(), "1");
    daemon.close_stdout();
    for n in 0..20 {
        daemon.send("a.in", &n.to_string());
    }
    // The first write after the reader has gone may still fit into the pipe.
    daemon.until("the screen has failed", |d| {
        d.send("a.in", "0");
        d.actor("screen")["state"] == "failed"
    });
    assert!(daemon.actor("screen")["why"].as_str().unwrap().contains("stdout"));
    assert_eq!(daemon.get("/livez").status, 200);
    daemon.until("messages wait for it", |d| d.sum("reflowd_messages_queued") > 0.0);
    assert_eq!(daemon.sum("reflowd_messages_dead_lettered_total"), 0.0);
}

#[test]
fn a_sender_can_wait_for_the_answer() {
    let daemon = three_relays();
    let answer = daemon
        .post("/v1/actors/a/ports/in?wait=c.out&timeout=60s", r#"{"type":"Integer","data":7}"#);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["data"], 7);
}
