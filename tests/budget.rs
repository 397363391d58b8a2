//! What all queues may hold together, as an operator sees it.

use crate::rig::{World, guest};

const CONFIG: &str = r#"
[daemon]
modules = "../modules"
data = "../data"
quiet = "10ms"
autostart = false
memory_budget = "1 MiB"
[actors.relay]
module = "relay"
"#;

#[test]
fn a_daemon_whose_queues_are_full_refuses_more_and_says_so() {
    let world = World::new(CONFIG);
    world.module("relay", &guest("relay"));
    let daemon = world.start();
    daemon.post("/v1/actors/relay/pause", "");
    daemon.until("it is paused", |d| d.actor("relay")["state"] == "paused");
    let large = format!("\"{}\"", "x".repeat(100_000));
    let path = "/v1/actors/relay/ports/in?type=String";
    let mut taken = 0;
    let refused = loop {
        let response = daemon.post(path, &large);
        if response.status != 202 {
            break response;
        }
        taken += 1;
    };
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(refused.body.contains("memory_budget") && refused.body.contains("over-budget"));
    assert!((10..12).contains(&taken), "{taken}");
    daemon.until("it is an event", |d| d.get("/v1/events").body.contains("over-budget"));
    assert!(daemon.sum("reflowd_queued_bytes") > daemon.sum("reflowd_memory_budget_bytes"));
    daemon.post("/v1/actors/relay/resume", "");
    daemon.until("there is room again", |d| d.post(path, "\"small\"").status == 202);
    daemon.until("it is an event", |d| d.get("/v1/events").body.contains("within-budget"));
}
