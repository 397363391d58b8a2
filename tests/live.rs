//! Looking at a daemon while it works: `tap`, `logs`, `graph`, and the routes under them.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdout, Stdio},
};

use serde_json::Value;

use crate::rig::{Daemon, World, guest, repository, shaky};

const FLOW: &str = r#"
[daemon]
modules = "../modules"
data = "../data"
quiet = "10ms"
autostart = false
[actors.a]
module = "relay"
[actors.screen]
module = "std:stdout"
[[wires]]
from = "a.out"
to = "screen.in"
"#;

fn relay() -> Daemon {
    let world = World::new(FLOW);
    world.module("relay", &guest("relay"));
    world.start()
}

/// A command that goes on, and the lines that it prints.
struct Watching {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watching {
    fn begin(daemon: &Daemon, args: &[&str]) -> Self {
        let mut command = daemon.world.command(args);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end_matches('\n').to_owned()
    }

    fn json(&mut self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    fn code(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A tap that sees everything from here on.
fn tap(daemon: &Daemon, args: &[&str]) -> Watching {
    let before = daemon.actor("a")["taps"].as_u64().unwrap();
    let watching = Watching::begin(daemon, &[&["tap"], args].concat());
    daemon.until("the tap is open", |daemon| daemon.actor("a")["taps"] == before + 1);
    watching
}

#[test]
fn a_tap_shows_what_goes_in_and_what_comes_of_it() {
    let mut daemon = relay();
    let mut tap = tap(&daemon, &["a", "--limit", "2"]);
    let data = r#"{"b":1.0, "a":123456789012345678901234567890}"#;
    let sent = daemon.post("/v1/actors/a/ports/in?type=Object", data).json();
    let line = tap.line();
    assert!(line.contains(&format!("\"data\":{data}")), "the data's own bytes: {line}");
    let seen: Value = serde_json::from_str(&line).unwrap();
    for (key, value) in [("actor", "a"), ("port", "in"), ("direction", "in"), ("type", "Object")] {
        assert_eq!(seen[key], value, "{seen}");
    }
    assert_eq!((&seen["id"], &seen["correlation"]), (&sent["id"], &sent["id"]));
    let out = tap.json();
    assert_eq!((&out["direction"], &out["port"]), (&"out".into(), &"out".into()), "{out}");
    assert_eq!((&out["correlation"], &out["generation"]), (&sent["id"], &1.into()), "{out}");
    assert_eq!(out["to"][0]["port"], "screen.in", "{out}");
    assert_eq!(tap.code(), Some(0));
    daemon.until("the tap is closed", |daemon| daemon.actor("a")["taps"] == 0);
    assert_eq!(daemon.line().unwrap(), data);
}

#[test]
fn a_tap_sees_the_port_and_the_way_that_it_was_asked_for() {
    let mut daemon = relay();
    for (args, port, way) in
        [(&["a.in"][..], "in", "in"), (&["a.out"], "out", "out"), (&["a", "--out"], "out", "out")]
    {
        let mut tap = tap(&daemon, &[args, &["--limit", "2"]].concat());
        daemon.send("a.in", "1");
        daemon.send("a.in", "2");
        for data in [1, 2] {
            let seen = tap.json();
            assert_eq!((&seen["port"], &seen["direction"]), (&port.into(), &way.into()), "{seen}");
            assert_eq!(seen["data"], data, "{seen}");
        }
        assert_eq!(tap.code(), Some(0));
        daemon.until("the tap is closed", |daemon| daemon.actor("a")["taps"] == 0);
        assert_eq!(daemon.line().as_deref(), Some("1"));
        assert_eq!(daemon.line().as_deref(), Some("2"));
    }
    let none = daemon.world.run(&["tap", "a.uot"]);
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    assert_eq!(none.status.code(), Some(1), "{said}");
    assert!(said.contains("no port `uot`; it has `in`, `out`"), "{said}");
}

#[test]
fn a_tap_survives_the_swap_of_its_actor() {
    let mut daemon = {
        let world = World::new(&FLOW.replace("\"relay\"", "\"shaky\""));
        world.module("shaky", &shaky("v1", "steady"));
        world.start()
    };
    let mut tap = tap(&daemon, &["a.out", "--limit", "2"]);
    daemon.send("a.in", r#"{"sender":0,"seq":0}"#);
    assert_eq!(tap.json()["generation"], 1);
    daemon.world.module("shaky", &shaky("v2", "steady"));
    daemon.reload();
    daemon.send("a.in", r#"{"sender":0,"seq":1}"#);
    let seen = tap.json();
    assert_eq!((&seen["generation"], &seen["data"]["stamp"]), (&2.into(), &"v2".into()), "{seen}");
    assert_eq!(tap.code(), Some(0));
    daemon.line();
    daemon.line();
}

#[test]
fn a_tap_that_nobody_reads_holds_nobody_up_and_says_what_it_has_left_out() {
    const MANY: u64 = 20_000;
    let mut daemon = relay();
    let mut stream = daemon.connect();
    let head =
        "GET /v1/actors/a/tap HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    daemon.until("the tap is open", |daemon| daemon.actor("a")["taps"] == 1);
    let filler = "x".repeat(200);
    let lines: String = (0..MANY).map(|n| format!("[{n},\"{filler}\"]\n")).collect();
    let path = "/v1/actors/a/ports/in?plain=true&block=true";
    let sent = daemon.request("POST", path, "application/x-ndjson", lines.as_bytes());
    assert_eq!(sent.status, 202, "{sent:?}");
    for n in 0..MANY {
        assert!(daemon.line().unwrap().starts_with(&format!("[{n},")));
    }
    let skipped = daemon.sum("reflowd_tap_skipped_total");
    assert!(skipped > 0.0, "so much does not fit into any buffer on the way");
    // Now it is read: each message is there or counted, and what is there is in order.
    let (mut messages, mut left_out, mut last) = (0, 0, None);
    let mut events = BufReader::new(stream).lines();
    while messages + left_out < 2 * MANY {
        let line = events.next().unwrap().unwrap();
        let Some(json) = line.strip_prefix("data: ") else { continue };
        let seen: Value = serde_json::from_str(json).unwrap();
        if let Some(skipped) = seen["skipped"].as_u64() {
            left_out += skipped;
            continue;
        }
        messages += 1;
        if seen["direction"] == "in" {
            let number = seen["data"][0].as_u64();
            assert!(number > last, "{number:?} after {last:?}");
            last = number;
        }
    }
    assert_eq!(messages + left_out, 2 * MANY);
    assert!((left_out as f64 - skipped).abs() < 0.5, "the metric says {skipped}, not {left_out}");
}

#[test]
fn an_actor_takes_no_more_taps_than_it_may() {
    let daemon = relay();
    let open: Vec<_> = (0..16).map(|_| tap(&daemon, &["a"])).collect();
    let one_more = daemon.world.run(&["tap", "a"]);
    let said = String::from_utf8_lossy(&one_more.stderr).into_owned();
    assert_eq!(one_more.status.code(), Some(75), "{said}");
    assert!(said.contains("16 taps are open"), "{said}");
    drop(open);
    daemon.until("the taps are closed", |daemon| daemon.actor("a")["taps"] == 0);
}

#[test]
fn a_stop_ends_those_who_look_on() {
    let daemon = relay();
    let mut tap = tap(&daemon, &["a"]);
    let (status, last, _world) = daemon.stop();
    assert!(status.success(), "{last}");
    assert_eq!(tap.line(), "");
    assert_eq!(tap.code(), Some(69));
}

const TALKATIVE: &str = r#"
[daemon]
modules = "../modules"
data = "../data"
quiet = "10ms"
autostart = false
[actors.a]
module = "talk"
entry_point = "log"
log_rate = 10000
"#;

/// An actor that logs all that it is told, as a warning.
fn talkative() -> Daemon {
    let world = World::new(TALKATIVE);
    let source = std::fs::read_to_string(repository().join("tests/guests/telltale.wat")).unwrap();
    // What goes to standard error would be a warning too.
    let source = source.replace("(call $write (i32.const 2)", "(call $write (i32.const 1)");
    world.module("talk", &wat::parse_str(source).unwrap());
    world.start()
}

#[test]
fn logs_tell_the_last_lines_and_go_on() {
    let daemon = talkative();
    let mut logs = Watching::begin(&daemon, &["logs", "a"]);
    daemon.send("a.in", "\"first\u{9b}31m\u{202e}\"");
    let first = logs.line();
    assert!(first.contains("WARN") && first.contains("first\\u{9b}31m\\u{202e}"), "{first}");
    daemon.send("a.in", "\"second\"");
    assert!(logs.line().contains("second"));
    let run = |args: &[&str]| {
        let output = daemon.world.run(&[&["logs", "a", "--no-follow"], args].concat());
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(&[]).lines().count(), 2);
    assert!(run(&["-n", "1"]).contains("second"));
    assert_eq!(run(&["-n", "1"]).lines().count(), 1);
    assert_eq!(run(&["--level", "error"]), "");
    let line: Value = serde_json::from_str(run(&["--json", "--lines", "1"]).trim()).unwrap();
    assert_eq!((&line["number"], &line["level"]), (&2.into(), &"warn".into()), "{line}");
}

#[test]
fn the_last_lines_are_the_last_of_those_that_are_asked_for() {
    let daemon = talkative();
    daemon.send("a.in", "\"a warning\"");
    daemon.until("it is logged", |daemon| daemon.actor("a")["turns"] == 1);
    // What it prints is no warning.
    daemon.world.config(&TALKATIVE.replace("\"log\"", "\"print\""));
    daemon.reload();
    daemon.send("a.in", "\"a remark\"");
    daemon.until("it is printed", |daemon| daemon.actor("a")["turns"] == 2);
    let last = |level: &str| {
        let args = ["logs", "a", "--no-follow", "-n", "1", "--level", level];
        String::from_utf8(daemon.world.run(&args).stdout).unwrap()
    };
    assert!(last("info").contains("a remark"), "{}", last("info"));
    assert!(last("warn").contains("a warning"), "{}", last("warn"));
}

#[test]
fn logs_keep_a_bounded_number_of_lines() {
    let daemon = talkative();
    for n in 0..250 {
        daemon.send("a.in", &format!("{n}"));
    }
    daemon.until("all is logged", |daemon| daemon.actor("a")["turns"] == 250);
    let output = daemon.world.run(&["logs", "a", "--no-follow", "--json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[0]["number"]), (200, &51.into()));
}

#[test]
fn a_graph_has_figures_where_a_daemon_runs_and_is_drawn_without() {
    let world = World::new(FLOW);
    world.module("relay", &guest("relay"));
    let drawn = |world: &World, args: &[&str]| {
        let output = world.run(&[&["graph"], args].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let expected = "flowchart LR\n    a0[\"a<br>relay\"]\n    a1([\"screen<br>std:stdout\"])\n    \
                    a0 -->|\"out → in\"| a1\n";
    assert_eq!(drawn(&world, &[]), expected);
    let mut daemon = world.start();
    daemon.send("a.in", "1");
    assert_eq!(daemon.line().as_deref(), Some("1"));
    daemon.until("both turns are done", |daemon| daemon.actor("screen")["turns"] == 1);
    assert_eq!(drawn(&daemon.world, &["--offline"]), expected);
    let live = drawn(&daemon.world, &["--format", "dot"]);
    assert!(live.contains("active, generation 1\\n1 turns, 0/1024 queued"), "{live}");
    let json: Value = serde_json::from_str(&drawn(&daemon.world, &["--json"])).unwrap();
    assert_eq!(json["wires"][0]["live"]["accepted"], 1, "{json}");
    assert_eq!(json["actors"][0]["inports"][0], "in", "{json}");
    assert_eq!(json, daemon.get("/v1/graph").json());
}
