//! A start with something on disk that does not fit: what ran before runs, or all the rest does.
//!
//! `check` says 78 of each of these folders. A daemon that has been told to start serves
//! what it can, and says what it cannot.

use serde_json::{Value, json};

use crate::rig::{Daemon, Response, World, guest, repository};

/// Two groups that have nothing to do with each other, and what else there is.
fn flow(more: &str) -> String {
    format!(
        r#"
        [daemon]
        modules = "../modules"
        data = "../data"
        quiet = "10ms"
        autostart = false
        [actors]
        a = {{ module = "changing" }}
        other = {{ module = "relay" }}
        screen = {{ module = "std:stdout" }}
        trash = {{ module = "std:log" }}
        {more}
        [[wires]]
        from = "a.out"
        to = "screen.in"
        [[wires]]
        from = "other.out"
        to = "trash.in"
        "#
    )
}

/// A folder in which all is well.
fn good(more: &str) -> World {
    let world = World::new(&flow(more));
    world.module("changing", &guest("relay"));
    world.module("relay", &guest("relay"));
    world
}

/// A module without the ports that the flow is wired to.
fn misfit() -> Vec<u8> {
    guest("sum-c")
}

fn killed(daemon: Daemon) -> World {
    daemon.signal("-KILL");
    daemon.ended().2
}

/// What `check` says, which refuses.
#[track_caller]
fn refused_by_check(world: &World) -> String {
    let output = world.run(&["check"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    said
}

/// The event, the log, `ps`, the health and the metric all say that `actor` is held up.
#[track_caller]
fn told(daemon: &Daemon, actor: &str, words: &str) {
    let event = daemon.events(0).find(|event| {
        event["event"] == "change-refused"
            && event["actors"].as_array().unwrap().contains(&json!(actor))
    });
    assert!(event["why"].as_str().unwrap().contains(words), "{event}");
    daemon.logs(words);
    let held = daemon.actor(actor)["held"].clone();
    assert!(held.as_str().unwrap_or_default().contains(words), "{held}");
    let ps = daemon.world.run(&["--socket", "data/reflowd.sock", "ps"]);
    let line = String::from_utf8(ps.stdout).unwrap();
    let line = line.lines().find(|line| line.starts_with(actor)).unwrap();
    assert!(line.contains("differs"), "{line}");
    let said = String::from_utf8(ps.stderr).unwrap();
    assert!(said.contains(&format!("{actor}: ")) && said.contains(words), "{said}");
    let Response { body, .. } = daemon.get("/readyz?verbose");
    assert!(body.contains("[-] config: "), "{body}");
    assert_eq!(daemon.sum("reflowd_config_in_sync"), 0.0);
}

#[test]
fn a_daemon_comes_up_on_what_ran_before_a_module_that_does_not_fit_the_wires() {
    let daemon = good("").start();
    let before = daemon.actor("a")["digest"].clone();
    let world = killed(daemon);
    world.module("changing", &misfit());
    assert!(refused_by_check(&world).contains("E0202"));
    let mut daemon = world.start();
    assert_eq!(daemon.actor("a")["digest"], before);
    assert_eq!(daemon.actor("other")["state"], "active");
    told(&daemon, "a", "`a` has no outport `out`");
    daemon.send("a.in", "1");
    assert_eq!(daemon.line().unwrap(), "1");
    // In the log too, one that runs is not one that was not started.
    assert!(!daemon.log_text().contains("not started"), "{}", daemon.log_text());
    daemon.world.module("changing", &guest("stamp-a"));
    assert_eq!(daemon.reload()["changed"], json!(["a"]));
    assert_eq!(daemon.actor("a")["held"], Value::Null);
}

#[test]
fn a_group_that_has_never_run_and_does_not_fit_stays_out_until_it_does() {
    type Spoil<'a> = (&'a str, &'a dyn Fn(&World));
    let ways: [Spoil<'_>; 3] = [
        ("`a` has no outport `out`", &|world| world.module("changing", &misfit())),
        ("`changing` cannot be used", &|world| world.module("changing", b"junk")),
        ("there is no module `changing`", &|world| {
            std::fs::remove_file(world.path("modules/changing.wasm")).unwrap();
        }),
    ];
    for (words, spoil) in ways {
        let world = good("");
        spoil(&world);
        assert!(refused_by_check(&world).contains(words));
        let mut daemon = world.start();
        assert_eq!(daemon.actor("other")["state"], "active", "{words}");
        let actor = daemon.actor("a");
        assert_eq!(actor["state"], "loading", "{words}: {actor}");
        assert!(actor["why"].as_str().unwrap().contains(words), "{actor}");
        told(&daemon, "a", words);
        daemon.logs("not started");
        daemon.world.module("changing", &guest("relay"));
        assert_eq!(daemon.reload()["added"], json!(["a", "screen"]), "{words}");
        daemon.send("a.in", "1");
        assert_eq!(daemon.line().unwrap(), "1", "{words}");
        assert_eq!(daemon.sum("reflowd_config_in_sync"), 1.0, "{words}");
    }
}

#[test]
fn what_ran_before_does_not_wait_for_one_that_came_while_the_daemon_was_down() {
    let wire = "[[wires]]\nfrom = \"b.out\"\nto = \"a.in\"";
    for module in ["nowhere", "odd"] {
        let world = killed(good("").start());
        world.module("odd", &misfit());
        let more = format!("b = {{ module = \"{module}\" }}");
        world.config(&format!("{}{wire}", flow(&more)));
        refused_by_check(&world);
        let mut daemon = world.start();
        assert_eq!(daemon.actor("a")["state"], "active", "{module}");
        assert_eq!(daemon.actor("b")["state"], "loading", "{module}");
        daemon.send("a.in", "1");
        assert_eq!(daemon.line().unwrap(), "1", "{module}");
        daemon.world.module(module, &guest("relay"));
        assert_eq!(daemon.reload()["refused"], json!([]), "{module}");
        daemon.send("b.in", "2");
        assert_eq!(daemon.line().unwrap(), "2", "{module}");
    }
}

#[test]
fn an_edit_that_does_not_fit_one_group_leaves_that_group_and_takes_the_rest() {
    let daemon = good("").start();
    let edited = flow("b = { module = \"relay\" }").replace("\"a.out\"", "\"a.nope\"");
    daemon.world.config(&edited);
    let report = daemon.reload();
    assert_eq!(report["added"], json!(["b"]), "{report}");
    let why = report["refused"][0]["why"].as_str().unwrap();
    assert!(why.contains("E0202") && why.contains("reflowd.toml:"), "{report}");
    told(&daemon, "a", "`a` has no outport `nope`");
    let refused = |daemon: &Daemon| daemon.world.run(&["--socket", "data/reflowd.sock", "reload"]);
    assert_eq!(refused(&daemon).status.code(), Some(1), "it is so each time");
    daemon.world.config(&flow(""));
    let report = daemon.reload();
    assert_eq!((&report["removed"], &report["refused"]), (&json!(["b"]), &json!([])));
}

#[test]
fn a_port_that_a_route_waits_for_is_not_taken_away() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let world = good(&format!(
        "entry = {{ module = \"std:http-in\", config = {{ listen = \"127.0.0.1:{port}\", routes = [{{ path = \"/x\", port = \"in\", wait = \"a.out\" }}] }} }}"
    ));
    let apart = std::fs::read_to_string(world.path("config/reflowd.toml")).unwrap();
    let (head, tail) = apart.split_once("from = \"a.out\"").unwrap();
    world.config(&format!(
        "{head}from = \"entry.in\"\nto = \"a.in\"\n[[wires]]\nfrom = \"entry.in\"{tail}"
    ));
    let daemon = world.start();
    assert_eq!(daemon.actor("entry")["state"], "active", "{}", daemon.log_text());
    // Its inport fits the wire, and it has no such outport.
    daemon.world.module("changing", &without_outport());
    let report = daemon.reload();
    let why = report["refused"][0]["why"].as_str().unwrap_or_default();
    assert!(why.contains("`entry` waits for a.out"), "{report}");
}

/// A module with the relay's inport, and an outport of another name.
fn without_outport() -> Vec<u8> {
    let text = std::fs::read_to_string(repository().join("tests/hostile/trap.wat")).unwrap();
    let out = "\\\"out\\\"";
    assert!(text.contains(out), "{text}");
    wat::parse_str(text.replace(out, "\\\"off\\\"")).unwrap()
}

#[test]
fn a_kept_module_that_is_damaged_is_told_and_never_run() {
    let daemon = good("").start();
    let digest = daemon.actor("a")["digest"].as_str().unwrap().to_owned();
    let world = killed(daemon);
    let kept = world.path(&format!("data/modules/{digest}.wasm"));
    let mut bytes = std::fs::read(&kept).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&kept, bytes).unwrap();
    // Without its file there is nothing to run.
    std::fs::remove_file(world.path("modules/changing.wasm")).unwrap();
    std::fs::remove_file(world.path("modules/relay.wasm")).unwrap();
    let daemon = world.start();
    let event = daemon.events(0).find(|event| event["event"] == "data-damaged");
    assert!(event["path"].as_str().unwrap().ends_with(&format!("{digest}.wasm")), "{event}");
    assert_eq!(daemon.actor("a")["state"], "loading");
    // With it, what is kept is mended.
    daemon.world.module("changing", &guest("relay"));
    daemon.reload();
    assert_eq!(daemon.actor("a")["state"], "active");
    assert_eq!(std::fs::read(&kept).unwrap(), guest("relay"));
}
