//! Panics on purpose at every boundary of the real daemon: each costs what was in hand there, is
//! told, and leaves everything else as it was.

use std::os::unix::net::UnixDatagram;

use serde_json::Value;
use sha2::Digest as _;

use crate::{
    rig::{Daemon, World, guest, request_at, shaky},
    server::{Server, Way},
};

const FOLDERS: &str = "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\nquiet = \"10ms\"\n";

fn relay(config: &str) -> World {
    let world = World::new(&format!("{FOLDERS}{config}"));
    world.module("relay", &guest("relay"));
    world
}

/// Starts a daemon that breaks there.
fn breaking(world: World, wish: &str) -> Daemon {
    let mut command = world.command(&[]);
    command.env("REFLOWD_TEST_PANIC", wish).env("RUST_BACKTRACE", "0");
    world.start_as(command)
}

fn panicked(daemon: &Daemon, part: &str) -> Value {
    let event = daemon.events(0).find(|e| e["event"] == "panicked" && e["part"] == part);
    let why = event["why"].as_str().unwrap();
    assert!(why.contains("bug in it: a panic for a test") && why.contains(".rs:"), "{why}");
    assert!(!event["costs"].as_str().unwrap().is_empty());
    event
}

fn recovered(daemon: &Daemon, part: &str) {
    daemon.until(&format!("{part} works again"), |d| {
        let events = d.get("/v1/events").body;
        let of =
            |line: &&str| line.contains("part-recovered") && line.contains(&format!("\"{part}\""));
        events.lines().any(|line| of(&line))
    });
}

fn panics(daemon: &Daemon, part: &str) -> f64 {
    daemon.metrics()[&format!("reflowd_panics_total{{part=\"{part}\"}}")]
}

fn serves(daemon: &Daemon) {
    daemon.send("relay.in", "1");
    daemon.until("the message is processed", |d| d.sum("reflowd_messages_completed_total") >= 1.0);
}

#[test]
fn passes_that_break_are_told_and_made_again_after_pauses() {
    let daemon = breaking(relay(""), "pass@1*2");
    // The next two passes break, whatever they are for.
    daemon.world.module("second", &guest("relay"));
    panicked(&daemon, "pass");
    let ready = daemon.get("/readyz");
    assert_eq!(ready.status, 503, "{}", ready.body);
    assert!(ready.body.contains("pass does not work"), "{}", ready.body);
    let verbose = daemon.get("/readyz?verbose").body;
    assert!(verbose.contains("[-] pass: ") && verbose.contains("tried again in"), "{verbose}");
    assert!(verbose.contains("[-] parts: 1 broke"), "{verbose}");
    assert_eq!(daemon.metrics()["reflowd_part_broken{part=\"pass\"}"], 1.0);
    serves(&daemon);
    // Nobody asks for anything: it comes back by itself.
    daemon.wait_event("started", "second");
    recovered(&daemon, "pass");
    assert_eq!((panics(&daemon, "pass"), daemon.get("/readyz").status), (2.0, 200));
    let verbose = daemon.get("/readyz?verbose").body;
    assert!(verbose.contains("[+] parts: all work; 2 panics since the start"), "{verbose}");
}

#[test]
fn a_reload_that_breaks_is_answered_and_the_next_one_works() {
    // Nothing but requests wakes it.
    let keys = "watch = false\nrescan = \"1h\"\n";
    for path in ["/v1/reload", "/v1/reload?dry_run=true"] {
        let daemon = breaking(relay(keys), "pass@1*5");
        // Not all of them are left: the daemon makes some passes of its own after the start.
        let broke = (0..5).map(|_| daemon.post(path, "")).find(|answer| answer.status != 200);
        let broke = broke.expect("one of five breaks");
        assert_eq!(broke.status, 500, "{}", broke.body);
        assert_eq!(broke.json()["type"], "urn:reflowd:problem:broke", "{}", broke.body);
    }
    let daemon = breaking(relay(keys), "pass@1");
    daemon.until("it has broken", |d| {
        d.post("/v1/reload", "");
        panics(d, "pass") == 1.0
    });
    daemon.world.module("second", &guest("relay"));
    // Also within the pause that no pass is made in by itself.
    assert_eq!(daemon.reload()["added"], serde_json::json!(["second"]));
    assert_eq!(daemon.get("/readyz").status, 200);
}

#[test]
fn a_first_pass_that_breaks_is_made_again() {
    let daemon = breaking(relay(""), "pass*1");
    assert_eq!(panics(&daemon, "pass"), 1.0);
    serves(&daemon);
}

#[test]
fn a_glob_that_the_library_was_not_made_for_is_refused_at_start_and_while_it_runs() {
    let deep = format!("include = [\"{}*.toml\"]\n", "{".repeat(250));
    let world = World::new(&format!("{deep}{FOLDERS}"));
    for command in [&["check"][..], &[]] {
        let output = world.run(command);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert_eq!(output.status.code(), Some(78), "{command:?}: {said}");
        assert!(said.contains("E0003") && said.contains("is no pattern"), "{said}");
    }
    world.config(FOLDERS);
    world.module("relay", &guest("relay"));
    let daemon = world.start();
    daemon.world.config(&format!("{deep}{FOLDERS}"));
    daemon.events(0).find(|event| event["event"] == "config-refused");
    daemon.world.config(FOLDERS);
    daemon.world.module("second", &guest("relay"));
    daemon.wait_event("started", "second");
    assert_eq!(panics(&daemon, "pass") + panics(&daemon, "config"), 0.0);
}

#[test]
fn a_configuration_over_which_the_daemon_breaks_is_refused_and_asked_about_again() {
    let world = relay("");
    let mut command = world.command(&[]);
    let output = command.env("REFLOWD_TEST_PANIC", "config").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("reflowd itself broke, which is a bug in it"), "{said}");

    // Read at the start, then asked for its files, drafted and checked in the first pass.
    for at in 1..=3 {
        let world = relay("");
        let mut command = world.command(&[]);
        command.env("REFLOWD_TEST_PANIC", format!("config@{at}"));
        if at == 1 {
            // What follows says the same, so nobody is stopped by it.
            serves(&world.start_as(command));
            continue;
        }
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{at}: {said}");
    }
    // In a daemon that runs, it is refused, and taken once it does not break.
    let keys = "watch = false\nrescan = \"1h\"\n";
    let daemon = breaking(relay(keys), "config@5*4");
    daemon.world.config(&format!("{FOLDERS}{keys}[actors.more]\nmodule = \"relay\"\n"));
    let refused = daemon.reload();
    assert_eq!(refused["refused"][0]["what"], "configuration", "{refused}");
    daemon.events(0).find(|event| event["event"] == "config-refused");
    panicked(&daemon, "config");
    daemon.until("it is taken", |d| {
        d.reload();
        d.actor("more")["state"] == "active"
    });
}

#[test]
fn tasks_of_the_background_begin_anew() {
    let world = relay(concat!(
        "[actors.tick]\nmodule = \"std:interval\"\nconfig = { every = \"50ms\" }\n",
        "[[wires]]\nfrom = \"tick.out\"\nto = \"relay.in\"\n",
        "[actors.relay]\nmodule = \"relay\"\n"
    ));
    let notify = UnixDatagram::bind(world.path("notify")).unwrap();
    let collector = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = world.command(&[]);
    command.env("NOTIFY_SOCKET", world.path("notify")).env("WATCHDOG_USEC", "2000000");
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    // What mends when it works again, and what is over with the attempt.
    let tasks = [
        "states",
        "signals",
        "dead-letters",
        "admin-listener",
        "watcher",
        "budget",
        "events",
        "watchdog",
        "clock",
        "spans",
    ];
    let attempts = ["actor", "source-task", "source", "turn"];
    let wish: Vec<_> = tasks.into_iter().chain(attempts).chain(["log"]).collect();
    // The watchdog has two tasks, and each breaks.
    let wish = wish.join(",").replace("watchdog", "watchdog*2");
    let daemon = world.start_as({
        command.env("REFLOWD_TEST_PANIC", wish);
        command
    });
    tasks.iter().for_each(|part| recovered(&daemon, part));
    attempts.iter().for_each(|part| _ = panicked(&daemon, part));
    // Its thread broke before there were events; what is logged is written all the same.
    assert_eq!(panics(&daemon, "log"), 1.0);
    assert!(daemon.log_text().contains("a panic was caught"));
    // Source and actor work, and the service manager is pinged.
    daemon.until("messages flow", |d| d.sum("reflowd_messages_completed_total") >= 10.0);
    let mut datagram = [0; 4096];
    loop {
        let length = notify.recv(&mut datagram).unwrap();
        if datagram[..length].starts_with(b"WATCHDOG=1") {
            break;
        }
    }
    assert_eq!(daemon.get("/readyz").status, 200);
    daemon.events(0).find(|e| e["event"] == "recovered" && e["actor"] == "relay");
    let (status, _, _) = daemon.stop();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn the_deadlines_of_the_stock_engine_outlive_a_panic() {
    let world = World::new(&format!(
        "{FOLDERS}engine = \"extism\"\n[actors.a]\nmodule = \"shaky\"\ntimeout = \"100ms\"\nretries_timeout = 0\n"
    ));
    world.module("shaky", &shaky("v1", "steady"));
    let daemon = breaking(world, "deadlines");
    daemon.send("a.in", "{\"sender\":0,\"seq\":1}");
    daemon.until("a deadline was set", |d| panics(d, "deadlines") == 1.0);
    recovered(&daemon, "deadlines");
}

#[test]
fn requests_and_connections_that_break_cost_only_themselves() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let world = relay(&format!(
        "[actors.door]\nmodule = \"std:http-in\"\nconfig = {{ listen = \"{port}\", routes = [{{ path = \"/\", port = \"out\" }}] }}\n\
         [[wires]]\nfrom = \"door.out\"\nto = \"relay.in\"\n[actors.relay]\nmodule = \"relay\"\n"
    ));
    // The rig's own first connection asks for events.
    let wish = "admin-request@1,admin-connection@3,http-in-request,http-in-connection@1";
    let daemon = breaking(world, wish);
    assert_eq!(daemon.get("/livez").status, 200);
    let broke = daemon.get("/v1/actors");
    assert_eq!(
        (broke.status, broke.json()["title"].as_str()),
        (500, Some("the daemon broke over it"))
    );
    assert_eq!(daemon.get("/v1/actors").status, 200);
    // This connection ends without an answer; the next one is served.
    let cut = std::panic::catch_unwind(|| {
        request_at(&daemon.world.socket(), "GET", "/livez", "text/plain", b"")
    });
    assert!(cut.is_err());
    assert_eq!(daemon.get("/livez").status, 200);

    let post = || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(port).unwrap();
        let body = "{}";
        let head = "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n";
        _ = write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len());
        let mut answer = String::new();
        _ = stream.read_to_string(&mut answer);
        answer
    };
    daemon.until("it listens", |_| {
        std::net::TcpStream::connect(port).is_ok() && panics(&daemon, "http-in-connection") == 1.0
    });
    let broke = post();
    assert!(broke.starts_with("HTTP/1.1 500") && !broke.contains("for a test"), "{broke}");
    let taken = post();
    assert!(taken.starts_with("HTTP/1.1 202"), "{taken}");
    for part in ["admin-request", "admin-connection", "http-in-request", "http-in-connection"] {
        panicked(&daemon, part);
        assert_eq!(panics(&daemon, part), 1.0, "{part}");
    }
    // A request that broke is over; the daemon is as ready as before.
    assert_eq!(daemon.get("/readyz").status, 200);
    let verbose = daemon.get("/readyz?verbose").body;
    assert!(verbose.contains("[-] admin-request: "), "{verbose}");
}

#[test]
fn a_module_over_which_the_loader_breaks_is_refused_and_no_other() {
    let keys = "watch = false\nrescan = \"1h\"\n";
    // Of a module it is read, compiled and asked; the second one breaks in each of these.
    for at in 3..=5 {
        let daemon = breaking(relay(keys), &format!("load@{at}"));
        daemon.world.module("second", &shaky("v1", "steady"));
        daemon.reload();
        let event = daemon.events(0).find(|event| event["event"] == "module-refused");
        assert_eq!(event["reason"], "broke", "{event}");
        panicked(&daemon, "load");
        serves(&daemon);
        let again = daemon.post("/v1/reload?force=true", "").json();
        assert_eq!(
            again["added"],
            serde_json::json!(["second"]),
            "{at}: {again} {}",
            daemon.log_text()
        );
    }
    // Of each, it is made ready, and in that proven.
    for at in 2..=3 {
        let daemon = breaking(relay(keys), &format!("prepare@{at}"));
        daemon.world.module("second", &shaky("v1", "steady"));
        daemon.until("it is started", |d| {
            d.reload();
            d.actor("second")["state"] == "active"
        });
        panicked(&daemon, "prepare");
        let refused = daemon.events(0).find(|event| event["event"] == "change-refused");
        assert_eq!(refused["actors"], serde_json::json!(["second"]), "{refused}");
    }
}

#[test]
fn a_download_that_breaks_is_tried_again() {
    let (module, other) = (guest("stamp-a"), guest("relay"));
    let digest = sha2::Sha256::digest(&module);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let server = Server::start(move |_| Way::Whole(module.clone()));
    let url = server.url("/stamp.wasm");
    let world = World::new(&format!(
        "{FOLDERS}[actors.far]\nmodule = {{ url = \"{url}\", sha256 = \"{digest}\" }}\n"
    ));
    world.module("relay", &other);
    let daemon = breaking(world, "download");
    panicked(&daemon, "download");
    daemon.wait_event("started", "far");
    serves(&daemon);
}

#[test]
fn an_engine_that_cannot_be_made_for_a_panic_is_made_later() {
    let world = World::new(&format!("{FOLDERS}[actors.a]\nmodule = \"shaky\"\nretries = 0\n"));
    world.module("shaky", &shaky("v1", "steady"));
    let daemon = breaking(world, "engine");
    // The first traps, so the second needs another engine.
    daemon.send("a.in", "{\"sender\":0,\"seq\":0,\"poison\":true}");
    daemon.send("a.in", "{\"sender\":0,\"seq\":1}");
    panicked(&daemon, "engine");
    daemon.wait_event("failed", "a");
    daemon.wait_event("recovered", "a");
    daemon.until("it is processed", |d| d.sum("reflowd_messages_completed_total") == 1.0);
}

#[test]
fn where_its_own_data_may_be_wrong_the_daemon_saves_what_it_holds_and_ends() {
    // Of an actor that is paused, so that the message is still there when it breaks.
    let keys = "autostart = false\n[actors.keep]\nmodule = \"relay\"\n";
    let daemon = breaking(relay(keys), "change@1");
    daemon.post("/v1/actors/keep/pause", "");
    daemon.send("keep.in", "7");
    daemon.world.config(&format!("{FOLDERS}{keys}[actors.new]\nmodule = \"relay\"\n"));
    let (status, last, world) = daemon.ended();
    assert_eq!(status.code(), Some(70), "{last}");
    assert!(last.contains("saved for the next start"), "{last}");
    let daemon = world.start();
    daemon.until("the message is back", |d| d.sum("reflowd_messages_completed_total") == 1.0);
    assert_eq!(daemon.actor("new")["state"], "active", "the change is made by the next process");

    let daemon = breaking(relay("[actors.gone]\nmodule = \"relay\"\n"), "burial");
    daemon
        .world
        .config(&format!("{FOLDERS}autostart = false\n[actors.relay]\nmodule = \"relay\"\n"));
    let (status, last, _) = daemon.ended();
    assert_eq!(status.code(), Some(70), "{last}");
}

#[test]
fn a_panic_outside_of_all_others_ends_the_process_with_its_own_exit_code() {
    let world = relay("");
    for (wish, code, says) in [
        ("main", 70, "reflowd itself broke, which is a bug in it"),
        ("nowhere", 2, "there is no boundary `nowhere`; they are pass, "),
        ("pass*x", 2, "boundary@SKIP*TIMES"),
    ] {
        let output = world.command(&[]).env("REFLOWD_TEST_PANIC", wish).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{wish}: {said}");
        assert!(said.contains(says), "{wish}: {said}");
    }
}
