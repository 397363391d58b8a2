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
        let daemon = world(language).start();
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
        let daemon = world(language).start();
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
