//! How the daemon ends.

use std::process::Stdio;

use crate::rig::{REFLOWD, World, guest};

fn paused_relay(drain: &str) -> crate::rig::Daemon {
    let world = World::new(&format!(
        r#"
        [daemon]
        modules = "../modules"
        data = "../data"
        drain = "{drain}"
        [actors.a]
        module = "relay"
        [actors.b]
        module = "relay"
        [actors.screen]
        module = "std:stdout"
        [[wires]]
        from = "a.out"
        to = "b.in"
        [[wires]]
        from = "b.out"
        to = "screen.in"
        "#
    ));
    world.module("relay", &guest("relay"));
    world.start()
}

fn fill(daemon: &crate::rig::Daemon, count: usize) {
    let lines: String =
        (0..count).map(|n| format!("{{\"type\":\"Integer\",\"data\":{n}}}\n")).collect();
    let path = "/v1/actors/a/ports/in";
    let response = daemon.request("POST", path, "application/x-ndjson", lines.as_bytes());
    assert_eq!(response.json()["accepted"], count, "{response:?}");
}

#[test]
fn a_stop_drains_what_is_queued() {
    let mut daemon = paused_relay("30s");
    daemon.post("/v1/actors/a/pause", "");
    daemon.until("a is paused", |d| d.actor("a")["state"] == "paused");
    fill(&daemon, 1000);
    daemon.post("/v1/actors/a/resume", "");
    daemon.signal("-TERM");
    for n in 0..1000 {
        assert_eq!(daemon.line().unwrap(), n.to_string());
    }
    let (status, last, _) = daemon.ended();
    println!("exit status {status}, last line: {last}");
    assert!(status.success(), "{last}");
    assert!(last.contains("nothing is left"), "{last}");
}

#[test]
fn a_stop_that_cannot_drain_says_what_it_saved() {
    let daemon = paused_relay("100ms");
    daemon.post("/v1/actors/a/pause", "");
    daemon.until("a is paused", |d| d.actor("a")["state"] == "paused");
    fill(&daemon, 7);
    daemon.signal("-TERM");
    let (status, last, _) = daemon.ended();
    assert!(status.success(), "{last}");
    assert!(last.contains("saved for the next start") && last.contains("\"saved\":7"), "{last}");
}

#[test]
fn state_outlives_a_stop() {
    let repository = crate::rig::repository();
    let world = World::new("[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n");
    let module = std::fs::read(repository.join("modules/region-count.wasm")).unwrap();
    world.module("count", &module);
    let daemon = world.start();
    let quake = r#"{"mag":5.0,"place":"somewhere, Chile"}"#;
    let ask = |daemon: &crate::rig::Daemon| {
        let path = "/v1/actors/count/ports/quake?type=Object&wait=counts&timeout=60s";
        let answer = daemon.post(path, quake);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["data"]["count"].as_u64().unwrap()
    };
    assert_eq!(ask(&daemon), 1);
    assert_eq!(ask(&daemon), 2);
    let (status, last, world) = daemon.stop();
    assert!(status.success(), "{last}");
    let daemon = world.start();
    assert_eq!(ask(&daemon), 3);
}

#[test]
fn a_second_signal_stops_at_once_and_saves_what_is_left() {
    // A guest that computes for ever moves, so the first signal waits for it.
    let world = World::new(
        r#"
        [daemon]
        modules = "../modules"
        data = "../data"
        autostart = false
        drain = "1h"
        [actors.work]
        module = "work"
        timeout = "1h"
        "#,
    );
    world.module("work", &crate::rig::shaky("v1", "hangs"));
    let daemon = world.start();
    for seq in [9, 10, 11] {
        daemon.send("work.in", &format!("{{\"sender\":0,\"seq\":{seq}}}"));
    }
    daemon.until("it computes", |d| d.sum("reflowd_messages_in_flight") == 1.0);
    daemon.signal("-TERM");
    daemon.until("it drains", |d| d.get("/readyz").status == 503);
    daemon.signal("-TERM");
    let (status, last, world) = daemon.ended();
    assert!(status.success(), "{last}");
    assert!(last.contains("\"saved\":3"), "{last}");
    world.module("work", &crate::rig::shaky("v2", "steady"));
    let daemon = world.start();
    daemon.until("all are done", |d| d.sum("reflowd_messages_completed_total") == 3.0);
}

#[test]
fn a_second_daemon_on_the_same_data_folder_is_refused() {
    let daemon = paused_relay("1s");
    let second = std::process::Command::new(REFLOWD)
        .current_dir(daemon.world.path(""))
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let error = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success());
    assert!(error.contains("data") && error.contains(&daemon.pid().to_string()), "{error}");
    daemon.send("a.in", "1");
}
