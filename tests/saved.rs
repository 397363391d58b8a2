//! What a stop saves, and that the next start has it: nothing lost, doubled or reordered.

use std::{fs, path::Path, process::Command, thread};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::{
    random::{Random, given},
    rig::{Daemon, REFLOWD, World, guest, shaky},
};

/// A chain whose last actor writes to a file.
fn chain(drain: &str) -> String {
    format!(
        r#"
        [daemon]
        modules = "../modules"
        data = "../data"
        quiet = "10ms"
        autostart = false
        drain = "{drain}"
        [actors.front]
        module = "relay"
        [actors.step]
        module = "step"
        mailbox = 3
        retries_timeout = 5
        [actors.file]
        module = "std:file-out"
        mailbox = 2
        config = {{ path = "../out" }}
        [[wires]]
        from = "front.out"
        to = "step.in"
        [[wires]]
        from = "step.out"
        to = "file.in"
        "#
    )
}

fn world(drain: &str, way: &str) -> World {
    let world = World::new(&chain(drain));
    world.module("relay", &guest("relay"));
    world.module("step", &shaky("v1", way));
    world
}

/// Posts numbered messages, all of which are taken.
fn post(daemon: &Daemon, numbers: std::ops::Range<u64>) {
    let count = numbers.end - numbers.start;
    let line = |n| format!("{{\"type\":\"Object\",\"data\":{{\"sender\":0,\"seq\":{n}}}}}\n");
    let lines: String = numbers.map(line).collect();
    let path = "/v1/actors/front/ports/in?block=true";
    let response = daemon.request("POST", path, "application/x-ndjson", lines.as_bytes());
    assert_eq!(response.json()["accepted"], count, "{response:?}");
}

fn pause(daemon: &Daemon, actor: &str) {
    daemon.post(&format!("/v1/actors/{actor}/pause"), "");
    daemon.until("it is paused", |d| d.actor(actor)["state"] == "paused");
}

/// The numbers that have come out, and the counts that their turns put in.
fn out(world: &Path) -> (Vec<u64>, Vec<u64>) {
    let text = fs::read_to_string(world.join("out")).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.map(|line| (line["seq"].as_u64().unwrap(), line["count"].as_u64().unwrap())).unzip()
}

fn wait_out(daemon: &Daemon, count: usize) {
    let path = daemon.world.path("");
    daemon.until("that many have come out", |_| out(&path).0.len() >= count);
}

fn stop(daemon: Daemon) -> (Option<i32>, String, World) {
    daemon.signal("-TERM");
    let (status, last, world) = daemon.ended();
    (status.code(), last, world)
}

#[test]
fn what_a_stop_cuts_short_goes_on_at_the_next_start() {
    let daemon = world("100ms", "hangs").start();
    post(&daemon, 0..40);
    wait_out(&daemon, 9);
    daemon.until("its sender is blocked", |d| d.actor("front")["state"] == "blocked");
    let (code, last, world) = stop(daemon);
    println!("last line: {last}");
    assert_eq!(code, Some(0), "{last}");
    assert!(last.contains("saved for the next start") && last.contains("\"saved\":31"), "{last}");
    world.module("step", &shaky("v2", "steady"));
    let daemon = world.start();
    post(&daemon, 40..50);
    wait_out(&daemon, 50);
    // The state of the moment came with the queue: no count is missing or twice there.
    let (numbers, counts) = out(&daemon.world.path(""));
    assert_eq!(numbers, (0..50).collect::<Vec<_>>());
    assert_eq!(counts, (1..=50).collect::<Vec<_>>());
    let restored =
        daemon.metrics()[r#"reflowd_messages_accepted_total{actor="step",by="restore"}"#];
    assert!(restored >= 4.0, "{restored}");
    assert_eq!(fs::read_dir(daemon.world.path("data/saved")).unwrap().count(), 0);
}

#[test]
fn an_actor_that_is_paused_is_saved_at_once() {
    let daemon = world("1h", "steady").start();
    pause(&daemon, "step");
    post(&daemon, 0..20);
    let (code, last, world) = stop(daemon);
    assert_eq!(code, Some(0), "{last}");
    let daemon = world.start();
    wait_out(&daemon, 20);
    assert_eq!(out(&daemon.world.path("")).0, (0..20).collect::<Vec<_>>());
}

#[test]
fn what_is_saved_for_an_actor_that_is_gone_is_a_dead_letter() {
    let daemon = world("1h", "steady").start();
    pause(&daemon, "step");
    post(&daemon, 0..20);
    let (code, last, world) = stop(daemon);
    assert_eq!(code, Some(0), "{last}");
    world.config(
        r#"
        [daemon]
        modules = "../modules"
        data = "../data"
        autostart = false
        [actors.front]
        module = "relay"
        "#,
    );
    let daemon = world.start();
    daemon.until("the rest has gone through", |d| d.sum("reflowd_messages_queued") == 0.0);
    let letters = daemon.metrics();
    let dead = letters[r#"reflowd_dead_letters_total{actor="(gone)",reason="no-target"}"#];
    // Three in its mailbox, and one on the wire to it.
    assert!(dead == 4.0, "{letters:#?}");
}

#[test]
fn a_smaller_mailbox_takes_all_that_was_saved() {
    let config = |size: u32| {
        chain("1h").replace("module = \"relay\"", &format!("module = \"relay\"\nmailbox = {size}"))
    };
    let world = World::new(&config(100));
    world.module("relay", &guest("relay"));
    world.module("step", &shaky("v1", "steady"));
    let daemon = world.start();
    pause(&daemon, "front");
    post(&daemon, 0..90);
    let (code, last, world) = stop(daemon);
    assert_eq!(code, Some(0), "{last}");
    world.config(&config(1));
    let daemon = world.start();
    wait_out(&daemon, 90);
    assert_eq!(out(&daemon.world.path("")).0, (0..90).collect::<Vec<_>>());
}

#[test]
fn a_stop_that_cannot_save_says_how_much_is_lost() {
    let daemon = world("100ms", "steady").start();
    pause(&daemon, "step");
    post(&daemon, 0..20);
    // A file where the folder was: no user writes into it.
    fs::remove_dir_all(daemon.world.path("data/saved")).unwrap();
    fs::write(daemon.world.path("data/saved"), "").unwrap();
    let (code, last, _) = stop(daemon);
    assert_eq!(code, Some(1), "{last}");
    assert!(last.contains("20 messages could not be saved"), "{last}");
}

#[test]
fn a_disk_without_room_loses_what_does_not_fit_as_a_whole() {
    let world = world("100ms", "steady");
    // No file may grow beyond a bound, as on a disk that is full, and who tries is told so
    // instead of being ended.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\"", REFLOWD]);
    command.current_dir(world.path("")).env_clear().env("RUST_LIB_BACKTRACE", "0");
    let daemon = world.start_as(command);
    pause(&daemon, "front");
    post(&daemon, 0..200);
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    prlimit(pid, Resource::Fsize, Rlimit { current: Some(4096), maximum: None }).unwrap();
    let (code, last, world) = stop(daemon);
    assert_eq!(code, Some(1), "{last}");
    assert!(last.contains("200 messages could not be saved"), "{last}");
    let daemon = world.start();
    post(&daemon, 0..1);
    wait_out(&daemon, 1);
    assert_eq!(out(&daemon.world.path("")).0, [0]);
}

#[test]
fn a_damaged_set_is_kept_aside_and_the_daemon_starts() {
    let daemon = world("1h", "steady").start();
    pause(&daemon, "step");
    post(&daemon, 0..20);
    let (_, _, world) = stop(daemon);
    let set = world.path("data/saved/set");
    let bytes = fs::read(&set).unwrap();
    fs::write(&set, &bytes[..bytes.len() - 1]).unwrap();
    let daemon = world.start();
    daemon.logs("it is damaged");
    assert_eq!(daemon.sum("reflowd_messages_accepted_total"), 0.0);
    assert_eq!(fs::read_dir(daemon.world.path("data/saved")).unwrap().count(), 1);
}

#[test]
fn a_file_is_read_on_where_a_stop_left_it() {
    let config = |mode: &str| {
        format!(
            r#"
            [daemon]
            modules = "../modules"
            data = "../data"
            autostart = false
            drain = "1ms"
            [actors.lines]
            module = "std:file-in"
            config = {{ path = "../in", mode = "{mode}" }}
            [actors.step]
            module = "step"
            mailbox = 2
            [actors.file]
            module = "std:file-out"
            config = {{ path = "../out" }}
            [[wires]]
            from = "lines.out"
            to = "step.in"
            [[wires]]
            from = "step.out"
            to = "file.in"
            "#
        )
    };
    for mode in ["once", "follow"] {
        let mut world = World::new(&config(mode));
        world.module("step", &shaky("v1", "steady"));
        let lines: String = (0..3000).map(|n| format!("{{\"sender\":0,\"seq\":{n}}}\n")).collect();
        fs::write(world.path("in"), lines).unwrap();
        for part in 1..=3 {
            let daemon = world.start();
            wait_out(&daemon, part * 700);
            let (code, last, next) = stop(daemon);
            assert_eq!(code, Some(0), "{last}");
            world = next;
        }
        let daemon = world.start();
        wait_out(&daemon, 3000);
        let (_, _, world) = stop(daemon);
        // And a file that is through stays so.
        let daemon = world.start();
        daemon.until("it has looked", |d| {
            mode == "follow" || d.actor("lines")["why"].as_str().is_some()
        });
        assert_eq!(out(&daemon.world.path("")).0, (0..3000).collect::<Vec<_>>());
    }
}

#[test]
fn stops_at_random_moments_lose_and_double_nothing() {
    let mut random = Random::seeded();
    let rounds = given("REFLOWD_STOPS", 12);
    let (mut sent, mut saved) = (0, 0);
    let mut world = world("1ms", "steady");
    for _ in 0..rounds {
        let daemon = world.start();
        post(&daemon, sent..sent + 300);
        sent += 300;
        let come = out(&daemon.world.path("")).0.len();
        // What is still to come is all that can be waited for: the flow may be through already.
        let to_come = usize::try_from(sent).unwrap() - come;
        wait_out(&daemon, come + random.index(to_come + 1));
        let (code, last, next) = stop(daemon);
        assert_eq!(code, Some(0), "{last}");
        saved += u32::from(last.contains("\"saved\":"));
        world = next;
    }
    println!("{rounds} stops, {saved} of them with messages left; {sent} messages");
    let daemon = world.start();
    wait_out(&daemon, usize::try_from(sent).unwrap());
    daemon.until("nothing is left", |d| {
        d.sum("reflowd_messages_queued") + d.sum("reflowd_messages_in_flight") == 0.0
    });
    let (numbers, counts) = out(&daemon.world.path(""));
    assert_eq!(numbers, (0..sent).collect::<Vec<_>>());
    assert_eq!(counts, (1..=sent).collect::<Vec<_>>());
    assert!(saved > 0, "no stop had anything to save");
}

#[test]
fn a_kill_within_a_stop_or_right_after_a_start_doubles_nothing() {
    let mut random = Random::seeded();
    let mut sent = 0;
    let mut world = world("1ms", "steady");
    for _ in 0..given("REFLOWD_KILLS", 12) {
        let daemon = world.start();
        post(&daemon, sent..sent + 500);
        sent += 500;
        if random.below(2) == 0 {
            daemon.signal("-TERM");
            // Work instead of a clock: it is done in a time that differs each time.
            (0..random.below(400)).for_each(|_| thread::yield_now());
        }
        daemon.signal("-KILL");
        world = daemon.ended().2;
    }
    let daemon = world.start();
    daemon.until("nothing is left", |d| {
        d.sum("reflowd_messages_queued") + d.sum("reflowd_messages_in_flight") == 0.0
    });
    // A kill loses; whatever comes out does so once and in order.
    let numbers = out(&daemon.world.path("")).0;
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
}
