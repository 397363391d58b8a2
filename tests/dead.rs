//! Dead letters: what an operator can do with them, and what they survive.

use std::{
    io::Write,
    process::{Command, Output},
    thread,
};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;

use crate::rig::{Daemon, REFLOWD, World, guest, repository};

const CONFIG: &str = r#"
    [daemon]
    modules = "../modules"
    data = "../data"
    quiet = "10ms"
    autostart = false
    [actors.step]
    module = "step"
    retries = 0
    mailbox = 3
    [actors.screen]
    module = "std:stdout"
    [[wires]]
    from = "step.out"
    to = "screen.in"
"#;

fn trap_text() -> String {
    std::fs::read_to_string(repository().join("tests/hostile/trap.wat")).unwrap()
}

/// A module that breaks on every message.
fn trap() -> Vec<u8> {
    wat::parse_str(trap_text()).unwrap()
}

/// A module that fails on every other message, the first one included, and never so often
/// in a row that its actor rests.
fn flaky() -> Vec<u8> {
    let process = r#"(global $n (mut i32) (i32.const 0))
        (func (export "process") (result i32)
          (global.set $n (i32.add (global.get $n) (i32.const 1)))
          (if (i32.and (global.get $n) (i32.const 1)) (then (return (i32.const 1))))
          (call $answer (i32.const 600) (i32.const 14)))"#;
    let text = trap_text();
    let breaks = r#"(func (export "process") (result i32) unreachable)"#;
    assert!(text.contains(breaks));
    wat::parse_str(text.replace(breaks, process)).unwrap()
}

fn start(module: &[u8]) -> Daemon {
    let world = World::new(CONFIG);
    world.module("step", module);
    world.start()
}

/// The dead letters that fit.
fn letters(daemon: &Daemon, query: &str) -> Vec<Value> {
    let answer = daemon.get(&format!("/v1/dead-letters?{query}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn numbers(daemon: &Daemon) -> Vec<u64> {
    letters(daemon, "").iter().map(|letter| letter["number"].as_u64().unwrap()).collect()
}

/// Sends these numbers one after the other, and waits until each is dealt with.
fn send(daemon: &Daemon, values: std::ops::RangeInclusive<u64>) {
    for value in values {
        daemon.send("step.in", &value.to_string());
        daemon.until("it is dealt with", |d| d.sum("reflowd_mailbox_messages") == 0.0);
    }
}

/// Exit code, standard output and standard error of `reflowd dead`.
fn dead(daemon: &Daemon, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = daemon.world.run(&[&["dead"], args].concat());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn dead_letters_are_listed_shown_replayed_and_purged() {
    let mut daemon = start(&trap());
    send(&daemon, 1..=5);
    let digest = daemon.actor("step")["digest"].as_str().unwrap().to_owned();

    let (code, list, said) = dead(&daemon, &["list"]);
    assert_eq!((code, list.lines().count(), said.as_str()), (0, 6, ""), "{list}");
    assert!(list.lines().last().unwrap().contains("step.in  trap   1"), "{list}");
    for (args, count) in [
        (&["--actor", "step"][..], 5),
        (&["--actor", "screen"], 0),
        (&["--reason", "trap"], 5),
        (&["--reason", "timeout"], 0),
        (&["--digest", &digest[..7].to_uppercase()], 5),
        (&["--digest", "0000000"], 0),
        (&["--since", "1h"], 5),
        (&["--until", "1h"], 0),
        (&["--until", "2999-01-01T00:00:00Z"], 5),
        (&["--limit", "2"], 2),
    ] {
        let (code, list, said) = dead(&daemon, &[&["list", "--json"], args].concat());
        assert_eq!((code, list.lines().count()), (0, count), "{args:?}: {list}{said}");
    }
    let (code, shown, _) = dead(&daemon, &["show", "3"]);
    assert!(code == 0 && shown.contains(r#""data":3"#), "{shown}");
    let (code, _, said) = dead(&daemon, &["show", "99"]);
    assert!(code == 1 && said.contains("`reflowd dead list`"), "{said}");
    for word in ["replay", "purge"] {
        let (code, _, said) = dead(&daemon, &[word]);
        assert!(code == 2 && said.contains("--all"), "{said}");
        let path = format!("/v1/dead-letters{}", if word == "replay" { "/replay" } else { "" });
        let method = if word == "replay" { "POST" } else { "DELETE" };
        assert_eq!(daemon.request(method, &path, "application/json", b"").status, 400);
        // A variable of a shell that is not set means no letter, and not every one.
        let (code, _, said) = dead(&daemon, &[word, "--digest", ""]);
        assert!(code != 0 && said.contains("`digest` is empty"), "{said}");
        let (code, _, said) = dead(&daemon, &[word, "--since", "yesterday"]);
        assert!(code == 2 && said.contains("such as 10m"), "{said}");
    }

    // The module still breaks, so what is replayed is dead again, under another number.
    assert_eq!(dead(&daemon, &["replay", "2"]).1, "1 replayed\n");
    daemon.until("it is dead again", |d| numbers(d) == [1, 3, 4, 5, 6]);
    assert_eq!(letters(&daemon, "numbers=6")[0]["replayed"], true);

    daemon.world.module("step", &guest("relay"));
    daemon.reload();
    let (code, purged, _) = dead(&daemon, &["purge", "4", "99"]);
    assert_eq!((code, purged.as_str()), (1, "1 purged\n"));
    let (code, replayed, said) = dead(&daemon, &["replay", "1", "3", "5"]);
    assert_eq!((code, replayed.as_str(), said.as_str()), (0, "3 replayed\n", ""));
    for value in ["1", "3", "5"] {
        assert_eq!(daemon.line().as_deref(), Some(value));
    }
    assert_eq!(dead(&daemon, &["replay", "--reason", "trap"]).1, "1 replayed\n");
    assert_eq!(daemon.line().as_deref(), Some("2"));
    assert_eq!(numbers(&daemon), [0; 0]);
    let metrics = daemon.metrics();
    let replayed = r#"reflowd_messages_accepted_total{actor="step",by="replay"}"#;
    assert_eq!(metrics[replayed], 5.0);
    let (status, last, world) = daemon.stop();
    assert!(status.success(), "{last}");
    // What was replayed or purged does not come back.
    assert_eq!(numbers(&world.start()), [0; 0]);
}

#[test]
fn a_replay_tells_what_does_not_fit_and_leaves_it_where_it_was() {
    let mut daemon = start(&trap());
    send(&daemon, 1..=5);
    daemon.world.module("step", &guest("relay"));
    daemon.reload();
    daemon.post("/v1/actors/step/pause", "");
    daemon.until("it is paused", |d| d.actor("step")["state"] == "paused");
    let (code, replayed, said) = dead(&daemon, &["replay", "--all"]);
    assert_eq!((code, replayed.as_str()), (75, "3 replayed\n"), "{said}");
    assert!(said.contains("2 for step.in stayed: the mailbox of `step` is full"), "{said}");
    assert_eq!(numbers(&daemon), [4, 5]);
    daemon.post("/v1/actors/step/resume", "");
    for value in ["1", "2", "3"] {
        assert_eq!(daemon.line().as_deref(), Some(value));
    }
    daemon.world.config(&CONFIG.replace("step", "other"));
    daemon.world.module("other", &guest("relay"));
    daemon.post("/v1/reload?allow_removal=true", "");
    daemon.until("it is gone", |d| d.actor("step").is_null());
    let (code, replayed, said) = dead(&daemon, &["replay", "--all"]);
    assert_eq!((code, replayed.as_str()), (1, "0 replayed\n"), "{said}");
    assert!(said.contains("2 for step.in stayed: there is no actor `step`"), "{said}");
    assert_eq!(numbers(&daemon), [4, 5]);
}

#[test]
fn dead_letters_on_disk_survive_the_death_of_the_daemon() {
    let daemon = start(&flaky());
    let mut stream = daemon.connect();
    let sender = thread::spawn(move || {
        let lines: String =
            (0..20_000).map(|n| format!("{{\"type\":\"Integer\",\"data\":{n}}}\n")).collect();
        let head = format!(
            "POST /v1/actors/step/ports/in?block=true HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n",
            lines.len()
        );
        // The daemon is killed in the middle of it.
        _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(lines.as_bytes()));
        stream
    });
    let mut on_disk = 0;
    daemon.until("some are on disk", |d| {
        let stock = d.get("/v1/dead-letters/stock").json();
        on_disk = stock["on_disk"].as_u64().unwrap();
        on_disk >= 500
    });
    daemon.signal("-KILL");
    let (status, _, world) = daemon.ended();
    assert!(!status.success());
    drop(sender.join().unwrap());

    let daemon = world.start();
    let letters = letters(&daemon, "");
    println!("{on_disk} were seen on disk before the kill, {} are there", letters.len());
    assert!(letters.len() as u64 >= on_disk, "{} of {on_disk}", letters.len());
    for (at, letter) in letters.iter().enumerate() {
        assert_eq!(letter["number"], at + 1);
        assert_eq!(letter["envelope"]["message"]["data"], 2 * at);
        assert_eq!((&letter["actor"], &letter["class"]), (&"step".into(), &"guest-error".into()));
    }
    send(&daemon, 7..=7);
    assert_eq!(numbers(&daemon).last(), Some(&(letters.len() as u64 + 1)));
}

#[test]
fn a_full_disk_costs_no_dead_letter_and_no_service() {
    let world = World::new(CONFIG);
    world.module("step", &flaky());
    // No file may grow beyond a bound, and who tries is told so instead of being ended.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\"", REFLOWD]);
    command.current_dir(world.path("")).env_clear().env("RUST_LIB_BACKTRACE", "0");
    let daemon = world.start_as(command);
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    let bound = |current| prlimit(pid, Resource::Fsize, Rlimit { current, maximum: None }).unwrap();
    bound(Some(4096));
    send(&daemon, 0..=39);
    let event = daemon.events(0).find(|event| event["event"] == "dead-letters-in-memory");
    assert!(event["why"].as_str().unwrap().contains("see that there is room"), "{event}");
    let dead_values = |daemon: &Daemon| -> Vec<u64> {
        let value = |letter: &Value| letter["envelope"]["message"]["data"].as_u64().unwrap();
        letters(daemon, "").iter().map(value).collect()
    };
    let expected: Vec<_> = (0..40).step_by(2).collect();
    assert_eq!(dead_values(&daemon), expected);
    let stock = daemon.get("/v1/dead-letters/stock").json();
    assert!(stock["in_memory"].as_u64().unwrap() > 0 && stock["on_disk"].as_u64() > Some(0));
    let (_, _, said) = dead(&daemon, &["list"]);
    assert!(said.contains("are in memory only"), "{said}");
    // A mark needs no room.
    assert_eq!(dead(&daemon, &["purge", "1"]).1, "1 purged\n");

    bound(None);
    daemon.events(0).find(|event| event["event"] == "dead-letters-on-disk");
    daemon.until("all are on disk", |d| d.get("/v1/dead-letters/stock").json()["in_memory"] == 0);
    let (status, last, world) = daemon.stop();
    assert!(status.success(), "{last}");
    let daemon = world.start();
    assert_eq!(dead_values(&daemon), expected[1..]);
    assert_eq!(daemon.get("/v1/dead-letters/stock").json()["lost"], serde_json::json!([]));
}

#[test]
fn damaged_dead_letters_cost_themselves_and_are_told() {
    let daemon = start(&trap());
    send(&daemon, 1..=6);
    let (status, last, world) = daemon.stop();
    assert!(status.success(), "{last}");
    let segment = std::fs::read_dir(world.path("data/dead")).unwrap().next().unwrap();
    let path = segment.unwrap().path();
    let mut bytes = std::fs::read(&path).unwrap();
    // The third letter is the third after the head of those that are all of one length.
    let length = (bytes.len() - 40) / 6;
    bytes[40 + 2 * length + 50] ^= 1;
    std::fs::write(&path, bytes).unwrap();

    let daemon = world.start();
    assert_eq!(numbers(&daemon), [1, 2, 4, 5, 6]);
    let event = daemon.events(0).find(|event| event["event"] == "dead-letters-lost");
    let expected = (&1.into(), &length.into(), &"damaged".into());
    assert_eq!((&event["letters"], &event["bytes"], &event["reason"]), expected);
    let (code, _, said) = dead(&daemon, &["list"]);
    let words = format!("lost since the daemon started: 1 dead letters ({length} bytes)");
    assert!(code == 0 && said.contains(&words), "{said}");
    assert_eq!(daemon.metrics()[r#"reflowd_dead_letters_lost_total{reason="damaged"}"#], 1.0);
    send(&daemon, 7..=7);
    assert_eq!(numbers(&daemon), [1, 2, 4, 5, 6, 7]);
}
