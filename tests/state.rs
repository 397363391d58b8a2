//! An actor's state in an operator's hands.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::rig::{Daemon, World, guest, shaky};

const FLOW: &str = r#"
[daemon]
modules = "../modules"
data = "../data"
quiet = "10ms"
autostart = false
[actors.a]
module = "shaky"
state_size = 64
[actors.screen]
module = "std:stdout"
[actors.tick]
module = "std:interval"
config = { every = "1h" }
[[wires]]
from = "a.out"
to = "screen.in"
"#;

/// An actor that counts its messages, and runs its first version.
fn counter() -> Daemon {
    let world = World::new(FLOW);
    world.module("shaky", &shaky("v1", "steady"));
    world.start()
}

/// Exit code, standard output and standard error.
fn run(daemon: &Daemon, args: &[&str]) -> (Option<i32>, String, String) {
    let output = daemon.world.run(args);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn done(daemon: &Daemon, args: &[&str]) -> String {
    let (code, out, error) = run(daemon, args);
    assert_eq!(code, Some(0), "{args:?}: {error}");
    out
}

fn message(seq: u64) -> String {
    json!({ "sender": 0, "seq": seq }).to_string()
}

/// What the next message is counted as.
fn counted(daemon: &mut Daemon) -> Value {
    let line: Value = serde_json::from_str(&daemon.line().unwrap()).unwrap();
    line["count"].clone()
}

#[test]
fn what_is_set_is_what_the_next_turn_finds() {
    let mut daemon = counter();
    daemon.send("a.in", &message(0));
    assert_eq!(counted(&mut daemon), 1);
    daemon.until("the turn is committed", |daemon| daemon.actor("a")["turns"] == 1);
    assert_eq!(done(&daemon, &["state", "get", "a"]), "{\"count\":1}\n");
    let said = done(&daemon, &["state", "set", "a", "{\"count\": 41}"]);
    assert_eq!(said, "a: generation 1 has a state of 13 bytes, in place of 11\n");
    daemon.send("a.in", &message(1));
    assert_eq!(counted(&mut daemon), 42);
    let event = daemon.wait_event("state-set", "a");
    assert_eq!((&event["bytes"], &event["before"]), (&13.into(), &11.into()), "{event}");

    // Nor does it need an actor that moves.
    done(&daemon, &["pause", "a"]);
    daemon.send("a.in", &message(2));
    done(&daemon, &["state", "reset", "a"]);
    assert_eq!(done(&daemon, &["state", "get", "a"]), "{}\n");
    done(&daemon, &["resume", "a"]);
    assert_eq!(counted(&mut daemon), 1);
}

#[test]
fn what_was_set_survives_a_kill_right_after() {
    let daemon = counter();
    done(&daemon, &["state", "set", "a", "{\"count\":7}"]);
    daemon.signal("-KILL");
    let (_, _, world) = daemon.ended();
    let mut daemon = world.start();
    assert_eq!(done(&daemon, &["state", "get", "a"]), "{\"count\":7}\n");
    daemon.send("a.in", &message(0));
    assert_eq!(counted(&mut daemon), 8);
    // An empty one is written over another too.
    done(&daemon, &["state", "reset", "a"]);
    daemon.signal("-KILL");
    let (_, _, world) = daemon.ended();
    let daemon = world.start();
    assert_eq!(done(&daemon, &["state", "get", "a"]), "{}\n");
}

#[test]
fn a_state_goes_to_a_file_and_comes_back() {
    let daemon = counter();
    done(&daemon, &["state", "set", "a", "{\"count\":12345678901234567890}"]);
    done(&daemon, &["state", "export", "a", "--output", "a.state"]);
    let file = std::fs::read_to_string(daemon.world.path("a.state")).unwrap();
    let mode = std::fs::metadata(daemon.world.path("a.state")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "nobody else may read it");
    let document: Value = serde_json::from_str(&file).unwrap();
    assert_eq!((&document["actor"], &document["component"]), (&"a".into(), &"Shaky".into()));
    done(&daemon, &["state", "reset", "a"]);
    done(&daemon, &["state", "import", "a", "a.state"]);
    assert_eq!(done(&daemon, &["state", "get", "a"]), "{\"count\":12345678901234567890}\n");

    daemon.world.put("other.state", file.replace("Shaky", "Other").as_bytes());
    let (code, _, said) = run(&daemon, &["state", "import", "a", "other.state"]);
    assert_eq!(code, Some(65), "{said}");
    assert!(said.contains("is one of `Other`, and `a` runs `Shaky`"), "{said}");
    done(&daemon, &["state", "import", "a", "other.state", "--force"]);
}

#[test]
fn what_is_no_state_changes_nothing() {
    let daemon = counter();
    done(&daemon, &["state", "set", "a", "{\"count\":1}"]);
    let large = format!("{{\"count\":\"{}\"}}", "9".repeat(64));
    for (args, code, words) in [
        (&["set", "a", "[1]"][..], 65, "a state is a JSON object"),
        (&["set", "a", "{"], 65, "a state is a JSON object"),
        (&["set", "a", &large], 65, "`state_size` of `a` allows 64 bytes"),
        (&["set", "b", "{}"], 1, "there is no actor `b`"),
        (&["set", "tick", "{\"at\":1}"], 65, "a source's state is how far it has come"),
        (&["import", "a", "config/reflowd.toml"], 65, "holds no exported state"),
    ] {
        let (found, _, said) = run(&daemon, &[&["state"], args].concat());
        assert_eq!(found, Some(code), "{args:?}: {said}");
        assert!(said.contains(words), "{args:?}: {said}");
    }
    assert_eq!(done(&daemon, &["state", "get", "a"]), "{\"count\":1}\n");
}

#[test]
fn a_rollback_keeps_the_state_that_was_set_in_the_trial() {
    let mut daemon = counter();
    daemon.send("a.in", &message(0));
    assert_eq!(counted(&mut daemon), 1);
    // It breaks the state, in a way that the version before cannot read.
    daemon.world.module("shaky", &shaky("v2", "breaks"));
    daemon.reload();
    daemon.send("a.in", &message(1));
    assert_eq!(counted(&mut daemon), 2);
    daemon.until("the turn is committed", |daemon| daemon.actor("a")["turns"] == 2);
    let answer: Value =
        serde_json::from_str(&done(&daemon, &["state", "set", "a", "{\"count\":100}", "--json"]))
            .unwrap();
    assert_eq!(answer["on_trial"], true, "{answer}");
    daemon.send("a.in", &message(2));
    assert_eq!(counted(&mut daemon), 101);
    // Here it traps, and goes back; the count goes on from what was set.
    daemon.send("a.in", &message(4));
    let line: Value = serde_json::from_str(&daemon.line().unwrap()).unwrap();
    assert_eq!((&line["stamp"], &line["count"]), (&"v1".into(), &101.into()), "{line}");
    let event = daemon.events(0).find(|event| event["event"] == "rolled-back");
    assert_eq!(event["lost_turns"], 1, "only what came after it was set: {event}");
}

#[test]
fn the_relay_has_an_empty_state() {
    let world = World::new("[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n");
    world.module("relay", &guest("relay"));
    let daemon = world.start();
    assert_eq!(done(&daemon, &["state", "get", "relay"]), "{}\n");
}
