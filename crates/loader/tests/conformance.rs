//! Every guest gives the same answers on every engine.
//!
//! Metadata, outputs, states, logs and the class of each failure are held against
//! those of the reference. What the stock engine is exempt from stands at the end,
//! each difference with a test of its own that says what either engine does.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod guest;
mod scenario;

use bytes::Bytes;
use guest::{METADATA, guest, guest_with, module, process};
use reflowd_runtime::{EnginePer, TurnLimits, Type};
use scenario::{Scenario, Seen, alike, engines, see};
use serde_json::json;

/// All twelve types, and data at the edges of each.
const MESSAGES: [(Type, &str); 34] = [
    (Type::Flow, "null"),
    (Type::Event, r#"{"e":1}"#),
    (Type::Event, "null"),
    (Type::Boolean, "true"),
    (Type::Boolean, "false"),
    (Type::Integer, "0"),
    (Type::Integer, "7"),
    (Type::Integer, "-7"),
    (Type::Integer, "1.0"),
    (Type::Integer, "1e3"),
    (Type::Integer, "9223372036854775807"),
    (Type::Float, "2"),
    (Type::Float, "-2.5e-3"),
    (Type::Float, "1e308"),
    (Type::String, r#""""#),
    (Type::String, r#""text""#),
    (Type::String, r#""\"\\\n\u0000\ud83d\ude00é""#),
    (Type::Object, "{}"),
    (Type::Object, r#"{"sender":1,"seq":2}"#),
    (
        Type::Object,
        r#"{"mag":5.1,"place":"10km NE of X","region":"X","time":1,"id":"a","depth":3.5}"#,
    ),
    (Type::Object, r#"{"mag":1.1,"place":"Y","region":"Y","time":2,"id":"b","depth":1}"#),
    (Type::Object, r#"{"b":1.0, "a":1e2,"a":2,"n":123456789012345678901234567890}"#),
    (Type::Array, "[]"),
    (Type::Array, r#"[1,"two",null,[3]]"#),
    (Type::Stream, "[]"),
    (Type::Stream, "[0,127,255]"),
    (Type::Optional, "null"),
    (Type::Optional, "7"),
    (Type::Any, "null"),
    (Type::Any, "7"),
    (Type::Any, r#"{"sender":3,"seq":4}"#),
    (Type::Any, "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]"),
    (Type::Error, r#""no luck""#),
    (Type::Error, r#""""#),
];

/// Modules that are committed, by their path in the repository.
const FILES: [&str; 20] = [
    "modules/magnitude-filter.wasm",
    "modules/region-count.wasm",
    "modules/versions/magnitude-filter-2.0.0.wasm",
    "tests/guests/faulty-assemblyscript.wasm",
    "tests/guests/faulty-rust.wasm",
    "tests/guests/json.wasm",
    "tests/guests/relay.wasm",
    "tests/guests/shaky.wasm",
    "tests/guests/stamp-a.wasm",
    "tests/guests/stamp-b.wasm",
    "tests/guests/sum-assemblyscript.wasm",
    "tests/guests/sum-c.wasm",
    "tests/guests/sum-go.wasm",
    "tests/guests/sum-rust.wasm",
    "tests/guests/sum-zig.wasm",
    "tests/guests/tally-assemblyscript.wasm",
    "tests/guests/tally-c.wasm",
    "tests/guests/tally-go.wasm",
    "tests/guests/tally-rust.wasm",
    "tests/guests/tally-zig.wasm",
];

fn file(path: &str) -> Bytes {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    std::fs::read(format!("{root}/{path}")).unwrap_or_else(|e| panic!("{path}: {e}")).into()
}

#[test]
fn no_committed_module_is_left_out() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let mut found: Vec<String> = ["modules", "modules/versions", "tests/guests"]
        .iter()
        .flat_map(|folder| {
            let entries = std::fs::read_dir(format!("{root}/{folder}")).unwrap();
            entries.map(move |e| format!("{folder}/{}", e.unwrap().file_name().display()))
        })
        .filter(|path| path.ends_with(".wasm"))
        .collect();
    found.sort();
    assert_eq!(found, FILES);
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_modules_answer_alike() {
    let engines = engines();
    let mut cases = 0;
    for path in FILES {
        let mut scenario = Scenario::new(path, file(path)).turns(MESSAGES);
        for (number, letter) in (1..).zip('a'..='c') {
            // With whatever its state has become, and with a config that it may know or not.
            scenario.name = format!("{path}, {letter}");
            scenario.config = match number {
                1 => json!({}),
                2 => json!({"min_magnitude": 2, "step": 3}),
                _ => json!({"min_magnitude": "2", "step": "3"}),
            };
            scenario.engine_per = if number == 2 { EnginePer::Message } else { EnginePer::Actor };
            // An engine for each message of a large module takes its time.
            scenario.turns.truncate(if number == 2 { 8 } else { MESSAGES.len() });
            let seen = alike(&engines, &scenario, see(&engines, &scenario).await);
            assert!(seen.0[0].starts_with("module: "), "{}: {seen:?}", scenario.name);
            cases += scenario.turns.len();
        }
    }
    println!("turns of committed modules, alike on {} engines: {cases}", engines.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn five_languages_write_the_same_actor() {
    let engines = engines();
    let metadata = |line: &str| {
        let json = line.trim_start_matches("module: ").rsplit_once(" Some").unwrap().0;
        serde_json::from_str::<serde_json::Value>(json).unwrap()
    };
    let mut first = None;
    for language in ["rust", "c", "zig", "assemblyscript", "go"] {
        let module = file(&format!("tests/guests/tally-{language}.wasm"));
        let mut scenario = Scenario::new(language, module).turns([
            (Type::Integer, "5"),
            (Type::Integer, "-5"),
            (Type::Integer, "1"),
            (Type::Integer, "100000000000"),
        ]);
        scenario.config = json!({"step": 3});
        scenario.state = r#"{"other":"kept","count":4}"#.into();
        let seen = alike(&engines, &scenario, see(&engines, &scenario).await);
        let out = |n: i64| {
            format!(
                r#"turn: done out={{"type":"Integer","data":{n}}} | {{"other":"kept","count":{n}}}"#
            )
        };
        let expected = [
            out(19),
            "turn: guest-error in: -5 is negative (engine kept)".into(),
            out(22),
            out(300_000_000_022),
            "log: INFO count is 19".into(),
            "log: INFO count is 22".into(),
            "log: INFO count is 300000000022".into(),
        ];
        assert_eq!(seen.0[1..], expected, "{language}");
        let said = metadata(&seen.0[0]);
        assert_eq!(*first.get_or_insert(said.clone()), said, "{language}");
    }
}

/// Answers nothing on any port.
const DONE: &str = r#"(call $answer <<{"outputs":{}}>>)"#;

/// Bodies of `process`, and how the first turn ends.
#[rustfmt::skip]
const BODIES: [(&str, &str); 75] = [
    // Results.
    ("done", r#"(call $answer <<{"outputs":{}}>>)"#),
    ("done", r#"(call $answer <<{"outputs":{},"state":null,"more":[1]}>>)"#),
    ("done", r#"(call $answer <<{"outputs":{},"state":{"a": 1e2}}>>)"#),
    ("done", r#"(call $answer <<{"state":{},"outputs":{"b":{"type":"Flow"},"a":{"data":1.0,"type":"Integer"}}}>>)"#),
    ("done", r#"(call $answer << {"outputs" : { } } >>)"#),
    ("done", r#"(call $answer <<"eyJvdXRwdXRzIjp7Im91dCI6eyJ0eXBlIjoiRmxvdyJ9fSwic3RhdGUiOnsiYSI6MX19">>)"#),
    ("turn-error", "(call $answer <<hello>>)"),
    ("turn-error", "(call $answer <<[1]>>)"),
    ("turn-error", "(call $answer <<\"hello\">>)"),
    ("turn-error", r#"(call $answer <<{"outputs":{}}x>>)"#),
    ("turn-error", r#"(call $answer <<{"state":{}}>>)"#),
    ("turn-error", r#"(call $answer <<{"outputs":[]}>>)"#),
    ("turn-error", r#"(call $answer <<{"outputs":{},"state":[]}>>)"#),
    ("turn-error", r#"(call $answer <<{"outputs":{},"state":7}>>)"#),
    ("turn-error", r#"(call $answer <<{"outputs":{"o":7}}>>)"#),
    ("turn-error", r#"(call $answer <<{"outputs":{"":{"type":"Flow"}}}>>)"#),
    ("turn-error", r#"(call $answer <<{"outputs":{"o":{"type":"Int","data":1}}}>>)"#),
    ("turn-error", r#"(call $answer <<{"outputs":{"o":{"type":"Integer","data":"x"}}}>>)"#),
    ("turn-error", r#"(call $answer <<{"outputs":{"o":{"type":"Integer","data":1.5}}}>>)"#),
    ("turn-error", r#"(call $answer <<{"outputs":{"o":{"type":"Stream","data":[256]}}}>>)"#),
    ("turn-error", "(i32.const 0)"),
    // Outputs that do not exist, or are not there yet.
    ("turn-error", "(call $output_set (call $alloc (i64.const 8)) (i64.const -1)) (i32.const 0)"),
    ("turn-error", "(call $output_set (call $alloc (i64.const 8)) (i64.const -5)) (i32.const 0)"),
    ("turn-error", "(call $output_set (call $alloc (i64.const 8)) (i64.const 0x7fffffff)) (i32.const 0)"),
    ("turn-error", "(call $output_set (i64.const -1) (i64.const 8)) (i32.const 0)"),
    ("turn-error", "(call $output_set (i64.const 0x7fffffff) (i64.const 8)) (i32.const 0)"),
    ("turn-error", "(call $output_set (i64.const 0) (i64.const 0x100000000)) (i32.const 0)"),
    ("turn-error", "(call $output_set (call $alloc (i64.const 8)) (i64.const 0)) (i32.const 0)"),
    // Errors of the guest's own.
    ("guest-error", "(call $fail <<no such city>>) (i32.const 1)"),
    ("guest-error", "(call $fail <<no such city>>) (i32.const -1)"),
    ("guest-error", "(call $fail <<no such city>>) (i32.const 134)"),
    ("guest-error", "(call $fail <<no such city>>) (i32.const 0)"),
    ("guest-error", "(i32.const 3)"),
    ("guest-error", r#"(drop (call $answer <<{"outputs":{}}>>)) (i32.const 3)"#),
    ("done", r#"(call $fail <<first>>) (call $error_set (i64.const 0)) (call $answer <<{"outputs":{}}>>)"#),
    ("guest-error", r#"(call $fail <<first>>) (call $fail <<second>>) (i32.const 1)"#),
    // Traps.
    ("trap", "unreachable"),
    ("trap", "(i32.load (i32.const -4))"),
    ("trap", "(i32.div_u (i32.const 1) (i32.const 0))"),
    ("trap", "(i32.trunc_f32_s (f32.const nan))"),
    ("trap", "(call $fail <<panicked>>) unreachable"),
    ("trap", "(drop (call $alloc (i64.const 0x7fffffffffff))) (i32.const 0)"),
    ("trap", "(call $log_info (i64.const 12345)) (i32.const 0)"),
    ("trap", "(call $send_output (i64.const -1)) (i32.const 0)"),
    ("trap", "(call $set_state (i64.const 0x100000000) (i64.const 1)) (i32.const 0)"),
    ("trap", "(drop (call $get_state (i64.add (call $block <<key>>) (i64.const 1)))) (i32.const 0)"),
    ("trap", "(drop (call $config_get (i64.const 0x7fffffffffffffff))) (i32.const 0)"),
    ("trap", "(drop (call $var_get (i64.const -9))) (i32.const 0)"),
    ("trap", "(drop (call $http_request (i64.const -9) (i64.const 0))) (i32.const 0)"),
    // Sends and state, in order and out of it.
    ("done", r#"(call $send_output (call $block <<{"z":1,"a":2.5}>>)) (call $answer <<{"outputs":{"r":{"type":"Flow"}}}>>)"#),
    ("done", r#"(call $send_output (call $block <<{"a":{"type":"Stream","data":[1]},"b":{"type":"X"},"c":{"type":"Flow","data":null,"more":1}}>>)) (call $answer <<{"outputs":{}}>>)"#),
    ("done", r#"(call $send_output (call $block <<{}>>)) (call $answer <<{"outputs":{}}>>)"#),
    ("turn-error", r#"(call $send_output (call $block <<[1]>>)) (call $answer <<{"outputs":{}}>>)"#),
    ("turn-error", r#"(call $send_output (i64.const 0)) (call $answer <<{"outputs":{}}>>)"#),
    ("turn-error", r#"(call $send_output (call $block <<{"a":{"type":"Integer","data":"x"}}>>)) (call $answer <<{"outputs":{}}>>)"#),
    ("turn-error", r#"(call $send_output (call $block <<{"":1}>>)) (call $answer <<{"outputs":{}}>>)"#),
    ("guest-error", r#"(call $send_output (call $block <<[1]>>)) (call $fail <<mine>>) (i32.const 1)"#),
    ("done", r#"(call $set_state (call $block <<k>>) (call $block <<{"x": 1e2}>>)) (call $put_block (call $get_state (call $block <<k>>)))"#),
    ("done", r#"(call $set_state (call $block <<s>>) (call $block << null >>)) (call $put_block (call $get_state (call $block <<s>>)))"#),
    ("done", r#"(call $set_state (call $block <<k>>) (call $block <<1>>)) (call $answer <<{"outputs":{},"state":{"whole":1}}>>)"#),
    ("done", r#"(call $set_state (i64.const 0) (call $block <<1>>)) (call $answer <<{"outputs":{}}>>)"#),
    ("turn-error", r#"(call $set_state (call $block <<k>>) (call $block <<{>>)) (call $answer <<{"outputs":{}}>>)"#),
    ("turn-error", r#"(call $set_state (call $block <<k>>) (i64.const 0)) (call $answer <<{"outputs":{}}>>)"#),
    ("done", "(call $put_block (call $get_state (call $block <<s>>)))"),
    ("done", "(call $put_block (call $get_state (call $block <<none>>)))"),
    ("done", "(call $put_block (call $get_state (i64.const 0)))"),
    // Config, variables, HTTP, logs.
    ("done", "(call $put_block (call $config_get (call $block <<none>>)))"),
    ("done", "(call $put_block (call $config_get (call $block <<n>>)))"),
    ("done", "(call $put_block (call $config_get (call $block <<list>>)))"),
    ("done", "(call $put_block (call $var_get (call $block <<none>>)))"),
    ("done", "(call $var_set (call $block <<k>>) (call $block <<7>>)) (call $put_block (call $var_get (call $block <<k>>)))"),
    ("done", "(call $var_set (call $block <<k>>) (call $block <<7>>)) (call $var_set (call $block <<k>>) (i64.const 0)) (call $put_block (call $var_get (call $block <<k>>)))"),
    ("done", r#"(if (i64.ne (call $http_request (call $block <<{"url":"http://127.0.0.1:1/"}>>) (i64.const 0)) (i64.const 0)) (then unreachable)) (if (call $http_status) (then unreachable)) (call $answer <<{"outputs":{}}>>)"#),
    ("done", "(call $log_info (call $block <<one>>)) (call $log_info (call $block <<two \u{7}\u{202e}>>)) (call $log_info (i64.const 0)) (call $put_input)"),
    ("done", "(if (call $log_level) (then unreachable)) (call $put_input)"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_body_ends_alike() {
    let engines = engines();
    for (class, body) in BODIES {
        let mut scenario = Scenario::new(body, process(body)).turns([
            (Type::Any, "null"),
            (Type::Integer, "1"),
            (Type::Object, r#"{"a":[1]}"#),
        ]);
        scenario.config = json!({"n": 7, "s": "text", "list": [1, {"a": null}]});
        scenario.env.insert("TOKEN".into(), "secret".into());
        scenario.state = r#"{"s":1.0,"t":"text"}"#.into();
        let seen = alike(&engines, &scenario, see(&engines, &scenario).await);
        assert_eq!(seen.classes(), [class; 3], "{body}: {seen:?}");
    }
    println!("bodies of `process`, alike on {} engines: {}", engines.len(), BODIES.len());
}

/// What a guest may be but a body: whole functions, and how it ends.
#[rustfmt::skip]
const GUESTS: [(&str, &str); 27] = [
    ("missing-export", ""),
    ("wrong-export-type", r#"(func (export "process"))"#),
    ("wrong-export-type", r#"(func (export "process") (param i32) (result i32) (i32.const 0))"#),
    ("wrong-export-type", r#"(global (export "process") i32 (i32.const 0))"#),
    ("wrong-export-type", r#"(func (export "process") (result i32) (i32.const 0)) (func (export "get_version"))"#),
    ("done", r#"(func (export "process") (result i32) DONE) (func (export "get_version") (result i32) (call $answer <<"1.2.3">>))"#),
    ("version-invalid", r#"(func (export "process") (result i32) DONE) (func (export "get_version") (result i32) (call $answer <<"1.2">>))"#),
    ("version-invalid", r#"(func (export "process") (result i32) DONE) (func (export "get_version") (result i32) (call $answer <<7>>))"#),
    ("version-invalid", r#"(func (export "process") (result i32) DONE) (func (export "get_version") (result i32) (i32.const 0))"#),
    ("ask-failed", r#"(func (export "process") (result i32) DONE) (func (export "get_version") (result i32) unreachable)"#),
    ("ask-failed", r#"(func (export "process") (result i32) DONE) (func (export "get_version") (result i32) (call $fail <<no>>) (i32.const 1))"#),
    ("ask-failed", r#"(func (export "process") (result i32) DONE) (func (export "get_version") (result i32) (call $send_output (call $block <<{}>>)) (i32.const 0))"#),
    ("done", r#"(func (export "process") (result i32) DONE) (func (export "validate_config") (result i32) (call $answer <<true>>))"#),
    ("config-rejected", r#"(func (export "process") (result i32) DONE) (func (export "validate_config") (result i32) (call $answer <<false>>))"#),
    ("config-rejected", r#"(func (export "process") (result i32) DONE) (func (export "validate_config") (result i32) (call $answer <<1>>))"#),
    ("config-rejected", r#"(func (export "process") (result i32) DONE) (func (export "validate_config") (result i32) (call $fail <<no>>) (i32.const 1))"#),
    ("config-rejected", r#"(func (export "process") (result i32) DONE) (func (export "validate_config") (result i32) unreachable)"#),
    ("init-failed", r#"(func (export "process") (result i32) DONE) (func $s unreachable) (start $s)"#),
    ("invalid-binary", r#"(func (export "process") (result i32) DONE) (func (result externref) (ref.null extern))"#),
    ("init-failed", r#"(func (export "process") (result i32) DONE) (func (export "_initialize") unreachable)"#),
    ("done", r#"(func (export "process") (result i32) (call $put_block (call $block (i32.const 0) (i32.const 1)))) (func $s (i32.store8 (i32.const 0) (i32.const 55))) (start $s)"#),
    ("done", r#"(func (export "process") (result i32) (call $put_block (call $block (i32.const 0) (i32.const 1)))) (func (export "_initialize") (i32.store8 (i32.const 0) (i32.add (i32.load8_u (i32.const 0)) (i32.const 55))))"#),
    ("done", r#"(global $n (mut i32) (i32.const 48)) (func (export "process") (result i32) (global.set $n (i32.add (global.get $n) (i32.const 1))) (i32.store8 (i32.const 0) (global.get $n)) (call $put_block (call $block (i32.const 0) (i32.const 1))))"#),
    ("trap", r#"(func $deep (result i32) (i32.add (call $deep) (i32.const 1))) (func (export "process") (result i32) (call $deep))"#),
    ("done", r#"(func (export "process") (result i32) (local $old i64) (local.set $old (call $var_get (call $block <<k>>))) (call $var_set (call $block <<k>>) (call $block <<7>>)) (call $put_block (local.get $old)))"#),
    ("done", r#"(func (export "process") (result i32) (call $log_info (call $block <<x>>)) DONE) (func (export "other") (param f64 v128) (result funcref) (ref.null func))"#),
    ("trap", r#"(table 1 funcref) (func (export "process") (result i32) (call_indirect (result i32) (i32.const 0)))"#),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_guest_ends_alike() {
    let engines = engines();
    for (class, functions) in GUESTS {
        for engine_per in [EnginePer::Actor, EnginePer::Message] {
            let module = guest(&functions.replace("DONE", DONE));
            let mut scenario = Scenario::new(functions, module).turns([(Type::Any, "1"); 3]);
            scenario.engine_per = engine_per;
            let seen = alike(&engines, &scenario, see(&engines, &scenario).await);
            assert!(seen.classes().iter().all(|c| c == class), "{functions}: {seen:?}");
            assert!(!seen.classes().is_empty(), "{functions}: {seen:?}");
        }
    }
    println!("guests, alike on {} engines: {}", engines.len(), GUESTS.len() * 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_is_read_alike() {
    let engines = engines();
    let idle = format!(r#"(func (export "process") (result i32) {DONE})"#);
    let wrapped = "\"eyJjb21wb25lbnQiOiJXIiwiaW5wb3J0cyI6W10sIm91dHBvcnRzIjpbXX0=\"";
    let versioned = METADATA.replacen('{', r#"{"version":"2.0.0","#, 1);
    let schema = METADATA.replacen(
        '{',
        r#"{"config_schema":{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]},"#,
        1,
    );
    let answers = [
        ("done", METADATA),
        ("done", wrapped),
        ("done", versioned.as_str()),
        ("config-rejected", schema.as_str()),
        ("invalid-metadata", ""),
        ("invalid-metadata", "hello"),
        ("invalid-metadata", "[]"),
        ("invalid-metadata", r#"{"component":"","inports":[],"outports":[]}"#),
        ("invalid-metadata", r#"{"component":"X","inports":[]}"#),
        (
            "invalid-metadata",
            r#"{"component":"X","inports":[{"name":"a","port_type":"No"}],"outports":[]}"#,
        ),
        (
            "invalid-metadata",
            r#"{"component":"X","inports":[{"name":"a","port_type":"Any"},{"name":"a","port_type":"Any"}],"outports":[]}"#,
        ),
        ("invalid-metadata", r#"{"component":"X","inports":[],"outports":[],"config_schema":7}"#),
    ];
    for (class, answer) in answers {
        let scenario = Scenario::new(answer, guest_with("", answer, &idle));
        let seen = alike(&engines, &scenario, see(&engines, &scenario).await);
        assert_eq!(seen.classes(), [class], "{answer}: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_arrive_alike() {
    let engines = engines();
    let echo = process("(call $put_input)");
    let base = Scenario::new("echo", echo).turns(MESSAGES);
    let long = format!("\"{}\"", "x".repeat(1 << 20));
    let join = vec![
        ("left".to_owned(), Type::Integer, "1".to_owned()),
        ("right".to_owned(), Type::Object, r#"{"a": 1.0}"#.to_owned()),
        ("é \"quoted\"".to_owned(), Type::Flow, "null".to_owned()),
    ];
    let cases = [
        ("messages", base.clone()),
        ("a join", Scenario { turns: vec![join.clone(), Vec::new(), join], ..base.clone() }),
        ("a large message", base.clone().turns([(Type::String, long.as_str()); 2])),
        ("a state", Scenario { state: r#"{"k": 1.0,"é":[null]}"#.into(), ..base.clone() }),
        (
            "a state that is not sent",
            Scenario { state: r#"{"k":1}"#.into(), state_in_context: false, ..base.clone() },
        ),
        ("meta", Scenario { meta: Some(r#"{"id":"x", "hops":1}"#.into()), ..base.clone() }),
        (
            "config and env",
            Scenario {
                config: json!({"n": 1.5, "s": "é\"", "o": {"a": [null]}}),
                env: [("A".into(), "b\n".into()), ("EMPTY".into(), String::new())].into(),
                ..base.clone()
            },
        ),
        (
            "little room",
            Scenario {
                limits: TurnLimits { output: 300, state: 10, ..TurnLimits::default() },
                ..base
            },
        ),
    ];
    for (name, mut scenario) in cases {
        scenario.name = name.into();
        let seen = alike(&engines, &scenario, see(&engines, &scenario).await);
        let room = name != "little room";
        assert!(!room || seen.classes().iter().all(|c| c == "done"), "{name}: {seen:?}");
        assert_eq!(seen.classes().len(), scenario.turns.len(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_within_a_turn_end_alike() {
    let engines = engines();
    let answer = r#"(drop (call $answer <<{"outputs":{}}>>))"#;
    for (class, before, code, kept) in [
        ("done", answer, 0, true),
        ("turn-error", "", 0, true),
        ("trap", answer, 1, false),
        ("trap", "", -1, false),
    ] {
        let exits = exiting(before, code);
        let name = format!("{before} and exit {code}");
        let scenario = Scenario::new(&name, exits).turns([(Type::Any, "1"); 2]);
        let seen = alike(&engines, &scenario, see(&engines, &scenario).await);
        assert_eq!(seen.classes(), [class; 2], "{name}: {seen:?}");
        let gone = seen.0.iter().filter(|line| line.ends_with("(engine gone)")).count();
        assert_eq!(gone == 0, kept, "{name}: {seen:?}");
    }
}

/// A guest that does something in its turn and exits with that code.
fn exiting(before: &str, code: i32) -> Bytes {
    guest_with(
        r#"(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#,
        METADATA,
        &format!(
            r#"(func (export "process") (result i32)
              {before} (call $exit (i32.const {code})) unreachable)"#
        ),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn each_log_function_writes_on_its_level() {
    let engines = engines();
    let levels = ["trace", "debug", "info", "warn", "error"];
    let import = |level| {
        format!(r#"(import "extism:host/env" "log_{level}" (func $say_{level} (param i64)))"#)
    };
    let call = |level| format!("(call $say_{level} (call $block <<to {level}>>))");
    let body = levels.map(call).concat();
    let process = format!(r#"(func (export "process") (result i32) {body} {DONE})"#);
    let logs = guest_with(&levels.map(import).concat(), METADATA, &process);
    let scenario = Scenario::new("logs", logs);
    let seen = alike(&engines, &scenario, see(&engines, &scenario).await);
    let expected =
        ["TRACE to trace", "DEBUG to debug", "INFO to info", "WARN to warn", "ERROR to error"];
    assert_eq!(seen.log(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_strike_alike() {
    let engines = engines();
    let put = |n: usize| {
        format!(
            r#"(call $answer <<{{"outputs":{{"o":{{"type":"String","data":"{}"}}}}}}>>)"#,
            "x".repeat(n)
        )
    };
    let endless = "(loop $l (br $l)) unreachable";
    let (wide, narrow) =
        (TurnLimits::default(), TurnLimits { output: 100, state: 20, ..TurnLimits::default() });
    let set = r#"(call $set_state (call $block <<k>>) (call $block <<"12345678901234567890">>)) (call $answer <<{"outputs":{}}>>)"#;
    let send = r#"(local $i i32) (loop $l (call $send_output (call $block <<{"a":1}>>)) (local.set $i (i32.add (local.get $i) (i32.const 1))) (br_if $l (i32.lt_u (local.get $i) (i32.const 100)))) (call $answer <<{"outputs":{}}>>)"#;
    let error = "(call $error_set (call $alloc (i64.const 1000000))) (i32.const 1)";
    for (class, body, limits, timeout) in [
        ("guest-error", error.to_owned(), wide, 60_000),
        ("done", put(2000), wide, 60_000),
        ("turn-error", put(2000), narrow, 60_000),
        ("turn-error", send.to_owned(), narrow, 60_000),
        ("done", send.to_owned(), wide, 60_000),
        ("turn-error", set.to_owned(), narrow, 60_000),
        (
            "turn-error",
            r#"(call $answer <<{"outputs":{},"state":{"k":"12345678901234567890"}}>>)"#.to_owned(),
            narrow,
            60_000,
        ),
        ("timeout", endless.to_owned(), wide, 50),
        ("timeout", endless.to_owned(), wide, 0),
        (
            "timeout",
            "(loop $l (drop (call $input_length)) (br $l)) unreachable".to_owned(),
            wide,
            50,
        ),
    ] {
        let mut scenario = Scenario::new(&body, process(&body)).turns([(Type::Any, "1"); 2]);
        scenario.limits = limits;
        scenario.timeout = std::time::Duration::from_millis(timeout);
        let seen = alike(&engines, &scenario, see(&engines, &scenario).await);
        assert_eq!(seen.classes(), [class; 2], "{body}");
        // What an operator is to read is short, whatever the guest writes.
        let long = seen.0.iter().filter(|line| class != "done" && line.len() > 10_000);
        assert_eq!(long.count(), 0, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_are_served_or_refused_alike() {
    let engines = engines();
    let all: String = reflowd_loader::host_functions()
        .enumerate()
        .map(|(i, (namespace, name, ty))| {
            let list = |types: &str| types.trim_matches(['(', ')']).replace(',', " ");
            let (params, results) = ty.split_once(" -> ").unwrap();
            let (params, results) = (list(params), list(results));
            format!(r#"(import "{namespace}" "{name}" (func $f{i} (param {params}) (result {results})))"#)
        })
        .collect();
    let idle = format!(r#"(func (export "process") (result i32) {DONE})"#);
    for (class, imports) in [
        ("done", all.as_str()),
        ("unknown-import", r#"(import "env" "abort" (func (param i32)))"#),
        ("unknown-import", r#"(import "extism:host/user" "__send_mail" (func (param i64)))"#),
        (
            "wrong-import-type",
            r#"(import "extism:host/user" "__get_state" (func (param i32) (result i64)))"#,
        ),
        ("wrong-import-type", r#"(import "extism:host/env" "alloc" (global i64))"#),
    ] {
        let scenario = Scenario::new(imports, guest_with(imports, METADATA, &idle));
        let seen = alike(&engines, &scenario, see(&engines, &scenario).await);
        assert_eq!(seen.classes(), [class], "{imports}: {seen:?}");
    }
    for (class, fields) in [
        ("missing-export", ""),
        ("wrong-export-type", r#"(func (export "get_metadata"))"#),
        (
            "memory-too-small",
            r#"(memory 2000) (func (export "get_metadata") (result i32) i32.const 0)"#,
        ),
    ] {
        let scenario = Scenario::new(fields, module(fields));
        let seen = alike(&engines, &scenario, see(&engines, &scenario).await);
        assert_eq!(seen.classes(), [class], "{fields}: {seen:?}");
    }
}

/// How one scenario ends on the stock engine, and how it ends on every other.
#[track_caller]
fn differ(engines: &Engines, all: &[Seen], stock: &[&str], others: &[&str]) {
    for ((engine, _), seen) in engines.iter().zip(all) {
        let expected = if *engine == "extism" { stock } else { others };
        assert_eq!(seen.classes(), expected, "{engine}: {seen:?}");
    }
}

type Engines = [(&'static str, reflowd_loader::Loader)];

#[tokio::test(flavor = "multi_thread")]
async fn differs_memory_that_cannot_be_had_traps_on_the_stock_engine() {
    let body = r#"(if (i32.ne (memory.grow (i32.const 5000)) (i32.const -1)) (then unreachable))
        (call $answer <<{"outputs":{}}>>)"#;
    let engines = engines();
    let all = see(&engines, &Scenario::new("memory", process(body))).await;
    differ(&engines, &all, &["trap"], &["done"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn differs_tables_grow_without_bound_on_the_stock_engine() {
    let functions = r#"(table $t 0 funcref)
        (func (export "process") (result i32)
          (if (i32.eq (table.grow $t (ref.null func) (i32.const 12000000)) (i32.const -1))
            (then (return (call $answer <<{"outputs":{}}>>))))
          (call $fail <<it grew>>) (i32.const 1))"#;
    let engines = engines();
    let all = see(&engines, &Scenario::new("tables", guest(functions))).await;
    differ(&engines, &all, &["guest-error"], &["done"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn differs_initialisers_cannot_call_the_host_on_the_stock_engine() {
    let engines = engines();
    for initialiser in ["(func $s CALL) (start $s)", r#"(func (export "_initialize") CALL)"#] {
        let call = initialiser.replace("CALL", "(call $log_info (call $block <<begun>>))");
        let functions = format!(r#"(func (export "process") (result i32) {DONE}) {call}"#);
        let all = see(&engines, &Scenario::new(initialiser, guest(&functions))).await;
        differ(&engines, &all, &["init-failed"], &["done"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn differs_endless_initialisers_are_bounded_by_instructions_on_the_stock_engine() {
    let engines = engines();
    for initialiser in [
        "(func $s (loop $l (br $l))) (start $s)",
        r#"(func (export "_initialize") (loop $l (br $l)))"#,
        r#"(func (export "__wasm_call_ctors") (loop $l (br $l)))"#,
    ] {
        let functions = format!(r#"(func (export "process") (result i32) {DONE}) {initialiser}"#);
        let all = see(&engines, &Scenario::new(initialiser, guest(&functions))).await;
        differ(&engines, &all, &["init-failed"], &["init-timeout"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn differs_an_error_and_an_exit_with_0_break_a_guest_on_the_stock_engine() {
    let engines = engines();
    let exits = exiting("(call $fail <<no such city>>)", 0);
    let all = see(&engines, &Scenario::new("error and exit", exits)).await;
    differ(&engines, &all, &["trap"], &["guest-error"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn differs_sleeps_outlast_their_deadline_on_the_stock_engine() {
    // A subscription to the clock: 3 s from now.
    let sleeps = guest_with(
        r#"(import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))"#,
        METADATA,
        r#"(func (export "process") (result i32)
          (i32.store (i32.const 16) (i32.const 1))
          (i64.store (i32.const 24) (i64.const 3000000000))
          (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))
          (loop $l (br $l)) unreachable)"#,
    );
    let mut scenario = Scenario::new("sleeps", sleeps.clone());
    scenario.timeout = std::time::Duration::from_millis(100);
    for (engine, loader) in engines() {
        // Compiled before, so that the time is the turn's.
        loader.load_bytes("sleeps", sleeps.clone()).await.expect("it loads");
        let begun = std::time::Instant::now();
        let seen = see(&[(engine, loader)], &scenario).await;
        assert_eq!(seen[0].classes(), ["timeout"], "{engine}");
        let slept = begun.elapsed() >= std::time::Duration::from_secs(3);
        assert_eq!(slept, engine == "extism", "{engine}: {:?}", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn differs_what_wasi_prints_is_not_logged_on_the_stock_engine() {
    let prints = guest_with(
        r#"(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))"#,
        METADATA,
        r#"(func $print (param $fd i32) (param $at i32) (param $len i32)
          (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $len))
          (if (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable)))
        (func (export "process") (result i32)
          (call $print (i32.const 1) <<one\ntw>>) (call $print (i32.const 2) <<three\n>>)
          (call $print (i32.const 1) <<o\n>>)
          (call $answer <<{"outputs":{}}>>))"#
            .replace("\\n", "\n")
            .as_str(),
    );
    let engines = engines();
    let all = see(&engines, &Scenario::new("prints", prints)).await;
    for ((engine, _), seen) in engines.iter().zip(&all) {
        let lines: &[&str] = &["INFO one", "WARN three", "INFO two"];
        let expected = if *engine == "extism" { &[] } else { lines };
        assert_eq!(seen.log(), expected, "{engine}");
        assert_eq!(seen.classes(), ["done"], "{engine}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn differs_the_largest_sizes_are_taken_on_the_stock_engine() {
    let engines = engines();
    for size in ["0x8000000000000000", "-1"] {
        let body = format!(
            r#"(drop (call $alloc (i64.const {size}))) (call $answer <<{{"outputs":{{}}}}>>)"#
        );
        let all = see(&engines, &Scenario::new(size, process(&body))).await;
        for ((engine, _), seen) in engines.iter().zip(&all) {
            let trapped = seen.classes() == ["trap"];
            assert_eq!(trapped, *engine != "extism", "{engine} {size}: {seen:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn differs_an_impossible_output_is_passed_over_on_the_stock_engine() {
    let body = r#"(drop (call $answer <<{"outputs":{}}>>))
        (call $output_set (call $alloc (i64.const 8)) (i64.const 0x7fffffff)) (i32.const 0)"#;
    let engines = engines();
    let all = see(&engines, &Scenario::new("output", process(body))).await;
    differ(&engines, &all, &["done"], &["turn-error"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn differs_a_guest_can_forge_blocks_on_the_stock_engine() {
    // The length of a block stands right before it there.
    let body = r#"(local $block i64)
        (local.set $block (call $alloc (i64.const 8)))
        (call $store (i64.sub (local.get $block) (i64.const 4)) (i32.const 7))
        (if (i64.ne (call $length (local.get $block)) (i64.const 8))
          (then (call $fail <<forged>>) (return (i32.const 1))))
        (call $answer <<{"outputs":{}}>>)"#;
    let engines = engines();
    let all = see(&engines, &Scenario::new("forge", process(body))).await;
    differ(&engines, &all, &["guest-error"], &["done"]);
}
