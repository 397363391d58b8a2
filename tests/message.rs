//! What becomes of messages.

use std::{fs, process::Output};

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
fn a_number_that_no_reader_takes_is_refused_at_every_entry() {
    let world = World::new(
        r#"
        [daemon]
        modules = "../modules"
        data = "../data"
        autostart = false
        [actors]
        a = { module = "relay" }
        screen = { module = "std:stdout" }
        [actors.lines]
        module = "std:file-in"
        config = { path = "in.jsonl" }
        [[wires]]
        from = "a.out"
        to = "screen.in"
        [[wires]]
        from = "lines.out"
        to = "screen.in"
        [[wires]]
        from = "lines.error"
        to = "screen.in"
        "#,
    );
    world.module("relay", &guest("relay"));
    fs::write(world.path("config/in.jsonl"), "{\"a\":1e400}\n\"next\"\n").unwrap();
    let mut daemon = world.start();
    let why = "the number 1e400 fits neither a 64-bit integer nor a finite 64-bit float";
    let inner = |place: &str| why.replace("1e400", &format!("1e400 at `{place}`"));

    // A file.
    let line = daemon.line().unwrap();
    assert!(line.contains(&inner("/a")), "{line}");
    assert_eq!(daemon.line().unwrap(), "\"next\"");

    // The admin API, however the message is written.
    let port = "/v1/actors/a/ports/in";
    for (query, body, why) in [
        ("", r#"{"type":"Float","data":1e400}"#, why.to_owned()),
        ("", r#"{"type":"Integer","data":1e400}"#, why.to_owned()),
        ("?type=Any", "[0,1e400]", inner("/1")),
        ("?plain=true", "1e400", why.to_owned()),
        ("?plain=true", r#"{"type":"Any","data":{"b":1e400}}"#, inner("/b")),
    ] {
        let response = daemon.post(&format!("{port}{query}"), body);
        assert_eq!(response.status, 422, "{body}: {response:?}");
        assert!(response.json()["detail"].as_str().unwrap().starts_with(&why), "{response:?}");
    }
    let lines = b"1\n[2,1e400]\n3\n";
    let response =
        daemon.request("POST", &format!("{port}?plain=true"), "application/x-ndjson", lines);
    assert_eq!(response.status, 422, "{response:?}");
    let problem = response.json();
    assert_eq!((&problem["accepted"], &problem["line"]), (&1.into(), &2.into()), "{problem}");
    assert!(problem["detail"].as_str().unwrap().starts_with(&inner("/1")), "{problem}");
    assert_eq!(daemon.line().unwrap(), "1");
    let set = daemon.request("PUT", "/v1/actors/a/state", "application/json", b"{\"k\":1e400}");
    assert_eq!(set.status, 422, "{set:?}");

    // Commands.
    let refused = |output: Output, why: &str| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(65), "{said}");
        assert!(said.contains(why) && !said.contains("--type"), "{said}");
    };
    let run = |args: &[&str]| daemon.world.run(args);
    refused(run(&["send", "a.in", "1e400"]), why);
    refused(run(&["send", "a.in", "1e400", "--type", "Float"]), why);
    fs::write(daemon.world.path("one.json"), "1e400").unwrap();
    refused(run(&["send", "a.in", "@one.json"]), why);
    let mut piped = daemon.world.command(&["send", "a.in", "-"]);
    fs::write(daemon.world.path("many.json"), "[1e400]").unwrap();
    piped.stdin(fs::File::open(daemon.world.path("many.json")).unwrap());
    refused(piped.output().unwrap(), &inner("/0"));
    refused(run(&["state", "set", "a", "{\"k\":1e400}"]), &inner("/k"));
    let exported = String::from_utf8(run(&["state", "export", "a"]).stdout).unwrap();
    assert!(exported.contains("\"state\":{}"), "{exported}");
    let spoiled = exported.replace("\"state\":{}", "\"state\":{\"k\":1e400}");
    fs::write(daemon.world.path("state.json"), spoiled).unwrap();
    refused(run(&["state", "import", "a", "state.json"]), &inner("/k"));
    assert_eq!(daemon.get("/v1/actors/a/state").json()["state"], serde_json::json!({}));

    // The configuration.
    fs::write(daemon.world.path("config.toml"), "[actors.b]\nmodule = 'a'\nconfig = { x = 1e400 }")
        .unwrap();
    let checked = run(&["check", "config.toml"]);
    let said = String::from_utf8([checked.stdout, checked.stderr].concat()).unwrap();
    assert!(said.contains("a number that JSON does not have"), "{said}");
    assert!(said.contains("config.toml:3"), "{said}");

    // What fits is taken, as it is written.
    assert!(run(&["send", "a.in", "1E308"]).status.success());
    assert_eq!(daemon.line().unwrap(), "1E308");
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
