//! What has happened, as it can be read after a restart, and what is told of how that came.

use std::{fs, io::Write};

use serde_json::{Value, json};

use crate::rig::{Daemon, World, guest, repository};

const CONFIG: &str = r#"
    [daemon]
    modules = "../modules"
    data = "../data"
    quiet = "10ms"
    autostart = false
    [actors.step]
    module = "step"
    retries = 0
    [actors.screen]
    module = "std:stdout"
    [[wires]]
    from = "step.out"
    to = "screen.in"
"#;

fn start(module: &[u8]) -> Daemon {
    let world = World::new(CONFIG);
    world.module("step", module);
    world.start()
}

/// All events that are known, those of earlier processes too.
fn all(daemon: &Daemon) -> Vec<Value> {
    let body = daemon.get("/v1/events").body;
    body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn named(events: &[Value], name: &str) -> Vec<Value> {
    events.iter().filter(|event| event["event"] == name).cloned().collect()
}

/// Waits until everything that is told is on disk.
fn on_disk(daemon: &Daemon) {
    let last = all(daemon).last().unwrap()["number"].clone();
    daemon.until("the last event is on disk", |d| {
        let text = fs::read_to_string(d.world.path("data/events/newer")).unwrap();
        text.contains(&format!("\"number\":{last},"))
    });
}

fn killed(daemon: Daemon) -> World {
    on_disk(&daemon);
    daemon.signal("-KILL");
    daemon.ended().2
}

#[test]
fn events_outlive_a_killed_daemon_and_a_line_that_it_has_not_finished() {
    let daemon = start(&guest("relay"));
    daemon.wait_event("started", "step");
    let before = all(&daemon);
    let world = killed(daemon);
    let path = world.path("data/events/newer");
    fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(b"0123456789abcdef {\"nu")
        .unwrap();
    let daemon = world.start();
    daemon.wait_event("started", "step");
    let after = all(&daemon);
    assert_eq!(after[..before.len()], before);
    let numbers: Vec<_> = after.iter().map(|event| event["number"].as_u64().unwrap()).collect();
    assert!(numbers.windows(2).all(|two| two[0] + 1 == two[1]), "{numbers:?}");
    assert_eq!(named(&after, "daemon-started").len(), 2);
    assert!(named(&after, "data-damaged").is_empty(), "a cut is no damage");
    // A flipped bit costs one event and is told.
    let world = killed(daemon);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.iter().position(|byte| *byte == b'{').unwrap() + 5;
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let daemon = world.start();
    let told = named(&all(&daemon), "data-damaged");
    assert!(told[0]["why"].as_str().unwrap().starts_with("1 events are damaged"), "{told:?}");
    assert_eq!(named(&all(&daemon), "daemon-started").len(), 2, "the first one is gone");
    let events = daemon.world.run(&["--socket", "data/reflowd.sock", "events", "--actor", "step"]);
    let events = String::from_utf8(events.stdout).unwrap();
    assert_eq!(events.matches("started ").count(), 3, "{events}");
}

#[test]
fn a_daemon_that_was_killed_is_missed_at_the_next_start_with_what_it_held() {
    let daemon = start(&guest("relay"));
    assert_eq!(daemon.post("/v1/actors/step/pause", "").status, 200);
    (0..5).for_each(|n| daemon.send("step.in", &n.to_string()));
    daemon.until("what would be gone is noted", |d| {
        let mark = fs::read_to_string(d.world.path("data/running")).unwrap_or_default();
        mark.contains("\"messages\":5")
    });
    let daemon = killed(daemon).start();
    let event = daemon.events(0).find(|event| event["event"] == "unclean-stop");
    assert_eq!((&event["messages"], &event["actors"]), (&json!(5), &json!(["step"])), "{event}");
    daemon.logs("did not stop by itself");
    // A stop that has saved everything is not missed.
    let (status, _, world) = daemon.stop();
    assert!(status.success());
    assert!(!world.path("data/running").exists());
    let daemon = world.start();
    assert_eq!(named(&all(&daemon), "unclean-stop").len(), 1, "that of before");
}

#[test]
fn dead_letters_are_told_of_at_a_bounded_rate_and_none_is_left_out() {
    const LETTERS: u64 = 200;
    let trap = fs::read_to_string(repository().join("tests/hostile/trap.wat")).unwrap();
    let daemon = start(&wat::parse_str(trap).unwrap());
    let told = |daemon: &Daemon| {
        let told = named(&all(daemon), "dead-letter");
        let letters = told.iter().map(|event| event["letters"].as_u64().unwrap()).sum::<u64>();
        (told, letters)
    };
    for n in 0..LETTERS {
        daemon.send("step.in", &n.to_string());
    }
    daemon.until("each has been tried", |d| {
        // It rests after some in a row.
        _ = d.post("/v1/actors/step/retry", "");
        d.sum("reflowd_messages_dead_lettered_total") >= LETTERS as f64
    });
    let (events, _) = told(&daemon);
    assert_eq!((&events[0]["letters"], &events[0]["reason"]), (&json!(1), &json!("trap")));
    daemon.until("all are told of", |d| told(d).1 == LETTERS);
    let (events, _) = told(&daemon);
    let last = events.last().unwrap();
    assert_eq!(last["last"], LETTERS, "{last}");
    assert!(events.len() < 20, "{} events of {LETTERS} letters", events.len());
}

#[test]
fn a_filter_by_something_that_there_is_not_is_an_error_with_what_there_is() {
    let daemon = start(&guest("relay"));
    for (args, words) in [
        (&["events", "--actor", "stop"][..], "did you mean `step`?"),
        (&["events", "--actor", "no.name"], "there is no actor `no.name`"),
        (&["dead", "list", "--actor", "nope"], "there is no actor `nope`"),
        (&["dead", "purge", "--actor", "nope"], "there is no actor `nope`"),
        (&["dead", "replay", "--actor", "nope"], "there is no actor `nope`"),
        (&["dead", "list", "--reason", "nonsense"], "there are `trap`, `timeout`"),
        (&["dead", "purge", "--reason", "trp"], "did you mean `trap`?"),
        (&["dead", "list", "--digest", "xyz"], "`xyz` is not the beginning of a digest"),
        (&["dead", "list", "--since", "1m", "--until", "2m"], "nothing is in between"),
        (&["tap", "step.nope"], "has no port `nope`"),
        (&["logs", "nope"], "there is no actor `nope`"),
    ] {
        let output = daemon.world.run(&[&["--socket", "data/reflowd.sock"], args].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{args:?}: {said}");
        assert!(said.contains(words), "{args:?}: {said}");
    }
    for (path, status) in [
        ("/v1/events?actor=nope", 404),
        ("/v1/events?actor=step", 200),
        ("/v1/dead-letters?reason=nonsense", 400),
        ("/v1/dead-letters?actor=nope", 404),
        ("/v1/dead-letters?actor=step&reason=trap", 200),
    ] {
        assert_eq!(daemon.get(path).status, status, "{path}");
    }
}
