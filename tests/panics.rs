//! Panics on purpose at every boundary of the real daemon: each costs what was in hand there, is
//! told, and leaves everything else as it was.

use std::{io::Write as _, os::unix::net::UnixDatagram};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::Digest as _;

use crate::{
    bounds::with_schema,
    rig::{Daemon, World, guest, repository, request_at, shaky},
    server::{Server, Way},
    trace::collector,
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
    let (open, shut) = ("{".repeat(250), "}".repeat(250));
    let deep = format!("include = [\"{open}*.toml{shut}\"]\n");
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
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{at}: {said}");
    }
    // In a daemon that runs, it is refused, and taken once it does not break.
    let keys = "watch = false\nrescan = \"1h\"\n";
    // Each edit is asked for its files, drafted and checked; one of a few is in hand by then, or
    // the look that follows upon it.
    let mut told = 0;
    for wish in ["config@30*2", "config@31", "config@32", "config@33"] {
        let daemon = breaking(relay(keys), wish);
        let mut n = 0;
        let report = loop {
            let more = format!("[actors.more-{n}]\nmodule = \"relay\"\n");
            daemon.world.config(&format!("{FOLDERS}{keys}{more}"));
            let report = daemon.reload();
            if daemon.sum("reflowd_panics_total") > 0.0 {
                break report;
            }
            n += 1;
            assert!(n < 30, "{}", daemon.log_text());
        };
        if let Some(refusal) = report["refused"].get(0) {
            assert_eq!(refusal["what"], "configuration", "{report}");
            told += 1;
        }
        daemon.events(0).find(|event| event["event"] == "config-refused");
        panicked(&daemon, "config");
        // Nothing but the daemon itself asks for the next look, and this one in between.
        daemon.reload();
        daemon.wait_event("started", &format!("more-{n}"));
    }
    assert!(told > 0, "whoever asks is told");
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
    // The watchdog has two tasks, and each breaks. The watcher breaks in what it does aside and
    // in what waits for it, events in their task and in what writes them.
    let wish = wish.join(",").replace("watchdog", "watchdog*2").replace("watcher", "watcher*2");
    let wish = wish.replace("events", "events*2");
    let daemon = world.start_as({
        command.env("REFLOWD_TEST_PANIC", wish);
        command
    });
    tasks.iter().for_each(|part| recovered(&daemon, part));
    attempts.iter().for_each(|part| _ = panicked(&daemon, part));
    for part in tasks.iter().chain(&attempts) {
        let twice = ["watchdog", "watcher", "events"].contains(part);
        assert_eq!(panics(&daemon, part), if twice { 2.0 } else { 1.0 }, "{part} breaks alone");
    }
    // Its thread broke before there were events; what is logged is written all the same.
    assert_eq!(panics(&daemon, "log"), 1.0);
    let parts = tasks.iter().chain(&attempts).chain(&["log"]);
    let all: f64 = parts.map(|part| panics(&daemon, part)).sum();
    assert_eq!(daemon.sum("reflowd_panics_total"), all, "nothing else breaks");
    daemon.logs("a panic was caught");
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
    let wish = "admin-request@1,admin-connection@3,http-in-request,http-in-connection@1,unpack";
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

    let post_as = |coding: &str, body: &[u8]| {
        use std::io::Read;
        let mut stream = std::net::TcpStream::connect(port).unwrap();
        let head = "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n";
        let length = body.len();
        let head = format!("{head}Content-Encoding: {coding}\r\nContent-Length: {length}\r\n\r\n");
        _ = stream.write_all(&[head.as_bytes(), body].concat());
        let mut answer = String::new();
        _ = stream.read_to_string(&mut answer);
        answer
    };
    daemon.until("it listens", |_| {
        std::net::TcpStream::connect(port).is_ok() && panics(&daemon, "http-in-connection") == 1.0
    });
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(b"{}").unwrap();
    let packed = packed.finish().unwrap();
    for (coding, body) in [("identity", b"{}".as_slice()), ("gzip", &packed)] {
        let broke = post_as(coding, body);
        assert!(broke.starts_with("HTTP/1.1 500") && !broke.contains("for a test"), "{broke}");
        let taken = post_as(coding, body);
        assert!(taken.starts_with("HTTP/1.1 202"), "{taken}");
    }
    daemon.until("both are done", |d| d.sum("reflowd_messages_completed_total") == 2.0);
    let parts =
        ["admin-request", "admin-connection", "http-in-request", "http-in-connection", "unpack"];
    for part in parts {
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
    // Of each, its change is made ready, it is, and in that proven.
    for at in 3..=5 {
        let daemon = breaking(relay(keys), &format!("prepare@{at}"));
        daemon.world.module("second", &shaky("v1", "steady"));
        daemon.reload();
        panicked(&daemon, "prepare");
        // It is tried again though nothing else would make it look for an hour.
        daemon.wait_event("started", "second");
        assert_eq!(panics(&daemon, "prepare"), 1.0);
        let refused = daemon.events(0).find(|event| event["event"] == "change-refused");
        assert_eq!(refused["actors"], serde_json::json!(["second"]), "{refused}");
    }
}

#[test]
fn a_schema_over_which_the_library_breaks_is_no_fault_of_the_module() {
    let keys = "watch = false\nrescan = \"1h\"\n";
    let module = with_schema(&json!({"type": "object"}));
    // When the module is loaded.
    let daemon = breaking(relay(keys), "schema");
    daemon.world.module("second", &module);
    daemon.reload();
    let event = daemon.events(0).find(|event| event["event"] == "module-refused");
    assert_eq!(event["reason"], "broke", "{event}");
    panicked(&daemon, "schema");
    assert_eq!(panics(&daemon, "load"), 0.0, "it gets no further");
    let again = daemon.post("/v1/reload?force=true", "").json();
    assert_eq!(again["added"], json!(["second"]), "{again}");
    serves(&daemon);
    // When an actor's configuration is held against it.
    let daemon = breaking(relay(keys), "schema@1");
    daemon.world.module("second", &module);
    daemon.reload();
    let refused = daemon.events(0).find(|event| event["event"] == "change-refused");
    assert_eq!(refused["actors"], json!(["second"]), "{refused}");
    panicked(&daemon, "schema");
    daemon.wait_event("started", "second");
    assert_eq!(panics(&daemon, "prepare"), 0.0, "it gets no further");
}

#[test]
fn watching_that_breaks_is_begun_anew() {
    // The thread of the library dies, or the attempt to watch breaks. No rescan helps.
    for part in ["notify", "watcher"] {
        let daemon = breaking(relay("rescan = \"1h\"\n"), part);
        daemon.world.module("second", &guest("relay"));
        panicked(&daemon, part);
        daemon.wait_event("started", "second");
        recovered(&daemon, part);
        daemon.world.module("third", &guest("relay"));
        daemon.wait_event("started", "third");
        assert_eq!((panics(&daemon, part), daemon.get("/readyz").status), (1.0, 200));
        assert_eq!(daemon.sum("reflowd_panics_total"), 1.0, "nothing else breaks");
    }
}

#[test]
fn events_over_which_writing_breaks_are_on_disk_later_each_once() {
    let daemon = breaking(relay(""), "events@1*2");
    recovered(&daemon, "events");
    assert_eq!(panics(&daemon, "events"), 2.0);
    let (status, _, world) = daemon.stop();
    assert_eq!(status.code(), Some(0));
    let daemon = world.start();
    let past = daemon.get("/v1/events").body;
    let past: Vec<Value> = past.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |event: &str| past.iter().filter(|e| e["event"] == event).count();
    assert_eq!((of("daemon-started"), of("panicked"), of("part-recovered")), (2, 2, 1), "{past:?}");
    let numbers: Vec<_> = past.iter().map(|event| event["number"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted_by(|one, next| one + 1 == *next), "{numbers:?}");
}

#[test]
fn spans_over_which_the_client_breaks_are_told_and_lost_alone() {
    let (url, spans) = collector();
    let world = relay("");
    let mut command = world.command(&[]);
    command.env("REFLOWD_TEST_PANIC", "spans@1").env("OTEL_EXPORTER_OTLP_ENDPOINT", url);
    let daemon = world.start_as(command);
    serves(&daemon);
    panicked(&daemon, "spans");
    let of = |fate: &str| daemon.metrics()[&format!("reflowd_spans_total{{fate=\"{fate}\"}}")];
    daemon.until("they are counted as lost", |_| of("not-taken") == 1.0);
    daemon.send("relay.in", "2");
    spans.recv_timeout(crate::rig::PATIENCE).unwrap();
    recovered(&daemon, "spans");
    daemon.until("the next is counted", |_| of("sent") == 1.0);
    assert_eq!(of("not-taken"), 1.0);
}

#[test]
fn a_judge_over_which_the_daemon_breaks_costs_one_message_and_no_state() {
    // When an engine is made for it, and in its turn.
    for wish in ["judge", "judge@1"] {
        let world = World::new(&format!(
            "{FOLDERS}autostart = false\n[actors.a]\nmodule = \"shaky\"\nretries = 0\n"
        ));
        world.module("shaky", &shaky("v1", "steady"));
        let daemon = breaking(world, wish);
        daemon.world.module("shaky", &shaky("v2", "third"));
        daemon.wait_event("swapped", "a");
        for seq in 0..6 {
            daemon.send("a.in", &format!("{{\"sender\":0,\"seq\":{seq}}}"));
        }
        panicked(&daemon, "judge");
        // The next time that it is asked, it stands.
        daemon.until("all but one are done", |d| {
            d.sum("reflowd_messages_completed_total") == 5.0
                && d.sum("reflowd_messages_dead_lettered_total") == 1.0
        });
        assert_eq!(panics(&daemon, "judge"), 1.0);
    }
}

#[test]
fn a_request_of_a_guest_that_breaks_costs_its_turn_as_a_trap_does() {
    let endless = repository().join("tests/hostile/loop-of-http.wat");
    let text = std::fs::read_to_string(endless).unwrap();
    let (begin, end) = ("(loop $l (drop (call $http", "(br $l)) unreachable");
    assert!(text.contains(begin) && text.contains(end), "{text}");
    let once = text.replace(begin, "(drop (call $http");
    let once = once.replace(end, "(call $answer (i32.const 600) (i32.const 14))");
    let world = World::new(FOLDERS);
    world.module("asks", &wat::parse_str(once).unwrap());
    let daemon = breaking(world, "guest-http");
    daemon.send("asks.in", "1");
    panicked(&daemon, "guest-http");
    daemon.until("it is tried again", |d| d.sum("reflowd_messages_completed_total") == 1.0);
    assert_eq!(daemon.actor("asks")["failures"], 1);
    assert_eq!(panics(&daemon, "turn"), 0.0, "it gets no further");
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
    assert_eq!(panics(&daemon, "actor"), 0.0, "it gets no further");
}

#[test]
fn where_its_own_data_may_be_wrong_the_daemon_saves_what_it_holds_and_ends() {
    // Of an actor that is paused, so that the message is still there when it breaks.
    let keys = "autostart = false\n[actors.keep]\nmodule = \"relay\"\n";
    // As it is put in place, and as that is taken in.
    for at in 2..=3 {
        let daemon = breaking(relay(keys), &format!("change@{at}"));
        daemon.post("/v1/actors/keep/pause", "");
        daemon.send("keep.in", "7");
        daemon.world.config(&format!("{FOLDERS}{keys}[actors.new]\nmodule = \"relay\"\n"));
        let (status, last, world) = daemon.ended();
        assert_eq!(status.code(), Some(70), "{last}");
        assert!(last.contains("saved for the next start"), "{last}");
        let daemon = world.start();
        daemon.until("the message is back", |d| d.sum("reflowd_messages_completed_total") == 1.0);
        assert_eq!(
            daemon.actor("new")["state"],
            "active",
            "the change is made by the next process"
        );
    }

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
