//! The commands: what they print and how they exit.

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Stdio},
};

use crate::rig::{REFLOWD, World, guest};

const GOOD: &str = r#"
[daemon]
modules = "../modules"
data = "../data"
[actors.a]
module = "relay"
[actors.b]
module = "std:stdout"
[[wires]]
from = "a.out"
to = "b.in"
"#;

fn world(config: &str) -> World {
    let world = World::new(config);
    world.module("relay", &guest("relay"));
    world
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What `check` says of a configuration: exit code and everything it printed.
fn check(config: &str) -> (Option<i32>, String) {
    let output = world(config).run(&["check"]);
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn check_is_silent_about_what_is_right() {
    let (code, said) = check(GOOD);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_connector_s_empty_path_is_not_taken_for_the_folder() {
    for connector in ["file-in", "file-out"] {
        let config =
            format!("[actors.x]\nmodule = \"std:{connector}\"\nconfig = {{ path = \"\" }}\n");
        let (code, said) = check(&config);
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains("`path` is empty"), "{said}");
    }
}

#[test]
fn check_finds_every_problem_with_its_place() {
    let unknown_key = GOOD.replace("module = \"relay\"", "module = \"relay\"\ntimout = \"1s\"");
    let no_port = GOOD.replace("a.out", "a.uot");
    let cycle = format!("{GOOD}[[wires]]\nfrom = \"a.out\"\nto = \"a.in\"\n");
    let no_module = format!("{GOOD}[actors.c]\nmodule = \"realy\"\n");
    let no_fit = format!(
        "{GOOD}[actors.t]\nmodule = \"json\"\n[actors.u]\nmodule = \"stamp\"\n[[wires]]\nfrom = \"u.out\"\nto = \"t.value\"\n"
    );
    let all = format!(
        "{}[actors.c]\nmodule = \"realy\"\n[actors.t]\nmodule = \"json\"\n[actors.u]\nmodule = \"stamp\"\n[[wires]]\nfrom = \"u.out\"\nto = \"t.value\"\n[[wires]]\nfrom = \"a.out\"\nto = \"a.in\"\n",
        unknown_key.replace("a.out", "a.uot")
    );
    let places = |said: &str| said.matches("reflowd.toml:").count();
    for (config, words) in [
        (&unknown_key, "did you mean `timeout`?"),
        (&no_port, "`uot`"),
        (&cycle, "cycle"),
        (&no_module, "realy"),
        (&no_fit, "Integer"),
    ] {
        let world = world(config);
        world.module("json", &guest("json"));
        world.module("stamp", &guest("stamp-a"));
        let output = world.run(&["check"]);
        let said = text(&output.stdout) + &text(&output.stderr);
        println!("{said}");
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains(words), "{said}");
        assert_eq!(places(&said), 1, "{said}");
    }
    let world = world(&all);
    world.module("json", &guest("json"));
    world.module("stamp", &guest("stamp-a"));
    let output = world.run(&["check"]);
    let said = text(&output.stdout) + &text(&output.stderr);
    println!("{said}");
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert_eq!(places(&said), 5, "{said}");
}

/// `inspect` of a file with those bytes: exit code and everything it printed.
fn inspect(bytes: &[u8]) -> (Option<i32>, String) {
    let world = World::new("");
    fs::write(world.path("x.wasm"), bytes).unwrap();
    let output = world.run(&["inspect", "x.wasm"]);
    let said = text(&output.stdout) + &text(&output.stderr);
    println!("{said}");
    (output.status.code(), said)
}

#[test]
fn inspect_says_what_a_file_is() {
    let relay = guest("relay");
    let (code, said) = inspect(&relay);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("process") && said.contains("out"), "{said}");

    // Everything that a module needs, but nothing that takes turns.
    let no_process = wat::parse_str(
        r#"(module
            (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
            (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
            (import "extism:host/env" "output_set" (func $output (param i64 i64)))
            (memory (export "memory") 1)
            (data (i32.const 0) "{\22component\22:\22c\22,\22inports\22:[],\22outports\22:[]}")
            (func (export "get_metadata") (result i32) (local $at i64) (local $n i32)
                (local.set $at (call $alloc (i64.const 44)))
                (loop $next
                    (call $store
                        (i64.add (local.get $at) (i64.extend_i32_u (local.get $n)))
                        (i32.load8_u (local.get $n)))
                    (local.set $n (i32.add (local.get $n) (i32.const 1)))
                    (br_if $next (i32.lt_u (local.get $n) (i32.const 44))))
                (call $output (local.get $at) (i64.const 44))
                (i32.const 0)))"#,
    );
    let cases: [(&[u8], &str); 4] = [
        (&no_process.unwrap(), "exports no `process`"),
        (b"\0asm\x0d\0\x01\0", "component"),
        (&relay[..relay.len() / 2], "cut off"),
        (&wat::parse_str("(module (func $f (loop br 0)) (start $f) (func (export \"get_metadata\") (result i32) i32.const 0) (func (export \"process\") (result i32) i32.const 0))").unwrap(), "start"),
    ];
    for (bytes, words) in cases {
        let (code, said) = inspect(bytes);
        assert_eq!(code, Some(65), "{said}");
        assert!(said.contains(words), "`{words}` is not in:\n{said}");
    }
}

#[test]
fn inspect_asks_the_engine_that_would_run_the_module() {
    // It needs the host before it is asked for anything, which one engine cannot serve.
    let tally = wat::parse_str(
        r#"(module
            (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
            (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
            (import "extism:host/env" "output_set" (func $output (param i64 i64)))
            (import "extism:host/env" "get_log_level" (func $level (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "{\22component\22:\22c\22,\22inports\22:[],\22outports\22:[]}")
            (func $start (drop (call $level)))
            (start $start)
            (func (export "process") (result i32) (i32.const 0))
            (func (export "get_metadata") (result i32) (local $at i64) (local $n i32)
                (local.set $at (call $alloc (i64.const 44)))
                (loop $next
                    (call $store
                        (i64.add (local.get $at) (i64.extend_i32_u (local.get $n)))
                        (i32.load8_u (local.get $n)))
                    (local.set $n (i32.add (local.get $n) (i32.const 1)))
                    (br_if $next (i32.lt_u (local.get $n) (i32.const 44))))
                (call $output (local.get $at) (i64.const 44))
                (i32.const 0)))"#,
    );
    let world = World::new("");
    fs::write(world.path("x.wasm"), tally.unwrap()).unwrap();
    for (engine, code, words) in [
        (&[][..], 0, "component  c"),
        (&["--engine", "direct"], 0, "component  c"),
        (&["--engine", "extism"], 65, "calls host functions while it is initialised"),
        (&["--engine", "wasm3"], 2, "there are `direct` and `extism`"),
    ] {
        let output = world.run(&[&["inspect", "x.wasm"], engine].concat());
        let said = text(&output.stdout) + &text(&output.stderr);
        println!("{said}");
        assert_eq!(output.status.code(), Some(code), "{engine:?}: {said}");
        assert!(said.contains(words), "{engine:?}: {said}");
    }
}

#[test]
fn what_cannot_be_mapped_is_refused_with_the_bound_that_was_met() {
    let world = World::new("");
    fs::write(world.path("x.wasm"), guest("relay")).unwrap();
    // In KiB: enough to start and compile, and less than one memory with its guards.
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -v 3500000 && exec \"$0\" inspect x.wasm", REFLOWD]);
    let output = limited.current_dir(world.path("")).env_clear().output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    println!("{said}");
    assert_eq!(output.status.code(), Some(65), "{said}");
    assert!(said.contains("raise the bound on it (ulimit -v)"), "{said}");
}

#[test]
fn ps_send_events_and_reload_talk_to_the_daemon() {
    let mut daemon = world(GOOD).start();
    let run = |args: &[&str]| {
        let output = daemon.world.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let ps = run(&["ps"]);
    assert!(ps.contains("relay") && ps.contains("active"), "{ps}");
    let ps: serde_json::Value = serde_json::from_str(&run(&["ps", "--json"])).unwrap();
    assert!(ps.to_string().contains("\"a\""), "{ps}");
    run(&["send", "a.in", r#"{"n":1}"#]);
    let events = run(&["events"]);
    assert!(events.contains("started"), "{events}");
    run(&["reload"]);
    assert_eq!(daemon.line().unwrap(), r#"{"n":1}"#);

    let mut lines = daemon.world.command(&["send", "a.in", "-"]);
    let mut child = lines.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"1\n\"two\"\n[3]\n").unwrap();
    assert!(child.wait().unwrap().success());
    for expected in ["1", "\"two\"", "[3]"] {
        assert_eq!(daemon.line().unwrap(), expected);
    }
    let answer = daemon.world.run(&["send", "a.in", "7", "--wait", "a.out", "--timeout", "60s"]);
    assert!(answer.status.success(), "{}", text(&answer.stderr));
    assert!(text(&answer.stdout).contains('7'));
    assert_eq!(daemon.line().unwrap(), "7");
}

#[test]
fn what_is_not_there_is_told_by_its_own_name() {
    let daemon = world(GOOD).start();
    let said = |args: &[&str], code| {
        let output = daemon.world.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
        text(&output.stderr)
    };
    let other = said(&["send", "a.in", "1", "--wait", "c.out"], 1);
    assert!(other.contains("there is no actor `c`"), "{other}");
    let port = said(&["send", "a.in", "1", "--wait", "a.uot"], 1);
    assert!(port.contains("`a` has no outport `uot`; it has `out`"), "{port}");
    assert!(!port.contains("no actor"), "{port}");
    let file = said(&["ps", "--socket", "config/reflowd.toml"], 69);
    assert!(file.contains("reflowd.toml: this is no socket"), "{file}");
    let connector = said(&["inspect", "std:stdout"], 2);
    assert!(connector.contains("`std:stdout` is a connector"), "{connector}");
}

#[test]
fn check_and_reload_give_the_same_advice() {
    let daemon = world(GOOD).start();
    for (config, advice) in [
        (GOOD.replace("std:stdout", "std:stdoot"), "did you mean `std:stdout`?"),
        (
            format!("{GOOD}[[wires]]\nfrom = \"relay.out\"\nto = \"b.in\"\n"),
            "there is a module `relay`: to wire its actor, add `[actors.relay]` with `module = \"relay\"`",
        ),
    ] {
        daemon.world.config(&config);
        for (command, code) in [("check", 78), ("reload", 1)] {
            let output = daemon.world.run(&[command]);
            let said = text(&output.stdout) + &text(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{command}: {said}");
            assert!(said.contains(advice), "{command}: {said}");
        }
    }
}

#[test]
fn a_variable_that_is_set_to_nothing_counts_as_unset() {
    let world = world(GOOD);
    let unset = world.run(&["check"]);
    assert_eq!(unset.status.code(), Some(0), "{}", text(&unset.stderr));
    for variable in ["REFLOWD_CONFIG", "REFLOWD_SOCKET", "REFLOWD_LOG", "REFLOWD_LOG_FORMAT"] {
        for (args, code) in [(["check", "--json"], 0), (["ps", "--json"], 69)] {
            let output = world.command(&args).env(variable, "").output().unwrap();
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{variable} {args:?}: {said}");
        }
    }
    // A flag is given by somebody, who means something.
    assert_eq!(world.run(&["ps", "--socket="]).status.code(), Some(2));
}

#[test]
fn pause_resume_and_retry_say_what_they_did() {
    let daemon = world(GOOD).start();
    let run = |args: &[&str]| {
        let output = daemon.world.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    assert_eq!(run(&["pause", "a"]), "a: paused; it was active\n");
    assert_eq!(run(&["pause", "a"]), "a: was paused already\n");
    let told: serde_json::Value = serde_json::from_str(&run(&["resume", "a", "--json"])).unwrap();
    assert_eq!(
        told,
        serde_json::json!({"actor": "a", "was": "paused", "state": "active", "done": true, "why": null})
    );
    assert_eq!(run(&["resume", "a"]), "a: was not paused, and is active\n");
    assert_eq!(run(&["retry", "a"]), "a: has nothing to try again, and is active\n");
    let one: serde_json::Value = serde_json::from_str(&run(&["ps", "b", "--json"])).unwrap();
    assert_eq!((one.as_array().unwrap().len(), &one[0]["name"]), (1, &"b".into()));
}

#[test]
fn a_bad_line_is_named_however_much_comes_after_it() {
    let daemon = world(GOOD).start();
    let rest = vec![b'1'; 16 << 20];
    for _ in 0..10 {
        let mut command = daemon.world.command(&["send", "a.in", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        // It may end before it has read everything.
        _ = input.write_all(b"{bad\n").and_then(|()| input.write_all(&rest));
        drop(input);
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(65), "{said}");
        assert!(said.starts_with("error: line 1: "), "{said}");
    }
}

/// Two versions of a configuration of the same module.
fn configured(n: u64) -> String {
    GOOD.replace(
        "module = \"relay\"",
        &format!("module = \"relay\"\ntrial = false\nconfig = {{ n = {n} }}"),
    )
}

#[test]
fn a_rollback_between_keys_says_so() {
    let daemon = world(&configured(1)).start();
    daemon.world.config(&configured(2));
    daemon.reload();
    let refused = daemon.world.run(&["rollback", "a", "--to", "2"]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("generation 2, which is the one that runs; it can go back to 1 ("),
        "{said}"
    );
    let back = daemon.world.run(&["rollback", "a", "--to", "1"]);
    let said = text(&back.stdout);
    assert_eq!(back.status.code(), Some(0), "{}", text(&back.stderr));
    assert!(
        said.contains("with the keys of generation 1 again; generation 2, the same module with other keys, is banned"),
        "{said}"
    );
}

#[test]
fn the_exit_code_says_what_went_wrong() {
    let bad = world("[actors.a]\n");
    fs::write(bad.path("x.wasm"), b"no module").unwrap();
    for (args, code) in [
        (&["nonsense"][..], 2),
        (&["ps"], 69),
        (&["tap", "a"], 69),
        (&["state", "get", "a"], 69),
        (&["--socket", "nowhere", "graph"], 69),
        (&["check"], 78),
        (&["graph"], 78),
        (&[], 78),
        (&["inspect", "x.wasm"], 65),
        (&["inspect", "nowhere.wasm"], 1),
        (&["schema"], 0),
        (&["completions", "bash"], 0),
        (&["completions", "tcsh"], 2),
        (&["man", "pages"], 0),
        (&["man", "x.wasm"], 1),
        (&["help"], 0),
    ] {
        let output = bad.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
        // What `check` and `inspect` have found is their data, good or bad.
        let data = code == 0 || matches!(args, ["check" | "inspect", ..]);
        assert!(data || output.stdout.is_empty(), "{args:?}: {}", text(&output.stdout));
    }
    let page = fs::read_to_string(bad.path("pages/reflowd-tap.1")).unwrap();
    assert!(page.contains("skipped"), "{page}");
    let footer = format!("\"reflowd {}\" reflowd", env!("CARGO_PKG_VERSION"));
    for name in fs::read_dir(bad.path("pages")).unwrap().map(|page| page.unwrap().path()) {
        let page = fs::read_to_string(&name).unwrap();
        let title = page.lines().find(|line| line.starts_with(".TH ")).unwrap();
        assert!(title.ends_with(&footer), "{}: {title}", name.display());
    }

    let small = GOOD.replace("module = \"relay\"", "module = \"relay\"\nmailbox = 1");
    let daemon = world(&small).start();
    daemon.post("/v1/actors/a/pause", "");
    daemon.send("a.in", "1");
    for (args, code) in [
        (&["send", "a.in", "2"][..], 75),
        (&["send", "a.in", "{"], 65),
        (&["send", "a.in", "1", "--type", "Boolean"], 65),
        (&["send", "a.in", "-", "--wait", "out"], 2),
        (&["send", "c.in", "1"], 1),
        (&["ps", "c"], 1),
        (&["pause", "c"], 1),
        (&["tap", "c"], 1),
        (&["logs", "c"], 1),
        (&["logs", "a", "--no-follow"], 0),
        (&["rollback", "a"], 1),
        (&["dead", "show", "1"], 1),
        (&["dead", "purge"], 2),
        (&["graph", "--json"], 0),
        (&["tap", "a", "--for", "10ms"], 0),
        (&["tap", "a", "--limit", "0"], 2),
        (&["reload"], 0),
    ] {
        let output = daemon.world.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
    }

    // Somebody else may not, whoever runs the test.
    let mut other = daemon.world.command(&["ps"]);
    if rustix::process::geteuid().is_root() {
        other.uid(65_534).gid(65_534);
    } else {
        fs::set_permissions(daemon.world.socket(), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let output = other.output().unwrap();
    if !rustix::process::geteuid().is_root() {
        fs::set_permissions(daemon.world.socket(), fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert_eq!(output.status.code(), Some(77), "{}", text(&output.stderr));
    daemon.post("/v1/actors/a/resume", "");
}

#[test]
fn a_shell_is_offered_the_actors_of_the_daemon_that_runs() {
    let daemon = world(GOOD).start();
    let offered = |words: &[&str]| {
        let mut command = daemon.world.command(&["--", "reflowd"]);
        command.args(words).env("REFLOWD_COMPLETE", "fish");
        let output = command.output().unwrap();
        let offers = text(&output.stdout);
        let names = offers.lines().map(|line| line.split('\t').next().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(offered(&["pause", ""])[..2], ["a", "b"]);
    assert_eq!(offered(&["send", "b"]), ["b.in"]);
    assert_eq!(offered(&["tap", "a."]), ["a.in", "a.out"]);
    assert_eq!(offered(&["state", "get", "a"]), ["a"]);
    assert_eq!(offered(&["send", "a.in", "1", "--wait", "a"]), ["a.out"]);
    assert_eq!(offered(&["send", "a.in", "1", "--type", "I"]), ["Integer"]);
    assert_eq!(offered(&["dead", "list", "--reason", "t"]), ["trap", "timeout", "turn-error"]);
    assert_eq!(offered(&["dead", "purge", "--reason", "max"]), ["max-hops"]);
    assert_eq!(offered(&["logs", "a", "--level", "w"]), ["warn"]);
    assert_eq!(offered(&["inspect", "x", "--engine", ""]), ["direct", "extism"]);
    assert_eq!(offered(&["graph", "--format", "d"]), ["dot"]);
    assert_eq!(offered(&["--socket", "nowhere", "pause", "a"]), [""; 0]);
    assert_eq!(offered(&["compl"]), ["completions"]);
}

#[test]
fn nothing_is_coloured_that_goes_into_a_pipe() {
    let daemon = world(GOOD).start();
    daemon.world.config(&format!("{GOOD}[actors.c]\nmodule = \"std:stdout\"\n"));
    for args in [&["ps"][..], &["events"], &["graph"], &["check"], &["reload"], &["help"]] {
        let output = daemon.world.run(args);
        assert!(!output.stdout.contains(&0x1b), "{args:?}: {}", text(&output.stdout));
        assert!(!output.stderr.contains(&0x1b), "{args:?}: {}", text(&output.stderr));
    }
}
