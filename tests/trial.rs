//! New versions that turn out bad while messages come in, and what becomes of them.
//!
//! The sender and the sink are outside of the daemon. Each message is numbered and each
//! version stamps what it puts out and counts in its state, so the sink sees what was
//! lost, doubled, overtaken, or counted by a state that is not the right one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use serde_json::{Value, json};

use crate::rig::{Daemon, PATIENCE, World, request_at, shaky};

/// Messages of one request.
const BATCH: u64 = 20;

fn flow(actors: &str) -> String {
    format!(
        r#"
        [daemon]
        modules = "../modules"
        data = "../data"
        quiet = "10ms"
        autostart = false
        [actors]
        {actors}
        screen = {{ module = "std:stdout" }}
        [[wires]]
        from = "a.out"
        to = "screen.in"
        "#
    )
}

/// One actor, which runs its first version.
fn one(keys: &str) -> Daemon {
    let world = World::new(&flow(&format!("a = {{ module = \"shaky\", {keys} }}")));
    world.module("shaky", &shaky("v1", "steady"));
    world.start()
}

/// Numbered messages that go to an actor until it is enough.
struct Load {
    enough: Arc<AtomicBool>,
    sender: thread::JoinHandle<u64>,
    seen: thread::JoinHandle<Vec<Value>>,
}

impl Load {
    fn begin(daemon: &mut Daemon, to: &str) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let (socket, done) = (daemon.world.socket(), Arc::clone(&enough));
        let path = format!("/v1/actors/{to}/ports/in?block=true");
        let sender = thread::spawn(move || {
            let mut sent = 0;
            let post = |seqs: std::ops::Range<u64>, sender: u64| {
                let count = seqs.end - seqs.start;
                let line = |seq| {
                    format!(
                        "{{\"type\":\"Object\",\"data\":{{\"sender\":{sender},\"seq\":{seq}}}}}\n"
                    )
                };
                let lines: String = seqs.map(line).collect();
                let kind = "application/x-ndjson";
                let response = request_at(&socket, "POST", &path, kind, lines.as_bytes());
                assert_eq!(response.json()["accepted"], count, "{response:?}");
            };
            while !done.load(Ordering::Relaxed) {
                post(sent..sent + BATCH, 0);
                sent += BATCH;
            }
            // The last one, which is of a sender of its own and fails nowhere.
            post(0..1, 1);
            sent
        });
        let lines: mpsc::Receiver<String> = daemon.take_lines();
        let seen = thread::spawn(move || {
            let mut seen = Vec::new();
            loop {
                let line = lines.recv_timeout(PATIENCE).unwrap();
                let message: Value = serde_json::from_str(&line).unwrap();
                if message["sender"] == 1 {
                    return seen;
                }
                seen.push(message);
            }
        });
        Self { enough, sender, seen }
    }

    /// Ends it; every message has arrived, once and in order.
    #[track_caller]
    fn end(self, what: &str) -> Vec<Value> {
        self.enough.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap();
        let seen = self.seen.join().unwrap();
        let (mut lost, mut doubled, mut disordered, mut next) = (0, 0, 0, 0);
        for message in &seen {
            let seq = message["seq"].as_u64().unwrap();
            match seq {
                _ if seq >= next => lost += seq - next,
                _ if seq + 1 == next => doubled += 1,
                _ => disordered += 1,
            }
            next = next.max(seq + 1);
        }
        let stamped = |stamp: &str| seen.iter().filter(|m| m["stamp"] == stamp).count();
        println!(
            "{what}: sent {sent}, received {}, lost {lost}, doubled {doubled}, out of order {disordered}; by v1 {}, by v2 {}",
            seen.len(),
            stamped("v1"),
            stamped("v2")
        );
        assert_eq!((lost, doubled, disordered), (0, 0, 0));
        assert_eq!(seen.len() as u64, sent);
        seen
    }
}

fn events(daemon: &Daemon, word: &str) -> Vec<Value> {
    daemon.past(word)
}

fn rolled_back(daemon: &Daemon) -> Value {
    let event = daemon.events(0).find(|event| event["event"] == "rolled-back");
    println!("{event}");
    event
}

/// Each message counted in the state of the one before it.
#[track_caller]
fn counted(seen: &[Value]) {
    for (at, message) in (1..).zip(seen) {
        assert_eq!(message["count"], at, "{message}");
    }
}

#[test]
fn a_version_that_traps_goes_back_by_itself_and_is_not_tried_again_until_the_bytes_change() {
    let mut daemon = one("retries = 1");
    let load = Load::begin(&mut daemon, "a");
    daemon.until("the load runs", |d| d.actor("a")["turns"].as_u64() > Some(100));
    daemon.world.module("shaky", &shaky("v2", "third"));
    let event = rolled_back(&daemon);
    assert_eq!((&event["actors"], &event["lost_turns"]), (&json!(["a"]), &json!(0)));
    assert!(event["why"].as_str().unwrap().starts_with("`a` trapped"), "{event}");
    daemon.wait_event("banned", "a");
    let turns = daemon.actor("a")["turns"].as_u64();
    daemon.until("the old version works", |d| {
        d.actor("a")["turns"].as_u64() > turns.map(|t| t + 100)
    });
    let seen = load.end("traps on every third message");
    // What the new version failed on was done by the old one, in its place.
    counted(&seen);
    let by = |message: &Value, stamp: &str| message["stamp"] == stamp;
    let first = seen.iter().position(|message| by(message, "v2")).unwrap();
    let last = seen.iter().rposition(|message| by(message, "v2")).unwrap();
    let judged = seen[first..last].iter().filter(|message| by(message, "v1"));
    assert!(judged.clone().all(|message| message["seq"].as_u64().unwrap() % 3 == 2));
    assert!(judged.count() >= 1);
    let opinions = events(&daemon, "opinion");
    assert_eq!(opinions.len(), 3);
    assert!(opinions.iter().all(|opinion| opinion["stands"] == true), "{opinions:?}");

    // Another look takes it up no more, and says why.
    let actor = daemon.actor("a");
    assert_eq!((&actor["generation"], &actor["banned"]), (&json!(3), &json!(true)));
    let report = daemon.reload();
    assert_eq!((&report["changed"], &report["refused"][0]["what"]), (&json!([]), &json!("a")));
    assert!(report["refused"][0]["why"].as_str().unwrap().contains("rolled back"), "{report}");
    let table = daemon.world.run(&["ps"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("banned"), "{table:?}");
    assert_eq!(daemon.actor("a")["generation"], 3);

    // Unless somebody says so, or other bytes come.
    let report = daemon.post("/v1/reload?force=true", "").json();
    assert_eq!(report["changed"], json!(["a"]), "{report}");
    assert_eq!(daemon.actor("a")["trial"]["outcome"], "running");
    takes_over(&daemon, &shaky("v3", "steady"));
    let actor = daemon.actor("a");
    assert_eq!((&actor["generation"], &actor["banned"]), (&json!(5), &json!(false)));
    assert_eq!(actor["trial"]["judge"], 3);
}

#[test]
fn a_version_that_hangs_goes_back_at_the_first_time_out() {
    let mut daemon = one("timeout = \"300ms\"");
    let load = Load::begin(&mut daemon, "a");
    daemon.until("the load runs", |d| d.actor("a")["turns"].as_u64() > Some(100));
    daemon.world.module("shaky", &shaky("v2", "hangs"));
    let event = rolled_back(&daemon);
    assert!(event["why"].as_str().unwrap().contains("timed out"), "{event}");
    let seen = load.end("hangs on every tenth message");
    counted(&seen);
    assert_eq!(events(&daemon, "opinion").len(), 1);
}

#[test]
fn a_version_that_breaks_the_state_goes_back_with_the_state_from_before_it() {
    let mut daemon = one("retries = 0");
    let load = Load::begin(&mut daemon, "a");
    daemon.until("the load runs", |d| d.actor("a")["turns"].as_u64() > Some(100));
    daemon.world.module("shaky", &shaky("v2", "breaks"));
    let event = rolled_back(&daemon);
    let turns = daemon.actor("a")["turns"].as_u64();
    daemon.until("the old version works", |d| {
        d.actor("a")["turns"].as_u64() > turns.map(|t| t + 100)
    });
    let seen = load.end("breaks the shape of the state");
    // The turns of the new version, and none else, do not count any more.
    let (kept, lost): (Vec<Value>, Vec<Value>) =
        seen.into_iter().partition(|message| message["stamp"] == "v1");
    assert_eq!(event["lost_turns"], lost.len(), "{event}");
    counted(&kept);
    let opinions = events(&daemon, "opinion");
    let opinions: Vec<_> = opinions.iter().map(|o| (&o["state"], &o["stands"])).collect();
    let (no, yes) = (json!(false), json!(true));
    assert_eq!(opinions, [(&json!("present"), &no), (&json!("at-swap"), &yes)]);
}

#[test]
fn a_poison_message_is_a_dead_letter_and_the_good_new_version_stays() {
    let mut daemon = one("retries = 0, trial = { turns = 50 }");
    takes_over(&daemon, &shaky("v2", "steady"));
    let table = daemon.world.run(&["ps"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("active, on trial"), "{table:?}");
    for _ in 0..5 {
        daemon.send("a.in", r#"{"sender":0,"seq":0,"poison":true}"#);
    }
    let load = Load::begin(&mut daemon, "a");
    let passed = daemon.wait_event("trial-passed", "a");
    assert_eq!(passed["failures"], 0, "{passed}");
    counted(&load.end("a poison message"));
    assert_eq!(daemon.sum("reflowd_messages_dead_lettered_total"), 5.0);
    assert_eq!(events(&daemon, "rolled-back").len(), 0);
    assert_eq!(daemon.actor("a")["generation"], 2);
}

#[test]
fn two_actors_that_change_together_go_back_together() {
    let actors = |version: &str| {
        format!(
            "first = {{ module = \"first-{version}\" }}\n\
             a = {{ module = \"a-{version}\", retries = 0 }}"
        )
    };
    let wired = |version: &str| {
        let wire = "[[wires]]\nfrom = \"first.out\"\nto = \"a.in\"\n";
        format!("{}{wire}", flow(&actors(version)))
    };
    let world = World::new(&wired("v1"));
    world.module("first-v1", &shaky("first-v1", "steady"));
    world.module("a-v1", &shaky("v1", "steady"));
    world.module("first-v2", &shaky("first-v2", "steady"));
    world.module("a-v2", &shaky("v2", "third"));
    let mut daemon = world.start();
    let load = Load::begin(&mut daemon, "first");
    daemon.until("the load runs", |d| d.actor("a")["turns"].as_u64() > Some(100));
    daemon.world.config(&wired("v2"));
    let event = rolled_back(&daemon);
    assert_eq!(event["actors"], json!(["a", "first"]), "{event}");
    let seen = load.end("two change together, one fails");
    counted(&seen);
    daemon.wait_event("banned", "first");
    for actor in ["a", "first"] {
        let actor = daemon.actor(actor);
        assert_eq!((&actor["generation"], &actor["banned"]), (&json!(3), &json!(true)));
    }
}

#[test]
fn an_operator_can_go_back_as_long_as_there_is_something_to_go_back_to() {
    let daemon = one("trial = false");
    let none = daemon.world.run(&["rollback", "a"]);
    let why = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(!none.status.success() && why.contains("nothing to go back to"), "{none:?}");
    let first = daemon.actor("a")["digest"].clone();
    for version in ["v2", "v3", "v4"] {
        takes_over(&daemon, &shaky(version, "steady"));
    }
    let wrong = daemon.world.run(&["rollback", "a", "--to", "9"]);
    let why = String::from_utf8_lossy(&wrong.stderr).into_owned();
    let first_digest = &first.as_str().unwrap()[..12];
    assert!(why.contains("9, which has not been yet"), "{wrong:?}");
    assert!(why.contains(&format!("it can go back to 1 ({first_digest}), 2 (")), "{wrong:?}");
    let back = daemon.world.run(&["rollback", "a", "--to", "1"]);
    let said = String::from_utf8_lossy(&back.stdout).into_owned();
    assert!(back.status.success() && said.starts_with("~ a: generation 5 runs "), "{back:?}");
    assert_eq!(daemon.actor("a")["digest"], first);
    // Disk still asks for the fourth.
    daemon.reload();
    assert_eq!(daemon.actor("a")["digest"], first);
}

#[test]
fn what_an_operator_went_back_to_is_banned_no_longer() {
    let daemon = one("trial = false");
    for version in ["v2", "v1"] {
        takes_over(&daemon, &shaky(version, "steady"));
    }
    let back = || assert!(daemon.world.run(&["rollback", "a"]).status.success());
    back();
    daemon.reload();
    assert_eq!(daemon.actor("a")["banned"], true);
    // Then to the first, which is what disk asks for.
    back();
    assert_eq!(daemon.reload()["refused"], json!([]));
    let actor = daemon.actor("a");
    assert_eq!(
        (&actor["digest"], &actor["banned"]),
        (&sha256(&shaky("v1", "steady")), &json!(false))
    );
}

#[test]
fn a_version_whose_ports_do_not_fit_what_ran_before_has_no_judge() {
    let daemon = one("retries = 0");
    let filter =
        std::fs::read(crate::rig::repository().join("modules/magnitude-filter.wasm")).unwrap();
    let config = flow("a = { module = \"shaky\", retries = 0 }").replace("a.out", "a.strong");
    daemon.world.config(&config);
    daemon.world.module("shaky", &filter);
    let report = daemon.reload();
    assert_eq!(report["refused"], json!([]), "{report}");
    let event = daemon.events(0).find(|event| event["event"] == "no-trial");
    assert!(event["why"].as_str().unwrap().contains("has no outport `strong`"), "{event}");
    assert_eq!(daemon.actor("a")["trial"], Value::Null);
}

/// A module that makes another state of the one before, and swallows what comes in.
fn migrating(migrate: &str) -> Vec<u8> {
    migrating_and("(call $answer (i32.const 600) (i32.const 14))", migrate)
}

/// The same, with its turn.
fn migrating_and(process: &str, migrate: &str) -> Vec<u8> {
    let path = crate::rig::repository().join("tests/hostile/trap.wat");
    let text = std::fs::read_to_string(path).unwrap();
    let traps = r#"(func (export "process") (result i32) unreachable)"#;
    let functions = format!(
        r#"(data (i32.const 700) "{{\22count\22:1000}}")
        (func (export "process") (result i32) {process})
        (func (export "migrate_state") (result i32) {migrate})"#
    );
    assert!(text.contains(traps));
    wat::parse_str(text.replace(traps, &functions)).unwrap()
}

/// Puts a module in the place of `shaky`, and waits until it runs.
#[track_caller]
fn takes_over(daemon: &Daemon, module: &[u8]) {
    daemon.world.module("shaky", module);
    let report = daemon.reload();
    assert_eq!(report["refused"], json!([]), "{report}");
    daemon.until("it has taken over", |d| d.actor("a")["digest"] == sha256(module));
}

/// Answers `migrate_state` with a thousand.
const MIGRATES: &str = "(call $answer (i32.const 700) (i32.const 14))";

/// Sends a numbered message, and gives the count that comes out.
fn count(daemon: &mut Daemon, seq: u64) -> u64 {
    daemon.send("a.in", &format!("{{\"sender\":0,\"seq\":{seq}}}"));
    let line: Value = serde_json::from_str(&daemon.line().unwrap()).unwrap();
    line["count"].as_u64().unwrap()
}

/// A first version that has counted to two, and one in its place that makes a thousand of that.
fn migrated(keys: &str) -> Daemon {
    let mut daemon = one(keys);
    assert_eq!((count(&mut daemon, 0), count(&mut daemon, 1)), (1, 2));
    takes_over(&daemon, &migrating(MIGRATES));
    daemon
}

/// What a command prints, which succeeds.
#[track_caller]
fn done(daemon: &Daemon, args: &[&str]) -> String {
    let output = daemon.world.run(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a command says that fails with that exit code.
#[track_caller]
fn refused(daemon: &Daemon, args: &[&str], code: i32) -> String {
    let output = daemon.world.run(args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn state(daemon: &Daemon) -> String {
    done(daemon, &["state", "get", "a"])
}

#[test]
fn a_module_makes_its_own_state_or_does_not_take_over() {
    let mut daemon = one("retries = 0");
    assert_eq!((count(&mut daemon, 0), count(&mut daemon, 1)), (1, 2));

    // One that cannot: what runs goes on, with its state. A dry run says the same.
    daemon.world.module("shaky", &migrating("unreachable"));
    for path in ["/v1/reload?dry_run=true", "/v1/reload"] {
        let report = daemon.post(path, "").json();
        let why = report["refused"][0]["why"].as_str().unwrap();
        assert!(why.contains("`a`: `migrate_state` broke"), "{path}: {report}");
        assert_eq!(report["changed"], json!([]), "{path}");
    }
    assert_eq!(count(&mut daemon, 2), 3);

    // One that can, which a dry run tries on a copy.
    daemon.world.module("shaky", &migrating(MIGRATES));
    assert_eq!(daemon.post("/v1/reload?dry_run=true", "").json()["refused"], json!([]));
    takes_over(&daemon, &migrating(MIGRATES));
    assert_eq!(daemon.actor("a")["trial"]["outcome"], "running");
    daemon.send("a.in", "7");
    let told = done(&daemon, &["rollback", "a"]);
    assert!(told.contains("; its state is that of 2"), "{told}");
    assert_eq!(count(&mut daemon, 4), 4);

    // What comes after it finds the state that it has made.
    takes_over(&daemon, &migrating(&format!("(nop) {MIGRATES}")));
    takes_over(&daemon, &shaky("v3", "steady"));
    assert_eq!(count(&mut daemon, 5), 1001);
}

#[test]
fn a_dry_run_refuses_a_configuration_that_the_module_refuses() {
    let daemon = one("retries = 0");
    daemon.world.config(&flow("a = { module = \"shaky\", entry_point = \"nothing\" }"));
    for path in ["/v1/reload?dry_run=true", "/v1/reload"] {
        let report = daemon.post(path, "").json();
        let why = report["refused"][0]["why"].as_str().unwrap();
        assert!(why.contains("does not export `nothing`"), "{path}: {report}");
    }
    assert_eq!(daemon.actor("a")["generation"], 1);
}

#[test]
fn a_dry_run_refuses_what_a_connector_refuses() {
    let daemon = one("retries = 0");
    let open = r#"module = "std:http-in", config = { listen = "0.0.0.0:1", routes = [{ path = "/", port = "x" }] }"#;
    let with = |actors: &str| flow(&format!("a = {{ module = \"shaky\", retries = 0 }}\n{actors}"));
    let screen = "std:stdout\", config = { what = \"nothing\" } ";
    for (config, expected) in [
        (with(&format!("door = {{ {open} }}")), "set a `token`"),
        (with("at = { module = \"std:cron\", config = { schedule = \"never\" } }"), "std:cron"),
        (with("").replace("std:stdout\" ", screen), "std:stdout"),
    ] {
        daemon.world.config(&config);
        let refused = |path| daemon.post(path, "").json()["refused"].take();
        let dry = refused("/v1/reload?dry_run=true");
        assert!(dry[0]["why"].as_str().is_some_and(|why| why.contains(expected)), "{dry}");
        assert_eq!(dry, refused("/v1/reload"), "{expected}");
    }
}

#[test]
fn a_dry_run_refuses_a_module_that_there_is_no_room_for() {
    let room = "autostart = false\nkeep = { bytes = \"200 KiB\" }";
    let actors = flow("a = { module = \"shaky\" }\nb = { module = \"other\" }");
    let world = World::new(&actors.replace("autostart = false", room));
    world.module("shaky", &shaky("v1", "steady"));
    world.module("other", &shaky("v1", "steady"));
    let daemon = world.start();
    daemon.world.module("other", &shaky("v2", "steady"));
    for path in ["/v1/reload?dry_run=true", "/v1/reload"] {
        let report = daemon.post(path, "").json();
        let refused = &report["refused"][0];
        assert_eq!(refused["what"], "b", "{path}: {report}");
        assert!(refused["why"].as_str().unwrap().contains("raise `keep.bytes`"), "{report}");
    }
    // What is kept already needs no more room.
    daemon.world.module("other", &shaky("v1", "steady"));
    daemon
        .world
        .config(&actors.replace("autostart = false", room).replace("\"other\" }", "\"shaky\" }"));
    for path in ["/v1/reload?dry_run=true", "/v1/reload"] {
        assert_eq!(daemon.post(path, "").json()["refused"], json!([]), "{path}");
    }
}

#[test]
fn a_module_is_not_asked_to_migrate_a_state_that_there_is_none_of_yet() {
    let mut daemon = one("retries = 0");
    takes_over(&daemon, &migrating("unreachable"));
    assert_eq!(state(&daemon), "{}\n");
    done(&daemon, &["rollback", "a"]);
    assert_eq!(count(&mut daemon, 0), 1);
}

#[test]
fn a_version_that_has_migrated_the_state_and_fails_goes_back_at_once_with_its_message() {
    let mut daemon = one("retries = 0");
    assert_eq!((count(&mut daemon, 0), count(&mut daemon, 1)), (1, 2));
    takes_over(&daemon, &migrating_and("unreachable", MIGRATES));
    // What the version before cannot do either is nobody's fault.
    daemon.send("a.in", r#"{"sender":0,"seq":2,"poison":true}"#);
    daemon.until("it is a dead letter", |d| d.sum("reflowd_messages_dead_lettered_total") == 1.0);
    assert_eq!(daemon.actor("a")["generation"], 2);
    assert_eq!(count(&mut daemon, 3), 3, "the version before, and the state from before");
    let event = rolled_back(&daemon);
    assert_eq!((&event["actors"], &event["lost_turns"]), (&json!(["a"]), &json!(0)));
    assert!(event["back"][0]["state_from"].as_u64() > Some(0), "{event}");
    let opinions = events(&daemon, "opinion");
    let opinions: Vec<_> = opinions.iter().map(|o| (&o["state"], &o["stands"])).collect();
    let before = json!("before-migration");
    assert_eq!(opinions, [(&before, &json!(false)), (&before, &json!(true))]);
    daemon.until("it is banned", |d| d.actor("a")["banned"] == true);
    daemon.check_books();
}

/// What may come between a migration and the rollback.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Between {
    Restart,
    Kill,
    Edit,
    AnotherFalls,
}

impl Between {
    fn happen(self, daemon: Daemon) -> Daemon {
        match self {
            Self::Restart => daemon.stop().2.start(),
            Self::Kill => killed_and_started(daemon, |_| {}),
            Self::Edit => {
                let keys = "a = { module = \"shaky\", retries = 0, memory = \"50 MiB\" }";
                daemon.world.config(&flow(keys));
                assert_eq!(daemon.reload()["changed"], json!(["a"]));
                daemon
            }
            Self::AnotherFalls => {
                let same = format!("(nop) {MIGRATES}");
                takes_over(&daemon, &migrating_and("unreachable", &same));
                (0..3).for_each(|_| daemon.send("a.in", "7"));
                rolled_back(&daemon);
                daemon
            }
        }
    }
}

#[test]
fn a_rollback_finds_the_state_from_before_a_migration_whatever_came_in_between() {
    use Between::*;
    // Whether the version that migrates is on trial all the while, and how to say so.
    let (untried, passed, on_trial) = ("trial = false", "trial = { turns = 1 }", "trial = {}");
    let all = [Restart, AnotherFalls, Kill, Edit, Kill];
    let cases: [(&str, &[Between]); 12] = [
        (untried, &[]),
        (untried, &[Kill]),
        (untried, &[Edit, Restart]),
        (passed, &[Restart]),
        (passed, &[AnotherFalls]),
        (passed, &[Edit]),
        (passed, &all),
        (on_trial, &[]),
        (on_trial, &[Restart]),
        (on_trial, &[Kill, Kill]),
        (on_trial, &[Edit]),
        (on_trial, &[Edit, Kill]),
    ];
    for (trial, history) in cases {
        let mut daemon = migrated(&format!("retries = 0, {trial}"));
        if trial == passed {
            daemon.send("a.in", "7");
            daemon.wait_event("trial-passed", "a");
        }
        for between in history {
            daemon = between.happen(daemon);
            assert_eq!(state(&daemon), "{\"count\":1000}\n", "{trial}, {history:?}");
        }
        // The judge of a trial is what it goes back to without more words.
        let to: &[&str] = if trial == on_trial { &[] } else { &["--to", "1"] };
        done(&daemon, &[&["rollback", "a"], to].concat());
        assert_eq!(state(&daemon), "{\"count\":2}\n", "{trial}, {history:?}");
        // What was given back is on the disk too.
        let mut daemon = killed_and_started(daemon, |_| {});
        assert_eq!(count(&mut daemon, 2), 3, "{trial}, {history:?}");
        daemon.check_books();
    }
}

#[test]
fn a_trial_of_a_migrated_state_outlives_a_killed_daemon_with_both_states() {
    let daemon = migrated("retries = 0");
    // What has happened to the state since then is not made anew.
    done(&daemon, &["state", "set", "a", "{\"count\":2000}"]);
    let mut daemon = killed_and_started(daemon, |_| {});
    assert_eq!(state(&daemon), "{\"count\":2000}\n");
    assert_eq!(daemon.actor("a")["trial"]["outcome"], "running");
    takes_over(&daemon, &migrating_and("unreachable", &format!("(nop) {MIGRATES}")));
    assert_eq!(count(&mut daemon, 2), 3);
    rolled_back(&daemon);
}

#[test]
fn a_version_on_trial_that_does_not_come_back_takes_its_state_with_it_and_that_is_told() {
    let daemon = migrated("retries = 0");
    let mut daemon = killed_and_started(daemon, |world| world.module("shaky", b"no module"));
    let event = daemon.wait_event("state-given-back", "a");
    assert!(event["why"].as_str().unwrap().contains("is lost"), "{event}");
    assert_eq!(count(&mut daemon, 2), 3);
}

#[test]
fn a_start_after_a_crash_in_the_middle_of_a_migration_finds_the_version_and_state_before() {
    let daemon = one("retries = 0");
    let (_, _, world) = {
        let mut daemon = daemon;
        assert_eq!(count(&mut daemon, 0), 1);
        daemon.stop()
    };
    // The state of the next epoch is written, and that it counts is not.
    world.put("data/state/a@1.json", b"{\"count\":1000}");
    let mut daemon = world.start();
    assert_eq!(count(&mut daemon, 1), 2);
    assert!(!daemon.world.path("data/state/a@1.json").exists());
}

#[test]
fn a_rollback_is_refused_where_the_state_from_before_cannot_be_had() {
    let daemon = migrated("retries = 0, trial = false");
    let (_, _, world) = daemon.stop();
    let folder = world.path("data/former-states");
    let file = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let name = file.file_name().unwrap().to_str().unwrap();
    let mut text = std::fs::read(&file).unwrap();
    text[3] ^= 1;
    std::fs::write(&file, text).unwrap();
    let daemon = world.start();
    let why = refused(&daemon, &["rollback", "a"], 1);
    assert!(why.contains(name) && why.contains("is damaged"), "{why}");
    std::fs::remove_file(&file).unwrap();
    let why = refused(&daemon, &["rollback", "a"], 1);
    assert!(why.contains(name) && why.contains("put its file back instead"), "{why}");
    let actor = daemon.actor("a");
    assert_eq!((&actor["generation"], state(&daemon).as_str()), (&json!(2), "{\"count\":1000}\n"));
}

#[test]
fn a_rollback_that_former_versions_have_left_no_state_for_is_refused() {
    for (second, code) in [(migrating(MIGRATES), 1), (shaky("v2", "steady"), 0)] {
        let mut daemon = one("retries = 0, trial = false");
        assert_eq!(count(&mut daemon, 0), 1);
        takes_over(&daemon, &second);
        let daemon = killed_and_started(daemon, |world| {
            // As it was written before states were kept.
            let path = world.path("data/generations.json");
            let bare = bare(&std::fs::read_to_string(&path).unwrap());
            std::fs::write(path, bare.to_string()).unwrap();
        });
        let back = daemon.world.run(&["rollback", "a"]);
        assert_eq!(back.status.code(), Some(code), "{back:?}");
        let why = String::from_utf8_lossy(&back.stderr);
        assert!(code == 0 || why.contains("exports `migrate_state` and has run since"), "{why}");
    }
}

/// What `generations.json` says, as versions before this one have written it.
fn bare(text: &str) -> Value {
    let mut copies = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut bare = copies.next().unwrap().unwrap()[2].take();
    bare["version"] = 1.into();
    for (_, actor) in bare["actors"].as_object_mut().unwrap() {
        let actor = actor.as_object_mut().unwrap();
        actor.remove("epoch");
        actor.remove("ran");
        for former in actor["former"].as_array_mut().unwrap() {
            former.as_object_mut().unwrap().remove("left");
        }
    }
    bare
}

#[test]
fn whoever_waits_for_the_trial_is_told_by_the_exit_code_how_it_ended() {
    let mut daemon = one("retries = 0, trial = { turns = 30 }");
    let load = Load::begin(&mut daemon, "a");
    daemon.world.module("shaky", &shaky("v2", "third"));
    let bad = daemon.world.run(&["reload", "--wait-trial"]);
    assert_eq!(bad.status.code(), Some(1), "{bad:?}");
    assert_eq!(daemon.actor("a")["banned"], true);
    // All is over before it looks, and it says the same.
    let again = daemon.world.run(&["reload", "--wait-trial"]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    daemon.world.module("shaky", &shaky("v3", "steady"));
    let good = daemon.world.run(&["reload", "--wait-trial"]);
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    assert_eq!(daemon.actor("a")["trial"]["outcome"], "passed");
    load.end("a bad version and a good one");
}

/// Ends the daemon as a loss of power would, and starts it again.
fn killed_and_started(daemon: Daemon, meanwhile: impl FnOnce(&World)) -> Daemon {
    daemon.signal("-KILL");
    let (_, _, world) = daemon.ended();
    meanwhile(&world);
    world.start()
}

fn sha256(bytes: &[u8]) -> Value {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

#[test]
fn a_ban_and_the_generation_survive_a_killed_daemon() {
    let mut daemon = one("retries = 0");
    takes_over(&daemon, &shaky("v2", "third"));
    let load = Load::begin(&mut daemon, "a");
    rolled_back(&daemon);
    load.end("before the daemon is killed");
    let mut daemon = killed_and_started(daemon, |_| {});
    let actor = daemon.actor("a");
    assert_eq!((&actor["generation"], &actor["banned"]), (&json!(3), &json!(true)));
    assert_eq!(actor["digest"], sha256(&shaky("v1", "steady")));
    assert!(daemon.reload()["refused"][0]["why"].as_str().unwrap().contains("rolled back"));
    assert_eq!(daemon.actor("a")["generation"], 3);
    Load::begin(&mut daemon, "a").end("after it has started again");
    // Once again, for what is written by a daemon that has read it.
    let daemon = killed_and_started(daemon, |world| world.module("shaky", &shaky("v3", "steady")));
    let actor = daemon.actor("a");
    assert_eq!((&actor["generation"], &actor["trial"]["judge"]), (&json!(4), &json!(3)));
    assert_eq!(actor["banned"], false);
}

#[test]
fn a_file_that_changed_while_the_daemon_was_down_is_a_swap_with_a_trial() {
    let daemon = one("retries = 0");
    let mut daemon =
        killed_and_started(daemon, |world| world.module("shaky", &shaky("v2", "third")));
    let actor = daemon.actor("a");
    assert_eq!((&actor["generation"], &actor["trial"]["judge"]), (&json!(2), &json!(1)));
    let load = Load::begin(&mut daemon, "a");
    rolled_back(&daemon);
    counted(&load.end("changed while the daemon was down"));
    assert_eq!(daemon.actor("a")["digest"], sha256(&shaky("v1", "steady")));
}

#[test]
fn the_judge_of_a_version_on_trial_survives_a_killed_daemon() {
    let daemon = one("retries = 0");
    takes_over(&daemon, &shaky("v2", "third"));
    assert_eq!(daemon.actor("a")["trial"]["outcome"], "running");
    let mut daemon = killed_and_started(daemon, |_| {});
    let actor = daemon.actor("a");
    assert_eq!(actor["digest"], sha256(&shaky("v2", "third")));
    assert_eq!(actor["trial"]["outcome"], "running");
    let load = Load::begin(&mut daemon, "a");
    rolled_back(&daemon);
    load.end("killed within the trial");
    assert_eq!(daemon.actor("a")["digest"], sha256(&shaky("v1", "steady")));
}

#[test]
fn a_daemon_comes_up_on_the_last_good_version_of_a_file_that_is_bad_or_gone() {
    let world = World::new(&flow("a = { module = \"shaky\" }"));
    world.module("shaky", b"this is no module");
    let refused = world.run(&["check"]);
    assert_eq!(refused.status.code(), Some(78), "{refused:?}");

    let daemon = one("");
    let digest = daemon.actor("a")["digest"].clone();
    let mut daemon = killed_and_started(daemon, |world| world.module("shaky", b"no module"));
    assert_eq!(daemon.actor("a")["digest"], digest);
    let event = daemon.events(0).find(|event| event["event"] == "change-refused");
    assert!(event["why"].as_str().unwrap().contains("goes on with what it runs"), "{event}");
    Load::begin(&mut daemon, "a").end("its file is no module");
    let (_, _, world) = daemon.stop();
    std::fs::remove_file(world.path("modules/shaky.wasm")).unwrap();
    let mut daemon = world.start();
    let actor = daemon.actor("a");
    assert_eq!((&actor["digest"], &actor["generation"]), (&digest, &json!(1)));
    daemon.events(0).find(|event| event["event"] == "file-gone");
    Load::begin(&mut daemon, "a").end("its file is gone");
}

#[test]
fn what_cannot_be_understood_of_the_last_run_is_said_and_put_aside() {
    for text in ["{\"version\": 1, \"key\": \"", "{\"version\": 9}"] {
        let daemon = killed_and_started(one("retries = 0"), |world| {
            world.put("data/generations.json", text.as_bytes());
            world.module("shaky", &shaky("v2", "steady"));
        });
        let event = daemon.events(0).find(|event| event["event"] == "data-damaged");
        assert!(event["why"].as_str().unwrap().contains("put aside"), "{event}");
        let actor = daemon.actor("a");
        assert_eq!((&actor["generation"], &actor["trial"]), (&json!(1), &Value::Null));
        assert_eq!(actor["digest"], sha256(&shaky("v2", "steady")));
        assert!(daemon.world.path("data/generations.json.unread").exists());
    }
}

/// Has an operator roll `a` back from a second version, and ends the daemon.
fn banned_and_killed() -> World {
    let daemon = one("retries = 0");
    daemon.world.module("shaky", &shaky("v2", "steady"));
    assert_eq!(daemon.reload()["changed"], json!(["a"]));
    assert_eq!(daemon.post("/v1/actors/a/rollback", "").status, 200);
    daemon.signal("-KILL");
    daemon.ended().2
}

/// The places in `text` where one of its two copies has those words.
fn places(text: &[u8], words: &str) -> Vec<usize> {
    let at = (0..text.len()).filter(|at| text[*at..].starts_with(words.as_bytes()));
    at.map(|at| at + words.len()).collect()
}

#[test]
fn no_flipped_bit_of_what_is_remembered_brings_a_banned_version_back() {
    let mut world = banned_and_killed();
    let file = "data/generations.json";
    for words in ["\"why\": \"", "\"key\": \"", "\"bans\": ", "[\"reflowd ", "\"digest\": \""] {
        let whole = std::fs::read(world.path(file)).unwrap();
        for at in places(&whole, words) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            world.put(file, &damaged);
            let daemon = world.start();
            let event = daemon.events(0).find(|event| event["event"] == "data-damaged");
            assert!(event["why"].as_str().unwrap().contains("second copy"), "{event}");
            let actor = daemon.actor("a");
            assert_eq!(actor["digest"], sha256(&shaky("v1", "steady")), "{words} at {at}");
            assert_eq!(actor["banned"], true, "{words} at {at}");
            daemon.signal("-KILL");
            world = daemon.ended().2;
            assert_eq!(std::fs::read(world.path(file)).unwrap(), whole, "it is mended");
        }
    }
}

#[test]
fn a_version_that_may_have_been_banned_waits_for_an_operator() {
    let world = banned_and_killed();
    world.put("data/generations.json", b"both copies are gone");
    let daemon = world.start();
    let waits = |daemon: &Daemon| {
        let actor = daemon.actor("a");
        assert_eq!(actor["state"], "loading", "{actor}");
        daemon.logs("it may have been rolled back");
    };
    daemon.events(0).find(|event| event["event"] == "data-damaged");
    waits(&daemon);
    // That is remembered too.
    let daemon = killed_and_started(daemon, |_| {});
    waits(&daemon);
    let mut daemon = killed_and_started(daemon, |_| {});
    assert_eq!(daemon.post("/v1/reload?force=true", "").json()["added"], json!(["a", "screen"]));
    assert_eq!(daemon.actor("a")["digest"], sha256(&shaky("v2", "steady")));
    Load::begin(&mut daemon, "a").end("after an operator has said so");
}

#[test]
fn what_a_former_version_remembered_is_read_once_and_turned_over() {
    let world = banned_and_killed();
    let file = "data/generations.json";
    let text = std::fs::read_to_string(world.path(file)).unwrap();
    let mut first = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let mut bare = first.next().unwrap().unwrap()[2].take();
    bare["version"] = 1.into();
    world.put(file, bare.to_string().as_bytes());
    world.put("data/VERSION", b"reflowd data 1\n");
    let daemon = world.start();
    assert_eq!(daemon.actor("a")["banned"], true);
    assert!(events(&daemon, "data-damaged").is_empty());
    let turned = std::fs::read_to_string(daemon.world.path(file)).unwrap();
    assert_eq!(turned, text);
    let version = std::fs::read_to_string(daemon.world.path("data/VERSION")).unwrap();
    assert_eq!(version, "reflowd data 2\n");
}
