//! `check`, `inspect`, `ps`, `send`, `events`, `reload`: what they print and how they exit.

use std::{
    fs,
    io::Write,
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
