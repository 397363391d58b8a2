//! Swaps under load: nothing lost, nothing doubled, nothing out of order.
//!
//! `REFLOWD_LOAD=1000000` runs the full size; without it, a size that fits into a test run.

use std::{collections::BTreeMap, time::Instant};

use serde_json::Value;

use crate::{
    load::{Load, SENDERS, Seen},
    random::given,
    rig::{Daemon, World, guest},
};

/// Messages of one sender that are on their way: enough to fill mailboxes.
const WINDOW: u64 = 2048;

/// Times that something is done to the daemon at the least, however quick the load is.
const ACTS: usize = 5;

/// `in -> stamp -> out -> screen`: three WebAssembly actors and the sink.
const CHAIN: &str = r#"
[daemon]
modules = "../modules"
data = "../data"
quiet = "10ms"
[actors]
first = { module = "relay" }
stamp = { module = "stamp" }
last = { module = "last" }
screen = { module = "std:stdout" }
[[wires]]
from = "first.out"
to = "stamp.in"
[[wires]]
from = "stamp.out"
to = "last.in"
[[wires]]
from = "last.out"
to = "screen.in"
"#;

fn chain() -> Daemon {
    let world = World::new(CHAIN);
    world.module("relay", &guest("relay"));
    world.module("last", &guest("relay"));
    world.module("stamp", &guest("stamp-a"));
    world.start()
}

/// Does something to the daemon again and again under load.
fn meanwhile(daemon: &mut Daemon, mut act: impl FnMut(&Daemon, usize)) -> (Seen, usize) {
    let load = Load::begin(daemon, "first", WINDOW);
    let mut times = 0;
    while times < ACTS || load.arrived() < given("REFLOWD_LOAD", 60_000) {
        act(daemon, times);
        times += 1;
    }
    let seen = load.end();
    daemon.check_books();
    println!("messages sent by {SENDERS} senders  {}", seen.sent);
    println!("lost / doubled / disordered {} / {} / {}", seen.lost, seen.doubled, seen.disordered);
    (seen, times)
}

#[test]
fn versions_alternate_under_load_and_every_message_arrives_once_in_order() {
    let mut daemon = chain();
    let began = Instant::now();
    let versions = [guest("stamp-b"), guest("stamp-a")];
    let (seen, reloads) = meanwhile(&mut daemon, |daemon, n| {
        daemon.world.module("stamp", &versions[n % 2]);
        let report = daemon.reload();
        assert_eq!(report["refused"], Value::Array(Vec::new()), "{report}");
    });
    let seconds = began.elapsed().as_secs_f64();
    seen.check();

    let events = daemon.get("/v1/events").body;
    let events: Vec<Value> =
        events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let swaps: Vec<&Value> =
        events.iter().filter(|e| e["event"] == "swapped" && e["actor"] == "stamp").collect();
    let mut depths: Vec<u64> = swaps.iter().map(|e| e["queued"].as_u64().unwrap()).collect();
    depths.sort_unstable();
    let median = depths.get(depths.len() / 2).copied().unwrap_or_default();
    println!("reloads asked / swaps       {reloads} / {}", swaps.len());
    println!("mailbox depth at a swap     median {median}, all {depths:?}");
    println!("stamped by version          {:?}", seen.stamps);
    println!("seconds                     {seconds:.1}");
    assert!(swaps.len() >= 2, "{} swaps", swaps.len());
    assert_eq!(seen.stamps.len(), 2, "{:?}", seen.stamps);
}

/// What is left over in the books of one scrape, by mailbox and by wire: nothing, where they balance.
fn left_over(metrics: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let mut left: BTreeMap<String, f64> = BTreeMap::new();
    for (sample, value) in metrics {
        let Some((name, labels)) = sample.split_once('{') else { continue };
        let sign = match name {
            "reflowd_messages_accepted_total" | "reflowd_wire_emitted_total" => 1.0,
            "reflowd_messages_completed_total"
            | "reflowd_messages_dead_lettered_total"
            | "reflowd_messages_dropped_total"
            | "reflowd_messages_saved_total"
            | "reflowd_messages_in_flight"
            | "reflowd_messages_queued"
            | "reflowd_wire_messages_total"
            | "reflowd_wire_refused_total"
            | "reflowd_wire_saved_total"
            | "reflowd_wire_outbox_messages" => -1.0,
            _ => continue,
        };
        // The way in and the reason are parts of the same account.
        let of = labels
            .split(',')
            .filter(|label| !label.starts_with("by=") && !label.starts_with("reason="));
        let account = of.collect::<Vec<_>>().join(",").trim_end_matches('}').to_owned();
        *left.entry(account).or_default() += sign * value;
    }
    left.retain(|_, left| *left != 0.0);
    left
}

#[test]
fn the_books_balance_in_every_scrape_under_load() {
    let mut daemon = chain();
    let versions = [guest("stamp-b"), guest("stamp-a")];
    let mut moving = 0;
    let (seen, scrapes) = meanwhile(&mut daemon, |daemon, n| {
        if n % 5 == 0 {
            daemon.world.module("stamp", &versions[n / 5 % 2]);
        }
        let metrics = daemon.metrics();
        assert_eq!(left_over(&metrics), BTreeMap::new());
        assert_eq!(metrics["reflowd_books_balanced"], 1.0);
        let queued = |name: &str| name.starts_with("reflowd_messages_queued");
        moving += usize::from(metrics.iter().any(|(name, n)| queued(name) && *n > 0.0));
    });
    seen.check();
    println!("scrapes / with messages on their way / with books that do not balance");
    println!("{scrapes} / {moving} / 0");
    assert!(moving > 0, "of {scrapes}");
}

#[test]
fn rewiring_under_load_keeps_the_wires_that_stay() {
    let mut daemon = chain();
    // A branch that comes, goes and is wired otherwise, beside the chain that stays.
    let edits = [
        "[actors.side]\nmodule = \"relay\"\n[[wires]]\nfrom = \"stamp.out\"\nto = \"side.in\"\n",
        "[actors.side]\nmodule = \"relay\"\n[actors.end]\nmodule = \"relay\"\n\
         [[wires]]\nfrom = \"first.out\"\nto = \"side.in\"\n\
         [[wires]]\nfrom = \"side.out\"\nto = \"end.in\"\n",
        "",
    ];
    let (seen, edits) = meanwhile(&mut daemon, |daemon, n| {
        daemon.world.config(&format!("{CHAIN}{}", edits[n % edits.len()]));
        let report = daemon.post("/v1/reload?allow_removal=true", "").json();
        assert_eq!(report["refused"], Value::Array(Vec::new()), "{report}");
    });
    seen.check();
    println!("configuration edits         {edits}");
    assert!(edits >= 3, "{edits} edits");
}
