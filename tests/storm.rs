//! Storms: far more changes than an operator makes, at random and under load.
//!
//! Without anything, sizes that fit into a test run; `REFLOWD_STORM=full` runs the full
//! ones. Each prints its row of a table, and random ones their seed. No time is asserted.

mod broken;
mod edits;
mod files;
mod stops;
mod swaps;
mod touches;

use serde_json::{Value, json};

use crate::{
    load::{SENDERS, Seen},
    rig::{Daemon, World, guest, shaky},
};

/// Messages of one sender that are on their way: enough that some wait at every swap,
/// and so few that they wait for little else.
const WINDOW: u64 = 64;

/// `first -> work -> last -> screen`, of which `work` stamps and counts.
const CHAIN: &str = r#"
[daemon]
modules = "../modules"
data = "../data"
quiet = "10ms"
[actors]
first = { module = "relay" }
work = { module = "work" }
last = { module = "relay" }
screen = { module = "std:stdout" }
[[wires]]
from = "first.out"
to = "work.in"
[[wires]]
from = "work.out"
to = "last.in"
[[wires]]
from = "last.out"
to = "screen.in"
"#;

fn chain() -> Daemon {
    let world = World::new(CHAIN);
    world.module("relay", &guest("relay"));
    world.module("work", &version(0));
    world.start()
}

/// Version `n` of a module that stamps, counts and never fails.
fn version(n: usize) -> Vec<u8> {
    shaky(&format!("v{n:04}"), "steady")
}

/// A size: one for every day, and the full one.
fn size(daily: usize, full: usize) -> usize {
    if std::env::var("REFLOWD_STORM").is_ok_and(|size| size == "full") { full } else { daily }
}

/// One row of the table.
struct Row {
    name: &'static str,
    size: String,
    /// What became of messages; nothing, where none were sent.
    messages: Option<[u64; 3]>,
    figures: String,
}

impl Row {
    fn print(&self) {
        let messages = match self.messages {
            Some([lost, doubled, disordered]) => format!("{lost} | {doubled} | {disordered}"),
            None => "- | - | -".into(),
        };
        println!("| {} | {} | {messages} | {} |", self.name, self.size, self.figures);
    }
}

impl Seen {
    fn counts(&self) -> Option<[u64; 3]> {
        Some([self.lost, self.doubled, self.disordered])
    }
}

fn of_senders(seen: &Seen) -> String {
    format!("{} messages of {SENDERS} senders", seen.sent)
}

/// What an actor runs; nothing, where there is no such actor.
fn digest(daemon: &Daemon, actor: &str) -> String {
    daemon.actor(actor)["digest"].as_str().unwrap_or_default().to_owned()
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Nothing but what was refused came of a look at disk.
#[track_caller]
fn nothing_changed(report: &Value) {
    let changes = [&report["added"], &report["changed"], &report["removed"]];
    assert!(changes.iter().all(|change| **change == json!([])), "{report}");
}

/// The first generation of each actor runs, in the engine that it began with.
#[track_caller]
fn nothing_restarted(daemon: &Daemon) {
    for figure in ["reflowd_swaps_total", "reflowd_restarts_total", "reflowd_rollbacks_total"] {
        assert_eq!(daemon.sum(figure), 0.0, "{figure}");
    }
    let actors = daemon.get("/v1/actors").json();
    for actor in actors.as_array().unwrap() {
        assert_eq!(actor["generation"], 1, "{actor}");
    }
}
