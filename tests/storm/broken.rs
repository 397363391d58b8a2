//! Broken modules over a good one that works.

use std::fs;

use serde_json::json;

use super::{
    Row, WINDOW, chain, nothing_changed, nothing_restarted, of_senders, sha256, size, version,
};
use crate::{
    load::Load,
    random::Random,
    rig::{inflated, repository},
};

/// A module of `tests/hostile`, changed in its text.
fn hostile(name: &str, from: &str, to: &str) -> Vec<u8> {
    let path = repository().join(format!("tests/hostile/{name}.wat"));
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{name} has no {from:?}");
    wat::parse_str(text.replace(from, to)).unwrap()
}

/// A way to be broken: its name, and a module that is.
type Way = (&'static str, fn(&mut Random) -> Vec<u8>);

const WAYS: [Way; 9] = [
    ("truncated", |random| {
        let mut module = version(0);
        // In the larger half come sections without which it would still be whole.
        module.truncate(1 + random.index(module.len() / 2));
        module
    }),
    ("empty", |_| Vec::new()),
    ("garbage", |random| (0..=random.below(5000)).map(|_| random.byte()).collect()),
    ("garbage after a header", |random| {
        let garbage = (0..=random.below(5000)).map(|_| random.byte());
        b"\0asm\x01\0\0\0\x0d".iter().copied().chain(garbage).collect()
    }),
    ("text", |_| b"(module)".to_vec()),
    ("a component", |_| b"\0asm\x0d\0\x01\0".to_vec()),
    ("without process", |random| {
        let module = hostile("trap", "(func (export \"process\")", "(func");
        inflated(&module, 10, random.byte())
    }),
    ("trapping at its start", |random| {
        inflated(&hostile("trap-in-start", "", ""), 10, random.byte())
    }),
    ("with other ports", |random| {
        let path = repository().join("modules/magnitude-filter.wasm");
        inflated(&fs::read(path).unwrap(), 10, random.byte())
    }),
];

#[test]
fn broken_modules_under_load_leave_the_old_version_at_work() {
    let mut random = Random::seeded();
    let drops = size(40, 200);
    let mut daemon = chain();
    let good = sha256(&version(0));
    let load = Load::begin(&mut daemon, "first", WINDOW);
    let mut restored = 0;
    for n in 0..drops {
        // Each way first, then any.
        let (name, make) = WAYS.get(n).copied().unwrap_or_else(|| random.one_of(&WAYS));
        let module = make(&mut random);
        if random.below(2) == 0 {
            daemon.world.module("work", &module);
        } else {
            fs::write(daemon.world.path("modules/work.wasm"), &module).unwrap();
        }
        let report = daemon.reload();
        assert_ne!(report["refused"], json!([]), "{name}: {report}");
        nothing_changed(&report);
        let arrived = load.arrived();
        load.wait_for(arrived + 1);
        let actor = daemon.actor("work");
        assert_eq!((&actor["digest"], &actor["generation"]), (&json!(good), &json!(1)), "{name}");
        if random.below(4) == 0 {
            daemon.world.module("work", &version(0));
            let report = daemon.reload();
            assert_eq!(report["refused"], json!([]), "after {name}: {report}");
            nothing_changed(&report);
            restored += 1;
        }
    }
    let seen = load.end();
    daemon.check_books();
    Row {
        name: "broken modules",
        size: format!("{drops} drops, {}", of_senders(&seen)),
        messages: seen.counts(),
        figures: format!("of {} ways; the good one was put back {restored} times", WAYS.len()),
    }
    .print();
    seen.check();
    nothing_restarted(&daemon);
    assert_eq!(seen.stamps.len(), 1, "{:?}", seen.stamps);
}
