//! The log: what modules say does not pass for a line of it, and nobody has to read it.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
    time::Instant,
};

use crate::rig::{PATIENCE, World, pause, request_at};

/// Ends a line, begins another and drives a terminal, in three ways.
const FORGED: &str = "x\nFORGED INFO all is well \u{1b}[31m\u{9b}31m\u{202e}";

/// A module whose name, description, inport and error are that text.
fn forger() -> Vec<u8> {
    let port = |name: &str| serde_json::json!({ "name": name, "port_type": "Any" });
    let metadata = serde_json::json!({
        "component": FORGED,
        "description": FORGED,
        "inports": [port("in"), port(FORGED)],
        "outports": [port(FORGED)],
    })
    .to_string();
    let data = |text: &str| text.bytes().map(|byte| format!("\\{byte:02x}")).collect::<String>();
    let source = format!(
        r#"(module
            (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
            (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
            (import "extism:host/env" "output_set" (func $output (param i64 i64)))
            (import "extism:host/env" "error_set" (func $error (param i64)))
            (memory (export "memory") 1)
            (data (i32.const 0) "{}")
            (data (i32.const 4096) "{}")
            (func $block (param $from i32) (param $count i32) (result i64)
              (local $block i64) (local $at i32)
              (local.set $block (call $alloc (i64.extend_i32_u (local.get $count))))
              (loop $next
                (call $store
                  (i64.add (local.get $block) (i64.extend_i32_u (local.get $at)))
                  (i32.load8_u (i32.add (local.get $from) (local.get $at))))
                (br_if $next
                  (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1))) (local.get $count))))
              (local.get $block))
            (func (export "get_metadata") (result i32)
              (call $output (call $block (i32.const 0) (i32.const {})) (i64.const {}))
              (i32.const 0))
            (func (export "process") (result i32)
              (call $error (call $block (i32.const 4096) (i32.const {})))
              (i32.const 1)))"#,
        data(&metadata),
        data(FORGED),
        metadata.len(),
        metadata.len(),
        FORGED.len(),
    );
    wat::parse_bytes(source.as_bytes()).unwrap().into_owned()
}

#[test]
fn what_a_module_says_does_not_pass_for_a_line_of_anybody_else() {
    let world = World::new(
        "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n\
         [actors.forger]\nmodule = \"forger\"\nretries = 0\n",
    );
    world.module("forger", &forger());
    let mut command = world.command(&[]);
    command.env("REFLOWD_LOG_FORMAT", "text").env("REFLOWD_LOG", "debug");
    let daemon = world.start_as(command);
    daemon.send("forger.in", "1");
    daemon.until("it is a dead letter", |d| d.sum("reflowd_messages_dead_lettered_total") == 1.0);
    daemon.until("the log says so", |d| d.log_text().contains("x\\nFORGED INFO all is well"));
    let mut texts = vec![("log", daemon.log_text())];
    for command in
        ["ps", "events", "dead list", "dead show 1", "graph", "inspect modules/forger.wasm"]
    {
        let args = ["--socket", "data/reflowd.sock"].into_iter().chain(command.split(' '));
        let output = daemon.world.run(&args.collect::<Vec<_>>());
        let text = [output.stdout, output.stderr].concat();
        texts.push((command, String::from_utf8(text).unwrap()));
    }
    let drives = |text: &str| text.contains(['\u{1b}', '\u{9b}', '\u{202e}']);
    let forges = |text: &str| text.lines().any(|line| line.starts_with("FORGED"));
    texts.retain(|(_, text)| text.is_empty() || drives(text) || forges(text));
    assert!(texts.is_empty(), "{texts:#?}");
}

/// A process that does not outlive its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[test]
fn a_log_that_nobody_reads_holds_nobody_up_and_its_end_is_there() {
    const LINES: usize = 1_000;
    let world = World::new(
        "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\n\
         [actors.say]\nmodule = \"std:log\"\nlog_rate = 1000000\nmailbox = 100000\n",
    );
    let mut command = world.command(&[]);
    command.env("REFLOWD_LOG_FORMAT", "text").stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ended(child) = &mut Ended(command.spawn().unwrap());
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    assert_eq!(ready, "ready\n");
    let ask = |method: &str, path: &str, body: &[u8]| {
        request_at(&world.socket(), method, path, "application/x-ndjson", body)
    };
    // More than the pipe and the queue hold together.
    let line = format!("\"{}\"\n", "q".repeat(4_000));
    let body = line.repeat(LINES);
    let sent = ask("POST", "/v1/actors/say/ports/in?type=String&block=true", body.as_bytes());
    assert!(sent.status < 300, "{sent:?}");
    let figure = |name: &str| {
        let text = ask("GET", "/metrics", b"").body;
        let sample = |line: &str| line.strip_prefix(name)?.rsplit(' ').next()?.parse::<f64>().ok();
        text.lines().filter_map(sample).sum::<f64>()
    };
    let until = Instant::now() + PATIENCE;
    while figure("reflowd_messages_completed_total{") < LINES as f64 {
        assert!(Instant::now() < until, "somebody waits for the log");
        pause();
    }
    assert_eq!(ask("GET", "/livez", b"").body, "alive\n");
    let lost = figure("reflowd_log_lines_lost_total");
    assert!(lost > 0.0);

    let kill = std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(kill.success());
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let written = log.lines().filter(|line| line.contains("qqqq")).count();
    assert_eq!(written as f64 + lost, LINES as f64, "each line is written or counted");
    let told = log.lines().filter_map(|line| line.split_once("lines of the log were left out"));
    let told =
        told.filter_map(|(_, lines)| lines.trim().strip_prefix("lines=")?.parse::<f64>().ok());
    // What the stop had to say at first had no room either.
    assert!(told.sum::<f64>() >= lost, "and told");
    assert!(log.contains("stopped: everything was drained"));
}
