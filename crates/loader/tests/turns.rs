//! Turns of real guests on the engine.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod guest;

use std::{sync::Arc, time::Duration};

use guest::*;
use reflowd_loader::{EngineKind, Limits, Loader, Source};
use reflowd_runtime::{
    Context, EnginePer, FailureKind, HostMemoryMeter, Message, Module, TurnLimits, Type,
};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn guests_that_spin_do_not_keep_others_from_their_turns() {
    const SPINNERS: usize = 20;
    let on = Rig(EngineKind::Direct);
    let module = on.load(process("(loop $l (br $l)) unreachable")).await.unwrap();
    let mut spinning = tokio::task::JoinSet::new();
    for _ in 0..SPINNERS {
        let program = soon(module.prepare(spec())).await.map_err(|e| e.to_string()).unwrap();
        spinning.spawn(engine_of(&program).await.turn(context("null"), within(LONG)));
    }
    let mut engine = on.engine(process(r#"(call $answer <<{"outputs":{}}>>)"#)).await;
    for _ in 0..100 {
        engine = turn(engine, context("null")).await.0;
    }
    assert!(spinning.try_join_next().is_none(), "they had not come to their deadline");
    spinning.shutdown().await;
    // Who was stopped in the middle has left its place to others.
    turn(engine, context("null")).await;
}

#[tokio::test]
async fn a_guest_that_spins_lets_other_tasks_of_its_thread_run() {
    let endless = Rig(EngineKind::Direct).engine(process("(loop $l (br $l)) unreachable")).await;
    let others = async {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        _ = endless.turn(context("null"), within(Duration::from_secs(10))) => {
            panic!("it came to its deadline, and nobody else had a turn");
        }
        () = others => {}
    }
}

#[tokio::test]
async fn start_functions_run_on_a_thread_of_their_own() {
    let slow = guest(
        r#"(func (export "process") (result i32) (call $answer <<{"outputs":{}}>>))
        (func $s (local $left i32)
          (local.set $left (i32.const 300000000))
          (loop $again
            (local.set $left (i32.sub (local.get $left) (i32.const 1)))
            (br_if $again (local.get $left))))
        (start $s)"#,
    );
    // Turns of another actor on the only thread of this runtime, one after the other,
    // until the other has ended: how many there were.
    async fn beside<T>(other: impl Future<Output = T>) -> (T, usize) {
        let mut engine =
            Rig(EngineKind::Direct).engine(process(r#"(call $answer <<{"outputs":{}}>>)"#)).await;
        let (mut other, mut turns) = (std::pin::pin!(other), 0);
        loop {
            tokio::select! {
                biased;
                ended = &mut other => return (ended, turns),
                () = tokio::task::yield_now() => {}
            }
            engine = turn(engine, context("null")).await.0;
            turns += 1;
        }
    }
    let limits = Limits { metadata_timeout: LONG, ..Limits::default() };
    let loader = Loader::new(limits);
    let (module, loading) = beside(loader.load_bytes("slow", slow)).await;
    let module = module.unwrap();
    let (program, preparing) = beside(module.prepare(spec())).await;
    let program = program.map_err(|e| e.to_string()).unwrap();
    let _proven = engine_of(&program).await;
    let (anew, making) = beside(program.instantiate()).await;
    assert!(anew.is_ok());
    // Each start function takes a tenth of a second and more, each turn far less than a
    // hundredth; one that held the thread would have let one turn through.
    assert!(
        [loading, preparing, making].iter().all(|turns| *turns > 10),
        "{loading} {preparing} {making}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_that_wait_for_an_answer_do_not_keep_others_from_their_turns() {
    let on = Rig(EngineKind::Direct);
    let stalls = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", stalls.local_addr().unwrap());
    let body = format!(
        r#"(drop (call $http_request (call $block <<{{"url":"{url}"}}>>) (i64.const 0)))
        (if (call $http_status) (then unreachable))
        (call $answer <<{{"outputs":{{}}}}>>)"#
    );
    let module = on.load(process(&body)).await.unwrap();
    let asking = async || {
        let spec = reflowd_runtime::ProgramSpec { allow_hosts: vec!["127.0.0.1".into()], ..spec() };
        let program = soon(module.prepare(spec)).await.map_err(|e| e.to_string());
        engine_of(&program.unwrap()).await
    };
    let mut waiting = tokio::task::JoinSet::new();
    let mut connections = Vec::new();
    let more_than_cores = std::thread::available_parallelism().unwrap().get() + 1;
    for _ in 0..more_than_cores {
        waiting.spawn(asking().await.turn(context("null"), within(LONG)));
        connections.push(soon(stalls.accept()).await.unwrap());
    }
    let mut engine = on.engine(process(r#"(call $answer <<{"outputs":{}}>>)"#)).await;
    for _ in 0..100 {
        engine = turn(engine, context("null")).await.0;
    }
    assert!(waiting.try_join_next().is_none(), "nobody has answered them");
    drop(connections);
    for ended in soon(waiting.join_all()).await {
        assert!(ended.is_ok(), "{:?}", ended.err());
    }
    turn(engine, context("null")).await;
}

on_both_engines! {
    data_crosses_a_guest_byte_for_byte
    a_guest_sees_its_context
    all_twelve_types_reach_a_guest_and_come_back
    the_engine_lives_on_between_turns
    host_functions_join_the_turn
    what_is_not_there_is_null_or_nothing
    config_get_sees_the_config_of_the_actor
    variables_last_as_long_as_the_engine
    a_result_may_be_wrapped
    a_result_that_is_none_is_a_turn_error_and_keeps_the_engine
    a_guest_that_breaks_loses_its_engine
    a_guest_that_answers_with_an_error_keeps_its_engine
    a_turn_ends_at_its_deadline
    a_deadline_ends_nobody_elses_turn
    a_timeout_leaves_the_program_able_to_make_another_engine
    http_is_told_to_the_guest_as_refused_without_an_allowed_host
    http_reaches_a_listed_host
    http_headers_are_those_of_the_last_answer
    modules_of_an_sdk_run_unchanged
    an_output_that_does_not_exist_is_a_turn_error
    a_guest_writes_to_its_actors_log
    a_turn_that_is_due_already_does_not_run_for_ever
    a_turn_that_waits_for_an_answer_ends_at_its_deadline
    host_functions_free_the_blocks_that_they_own
    a_guest_reads_back_what_it_has_set
    variables_have_a_bound
    what_counts_against_host_memory_is_told
    a_turn_puts_out_so_many_messages_and_no_more
}

async fn data_crosses_a_guest_byte_for_byte(on: Rig) {
    let echo = on.engine(process("(call $put_input)")).await;
    let given = r#"{"b":1.0, "a":1e2,"n":123456789012345678901234567890}"#;
    let (_, effects) = turn(echo, context(given)).await;
    let seen = data(&effects);
    let message = format!(r#"{{"payload":{{"in":{{"type":"Any","data":{given}}}}},"#);
    assert!(seen.starts_with(&message), "{seen}");
    assert_eq!(effects.state, None);
}

async fn a_guest_sees_its_context(on: Rig) {
    let mut spec = spec();
    spec.config = json!({"n": 1, "s": "text"}).as_object().unwrap().clone();
    spec.env.insert("TOKEN".into(), "secret".into());
    let program = on.prepare(process("(call $put_input)"), spec).await.map_err(|e| e.to_string());
    let (_, effects) = turn(engine_of(&program.unwrap()).await, with_state(r#"{"k":1.0}"#)).await;
    let seen: Value = serde_json::from_str(&data(&effects)).unwrap();
    let expected = json!({
        "payload": {"in": {"type": "Any", "data": null}},
        "config": {
            "node_id": "actor", "component": "Guest", "namespace": null,
            "resolved_env": {"TOKEN": "secret"}, "config": {"n": 1, "s": "text"},
        },
        "state": {"k": 1.0},
    });
    assert_eq!(seen, expected);
}

async fn all_twelve_types_reach_a_guest_and_come_back(on: Rig) {
    let values = [
        "null",
        r#"{"e":1}"#,
        "true",
        "1.0",
        "2",
        "\"s\"",
        "{}",
        "[1,2]",
        "[0,255]",
        "null",
        "[]",
        "\"no\"",
    ];
    for (ty, value) in Type::ALL.into_iter().zip(values) {
        let encoded = format!(r#"{{"type":"{ty}","data":{value}}}"#);
        let body = format!(r#"(call $answer <<{{"outputs":{{"out":{encoded}}}}}>>)"#);
        let (engine, effects) = turn(on.engine(process(&body)).await, context("null")).await;
        assert_eq!(effects.outputs[0].1.encode(), encoded);
        drop(engine);

        let echo = on.engine(process("(call $put_input)")).await;
        let mut context = context("null");
        context.payload[0].1 = Message::new(ty, value).unwrap();
        let seen = data(&turn(echo, context).await.1);
        assert!(seen.contains(&encoded), "{seen}");
    }
}

async fn the_engine_lives_on_between_turns(on: Rig) {
    let counts = guest(
        r#"(global $n (mut i32) (i32.const 48)) (func (export "process") (result i32)
          (global.set $n (i32.add (global.get $n) (i32.const 1)))
          (i32.store8 (i32.const 0) (global.get $n))
          (call $put_block (call $block (i32.const 0) (i32.const 1))))"#,
    );
    let program = on.prepare(counts.clone(), spec()).await.map_err(|e| e.to_string()).unwrap();
    let (engine, first) = turn(engine_of(&program).await, context("null")).await;
    let (engine, second) = turn(engine, context("null")).await;
    assert_eq!([data(&first), data(&second)], ["1", "2"]);
    if on.0 == EngineKind::Direct {
        assert_eq!(engine.memory_bytes(), 2 << 16);
    }

    let mut spec = spec();
    spec.engine_per = EnginePer::Message;
    let program = on.prepare(counts, spec).await.map_err(|e| e.to_string()).unwrap();
    let (engine, first) = turn(engine_of(&program).await, context("null")).await;
    let (_, second) = turn(engine, context("null")).await;
    assert_eq!([data(&first), data(&second)], ["1", "1"]);
}

async fn host_functions_join_the_turn(on: Rig) {
    let body = r#"
      (call $send_output (call $block <<{"z":1,"a":2.5}>>))
      (call $set_state (call $block <<k>>) (call $block <<{"x": 1e2}>>))
      (call $send_output (call $block <<{"z":true}>>))
      (call $log_info (call $block <<hello>>))
      (call $put_block (call $get_state (call $block <<k>>)))"#;
    let (_, effects) = turn(on.engine(process(body)).await, with_state(r#"{"a": 1.0}"#)).await;
    let outputs: Vec<_> =
        effects.outputs.iter().map(|(p, m)| (p.as_str(), m.ty(), m.data().to_vec())).collect();
    let expected = [
        ("z", Type::Integer, b"1".to_vec()),
        ("a", Type::Float, b"2.5".to_vec()),
        ("z", Type::Boolean, b"true".to_vec()),
        ("out", Type::Any, br#"{"x": 1e2}"#.to_vec()),
    ];
    assert_eq!(outputs, expected);
    assert_eq!(effects.state.unwrap().text(), r#"{"a": 1.0,"k":{"x": 1e2}}"#);
}

async fn what_is_not_there_is_null_or_nothing(on: Rig) {
    let cases = [
        "(call $put_block (call $get_state (call $block <<k>>)))",
        "(call $put_block (call $get_state (i64.const 0)))",
        "(call $put_block (call $config_get (call $block <<k>>)))",
        "(call $put_block (call $var_get (call $block <<k>>)))",
    ];
    for body in cases {
        let (_, effects) = turn(on.engine(process(body)).await, context("null")).await;
        assert_eq!(data(&effects), "null", "{body}");
    }
}

async fn config_get_sees_the_config_of_the_actor(on: Rig) {
    let cases = [(json!("7"), "7"), (json!(7), "7"), (json!({"a": [1]}), r#"{"a":[1]}"#)];
    for (value, expected) in cases {
        let mut spec = spec();
        spec.config.insert("k".into(), value);
        let body = "(call $put_block (call $config_get (call $block <<k>>)))";
        let program = on.prepare(process(body), spec).await.map_err(|e| e.to_string()).unwrap();
        let (_, effects) = turn(engine_of(&program).await, context("null")).await;
        assert_eq!(data(&effects), expected);
    }
}

async fn variables_last_as_long_as_the_engine(on: Rig) {
    let body = r#"(local $old i64)
      (local.set $old (call $var_get (call $block <<k>>)))
      (call $var_set (call $block <<k>>) (call $block <<7>>))
      (call $put_block (local.get $old))"#;
    let program = on.prepare(process(body), spec()).await.map_err(|e| e.to_string()).unwrap();
    let (engine, first) = turn(engine_of(&program).await, context("null")).await;
    let (_, second) = turn(engine, context("null")).await;
    let (_, third) = turn(engine_of(&program).await, context("null")).await;
    assert_eq!([data(&first), data(&second), data(&third)], ["null", "7", "null"]);
}

async fn a_result_may_be_wrapped(on: Rig) {
    // {"outputs":{"out":{"type":"Flow"}},"state":{"a":1}}
    let body = "(call $answer <<\"eyJvdXRwdXRzIjp7Im91dCI6eyJ0eXBlIjoiRmxvdyJ9fSwic3RhdGUiOnsiYSI6MX19\">>)";
    let (_, effects) = turn(on.engine(process(body)).await, context("null")).await;
    assert_eq!(data(&effects), "null");
    assert_eq!(effects.state.unwrap().text(), r#"{"a":1}"#);
}

async fn a_result_that_is_none_is_a_turn_error_and_keeps_the_engine(on: Rig) {
    for (body, part) in [
        ("(call $answer <<hello>>)", "got hello"),
        ("(i32.const 0)", "got nothing"),
        ("(call $send_output (call $block <<[1]>>)) (call $answer <<{\"outputs\":{}}>>)", "[1]"),
    ] {
        let (kind, kept) = on.fails(body).await;
        let FailureKind::Turn(why) = &kind else { panic!("{kind:?}") };
        assert!(why.contains(part), "{why}");
        assert!(kept, "{why}");
    }
}

async fn a_guest_that_breaks_loses_its_engine(on: Rig) {
    // Growing fails softly, or traps where the engine can do nothing better. It is told alike.
    let grown = "memory limit reached (100 MiB)";
    let grow =
        "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 100)) (i32.const -1)))) unreachable";
    for (body, part) in [
        ("unreachable", "unreachable"),
        ("(i32.load (i32.const -4))", "out of bounds"),
        ("(i32.div_u (i32.const 1) (i32.const 0))", "divide by zero"),
        ("(drop (call $alloc (i64.const 0x7fffffffffff))) (i32.const 0)", ""),
        ("(call $fail <<panicked>>) unreachable", "panicked"),
        ("(call $log_info (i64.const 12345)) (i32.const 0)", "12345, which is no block"),
        ("(call $send_output (i64.const -1)) (i32.const 0)", "no block"),
        ("(call $set_state (i64.const 0x100000000) (i64.const 1)) (i32.const 0)", "no block"),
        (grow, grown),
    ] {
        let (kind, kept) = on.fails(body).await;
        let FailureKind::Trap(why) = &kind else { panic!("{body}: {kind:?}") };
        assert!(why.contains(part), "{body}: {why}");
        assert!(!kept, "{body}");
    }
    let recursive = guest(
        r#"(func $deep (result i32) (i32.add (call $deep) (i32.const 1)))
           (func (export "process") (result i32) (call $deep))"#,
    );
    let failure = failure(on.engine(recursive).await, context("null"), LONG).await;
    assert!(
        matches!(&failure.kind, FailureKind::Trap(why) if why.contains("stack")),
        "{failure:?}"
    );
    assert!(failure.engine.is_none());
}

async fn a_guest_that_answers_with_an_error_keeps_its_engine(on: Rig) {
    for (body, part) in [
        ("(call $fail <<no such city>>) (i32.const 1)", "no such city"),
        ("(call $fail <<no such city>>) (i32.const -1)", "no such city"),
        ("(call $fail <<no such city>>) (i32.const 134)", "no such city"),
        ("(call $fail <<no such city>>) (i32.const 0)", "no such city"),
        ("(i32.const 3)", "3"),
    ] {
        let (kind, kept) = on.fails(body).await;
        let FailureKind::Guest(why) = &kind else { panic!("{body}: {kind:?}") };
        assert!(why.contains(part), "{body}: {why}");
        assert!(kept, "{body}");
    }
}

async fn a_turn_ends_at_its_deadline(on: Rig) {
    // It has much more time to get ready than for a turn.
    let limits = Limits { metadata_timeout: LONG * 2, ..Limits::default() };
    let bytes = process("(loop $l (br $l)) unreachable");
    let loader = Loader::new(limits).with_engine(on.0);
    let module = loader.load(Source::Bytes { name: "guest.wasm".into(), bytes }).await.unwrap();
    let program = soon(module.prepare(spec())).await.map_err(|e| e.to_string()).unwrap();
    let endless = engine_of(&program).await;
    let begun = std::time::Instant::now();
    let failure = failure(endless, context("null"), Duration::from_millis(100)).await;
    let took = begun.elapsed();
    assert!(took < LONG / 4, "{took:?}");
    assert!(matches!(failure.kind, FailureKind::Timeout(_)), "{failure:?}");
    assert!(failure.engine.is_none());
    assert!(took >= Duration::from_millis(99), "{took:?}");
}

async fn a_deadline_ends_nobody_elses_turn(on: Rig) {
    // One engine spins to its deadline while the other, of the same module, is
    // within a long turn that must end well.
    let spins = process(
        r#"(local $i i64)
        (if (i32.eq (call $input_load (i64.const 38)) (i32.const 49)) (then (loop $l (br $l))))
        (loop $l (local.set $i (i64.add (local.get $i) (i64.const 1)))
                 (br_if $l (i64.lt_u (local.get $i) (i64.const 600000000))))
        (call $answer <<{"outputs":{}}>>)"#,
    );
    let module = on.load(spins).await.unwrap();
    let prepared = |name: &str| {
        let mut spec = spec();
        spec.actor = name.parse().unwrap();
        let module = module.clone();
        async move { Module::prepare(&*module, spec).await.map_err(|e| e.to_string()) }
    };
    let (one, two) = (prepared("one").await.unwrap(), prepared("two").await.unwrap());
    let (endless, long) = (engine_of(&one).await, engine_of(&two).await);
    let long = tokio::task::JoinSet::from_iter([long.turn(context("2"), within(LONG))]);
    let failure = failure(endless, context("1"), Duration::from_millis(50)).await;
    assert!(matches!(failure.kind, FailureKind::Timeout(_)), "{failure:?}");
    let turns = soon(long.join_all()).await;
    assert!(turns[0].is_ok(), "{:?}", turns[0].as_ref().err());
}

async fn a_timeout_leaves_the_program_able_to_make_another_engine(on: Rig) {
    let body = r#"(if (i32.eq (call $input_load (i64.const 38)) (i32.const 49)) (then (loop $l (br $l))))
        (call $answer <<{"outputs":{}}>>)"#;
    let program = on.prepare(process(body), spec()).await.map_err(|e| e.to_string()).unwrap();
    let failure = failure(engine_of(&program).await, context("1"), Duration::from_millis(20)).await;
    assert!(matches!(failure.kind, FailureKind::Timeout(_)), "{failure:?}");
    turn(engine_of(&program).await, context("2")).await;
}

async fn http_is_told_to_the_guest_as_refused_without_an_allowed_host(on: Rig) {
    let body = r#"
      (if (i64.ne (call $http_request (call $block <<{"url":"http://127.0.0.1:1/"}>>) (i64.const 0))
                  (i64.const 0)) (then unreachable))
      (if (call $http_status) (then unreachable))
      (call $answer <<{"outputs":{}}>>)"#;
    turn(on.engine(process(body)).await, context("null")).await;
}

async fn http_reaches_a_listed_host(on: Rig) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            head.push(byte[0]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n[1, 2 ]").unwrap();
    });
    let body = format!(
        r#"(local $body i64)
        (local.set $body (call $http_request (call $block <<{{"url":"{url}"}}>>) (i64.const 0)))
        (if (i32.ne (call $http_status) (i32.const 200)) (then unreachable))
        (call $put_block (local.get $body))"#
    );
    let mut spec = spec();
    spec.allow_hosts = vec!["127.0.0.1".into()];
    let program = on.prepare(process(&body), spec).await.map_err(|e| e.to_string()).unwrap();
    let (_, effects) = turn(engine_of(&program).await, context("null")).await;
    assert_eq!(data(&effects), "[1, 2 ]");
    server.join().unwrap();
}

async fn http_headers_are_those_of_the_last_answer(on: Rig) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        for head in ["200 OK\r\nX-One: first", "404 Not Found\r\nX-Two: é\\\""] {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut asked, mut byte) = (Vec::new(), [0]);
            while !asked.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                asked.push(byte[0]);
            }
            let answer =
                format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let guest = guest_with(
        r#"(import "extism:host/env" "http_headers" (func $headers (result i64)))"#,
        METADATA,
        &format!(
            r#"(func (export "process") (result i32)
              ;; The digit that the context's message is says what to do.
              (if (i32.eq (call $input_load (i64.const 38)) (i32.const 49))
                (then (drop (call $http_request (call $block <<{{"url":"{url}"}}>>) (i64.const 0)))))
              (if (i32.eq (call $input_load (i64.const 38)) (i32.const 50))
                (then (drop (call $http_request (call $block <<{{"url":"http://example.com"}}>>) (i64.const 0)))))
              (call $put_block (call $headers)))"#
        ),
    );
    let spec = reflowd_runtime::ProgramSpec { allow_hosts: vec!["127.0.0.1".into()], ..spec() };
    let program = on.prepare(guest, spec).await.map_err(|e| e.to_string()).unwrap();
    let mut engine = engine_of(&program).await;
    for (asks, expected) in [
        ("0", json!({})),
        ("1", json!({"x-one": "first", "connection": "close", "content-length": "0"})),
        // They outlast the turn, as the status does.
        ("0", json!({"x-one": "first", "connection": "close", "content-length": "0"})),
        ("1", json!({"x-two": "é\\\"", "connection": "close", "content-length": "0"})),
        // What is refused has none.
        ("2", json!({})),
    ] {
        let (kept, effects) = turn(engine, context(asks)).await;
        let headers: Value = serde_json::from_str(&data(&effects)).unwrap();
        assert_eq!(headers, expected, "{asks}");
        engine = kept;
    }
    server.join().unwrap();
}

async fn modules_of_an_sdk_run_unchanged(on: Rig) {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    for (path, given, expected) in
        [("tests/guests/relay.wasm", r#"{"b":1.0, "a":1e2}"#, r#"{"b":1.0, "a":1e2}"#)]
    {
        let bytes = std::fs::read(format!("{root}/{path}")).unwrap();
        let (_, effects) = turn(on.engine(bytes.into()).await, context(given)).await;
        assert_eq!(data(&effects), expected, "{path}");
    }
}

async fn an_output_that_does_not_exist_is_a_turn_error(on: Rig) {
    for (offset, length) in [
        ("(call $alloc (i64.const 8))", "-1"),
        ("(call $alloc (i64.const 8))", "-5"),
        ("(call $alloc (i64.const 8))", "0x7fffffff"),
        ("(i64.const -1)", "8"),
        ("(i64.const 0x7fffffff)", "8"),
        ("(i64.const 0)", "0x100000000"),
    ] {
        let body = format!("(call $output_set {offset} (i64.const {length})) (i32.const 0)");
        let (kind, kept) = on.fails(&body).await;
        assert!(matches!(kind, FailureKind::Turn(_)), "{offset} {length}: {kind:?}");
        assert!(kept);
    }
}

async fn a_guest_writes_to_its_actors_log(on: Rig) {
    let mut spec = spec();
    // A log that takes no line counts each as left out.
    spec.log = reflowd_runtime::ActorLog::new(spec.actor.clone(), 0);
    let log = spec.log.clone();
    let body = "(call $log_info (call $block <<hello>>)) (call $answer <<{\"outputs\":{}}>>)";
    let program = on.prepare(process(body), spec).await.map_err(|e| e.to_string()).unwrap();
    turn(engine_of(&program).await, context("null")).await;
    assert_eq!(log.suppressed(), 1);
}

async fn a_turn_that_is_due_already_does_not_run_for_ever(on: Rig) {
    let endless = on.engine(process("(loop $l (br $l)) unreachable")).await;
    let failure = failure(endless, context("null"), Duration::ZERO).await;
    assert!(matches!(failure.kind, FailureKind::Timeout(_)), "{failure:?}");
}

async fn a_turn_that_waits_for_an_answer_ends_at_its_deadline(on: Rig) {
    // Connections wait in its queue, and nobody takes them out.
    let stalls = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", stalls.local_addr().unwrap());
    let body = format!(
        r#"(drop (call $http_request (call $block <<{{"url":"{url}"}}>>) (i64.const 0)))
        (loop $l (br $l)) unreachable"#
    );
    let spec = reflowd_runtime::ProgramSpec { allow_hosts: vec!["127.0.0.1".into()], ..spec() };
    let program = on.prepare(process(&body), spec).await.map_err(|e| e.to_string()).unwrap();
    let begun = std::time::Instant::now();
    let engine = engine_of(&program).await;
    let failure = failure(engine, context("null"), Duration::from_millis(200)).await;
    assert!(matches!(failure.kind, FailureKind::Timeout(_)), "{failure:?}");
    assert!(begun.elapsed() < LONG / 4, "{:?}", begun.elapsed());
}

async fn host_functions_free_the_blocks_that_they_own(on: Rig) {
    for (call, freed) in [
        ("(drop (call $config_get (local.get $one)))", [true, false]),
        ("(drop (call $var_get (local.get $one)))", [true, false]),
        ("(call $var_set (local.get $one) (local.get $two))", [true, true]),
        ("(call $log_info (local.get $one))", [true, false]),
        ("(drop (call $http_request (local.get $one) (local.get $two)))", [true, true]),
        ("(drop (call $get_state (local.get $one)))", [false, false]),
    ] {
        let [one, two] = freed.map(|freed| if freed { 0 } else { 100 });
        let body = format!(
            r#"(local $one i64) (local $two i64)
            (local.set $one (call $alloc (i64.const 100)))
            (local.set $two (call $alloc (i64.const 100)))
            {call}
            (if (i64.ne (call $length (local.get $one)) (i64.const {one})) (then unreachable))
            (if (i64.ne (call $length (local.get $two)) (i64.const {two})) (then unreachable))
            (call $answer <<{{"outputs":{{}}}}>>)"#
        );
        let engine = on.engine(process(&body)).await;
        let ended = soon(engine.turn(context("null"), within(LONG))).await;
        assert!(ended.is_ok(), "{call}: {:?}", ended.err());
    }
}

async fn a_guest_reads_back_what_it_has_set(on: Rig) {
    let guest = guest_with(
        r#"(import "extism:host/env" "error_get" (func $error_get (result i64)))
           (import "extism:host/env" "output_offset" (func $output_offset (result i64)))
           (import "extism:host/env" "output_length" (func $output_length (result i64)))
           (import "extism:host/env" "reset" (func $reset))"#,
        METADATA,
        r#"(func (export "process") (result i32)
          (local $block i64)
          (local.set $block (call $alloc (i64.const 100)))
          (call $error_set (local.get $block))
          (if (i64.ne (call $error_get) (local.get $block)) (then unreachable))
          (call $error_set (i64.const 0))
          (if (i64.ne (call $error_get) (i64.const 0)) (then unreachable))
          (call $output_set (local.get $block) (i64.const 7))
          (if (i64.ne (call $output_offset) (local.get $block)) (then unreachable))
          (if (i64.ne (call $output_length) (i64.const 7)) (then unreachable))
          (call $reset)
          (if (i64.ne (call $length (local.get $block)) (i64.const 0)) (then unreachable))
          (call $answer <<{"outputs":{}}>>))"#,
    );
    turn(on.engine(guest).await, context("null")).await;
}

async fn variables_have_a_bound(on: Rig) {
    let body =
        r#"(call $var_set (call $block <<k>>) (call $alloc (i64.const 0x200000))) (i32.const 0)"#;
    let (kind, kept) = on.fails(body).await;
    let FailureKind::Trap(why) = &kind else { panic!("{kind:?}") };
    assert!(why.contains("over 1 MiB") && !kept, "{why}");
}

async fn what_counts_against_host_memory_is_told(on: Rig) {
    let meter = Arc::new(HostMemoryMeter::default());
    let context = |host_memory| Context {
        host_memory: Some(meter.clone()),
        limits: TurnLimits { host_memory, ..TurnLimits::default() },
        ..context("null")
    };
    let sends =
        r#"(call $send_output (call $block <<{"z":1}>>)) (call $answer <<{"outputs":{}}>>)"#;
    let (engine, _) = turn(on.engine(process(sends)).await, context(1 << 20)).await;
    let most = meter.most();
    assert!((257..1 << 20).contains(&most) && meter.refused() == 0, "{meter:?}");
    // The input alone is larger.
    let refused = failure(engine, context(100), LONG).await;
    assert!(matches!(refused.kind, FailureKind::Turn(_)), "{refused:?}");
    assert_eq!((meter.most(), meter.refused()), (most, 1));
    // A guest that breaks on it is counted too, though its engine is gone.
    let sets =
        r#"(call $var_set (call $block <<k>>) (call $alloc (i64.const 0x10000))) (i32.const 0)"#;
    let broken = failure(on.engine(process(sets)).await, context(10_000), LONG).await;
    assert!(matches!(broken.kind, FailureKind::Trap(_)), "{broken:?}");
    assert_eq!(meter.refused(), 2);
}

async fn a_turn_puts_out_so_many_messages_and_no_more(on: Rig) {
    let sends = |count: u32| {
        process(&format!(
            r#"(local $left i32) (local $block i64)
            (local.set $left (i32.const {count}))
            (local.set $block (call $block <<{{"z":1}}>>))
            (loop $next
              (call $send_output (local.get $block))
              (br_if $next (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
            (call $answer <<{{"outputs":{{}}}}>>)"#
        ))
    };
    let (_, effects) = turn(on.engine(sends(100_000)).await, context("null")).await;
    assert_eq!(effects.outputs.len(), 100_000);
    let over = failure(on.engine(sends(100_001)).await, context("null"), LONG).await;
    let FailureKind::Turn(why) = &over.kind else { panic!("{over:?}") };
    assert!(why.contains("more than 100000 messages") && over.engine.is_some(), "{why}");
}
