//! Touches and signals to look at disk, where nothing has changed there.

use std::{fs::File, time::SystemTime};

use super::{
    Row, WINDOW, chain, digest, nothing_changed, nothing_restarted, of_senders, sha256, size,
    version,
};
use crate::{load::Load, random::Random};

const FILES: [&str; 3] = ["modules/work.wasm", "modules/relay.wasm", "config/reflowd.toml"];

/// Sets the time of a file, as `touch` does.
fn touch(daemon: &crate::rig::Daemon, file: &str) {
    let file = File::options().append(true).open(daemon.world.path(file)).unwrap();
    file.set_modified(SystemTime::now()).unwrap();
}

#[test]
fn touches_and_signals_without_a_change_swap_and_restart_nothing() {
    let mut random = Random::seeded();
    let (touches, signals) = (size(1000, 10_000), size(100, 1000));
    let mut daemon = chain();
    let started = daemon.actor("work")["started"].clone();
    let load = Load::begin(&mut daemon, "first", WINDOW);
    let (mut touched, mut signalled, mut looked) = (0, 0, 0);
    while touched + signalled < touches + signals {
        if random.index(touches + signals - touched - signalled) < touches - touched {
            touch(&daemon, random.one_of(&FILES));
            touched += 1;
        } else {
            daemon.signal("-HUP");
            signalled += 1;
        }
        if random.below(50) == 0 {
            nothing_changed(&daemon.reload());
            looked += 1;
        }
    }
    nothing_changed(&daemon.reload());
    let seen = load.end();
    daemon.check_books();
    Row {
        name: "touches and SIGHUP",
        size: format!("{touched} touches, {signalled} SIGHUP, {}", of_senders(&seen)),
        messages: seen.counts(),
        figures: format!("{} reloads asked for besides; swaps 0, restarts 0", looked + 1),
    }
    .print();
    seen.check();
    nothing_restarted(&daemon);
    assert_eq!(daemon.actor("work")["started"], started);
    // It still looks, and by itself.
    let next = version(1);
    daemon.world.module("work", &next);
    daemon.until("a change is live", |d| digest(d, "work") == sha256(&next));
}
