//! Connectors whose other end is the machine: its clock, its files, and the daemon itself.

use std::{fs, io::Write as _};

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

fn lines(world: &World) -> Vec<Value> {
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

/// A file that is followed into another.
fn followed(more: &str) -> String {
    format!(
        r#"{HEAD}
        [actors.lines]
        module = "std:file-in"
        config = {{ path = "../in.log", mode = "follow"{more} }}
        [actors.file]
        module = "std:file-out"
        config = {{ path = "../out" }}
        [[wires]]
        from = "lines.out"
        to = "file.in"
        "#
    )
}

fn append(world: &World, name: &str, text: &str) {
    let path = world.path(name);
    let mut file = fs::File::options().append(true).create(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn wait_for(daemon: &Daemon, expected: &[u64]) {
    let numbers =
        |d: &Daemon| lines(&d.world).iter().map(|line| line.as_u64().unwrap()).collect::<Vec<_>>();
    daemon.until("the lines have come", |d| numbers(d).len() >= expected.len());
    assert_eq!(numbers(daemon), expected);
}

#[test]
fn a_followed_file_goes_on_through_edits_stops_and_rotations() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n2\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2]);
    // An edit of the source begins no file anew.
    daemon.world.config(&followed(", rate = 5000"));
    daemon.reload();
    assert_eq!(daemon.actor("lines")["generation"], 2);
    append(&daemon.world, "in.log", "3\n");
    wait_for(&daemon, &[1, 2, 3]);
    // Rotated while it is read; whoever writes has not noticed yet.
    fs::rename(daemon.world.path("in.log"), daemon.world.path("in.log.1")).unwrap();
    append(&daemon.world, "in.log", "5\n");
    append(&daemon.world, "in.log.1", "4\n");
    wait_for(&daemon, &[1, 2, 3, 4, 5]);
    // Copied and cut.
    fs::write(daemon.world.path("in.log"), "").unwrap();
    daemon.until("it has seen that", |d| d.log_text().contains("followed file was cut, and"));
    append(&daemon.world, "in.log", "6\n");
    wait_for(&daemon, &[1, 2, 3, 4, 5, 6]);
    // Rotated while nobody reads: what is left in the old file comes first.
    let (_, _, world) = daemon.stop();
    append(&world, "in.log", "7\n");
    fs::rename(world.path("in.log"), world.path("in.log.1")).unwrap();
    append(&world, "in.log", "8\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn a_renamed_source_goes_on_where_it_was() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n2\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2]);
    let renamed = followed("").replace("[actors.lines]", "[actors.rows]\nwas = \"lines\"");
    daemon.world.config(&renamed.replace("lines.out", "rows.out"));
    assert_eq!(daemon.reload()["added"], serde_json::json!(["rows"]));
    append(&daemon.world, "in.log", "3\n");
    wait_for(&daemon, &[1, 2, 3]);
}

#[test]
fn a_source_that_was_removed_goes_on_where_it_was_after_a_stop() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n2\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2]);
    let config = followed("");
    let (head, rest) = config.split_once("[actors.lines]").unwrap();
    let (_, sink) = rest.split_once("[actors.file]").unwrap();
    let (sink, _) = sink.split_once("[[wires]]").unwrap();
    daemon.world.config(&format!("{head}[actors.file]{sink}"));
    assert_eq!(daemon.reload()["removed"], serde_json::json!(["lines"]));
    daemon.wait_event("stopped", "lines");
    let (_, _, world) = daemon.stop();
    append(&world, "in.log", "3\n");
    world.config(&config);
    wait_for(&world.start(), &[1, 2, 3]);
}

#[test]
fn a_last_line_without_an_end_is_not_read_twice_when_it_has_one() {
    let once = |more: &str| followed(more).replace("\"follow\"", "\"once\"");
    let world = World::new(&once(""));
    append(&world, "in.log", "1\n2\n3");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3]);
    append(&daemon.world, "in.log", "\n4\n");
    daemon.world.config(&once(", rate = 5000"));
    daemon.reload();
    wait_for(&daemon, &[1, 2, 3, 4]);
}

#[test]
fn a_killed_daemon_goes_on_in_a_file_from_where_it_was_written_last() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n2\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2]);
    let written = |d: &Daemon| fs::read_to_string(d.world.path("data/state/lines.json"));
    daemon.until("how far it has come is on disk", |d| {
        written(d).is_ok_and(|text| text.contains(r#""at":4,"count":2"#))
    });
    daemon.signal("-KILL");
    let (_, _, world) = daemon.ended();
    append(&world, "in.log", "3\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3]);
}

#[test]
fn an_operator_says_where_in_a_file_it_goes_on() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n2\n3\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3]);
    let state = |args: &[&str]| {
        let output = daemon.world.run(&[&["state"], args].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let end = state(&["get", "lines"]);
    assert!(end.contains(r#""at":6,"count":3"#), "{end}");
    state(&["set", "lines", &end.replace(r#""at":6,"count":3"#, r#""at":4,"count":2"#)]);
    wait_for(&daemon, &[1, 2, 3, 3]);
    state(&["reset", "lines"]);
    wait_for(&daemon, &[1, 2, 3, 3, 1, 2, 3]);
}

#[test]
fn what_was_rotated_twice_is_read_in_order() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n");
    let daemon = world.start();
    wait_for(&daemon, &[1]);
    let rotate = |world: &World, line: &str, next: &str| {
        append(world, "in.log", line);
        _ = fs::rename(world.path("in.log.1"), world.path("in.log.2"));
        fs::rename(world.path("in.log"), world.path("in.log.1")).unwrap();
        append(world, "in.log", next);
    };
    // Both within the second in which the first one might still be written to.
    rotate(&daemon.world, "2\n", "3\n");
    rotate(&daemon.world, "4\n", "5\n");
    append(&daemon.world, "in.log.err", "\"another log\"\n");
    wait_for(&daemon, &[1, 2, 3, 4, 5]);
    // Both while nobody reads.
    let (_, _, world) = daemon.stop();
    for name in ["in.log.1", "in.log.2"] {
        fs::remove_file(world.path(name)).unwrap();
    }
    rotate(&world, "6\n", "7\n");
    rotate(&world, "8\n", "9\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn a_file_that_was_cut_or_replaced_is_read_from_its_beginning_after_a_stop() {
    let world = World::new(&followed(""));
    append(&world, "in.log", "1\n2\n3\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3]);
    // The cut is seen, and what comes after it is not.
    fs::write(daemon.world.path("in.log"), "").unwrap();
    daemon.until("it has seen that", |d| d.log_text().contains("followed file was cut, and"));
    let (_, _, world) = daemon.stop();
    // The lines before it ended where one of these does.
    append(&world, "in.log", "10\n11\n12\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3, 10, 11, 12]);
    // Another file that may have the number of the one before.
    let (_, _, world) = daemon.stop();
    fs::remove_file(world.path("in.log")).unwrap();
    append(&world, "in.log", "200\n201\n202\n203\n");
    let daemon = world.start();
    wait_for(&daemon, &[1, 2, 3, 10, 11, 12, 200, 201, 202, 203]);
    // The same file with other lines in it.
    let (_, _, world) = daemon.stop();
    fs::write(world.path("in.log"), "300000\n300001\n300002\n").unwrap();
    let daemon = world.start();
    let all = [1, 2, 3, 10, 11, 12, 200, 201, 202, 203, 300_000, 300_001, 300_002];
    wait_for(&daemon, &all);
}
