//! What a guest can have this process hold, and where that ends.
//!
//! The process is measured as a whole, so nothing else may run in it: there is one test.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod guest;

use guest::*;
use reflowd_loader::EngineKind;
use reflowd_runtime::{HOST_MEMORY, LeftState, Module as _, ProgramSpec, State};

/// Bytes of linear memory of the guests below, which could hold none of what they ask for.
const MEMORY: u64 = 1 << 20;

/// Bytes that a process may take beside what is counted: stacks, the compiler's leftovers,
/// what allocators keep back.
const UNCOUNTED: u64 = 32 << 20;

/// More than anybody needs, and less than the host may hold. A multiple of 24.
const LARGE: u64 = 90_000_000;

/// Imports that only these guests use, and a function that fills a large block with 24
/// bytes over and over, remembers it as `$b`, and puts other bytes at its ends.
const BIG: &str = r#"
  (global $b (mut i64) (i64.const 0))
  (func $big (param $len i64) (param $one i64) (param $two i64) (param $three i64)
    (local $at i64) (local $end i64)
    (global.set $b (call $alloc (local.get $len)))
    (local.set $at (global.get $b))
    (local.set $end (i64.add (local.get $at) (local.get $len)))
    (loop $next
      (call $store64 (local.get $at) (local.get $one))
      (call $store64 (i64.add (local.get $at) (i64.const 8)) (local.get $two))
      (call $store64 (i64.add (local.get $at) (i64.const 16)) (local.get $three))
      (local.set $at (i64.add (local.get $at) (i64.const 24)))
      (br_if $next (i64.lt_u (local.get $at) (local.get $end)))))
"#;

const IMPORTS: &str = r#"
  (import "extism:host/env" "store_u64" (func $store64 (param i64 i64)))
  (import "extism:host/env" "log_trace" (func $log_trace (param i64)))
  (import "extism:host/env" "log_debug" (func $log_debug (param i64)))
  (import "extism:host/env" "log_warn" (func $log_warn (param i64)))
  (import "extism:host/env" "log_error" (func $log_error (param i64)))
"#;

/// Code that makes `$b` a block of so many bytes: `head`, `again` over and over, `tail`.
fn big(len: u64, head: &str, again: &[u8; 24], tail: &str) -> String {
    let (words, _) = again.as_chunks::<8>();
    let words: Vec<_> = words.iter().map(|word| i64::from_le_bytes(*word).to_string()).collect();
    let end = len - tail.len() as u64;
    let put = |at: u64, text: &str| match text {
        "" => String::new(),
        text => {
            format!("(drop (call $copy (i64.add (global.get $b) (i64.const {at})) <<{text}>>))")
        }
    };
    format!(
        "(call $big (i64.const {len}) (i64.const {}) (i64.const {}) (i64.const {})) {} {}",
        words[0],
        words[1],
        words[2],
        put(0, head),
        put(end, tail)
    )
}

/// Code that puts out `$b`, of so many bytes.
fn put_out(len: u64) -> String {
    format!("(call $output_set (global.get $b) (i64.const {len})) (i32.const 0)")
}

/// A guest of these exports; what it says of itself is as usual where they do not say it.
fn hungry(exports: &[(&str, String)]) -> bytes::Bytes {
    let functions: String = exports
        .iter()
        .map(|(name, body)| format!(r#"(func (export "{name}") (result i32) {body})"#))
        .collect();
    let metadata =
        format!(r#"(func (export "get_metadata") (result i32) (call $answer <<{METADATA}>>))"#);
    let fields = guest_fields(METADATA, &format!("{BIG} {functions}"));
    let fields = if exports.iter().any(|(name, _)| *name == "get_metadata") {
        assert!(fields.contains(&metadata));
        fields.replacen(&metadata, "", 1)
    } else {
        fields
    };
    let (imports, rest) = fields.split_at(fields.find("(memory").unwrap());
    module(&format!("{imports} {IMPORTS} {rest}"))
}

/// The most memory that this process has had since [`forget_most`], in bytes.
fn most() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// Forgets it, and tells what there is now.
fn forget_most() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    most()
}

/// JSON of 24 bytes: entries, a string's inside, an output, bytes that are no text.
const ENTRIES: &[u8; 24] = br#" "a":1,  "b":2,  "c":3, "#;
const BLANKS: &[u8; 24] = b"                        ";
const TEXT: &[u8; 24] = b"abcdefghijklmnopqrstuvwx";
const OUTPUTS: &[u8; 24] = br#""a":{"type":"Flow"},    "#;
const NO_TEXT: &[u8; 24] = &[0xff; 24];
const VALUES: &[u8; 24] = br#""","","","","","","","","#;

/// What the host has to do for a guest, taken to the most that there can be: each host
/// function, and each field of each answer.
fn demands() -> Vec<(&'static str, bytes::Bytes)> {
    let done = r#"(call $answer <<{"outputs":{}}>>)"#;
    let process = |body: String| hungry(&[("process", body)]);
    let asks = |call: &str, what: String| process(format!("{what} {call} {done}"));
    let puts = |what: String| process(format!("{what} {}", put_out(LARGE)));
    let no_text = || big(LARGE, "", NO_TEXT, "");
    let mut all = Vec::new();
    for log in ["log_trace", "log_debug", "log_info", "log_warn", "log_error"] {
        all.push((log, asks(&format!("(call ${log} (global.get $b))"), no_text())));
    }
    all.extend([
        ("error_set", process(format!("{} (call $error_set (global.get $b)) (i32.const 1)", no_text()))),
        ("error_set, then a trap", process(format!("{} (call $error_set (global.get $b)) unreachable", no_text()))),
        (
            "__send_output of entries",
            asks("(call $send_output (global.get $b))", big(LARGE, "{", ENTRIES, "\"z\":0}")),
        ),
        (
            "__send_output of a string",
            asks("(call $send_output (global.get $b))", big(LARGE, "{\"a\":\"", TEXT, "\"}")),
        ),
        (
            "__send_output to a long port",
            asks("(call $send_output (global.get $b))", big(LARGE, "{\"", TEXT, "\":1}")),
        ),
        (
            "__send_output of what is no object",
            asks("(call $send_output (global.get $b))", big(LARGE, "\"", TEXT, "\"")),
        ),
        (
            "__send_output of a long unknown key",
            asks("(call $send_output (global.get $b))", big(LARGE / 3, "{\"a\":{\"", TEXT, "\":1}}")),
        ),
        ("__send_output of no text", asks("(call $send_output (global.get $b))", no_text())),
        ("__get_state of a long key", asks("(drop (call $get_state (global.get $b)))", big(LARGE, "", TEXT, ""))),
        ("__set_state of a long key", asks("(call $set_state (global.get $b) (call $block <<1>>))", big(LARGE, "", TEXT, ""))),
        ("__set_state to a long value", asks("(call $set_state (call $block <<a>>) (global.get $b))", big(LARGE, "\"", TEXT, "\""))),
        ("config_get of a long key", asks("(drop (call $config_get (global.get $b)))", big(LARGE, "", TEXT, ""))),
        ("var_get of a long key", asks("(drop (call $var_get (global.get $b)))", big(LARGE, "", TEXT, ""))),
        ("var_set of a long key", asks("(call $var_set (global.get $b) (call $block <<1>>))", big(LARGE, "", TEXT, ""))),
        ("http_request with a long address", asks("(drop (call $http_request (global.get $b) (i64.const 0)))", big(LARGE, "{\"url\":\"", TEXT, "\"}"))),
        (
            "http_request with a long body",
            asks(r#"(drop (call $http_request (call $block <<{"url":"http://x/"}>>) (global.get $b)))"#, big(LARGE, "", TEXT, "")),
        ),
        ("alloc without an end", process("(loop $more (drop (call $alloc (i64.const 1))) (br $more)) (i32.const 0)".into())),
        (
            "__set_state of many keys",
            process(each_number("(call $set_state (global.get $b) (call $block <<1>>))")),
        ),
        (
            "var_set of many names",
            process(each_number("(call $var_set (global.get $b) (call $block <<1>>)) (global.set $b (call $alloc (i64.const 8)))")),
        ),
        ("a result of blanks", puts(big(LARGE, "", BLANKS, r#"{"outputs":{},"state":{"a":1}}"#))),
        ("a result of outputs", puts(big(LARGE, "{\"outputs\":{             ", OUTPUTS, r#""z":{"type":"Flow"}}}"#))),
        ("a result with a long port", puts(big(LARGE, "{\"outputs\":{\"", TEXT, r#"":{"type":"Flow"}}}"#))),
        ("a result with a long message", puts(big(LARGE, r#"{"outputs":{"a":{"type":"String","data":""#, TEXT, r#""}}}"#))),
        ("a result with a long state", puts(big(LARGE, r#"{"outputs":{},"state":{       "#, ENTRIES, r#""z":0}}"#))),
        ("a result with a long something", puts(big(LARGE, r#"{"outputs":{},"more":{        "#, ENTRIES, r#""z":0}}"#))),
        ("a result in base64", puts(big(LARGE, "\"", TEXT, "\""))),
        (
            "a result with a string for outputs",
            puts(big(LARGE, "{\"outputs\":\"", TEXT, "\"}")),
        ),
        (
            "a result that is a shorter string",
            process(format!("{} {}", big(LARGE / 3, "\"!", TEXT, "\""), put_out(LARGE / 3))),
        ),
        ("a result of no text", puts(no_text())),
    ]);
    for export in ["get_metadata", "get_version", "validate_config", "migrate_state"] {
        let mut answers = |kind: &'static str, body: String| {
            let process = ("process", done.to_owned());
            all.push((kind, hungry(&[process, (export, body)])));
        };
        let put = |what: String| format!("{what} {}", put_out(LARGE));
        answers("an answer of blanks", put(big(LARGE, "", BLANKS, "true")));
        answers("an answer of entries", put(big(LARGE, "{", ENTRIES, "\"z\":0}")));
        answers("an answer of text", put(big(LARGE, "\"", TEXT, "\"")));
        answers("an answer of values", put(big(LARGE, "[", VALUES, "1]")));
        answers(
            "an error",
            format!("{} (call $error_set (global.get $b)) (i32.const 1)", no_text()),
        );
    }
    for (part, head, again, tail) in [
        ("component", r#"{"inports":[],"outports":[],"component":""#, TEXT, "\"}"),
        (
            "description",
            r#"{"component":"c","inports":[],"outports":[],"description":""#,
            TEXT,
            "\"}",
        ),
        (
            "schema",
            r#"{"component":"c","inports":[],"outports":[],"config_schema":{          "#,
            ENTRIES,
            "\"z\":0}}",
        ),
    ] {
        all.push((
            part,
            hungry(&[
                ("process", done.to_owned()),
                ("get_metadata", format!("{} {}", big(LARGE, head, again, tail), put_out(LARGE))),
            ]),
        ));
    }
    all
}

/// Code that makes `$b` the text of one number after the other, and does that each time.
fn each_number(each: &str) -> String {
    format!(
        r#"(local $n i32) (local $bit i32)
        (global.set $b (call $alloc (i64.const 8)))
        (loop $next
          (local.set $bit (i32.const 0))
          (loop $digit
            (call $store
              (i64.add (global.get $b) (i64.extend_i32_u (i32.shr_u (local.get $bit) (i32.const 2))))
              (i32.add (i32.const 97) (i32.and (i32.shr_u (local.get $n) (local.get $bit)) (i32.const 15))))
            (br_if $digit (i32.lt_u
              (local.tee $bit (i32.add (local.get $bit) (i32.const 4))) (i32.const 32))))
          {each}
          (local.set $n (i32.add (local.get $n) (i32.const 1)))
          (br_if $next (i32.lt_u (local.get $n) (i32.const 2700000))))
        (call $answer <<{{"outputs":{{}}}}>>)"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_guest_asks_for_makes_the_host_hold_more_than_it_may() {
    let on = Rig(EngineKind::Direct);
    let allowed = HOST_MEMORY + MEMORY + UNCOUNTED;
    let mut worst = (0, "");
    // The compiler and the engine have made what they make once.
    drop(on.engine(process(r#"(call $answer <<{"outputs":{}}>>)"#)).await);
    for (what, bytes) in demands() {
        let loader = on.loader();
        // Compiled code does not count.
        drop(soon(loader.load_bytes("guest", bytes.clone())).await);
        let before = forget_most();
        let loaded = soon(loader.load_bytes("guest", bytes)).await;
        if let Ok(module) = loaded
            && let Ok(program) =
                soon(module.prepare(ProgramSpec { memory: MEMORY, ..spec() })).await
        {
            let left = LeftState {
                state: State::default(),
                digest: module.digest(),
                version: None,
                limit: 16 << 20,
            };
            _ = soon(program.migrate_state(left)).await;
            let mut engine = Some(engine_of(&program).await);
            for _ in 0..2 {
                let Some(intact) = engine.take() else { break };
                match soon(intact.turn(context("null"), within(LONG))).await {
                    Ok((intact, effects)) => {
                        let kept = effects.state.as_ref().map_or(0, State::held_bytes);
                        assert!(kept <= 16 << 20, "{what}: the state keeps {kept} bytes");
                        engine = Some(intact);
                    }
                    Err(failure) => {
                        let said = failure.kind.to_string();
                        assert!(said.len() < 20 << 10, "{what}: it says {} bytes", said.len());
                        engine = failure.engine;
                    }
                }
            }
        }
        let taken = most().saturating_sub(before);
        println!("{what:40} {:>4} MiB", taken >> 20);
        assert!(taken <= allowed, "{what}: {taken} bytes, where {allowed} are allowed");
        worst = worst.max((taken, what));
    }
    println!("worst: {worst:?}");
}
