//! One actor in five languages, each by its SDK, in the real daemon.

use crate::rig::{Daemon, World, guest};

const LANGUAGES: [&str; 5] = ["rust", "c", "zig", "assemblyscript", "go"];

const CONFIG: &str = r#"
[daemon]
modules = "../modules"
data = "../data"
quiet = "10ms"
autostart = false
[actors.sum]
module = "sum"
"#;

fn world(language: &str) -> World {
    let world = World::new(CONFIG);
    world.module("sum", &guest(&format!("sum-{language}")));
    world
}

/// The same, with the actor running: a start does not wait for a slow machine to compile.
fn started(language: &str) -> Daemon {
    let daemon = world(language).start();
    daemon.until("it runs", |daemon| daemon.actor("sum")["state"] == "active");
    daemon
}

/// Sends a number and gives what the actor makes of it.
fn add(daemon: &Daemon, n: i64) -> serde_json::Value {
    let answer =
        daemon.post("/v1/actors/sum/ports/add?type=Integer&wait=sum&timeout=60s", &n.to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[test]
fn the_same_actor_answers_in_each_language() {
    for language in LANGUAGES {
        let daemon = started(language);
        let answers = [2, 3, -9_000_000_000].map(|n| add(&daemon, n));
        println!("{language}: {}", answers[2]);
        for (answer, sum) in answers.iter().zip([2, 5, -8_999_999_995_i64]) {
            assert_eq!(answer["type"], "Integer", "{language}");
            assert_eq!(answer["data"], sum, "{language}");
        }
        daemon.until("it logs", |d| d.log_text().contains("the sum is 5"));
        // What is no number is the turn's error, and changes nothing.
        daemon.send("sum.add", "\"many\"");
        daemon.until("it is a dead letter", |d| d.sum("reflowd_dead_letters_total") == 1.0);
        assert_eq!(add(&daemon, 1)["data"], -8_999_999_994_i64, "{language}");
        let reason = daemon.get("/v1/dead-letters").body;
        assert!(reason.contains("guest-error"), "{language}: {reason}");
    }
}

#[test]
fn a_whole_number_is_one_however_it_is_written() {
    let whole = [
        ("1.0", 1_i64),
        ("1e3", 1_000),
        ("-2.50E+1", -25),
        ("0.0e7", 0),
        ("1200e-2", 12),
        ("-0", 0),
        ("4503599627370496.0", 1 << 52),
        ("9.007199254740992e15", 1 << 53),
    ];
    let others = ["1.5", "1e30", "-1e-1", "9223372036854775808", "12345e-3"];
    for language in LANGUAGES {
        let daemon = started(language);
        let path = "/v1/actors/sum/ports/add?wait=sum&timeout=60s&type=";
        let mut sum = 0;
        for (text, value) in whole {
            sum += value;
            let answer = daemon.post(&format!("{path}Integer"), text);
            assert_eq!(answer.status, 200, "{language} {text}: {answer:?}");
            assert_eq!(answer.json()["data"], sum, "{language} {text}");
        }
        for text in others {
            let answer = daemon.post(&format!("{path}Float"), text);
            assert_eq!(answer.status, 502, "{language} {text}: {answer:?}");
        }
        assert_eq!(add(&daemon, 1)["data"], sum + 1, "{language}");
    }
}

#[test]
fn an_actor_changes_its_language_and_keeps_its_state() {
    let daemon = world(LANGUAGES[0]).start();
    let mut sum = add(&daemon, 1)["data"].as_i64().unwrap();
    for (language, n) in LANGUAGES.iter().cycle().skip(1).take(5).zip(10..) {
        daemon.world.module("sum", &guest(&format!("sum-{language}")));
        let report = daemon.reload();
        assert_eq!(report["changed"].as_array().map(Vec::len), Some(1), "{language}: {report}");
        sum += n;
        assert_eq!(add(&daemon, n)["data"], sum, "{language}");
    }
}

/// Breaks in a way and gives the reason in the dead letter, and the actor's log.
fn break_down(language: &str, engine: &str, way: &str) -> (String, String) {
    let engine = format!("engine = \"{engine}\"\n[actors.faulty]\nmodule = \"faulty\"\n");
    let config = CONFIG.split("[actors.sum]").next().unwrap().to_owned() + &engine;
    let world = World::new(&format!("{config}memory = \"16 MiB\"\nretries = 0\n"));
    world.module("faulty", &guest(&format!("faulty-{language}")));
    let daemon = world.start();
    daemon.send("faulty.way", &format!("\"{way}\""));
    daemon.until("it is a dead letter", |d| d.sum("reflowd_dead_letters_total") == 1.0);
    let letter = daemon.get("/v1/dead-letters").body;
    let letter: serde_json::Value = serde_json::from_str(letter.lines().next().unwrap()).unwrap();
    let log = daemon.get("/v1/actors/faulty/logs").body;
    daemon.check_books();
    (letter["reason"].as_str().unwrap().to_owned(), log)
}

#[test]
fn a_guest_that_breaks_says_why_and_where_on_either_engine() {
    for engine in ["direct", "extism"] {
        for (language, place, function) in [
            ("rust", "panicked at crates/guest/examples/faulty.rs:27:5: ", "faulty::give_up"),
            ("assemblyscript", "stopped at faulty.ts:11:25: ", "faulty/process"),
        ] {
            let (reason, log) = break_down(language, engine, "panic");
            let why = format!("{place}cannot go on: the tank is empty");
            assert!(reason.contains(&why), "{engine} {language}: {reason}");
            assert!(log.contains(&why), "{engine} {language}: {log}");
            assert!(log.contains(&format!("in {function}")), "{engine} {language}: {log}");
        }
    }
}

#[test]
fn a_guest_that_takes_all_memory_is_told_apart_from_other_traps() {
    for engine in ["direct", "extism"] {
        for (language, function) in
            [("rust", "faulty::take_all"), ("assemblyscript", "faulty/process")]
        {
            let (reason, log) = break_down(language, engine, "memory");
            let why = "memory limit reached (16 MiB)";
            assert!(reason.contains(why), "{engine} {language}: {reason}");
            assert!(log.contains(why), "{engine} {language}: {log}");
            // The stock SDK keeps no backtrace of a guest that is out of memory.
            let named = log.contains(&format!("in {function}"));
            assert_eq!(named, engine == "direct", "{engine} {language}: {log}");
        }
    }
}
