//! No change waits for another: swaps that wait for long turns and modules that hang hold up
//! who uses them, and nobody else.

use std::{fs, thread};

use crate::rig::{Daemon, World, guest, inflated, repository};

/// Actors whose turns do not end.
const SPINNERS: usize = 3;

/// A module whose turns do not end, or that never says what it is. Each number gives other bytes.
pub(crate) fn endless(which: &str, number: u8) -> Vec<u8> {
    let text = repository().join("tests/hostile").join(which);
    inflated(&wat::parse_str(fs::read_to_string(text).unwrap()).unwrap(), 16, number)
}

/// Spinners that are in a turn and are about to be swapped, a quick actor of its own, and no
/// others yet.
fn beside_spinners() -> Daemon {
    let spinner = |n| format!("[actors.spinner-{n}]\nmodule = \"spinner\"\ntimeout = \"60s\"\n");
    let spinners: String = (0..SPINNERS).map(spinner).collect();
    let world = World::new(&format!(
        "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n\
         [actors.quick]\nmodule = \"quick\"\n{spinners}"
    ));
    world.module("spinner", &endless("loop-in-turn.wat", 1));
    world.module("quick", &inflated(&guest("relay"), 16, 1));
    let daemon = world.start();
    for n in 0..SPINNERS {
        daemon.send(&format!("spinner-{n}.in"), "1");
    }
    let in_turn = |d: &Daemon| d.sum("reflowd_messages_in_flight") >= SPINNERS as f64;
    daemon.until("all spin", in_turn);
    daemon.world.module("spinner", &endless("loop-in-turn.wat", 2));
    daemon.until("their swaps are under way", |d| (0..SPINNERS).all(|n| waits(d, n)));
    daemon
}

/// Whether the swap of a spinner waits for its turn.
fn waits(daemon: &Daemon, spinner: usize) -> bool {
    let name = format!("spinner-{spinner}");
    let waits = daemon.actor(&name)["rolling_out"].as_str().map(str::to_owned);
    waits.is_some_and(|what| what == format!("waiting for the turn of `{name}`"))
}

/// Says that nothing of what was done had to wait for the spinners.
#[track_caller]
fn still_spinning(daemon: &Daemon) {
    for n in 0..SPINNERS {
        assert_eq!(daemon.actor(&format!("spinner-{n}"))["generation"], 1);
        assert!(waits(daemon, n));
    }
}

fn reload(daemon: &Daemon, args: &[&str]) -> (Option<i32>, String) {
    let output = daemon.world.run(&[&["reload"], args].concat());
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn nothing_waits_for_actors_whose_turns_take_long() {
    let daemon = beside_spinners();

    daemon.world.module("newcomer", &guest("relay"));
    daemon.wait_event("started", "newcomer");
    still_spinning(&daemon);

    daemon.world.module("quick", &inflated(&guest("relay"), 16, 2));
    daemon.until("it is swapped", |d| d.actor("quick")["generation"] == 2);
    still_spinning(&daemon);

    let config = fs::read_to_string(daemon.world.path("config/reflowd.toml")).unwrap();
    daemon.world.config(&config.replace("module = \"quick\"", "module = \"quick\"\nmailbox = 7"));
    daemon.until("the edit is in force", |d| d.actor("quick")["mailbox"] == 7);
    still_spinning(&daemon);

    assert_eq!(daemon.post("/v1/actors/quick/rollback", "").status, 200);
    assert_eq!(daemon.actor("quick")["generation"], 3);
    still_spinning(&daemon);

    // It waits for what its own look has begun or found under way, and says what that is.
    let (code, said) = reload(&daemon, &["--timeout", "1s"]);
    assert_eq!(code, Some(1), "the ban is a refusal: {said}");
    let line = "… spinner-0: it is waiting for the turn of `spinner-0`";
    assert!(said.contains(line), "{said}");
    still_spinning(&daemon);
    let ps = String::from_utf8(daemon.world.run(&["ps"]).stdout).unwrap();
    assert_eq!(ps.matches("rolling out").count(), SPINNERS, "{ps}");
    daemon.signal("-KILL");
    daemon.ended();
}

#[test]
fn a_newer_version_takes_over_from_one_that_waits() {
    let daemon = beside_spinners();
    daemon.world.module("spinner", &guest("relay"));
    let (code, said) = reload(&daemon, &["--timeout", "1s"]);
    assert_eq!(code, Some(75), "{said}");
    daemon.until("the newer version waits", |d| (0..SPINNERS).all(|n| waits(d, n)));
    still_spinning(&daemon);
    // What ran is what disk asks for again: nothing is left to do.
    daemon.world.module("spinner", &endless("loop-in-turn.wat", 1));
    daemon.until("none waits", |d| (0..SPINNERS).all(|n| !waits(d, n)));
    assert_eq!(reload(&daemon, &[]).0, Some(0));
    assert!((0..SPINNERS).all(|n| daemon.actor(&format!("spinner-{n}"))["generation"] == 1));
    daemon.signal("-KILL");
    daemon.ended();
}

#[test]
fn a_swap_that_has_waited_for_the_time_of_a_turn_ends_it_and_loses_nothing() {
    let world = World::new(
        "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n\
         [actors.spinner]\nmodule = \"spinner\"\ntimeout = \"3s\"\nretries_timeout = 100\n",
    );
    world.module("spinner", &endless("loop-in-turn.wat", 1));
    let daemon = world.start();
    for n in 0..20 {
        daemon.send("spinner.in", &n.to_string());
    }
    daemon.until("it spins", |d| d.sum("reflowd_messages_in_flight") >= 1.0);
    daemon.world.module("spinner", &guest("relay"));
    daemon.until("all are done", |d| d.sum("reflowd_messages_completed_total") == 20.0);
    assert_eq!(daemon.sum("reflowd_messages_dead_lettered_total"), 0.0);
    daemon.stop();
}

#[test]
fn a_module_that_hangs_when_it_is_asked_holds_up_nobody_else() {
    let daemon = World::new("[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n").start();
    // As many as there are places for modules that load, and more; the first by their names.
    let places = thread::available_parallelism().unwrap().get();
    for n in 0..places + 2 {
        let number = u8::try_from(n).unwrap();
        daemon.world.module(&format!("a-{n}"), &endless("loop-in-metadata.wat", number));
    }
    daemon.world.module("good", &guest("relay"));
    let mut events = daemon.events(0);
    let first = events.find(|e| e["event"] == "started" || e["event"] == "module-refused");
    assert_eq!(first["event"], "started", "it lives before any that hangs is given up");
}
