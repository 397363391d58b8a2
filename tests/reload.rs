//! What the daemon makes of changes on disk.

use std::{collections::BTreeSet, fs, io::Write};

use serde_json::Value;

use crate::rig::{Daemon, World, guest, inflated};

const ONE_RELAY: &str = r#"
[daemon]
modules = "../modules"
data = "../data"
[actors.a]
module = "relay"
[actors.screen]
module = "std:stdout"
[[wires]]
from = "a.out"
to = "screen.in"
"#;

fn one_relay() -> Daemon {
    let world = World::new(ONE_RELAY);
    world.module("relay", &guest("relay"));
    world.start()
}

fn digest(daemon: &Daemon, actor: &str) -> String {
    daemon.actor(actor)["digest"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_new_file_is_an_actor_and_a_removed_one_is_not() {
    let daemon = World::new("[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n").start();
    daemon.world.module("echo", &guest("relay"));
    daemon.wait_event("started", "echo");
    daemon.send("echo.in", "1");
    daemon.until("the message is done", |d| d.sum("reflowd_messages_completed_total") == 1.0);
    fs::remove_file(daemon.world.path("modules/echo.wasm")).unwrap();
    daemon.wait_event("stopped", "echo");
    daemon.until("the actor is gone", |d| d.actor("echo").is_null());
}

#[test]
fn a_removed_file_of_a_configured_actor_changes_nothing() {
    let mut daemon = one_relay();
    fs::remove_file(daemon.world.path("modules/relay.wasm")).unwrap();
    daemon.events(0).find(|event| event["event"] == "file-gone");
    daemon.send("a.in", "1");
    assert_eq!(daemon.line().unwrap(), "1");
    daemon.until("ps shows it", |d| d.actor("a")["file_gone"] == true);
}

#[test]
fn a_broken_version_never_goes_live() {
    let mut daemon = one_relay();
    let before = digest(&daemon, "a");
    let relay = guest("relay");
    let broken: [&[u8]; 4] = [b"", b"(module)", &relay[..relay.len() / 2], b"\0asm\x0d\0\x01\0"];
    for bytes in broken {
        let seen = daemon.events(0);
        daemon.world.module("relay", bytes);
        let report = daemon.reload();
        assert_ne!(report["refused"], Value::Array(Vec::new()), "{report}");
        drop(seen);
        daemon.send("a.in", "1");
        assert_eq!(daemon.line().unwrap(), "1");
        assert_eq!(digest(&daemon, "a"), before);
    }
    daemon.world.module("relay", &inflated(&relay, 10, 1));
    let report = daemon.reload();
    assert_eq!(report["changed"], serde_json::json!(["a"]), "{report}");
}

#[test]
fn a_slow_copy_over_a_running_module_never_goes_live_half_done() {
    let rounds = std::env::var("REFLOWD_COPIES").map_or(5, |n| n.parse().unwrap());
    let daemon = one_relay();
    let large = [1, 2].map(|seed| inflated(&guest("relay"), 4 << 20, seed));
    let mut live = BTreeSet::from([digest(&daemon, "a")]);
    let mut expected = live.clone();
    for round in 0..rounds {
        // In place, as `cp` does it: truncate, then write piece by piece.
        let bytes = &large[round % 2];
        let mut file = fs::File::create(daemon.world.path("modules/relay.wasm")).unwrap();
        for piece in bytes.chunks(bytes.len() / 16 + 1) {
            file.write_all(piece).unwrap();
            file.sync_data().unwrap();
            live.insert(digest(&daemon, "a"));
        }
        drop(file);
        let whole = sha256(bytes);
        daemon.until("the whole file is live", |d| {
            live.insert(digest(d, "a"));
            digest(d, "a") == whole
        });
        expected.insert(whole);
    }
    assert_eq!(live, expected);
    let events = daemon.get("/v1/events").body;
    let swaps = events.lines().filter(|line| line.contains("\"swapped\"")).count();
    println!("slow copies {rounds}, swaps {swaps}, digests ever live {}", live.len());
    assert_eq!(swaps, rounds);
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_same_content_again_is_no_reload() {
    let daemon = one_relay();
    for _ in 0..3 {
        daemon.world.module("relay", &guest("relay"));
        let report = daemon.reload();
        assert_eq!(report["changed"], serde_json::json!([]), "{report}");
    }
    assert_eq!(daemon.actor("a")["generation"], 1);
}

#[test]
fn a_broken_configuration_changes_nothing_and_says_where() {
    let mut daemon = one_relay();
    daemon.world.config(&ONE_RELAY.replace("from =", "form ="));
    let report = daemon.reload();
    let why = report["refused"][0]["why"].as_str().unwrap();
    assert!(why.contains("did you mean `from`?") && why.contains("reflowd.toml:"), "{why}");
    daemon.send("a.in", "1");
    assert_eq!(daemon.line().unwrap(), "1");
    daemon.world.config(&format!("{ONE_RELAY}[[[\n"));
    let report = daemon.reload();
    let why = report["refused"][0]["why"].as_str().unwrap();
    assert!(why.contains("E0002") && !why.contains("E0301"), "{why}");
    daemon.world.config(ONE_RELAY);
    assert_eq!(daemon.reload()["refused"], serde_json::json!([]));
}

#[test]
fn a_configuration_that_is_gone_is_no_good_configuration() {
    let mut daemon = one_relay();
    fs::remove_file(daemon.world.path("config/reflowd.toml")).unwrap();
    let reload = daemon.world.run(&["--socket", "data/reflowd.sock", "reload"]);
    let said = String::from_utf8(reload.stdout).unwrap();
    assert_eq!(reload.status.code(), Some(1), "{said}");
    assert!(said.contains("! configuration:") && said.contains("is not there"), "{said}");
    assert_eq!(daemon.sum("reflowd_config_in_sync"), 0.0);
    let parts = daemon.get("/readyz?verbose").body;
    assert!(parts.contains("[-] config: ") && parts.ends_with("ready\n"), "{parts}");
    daemon.send("a.in", "1");
    assert_eq!(daemon.line().unwrap(), "1", "everything runs on");
    daemon.world.config(ONE_RELAY);
    let report = daemon.reload();
    assert_eq!(report["refused"], serde_json::json!([]));
    assert_eq!(daemon.sum("reflowd_config_in_sync"), 1.0);
    for (event, words) in [
        ("config-unknown", "configuration cannot be read; nothing changed"),
        ("config-known", "configuration can be read again"),
    ] {
        let log = daemon.log_text();
        assert_eq!(log.matches(words).count(), 1, "{log}");
        let events = daemon.get("/v1/events").body;
        assert_eq!(events.matches(event).count(), 1, "{events}");
    }
}

#[test]
fn an_include_that_is_not_there_is_refused_until_it_is_taken_out() {
    let daemon = one_relay();
    daemon.world.config(&format!("include = [\"nosuch.toml\"]\n{ONE_RELAY}"));
    let report = daemon.reload();
    let why = report["refused"][0]["why"].as_str().unwrap_or_default();
    assert!(why.contains("nosuch.toml: the configuration file is not there"), "{report}");
    daemon.world.config(ONE_RELAY);
    assert_eq!(daemon.reload()["refused"], serde_json::json!([]));
}

#[test]
fn an_actor_renamed_in_the_stream_loses_nothing() {
    const LINES: usize = 20_000;
    let flow = |name: &str, was: &str| {
        format!(
            "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n\
             [actors.lines]\nmodule = \"std:file-in\"\nconfig = {{ path = \"../lines.jsonl\" }}\n\
             [actors.{name}]\nmodule = \"relay\"\n{was}\n\
             [actors.screen]\nmodule = \"std:stdout\"\n\
             [[wires]]\nfrom = \"lines.out\"\nto = \"{name}.in\"\n\
             [[wires]]\nfrom = \"{name}.out\"\nto = \"screen.in\"\n"
        )
    };
    let world = World::new(&flow("zero", ""));
    world.module("relay", &guest("relay"));
    let lines: Vec<String> = (0..LINES).map(|n| format!("{n}\n")).collect();
    world.put("lines.jsonl", lines.concat().as_bytes());
    let mut daemon = world.start();
    let mut next = 0;
    for (was, name) in ["zero", "one", "two", "three"].iter().zip(["one", "two", "three", "four"]) {
        // What was printed already says that the stream runs.
        for _ in 0..100 {
            assert_eq!(daemon.line().unwrap(), next.to_string());
            next += 1;
        }
        daemon.world.config(&flow(name, &format!("was = \"{was}\"")));
        let report = daemon.reload();
        assert_eq!(report["added"], serde_json::json!([name]), "{report}");
        assert_eq!(report["removed"], serde_json::json!([was]), "{report}");
    }
    while next < LINES {
        assert_eq!(daemon.line().unwrap(), next.to_string());
        next += 1;
    }
}

#[test]
fn a_port_renamed_in_module_and_configuration_at_once_goes_through() {
    let daemon = one_relay();
    // The sample's filter has other ports than the relay.
    daemon.world.config(&ONE_RELAY.replace("a.out", "a.strong"));
    let filter = fs::read(crate::rig::repository().join("modules/magnitude-filter.wasm")).unwrap();
    daemon.world.module("relay", &filter);
    let report = daemon.reload();
    assert_eq!(report["refused"], serde_json::json!([]), "{report}");
    assert_eq!(daemon.actor("a")["generation"], 2);
}

#[test]
fn a_module_whose_ports_do_not_fit_the_wires_is_refused() {
    let mut daemon = one_relay();
    let filter = fs::read(crate::rig::repository().join("modules/magnitude-filter.wasm")).unwrap();
    daemon.world.module("relay", &filter);
    let report = daemon.reload();
    let why = report["refused"][0]["why"].as_str().unwrap();
    assert!(why.contains("has no outport `out`"), "{why}");
    daemon.send("a.in", "1");
    assert_eq!(daemon.line().unwrap(), "1");
}

#[test]
fn an_edit_that_would_remove_most_actors_waits_for_a_word() {
    let daemon = one_relay();
    daemon
        .world
        .config("[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\nautostart = true\n");
    let report = daemon.reload();
    assert!(report["held"].as_str().unwrap().contains("--allow-removal"), "{report}");
    assert_eq!(daemon.actor("a")["state"], "active");
    let report = daemon.post("/v1/reload?allow_removal=true", "").json();
    assert_eq!(report["removed"], serde_json::json!(["a", "screen"]), "{report}");
}

#[test]
fn another_value_of_a_key_that_applies_in_place_makes_no_new_engine() {
    let daemon = one_relay();
    daemon
        .world
        .config(&ONE_RELAY.replace("module = \"relay\"", "module = \"relay\"\ntimeout = \"5s\""));
    assert_eq!(daemon.reload()["changed"], serde_json::json!(["a"]));
    assert_eq!(daemon.actor("a")["generation"], 1);
}
