//! Connectors whose other end is the machine: its clock, its files, and the daemon itself.

use std::{fs, path::PathBuf, process::Command};

use serde_json::Value;

use super::HEAD;
use crate::rig::{Daemon, World, guest, repository, shaky};

#[test]
fn a_calendar_ticks_at_its_moments() {
    let world = World::new(&format!(
        r#"{HEAD}
        [actors.every-second]
        module = "std:cron"
        config = {{ schedule = "* * * * * *", zone = "Asia/Kolkata" }}
        [actors.screen]
        module = "std:stdout"
        [[wires]]
        from = "every-second.out"
        to = "screen.in"
        "#
    ));
    let mut daemon = world.start();
    let ticks: Vec<Value> =
        (0..3).map(|_| serde_json::from_str(&daemon.line().unwrap()).unwrap()).collect();
    let time = |tick: &Value| tick["time"].as_u64().unwrap();
    for tick in &ticks {
        assert_eq!(time(tick) % 1000, 0);
        assert!(tick["scheduled"].as_str().unwrap().ends_with("+05:30"), "{tick}");
    }
    let missed = |tick: &Value| tick["missed"].as_u64().unwrap_or(0);
    for pair in ticks.windows(2) {
        assert_eq!(time(&pair[1]) - time(&pair[0]), 1000 * (1 + missed(&pair[1])));
    }
}

/// The library that shows a process another time than it is, where this machine has it:
/// `pip install libfaketime` brings it.
fn faketime() -> Option<PathBuf> {
    const FIND: &str = "import glob, libfaketime, os; \
        print(*glob.glob(os.path.dirname(libfaketime.__file__) + '/vendor/**/libfaketime.so.1', recursive=True))";
    let found = Command::new("python3").args(["-c", FIND]).output().ok()?;
    let path = String::from_utf8(found.stdout).ok()?;
    Some(path.trim()).filter(|path| !path.is_empty()).map(PathBuf::from)
}

#[test]
fn a_clock_that_was_a_day_ahead_does_not_stop_a_calendar() {
    let Some(library) = faketime() else {
        println!("SKIPPED: python3 has no module libfaketime, so no clock can be set here");
        return;
    };
    let world = World::new(&format!(
        r#"{HEAD}
        [actors.every-second]
        module = "std:cron"
        config = {{ schedule = "* * * * * *" }}
        [actors.screen]
        module = "std:stdout"
        [[wires]]
        from = "every-second.out"
        to = "screen.in"
        "#
    ));
    let clock = world.path("clock");
    fs::write(&clock, "+1d").unwrap();
    let mut command = world.command(&[]);
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &clock);
    command.env("FAKETIME_NO_CACHE", "1").env("DONT_FAKE_MONOTONIC", "1");
    let mut daemon = world.start_as(command);
    let mut time = || {
        let tick: Value = serde_json::from_str(&daemon.line().unwrap()).unwrap();
        tick["time"].as_u64().unwrap()
    };
    let ahead = time();
    fs::write(&clock, "+0d").unwrap();
    // What is under way comes first; then ticks go by the clock as it is.
    let right = std::iter::repeat_with(&mut time).find(|time| *time < ahead).unwrap();
    assert!(ahead - right > 23 * 3600 * 1000, "{ahead} {right}");
    assert!(time() > right);
    daemon.logs("the clock was set back");
}

#[test]
fn a_message_is_a_line_of_the_log() {
    let world = World::new(&format!(
        r#"{HEAD}
        [actors.note]
        module = "std:log"
        log_rate = 2
        env = {{ KEY = {{ file = "key" }} }}
        config = {{ level = "warn" }}
        "#
    ));
    fs::write(world.path("config/key"), "planted-key").unwrap();
    let daemon = world.start();
    daemon.send("note.in", r#"{"what":"a planted-key\n"}"#);
    let said = |d: &Daemon| {
        let log = d.log_text();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut own = lines.filter(|line| line["actor"] == "note" && line["target"] == "guest");
        own.next()
    };
    daemon.until("it is said", |d| said(d).is_some());
    let line = said(&daemon).unwrap();
    assert_eq!(
        (line["level"].as_str(), line["message"].as_str()),
        (Some("WARN"), Some(r#"{"what":"a ***\n"}"#))
    );
    // What is over the rate is done all the same.
    (0..50).for_each(|_| daemon.send("note.in", "1"));
    daemon.until("all are done", |d| d.sum("reflowd_messages_completed_total") == 51.0);
}

/// A flow in which `step` may fail, and whose events are watched.
fn watched(only: &str, to: &str) -> String {
    format!(
        r#"{HEAD}
        [actors.step]
        module = "step"
        retries = 0
        trial = {{ max_failures = 1 }}
        [actors.watch]
        module = "std:events"
        config = {{ {only} }}
        [actors.alarm]
        module = "alarm"
        retries = 0
        trial = false
        [actors.file]
        module = "std:file-out"
        config = {{ path = "../out" }}
        [[wires]]
        from = "watch.out"
        to = "{to}"
        [[wires]]
        from = "alarm.out"
        to = "file.in"
        "#
    )
}

pub(super) fn lines(world: &World) -> Vec<Value> {
    let text = fs::read_to_string(world.path("out")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_rollback_raises_an_alarm() {
    let world = World::new(&watched(r#"only = ["rolled-back"]"#, "alarm.in"));
    world.module("alarm", &guest("relay"));
    world.module("step", &shaky("v1", "steady"));
    let daemon = world.start();
    daemon.send("step.in", r#"{"sender":0,"seq":0}"#);
    daemon.world.module("step", &shaky("v2", "third"));
    daemon.wait_event("swapped", "step");
    daemon.send("step.in", r#"{"sender":0,"seq":2}"#);
    daemon.until("the alarm is written", |d| !lines(&d.world).is_empty());
    let alarm = &lines(&daemon.world)[0];
    assert_eq!((&alarm["event"], &alarm["actors"][0]), (&"rolled-back".into(), &"step".into()));
    assert!(alarm["why"].is_string() && alarm["number"].is_u64(), "{alarm}");
}

#[test]
fn what_events_cause_is_no_event_of_theirs() {
    // The alarm breaks on every event, and each break is an event.
    let world = World::new(&format!(
        "{}[[wires]]\nfrom = \"watch.out\"\nto = \"file.in\"\n",
        watched("", "alarm.in")
    ));
    let breaks = fs::read(repository().join("tests/hostile/trap.wat")).unwrap();
    world.module("alarm", &wat::parse_bytes(&breaks).unwrap());
    world.module("step", &guest("relay"));
    let daemon = world.start();
    daemon.until("the alarm has failed", |d| {
        d.sum("reflowd_restarts_total") > 0.0 && d.sum("reflowd_dead_letters_total") > 0.0
    });
    daemon.post("/v1/actors/step/pause", "");
    daemon.wait_event("paused", "step");
    // What was put out before that is all there is: nothing of what the alarm does.
    daemon.until("it is written", |d| lines(&d.world).iter().any(|line| line["event"] == "paused"));
    let told = lines(&daemon.world);
    let of_the_alarm = |event: &Value| event["actor"] == "alarm";
    assert_eq!(told.iter().find(|event| of_the_alarm(event)), None);
    let mut events = daemon.events(0);
    let broke = events.find(|event| of_the_alarm(event) && event["event"] == "restarted");
    let paused = told.iter().find(|event| event["event"] == "paused").unwrap();
    assert!(broke["number"].as_u64() < paused["number"].as_u64(), "{broke} {paused}");
}

#[test]
fn an_edit_of_the_source_neither_repeats_nor_loses_an_event() {
    let world = World::new(&watched(r#"only = ["paused", "resumed"]"#, "alarm.in"));
    world.module("alarm", &guest("relay"));
    world.module("step", &guest("relay"));
    let daemon = world.start();
    daemon.post("/v1/actors/step/pause", "");
    daemon.until("it is told", |d| lines(&d.world).len() == 1);
    let edited = watched(r#"only = ["resumed", "paused", "failed"]"#, "alarm.in");
    daemon.world.config(&edited);
    daemon.reload();
    assert_eq!(daemon.actor("watch")["generation"], 2);
    daemon.post("/v1/actors/step/resume", "");
    daemon.until("it is told", |d| lines(&d.world).len() == 2);
    let told: Vec<_> = lines(&daemon.world).iter().map(|line| line["event"].clone()).collect();
    assert_eq!(told, ["paused", "resumed"]);
}
