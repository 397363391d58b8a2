//! Every step of loading and preparing, and what is said when it fails.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod guest;

use std::{os::unix::fs::MetadataExt, time::Duration};

use bytes::Bytes;
use guest::*;
use reflowd_loader::{
    EngineKind, InvalidBinary, InvalidMetadata, Limits, LoadErrorKind, Loader, Source,
};
use reflowd_runtime::{Digest, LeftState, Module, PrepareError, ProgramSpec, State};
use serde_json::json;

/// Makes a test on one engine, of what the engines do differently.
macro_rules! on_one_engine {
    ($($kind:ident: $name:ident)+) => { $(
        mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn alone() {
                super::$name(super::Rig(reflowd_loader::EngineKind::$kind)).await;
            }
        }
    )+ };
}

on_both_engines! {
    a_file_is_loaded_once_and_kept_by_digest
    a_file_that_cannot_be_read_may_be_tried_again
    a_module_over_the_limit_is_refused_from_file_and_from_bytes
    what_is_no_core_module_is_refused
    exports_are_checked_by_name_and_type
    imports_are_checked_by_name_and_type
    every_function_of_the_table_can_be_imported
    declared_memory_must_fit
    memory_may_be_as_large_as_it_is_declared
    wrong_metadata_is_refused
    a_module_that_breaks_when_asked_is_refused
    endless_metadata_is_stopped_and_may_be_tried_again
    endless_initialisers_are_stopped
    a_reactor_is_initialised_before_its_first_turn
    of_several_initialisers_those_of_the_toolchain_run
    wasi_is_there_for_modules_that_import_it
    a_program_that_exits_has_broken
    the_version_is_semantic_and_held_against_the_actors
    the_entry_point_may_have_another_name
    an_actors_config_must_satisfy_the_schema
    a_module_may_refuse_an_actors_config
    a_module_may_make_its_own_state_of_the_one_before
    an_actors_memory_must_cover_the_declared
    an_inspection_tells_what_it_can
    validating_keeps_nothing
}

on_one_engine! {
    Direct: initialisers_may_call_the_host
    Extism: initialisers_that_call_the_host_are_refused
}

const IDLE: &str = r#"(func (export "process") (result i32) (i32.const 0))"#;

async fn a_file_is_loaded_once_and_kept_by_digest(on: Rig) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.wasm");
    std::fs::write(&path, guest(IDLE)).unwrap();
    let loader = on.loader();
    let module = loader.load(Source::File(path.clone())).await.unwrap();
    assert_eq!(module.metadata().component, "Guest");
    assert_eq!(module.version(), None);
    assert!(loader.by_digest(&module.digest()).is_some());
    let again = loader.load(Source::File(path)).await.unwrap();
    assert!(std::sync::Arc::ptr_eq(&module, &again));
    loader.forget(&module.digest());
    assert!(loader.by_digest(&module.digest()).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn compiled_code_is_kept_for_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("code");
    let load = || async {
        let loader = Rig(EngineKind::Direct).loader().with_code_cache(&kept).unwrap();
        let source = Source::Bytes { name: "guest.wasm".into(), bytes: guest(IDLE) };
        soon(loader.load(source)).await.unwrap();
        let entry = std::fs::read_dir(&kept).unwrap().next().unwrap().unwrap().path();
        (entry.clone(), std::fs::metadata(&entry).unwrap().ino())
    };
    let first = load().await;
    assert_eq!(load().await, first, "it was not compiled again");
    std::fs::write(&first.0, b"damaged").unwrap();
    let (entry, _) = load().await;
    assert!(std::fs::metadata(entry).unwrap().len() > 1000, "damaged code is compiled anew");
}

async fn a_file_that_cannot_be_read_may_be_tried_again(on: Rig) {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().join("missing.wasm"), folder.path().to_path_buf()] {
        let error = on.loader().load(Source::File(path.clone())).await.err().unwrap();
        assert!(matches!(error.kind, LoadErrorKind::Read(_)), "{error}");
        assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
        assert!(!error.is_intrinsic());
        assert_eq!(error.digest, None);
    }
}

async fn a_module_over_the_limit_is_refused_from_file_and_from_bytes(on: Rig) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big.wasm");
    let bytes = guest(IDLE);
    std::fs::write(&path, &bytes).unwrap();
    let size = bytes.len() as u64;
    let loader =
        Loader::new(Limits { module_size: size - 1, ..Limits::default() }).with_engine(on.0);
    for source in [Source::File(path), Source::Bytes { name: "big".into(), bytes }] {
        let error = loader.load(source).await.err().unwrap();
        assert_eq!(error.kind, LoadErrorKind::TooLarge { size, max: size - 1 });
    }
}

async fn what_is_no_core_module_is_refused(on: Rig) {
    use InvalidBinary::{Component, Empty, Text, Truncated};
    let whole = guest(IDLE);
    let component: Bytes = wat::parse_str("(component)").unwrap().into();
    for (bytes, expected) in [
        (Bytes::new(), Empty),
        (Bytes::from_static(b"(module)"), Text),
        (component, Component),
        (whole.slice(..whole.len() / 2), Truncated(whole.len() / 2)),
    ] {
        let error = on.load(bytes).await.err().unwrap();
        assert_eq!(error.kind, LoadErrorKind::InvalidBinary(expected));
        assert!(error.is_intrinsic());
        assert!(error.digest.is_some());
    }
}

async fn exports_are_checked_by_name_and_type(on: Rig) {
    let kind = on.refused(module(r#"(func (export "process") (result i32) i32.const 0)"#)).await;
    let LoadErrorKind::MissingExport { name, exports } = kind else { panic!("{kind:?}") };
    assert_eq!((name.as_str(), exports.as_str()), ("get_metadata", "`process`"));
    for (fields, expected) in [
        (r#"(func (export "get_metadata"))"#, "() -> ()"),
        (r#"(func (export "get_metadata") (param i32) (result i32) i32.const 0)"#, "(i32) -> i32"),
        (r#"(func (export "get_metadata") (result i64) i64.const 0)"#, "() -> i64"),
        (r#"(global (export "get_metadata") i32 (i32.const 0))"#, "global"),
    ] {
        let kind = on.refused(module(fields)).await;
        let LoadErrorKind::WrongExportType { found, .. } = &kind else { panic!("{kind:?}") };
        assert_eq!(found, expected);
    }
    let other = guest(r#"(func (export "get_version") (param i32))"#);
    assert!(matches!(on.refused(other).await, LoadErrorKind::WrongExportType { .. }));
}

async fn imports_are_checked_by_name_and_type(on: Rig) {
    let import = |what: &str| guest_with(what, METADATA, IDLE);
    for what in [
        r#"(import "env" "abort" (func (param i32)))"#,
        r#"(import "extism:host/user" "__send_mail" (func (param i64)))"#,
        r#"(import "extism:host/env" "no_such" (func))"#,
        r#"(import "wasi_snapshot_preview1" "no_such" (func))"#,
        r#"(import "env" "memory" (memory 1))"#,
    ] {
        // A module with an imported and an own memory would fail for that instead.
        let bytes = if what.contains("(memory") {
            module(&format!("{what} (func (export \"get_metadata\") (result i32) i32.const 0)"))
        } else {
            import(what)
        };
        let kind = on.refused(bytes).await;
        assert!(matches!(kind, LoadErrorKind::UnknownImport { .. }), "{kind:?}");
    }
    let kind = on
        .refused(import(
            r#"(import "extism:host/user" "__get_state" (func (param i32) (result i64)))"#,
        ))
        .await;
    let text = kind.to_string();
    assert!(text.contains("`__get_state` from `extism:host/user` as (i32) -> i64"), "{text}");
    assert!(text.contains("the host has (i64) -> i64"), "{text}");
    let memory = module(
        r#"(import "extism:host/env" "memory_bytes" (memory 1))
           (func (export "get_metadata") (result i32) i32.const 0)"#,
    );
    assert!(matches!(on.refused(memory).await, LoadErrorKind::WrongImportType { .. }));
}

async fn every_function_of_the_table_can_be_imported(on: Rig) {
    let all = reflowd_loader::host_functions();
    let imports: String = all
        .enumerate()
        .map(|(i, (namespace, name, ty))| {
            let list = |types: &str| types.replace(',', " ");
            let (params, results) = ty.split_once(" -> ").unwrap();
            let (params, results) = (list(params.trim_matches(['(', ')'])), list(results.trim_matches(['(', ')'])));
            format!("(import \"{namespace}\" \"{name}\" (func $f{i} (param {params}) (result {results})))")
        })
        .collect();
    on.load(guest_with(&imports, METADATA, IDLE)).await.unwrap();
}

async fn declared_memory_must_fit(on: Rig) {
    let big = module(r#"(memory 2000) (func (export "get_metadata") (result i32) i32.const 0)"#);
    let kind = on.refused(big).await;
    assert_eq!(kind, LoadErrorKind::MemoryTooSmall { needed: 2000 << 16, limit: 100 << 20 });
}

async fn memory_may_be_as_large_as_it_is_declared(on: Rig) {
    // The stock engine refuses to reach a declared maximum.
    let fixed = r#"(memory (export "memory") 2 2)"#;
    let text = guest_fields(METADATA, IDLE).replace(r#"(memory (export "memory") 2)"#, fixed);
    assert!(text.contains(fixed));
    let program = on.prepare(module(&text), spec()).await.map_err(|e| e.to_string()).unwrap();
    engine_of(&program).await;

    let tight = ProgramSpec { memory: 2 << 16, ..spec() };
    let body = r#"(if (i32.ne (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))
        (call $answer <<{"outputs":{}}>>)"#;
    let program = on.prepare(process(body), tight).await.map_err(|e| e.to_string()).unwrap();
    let engine = engine_of(&program).await;
    if on.0 == EngineKind::Extism {
        let failure = failure(engine, context("null"), LONG).await;
        assert!(format!("{failure:?}").contains("memory limit reached (128 KiB)"), "{failure:?}");
    } else {
        // It is told that it cannot grow, and goes on.
        turn(engine, context("null")).await;
    }
}

async fn wrong_metadata_is_refused(on: Rig) {
    let kind =
        on.refused(guest_with("", r#"{"component":"","inports":[],"outports":[]}"#, IDLE)).await;
    assert_eq!(kind, LoadErrorKind::InvalidMetadata(InvalidMetadata::NoComponent));
    let kind = on.refused(guest_with("", "hello", IDLE)).await;
    assert!(kind.to_string().contains("it answered hello"), "{kind}");
}

fn metadata(body: &str) -> Bytes {
    let text = guest_fields(METADATA, IDLE);
    let start = text.find(r#"(func (export "get_metadata")"#).unwrap();
    let end = text[start..].find('\n').map_or(text.len(), |i| start + i);
    let own = format!("(func (export \"get_metadata\") (result i32) {body})");
    module(&format!("{}{own}{}", &text[..start], &text[end..]))
}

async fn a_module_that_breaks_when_asked_is_refused(on: Rig) {
    for (body, part) in [
        ("unreachable", "`get_metadata` trapped: wasm trap"),
        ("(call $fail <<no luck>>) (i32.const 1)", "`get_metadata` returned an error: no luck"),
        ("(call $send_output (call $block <<{}>>)) (i32.const 0)", "only within a turn"),
    ] {
        let kind = on.refused(metadata(body)).await;
        assert!(matches!(kind, LoadErrorKind::AskFailed { .. }), "{kind:?}");
        assert!(kind.to_string().contains(part), "{kind}");
    }
}

async fn endless_metadata_is_stopped_and_may_be_tried_again(on: Rig) {
    let error = on.load(metadata("(loop $l (br $l)) unreachable")).await.err().unwrap();
    assert_eq!(error.kind, LoadErrorKind::MetadataTimeout(Duration::from_secs(2)));
    assert!(!error.is_intrinsic());
}

async fn endless_initialisers_are_stopped(on: Rig) {
    for functions in [
        "(func $s (loop $l (br $l))) (start $s)",
        r#"(func (export "_initialize") (loop $l (br $l)))"#,
        r#"(func (export "__wasm_call_ctors") (loop $l (br $l)))"#,
    ] {
        let error = on.load(guest(&format!("{IDLE} {functions}"))).await.err().unwrap();
        assert!(error.to_string().contains("do not end"), "{error}");
        if on.0 == EngineKind::Direct {
            assert_eq!(error.kind, LoadErrorKind::InitTimeout(Duration::from_secs(2)));
            assert!(error.is_timeout() && !error.is_intrinsic(), "time is the machine's too");
        } else {
            assert!(matches!(error.kind, LoadErrorKind::InitFailed(_)), "{error}");
            assert!(error.is_intrinsic(), "a count of instructions is the module's alone");
        }
    }
}

async fn initialisers_that_call_the_host_are_refused(on: Rig) {
    let calls = [
        "(call $log_info (i64.const 8))",
        "(drop (call $config_get (i64.const 8)))",
        "(drop (call $var_get (i64.const 8)))",
        "(call $var_set (i64.const 8) (i64.const 8))",
        "(drop (call $http_request (i64.const 8) (i64.const 8)))",
        "(drop (call $http_status))",
        "(drop (call $log_level))",
        "(call $send_output (i64.const 8))",
        "(drop (call $get_state (i64.const 8)))",
        "(call $set_state (i64.const 8) (i64.const 8))",
    ];
    for call in calls {
        for start in [
            format!("(func $s {call}) (start $s)"),
            format!(r#"(func (export "_initialize") {call})"#),
        ] {
            let kind = on.refused(guest(&format!("{IDLE} {start}"))).await;
            assert!(matches!(kind, LoadErrorKind::InitFailed(_)), "{kind:?}");
            assert!(kind.to_string().contains("calls host functions while"), "{kind}");
        }
    }
}

async fn initialisers_may_call_the_host(on: Rig) {
    for start in ["(func $s {}) (start $s)", r#"(func (export "_initialize") {})"#] {
        let body = r#"
          (call $log_info (call $block <<hello>>))
          (call $var_set (call $block <<k>>) (call $block <<7>>))"#;
        let process = r#"(func (export "process") (result i32)
          (call $put_block (call $var_get (call $block <<k>>))))"#;
        let guest = guest(&format!("{process} {}", start.replace("{}", body)));
        assert_eq!(data(&turn(on.engine(guest).await, context("null")).await.1), "7");
    }
    for (call, part) in [
        ("(call $send_output (i64.const 0))", "only within a turn"),
        ("(call $log_info (i64.const 8))", "no block"),
        ("unreachable", "unreachable"),
    ] {
        let kind = on.refused(guest(&format!("{IDLE} (func $s {call}) (start $s)"))).await;
        assert!(matches!(kind, LoadErrorKind::InitFailed(_)), "{kind:?}");
        assert!(kind.to_string().contains(part), "{kind}");
    }
}

async fn a_reactor_is_initialised_before_its_first_turn(on: Rig) {
    let reactor = guest(
        r#"(global $n (mut i32) (i32.const 48))
        (func (export "_initialize") (global.set $n (i32.add (global.get $n) (i32.const 1))))
        (func (export "process") (result i32)
          (i32.store8 (i32.const 0) (global.get $n))
          (call $put_block (call $block (i32.const 0) (i32.const 1))))"#,
    );
    let (engine, effects) = turn(on.engine(reactor).await, context("null")).await;
    assert_eq!(data(&effects), "1");
    assert_eq!(data(&turn(engine, context("null")).await.1), "1");
}

async fn of_several_initialisers_those_of_the_toolchain_run(on: Rig) {
    // Each leaves its digit in a number to the base of four.
    let runs = |name: &str, params: &str, digit: u8| {
        format!(
            r#"(func (export "{name}") {params} (global.set $ran
              (i32.add (i32.mul (global.get $ran) (i32.const 4)) (i32.const {digit}))))"#
        )
    };
    let plain = runs("_initialize", "", 1);
    let constructors = runs("__wasm_call_ctors", "", 2);
    let haskell = runs("hs_init", "(param i32 i32)", 3);
    for (functions, expected) in [
        (plain.clone(), "1"),
        (constructors.clone(), "2"),
        (format!("{plain} {constructors}"), "2"),
        (format!("{haskell} {plain}"), "7"),
    ] {
        let bytes = guest(&format!(
            r#"(global $ran (mut i32) (i32.const 0)) {functions}
            (func (export "process") (result i32)
              (i32.store8 (i32.const 0) (i32.add (i32.const 48) (global.get $ran)))
              (call $put_block (call $block (i32.const 0) (i32.const 1))))"#
        ));
        let (_, effects) = turn(on.engine(bytes).await, context("null")).await;
        assert_eq!(data(&effects), expected, "{functions}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_prints_is_in_its_log_when_a_call_ends() {
    let prints = guest_with(
        r#"(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))"#,
        METADATA,
        r#"(func $print
          (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 5))
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
        (func (export "_initialize") (call $print))
        (func (export "process") (result i32)
          (call $print) (call $print) (call $answer <<{"outputs":{}}>>))"#,
    );
    // A log that takes no line counts each as left out.
    let mut spec = spec();
    spec.log = reflowd_runtime::ActorLog::new(spec.actor.clone(), 0);
    let log = spec.log.clone();
    let program = Rig(EngineKind::Direct).prepare(prints, spec).await.map_err(|e| e.to_string());
    let engine = engine_of(&program.unwrap()).await;
    assert_eq!(log.suppressed(), 1);
    turn(engine, context("null")).await;
    assert_eq!(log.suppressed(), 2, "what has no end of line is one line");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_exits_with_0_has_done_its_turn() {
    let exits = guest_with(
        r#"(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#,
        METADATA,
        r#"(func (export "process") (result i32)
          (drop (call $answer <<{"outputs":{"out":{"type":"Flow"}}}>>))
          (call $exit (i32.const 0)) unreachable)"#,
    );
    let (engine, effects) = turn(Rig(EngineKind::Direct).engine(exits).await, context("1")).await;
    assert_eq!(data(&effects), "null");
    assert_eq!(data(&turn(engine, context("2")).await.1), "null");
}

async fn wasi_is_there_for_modules_that_import_it(on: Rig) {
    let wasi = guest_with(
        r#"(import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
           (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
           (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
           (import "wasi_snapshot_preview1" "path_open"
             (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
           (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env (param i32 i32) (result i32)))"#,
        METADATA,
        r#"(func (export "process") (result i32)
          (if (call $clock (i32.const 0) (i64.const 1) (i32.const 0)) (then unreachable))
          (if (i64.eqz (i64.load (i32.const 0))) (then unreachable))
          (if (call $random (i32.const 0) (i32.const 32)) (then unreachable))
          (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 1))
          (i32.store8 (i32.const 64) (i32.const 33))
          (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
          (if (call $env (i32.const 0) (i32.const 4)) (then unreachable))
          (if (i32.load (i32.const 0)) (then unreachable))
          ;; No folder is open, so nothing can be opened in one.
          (if (i32.eqz (call $open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 1)
                (i32.const 0) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 8)))
              (then unreachable))
          (call $answer <<{"outputs":{}}>>))"#,
    );
    turn(on.engine(wasi).await, context("null")).await;
}

async fn a_program_that_exits_has_broken(on: Rig) {
    let exits = guest_with(
        r#"(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#,
        METADATA,
        r#"(func (export "process") (result i32) (call $exit (i32.const 3)) unreachable)"#,
    );
    let failure = failure(on.engine(exits).await, context("null"), LONG).await;
    assert_eq!((failure.kind.class(), failure.engine.is_some()), ("trap", false));
}

async fn the_version_is_semantic_and_held_against_the_actors(on: Rig) {
    let version = |answer: &str| {
        guest(&format!(
            r#"{IDLE} (func (export "get_version") (result i32) (call $answer <<{answer}>>))"#
        ))
    };
    assert_eq!(on.load(version("\"1.2.3\"")).await.unwrap().version(), Some("1.2.3"));
    assert_eq!(on.refused(version("\"1.2\"")).await, LoadErrorKind::VersionInvalid("1.2".into()));
    assert!(matches!(on.refused(version("7")).await, LoadErrorKind::VersionInvalid(_)));
    let told = METADATA.replacen('{', r#"{"version":"2.0.0","#, 1);
    assert_eq!(on.load(guest_with("", &told, IDLE)).await.unwrap().version(), Some("2.0.0"));

    for (bytes, wanted, expected) in [
        (version("\"1.2.3\""), ">=1.2, <2", None),
        (version("\"1.2.3\""), ">=2", Some("1.2.3, and the actor asks for >=2")),
        (guest(IDLE), ">=1", Some("none, and the actor asks for >=1")),
        (version("\"1.2.3\""), "new", Some("write `>=1.2, <2`")),
    ] {
        let result =
            on.prepare(bytes, ProgramSpec { version: Some(wanted.into()), ..spec() }).await;
        match (result, expected) {
            (Ok(_), None) => {}
            (Err(error @ PrepareError::VersionMismatch { .. }), Some(part)) => {
                assert!(error.to_string().contains(part), "{error}");
            }
            (result, _) => panic!("{wanted}: {:?}", result.err()),
        }
    }
}

async fn the_entry_point_may_have_another_name(on: Rig) {
    let other = guest(
        r#"(func (export "handle") (result i32) (call $answer <<{"outputs":{"out":{"type":"Flow"}}}>>))
           (func (export "typed") (param i32))"#,
    );
    let named = |name: &str| ProgramSpec { entry_point: Some(name.into()), ..spec() };
    let program =
        on.prepare(other.clone(), named("handle")).await.map_err(|e| e.to_string()).unwrap();
    turn(engine_of(&program).await, context("null")).await;
    let error = on.prepare(other.clone(), spec()).await.err().unwrap().to_string();
    assert!(error.contains("does not export `process`"), "{error}");
    assert!(error.contains("`get_metadata`, `handle`, `typed`"), "{error}");
    let error = on.prepare(other, named("typed")).await.err().unwrap();
    assert!(matches!(error, PrepareError::WrongExportType { .. }), "{error}");
}

async fn an_actors_config_must_satisfy_the_schema(on: Rig) {
    let schema = r#""config_schema":{"type":"object","required":["min"],"properties":{"min":{"type":"number"}}},"#;
    let bytes = guest_with("", &METADATA.replacen('{', &format!("{{{schema}"), 1), IDLE);
    for (config, expected) in [
        (json!({"min": 4.5}), None),
        (json!({"min": "x"}), Some("/min: ")),
        (json!({}), Some("\"min\" is a required property")),
    ] {
        let config = config.as_object().unwrap().clone();
        match (on.prepare(bytes.clone(), ProgramSpec { config, ..spec() }).await, expected) {
            (Ok(_), None) => {}
            (Err(PrepareError::ConfigRejected { why }), Some(part)) => {
                assert!(why.contains(part), "{why}");
            }
            (result, _) => panic!("{:?}", result.err()),
        }
    }
}

async fn a_module_may_refuse_an_actors_config(on: Rig) {
    let validates = |body: &str| {
        guest(&format!(r#"{IDLE} (func (export "validate_config") (result i32) {body})"#))
    };
    for (body, expected) in [
        ("(call $answer <<true>>)", None),
        ("(call $answer <<false>>)", Some("said false")),
        ("(call $answer <<maybe>>)", Some("answered maybe, not true or false")),
        ("(call $fail <<min is negative>>) (i32.const 1)", Some("min is negative")),
        ("unreachable", Some("broke: wasm trap")),
        ("(loop $l (br $l)) unreachable", Some("not answer in time")),
    ] {
        match (on.prepare(validates(body), spec()).await, expected) {
            (Ok(_), None) => {}
            (Err(PrepareError::ConfigRejected { why }), Some(part)) => {
                assert!(why.contains(part), "{why}");
            }
            (result, _) => panic!("{body}: {:?}", result.err()),
        }
    }
}

async fn a_module_may_make_its_own_state_of_the_one_before(on: Rig) {
    let migrates = |body: &str| {
        guest(&format!(r#"{IDLE} (func (export "migrate_state") (result i32) {body})"#))
    };
    let left = || LeftState {
        state: State::new(r#"{"n":1.0}"#).unwrap(),
        digest: Digest::new([7; 32]),
        version: Some("1.2.3".into()),
        limit: 400,
    };
    for (body, expected) in [
        ("(call $answer <<{\"n\":2}>>)", Ok(r#"{"n":2}"#)),
        ("(call $answer <<[2]>>)", Err("a state is a JSON object")),
        ("(call $fail <<not from that>>) (i32.const 1)", Err("returned an error: not from that")),
        ("unreachable", Err("broke: wasm trap")),
        ("(loop $l (br $l)) unreachable", Err("does not answer within 1s")),
    ] {
        let program = on.prepare(migrates(body), spec()).await.unwrap();
        assert!(program.migrates_state());
        match (program.migrate_state(left()).await, expected) {
            (Ok(state), Ok(text)) => assert_eq!(state.text(), text),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (result, _) => panic!("{body}: {result:?}"),
        }
    }
    // What it is given, byte for byte, comes back in an envelope that is an object too.
    let program = on.prepare(migrates("(call $put_input)"), spec()).await.unwrap();
    let state = program.migrate_state(left()).await.unwrap();
    let seen: serde_json::Value = serde_json::from_slice(state.text()).unwrap();
    let given = &seen["outputs"]["out"]["data"];
    assert_eq!((&given["from_version"], &given["state"]), (&json!("1.2.3"), &json!({"n": 1.0})));
    assert_eq!(given["from_digest"], "07".repeat(32));
    let error = program.migrate_state(LeftState { limit: 40, ..left() }).await.unwrap_err();
    assert!(error.to_string().contains("over `state_size`"), "{error}");
    assert!(!on.prepare(guest(IDLE), spec()).await.unwrap().migrates_state());
}

async fn an_actors_memory_must_cover_the_declared(on: Rig) {
    let error =
        on.prepare(guest(IDLE), ProgramSpec { memory: 1 << 16, ..spec() }).await.err().unwrap();
    assert!(matches!(error, PrepareError::MemoryTooSmall { needed: 131_072, limit: 65_536 }));
}

async fn an_inspection_tells_what_it_can(on: Rig) {
    let inspect = |bytes| async {
        soon(on.loader().inspect(Source::Bytes { name: "x".into(), bytes })).await
    };
    let whole = inspect(guest(IDLE)).await;
    assert_eq!(whole.problem, None);
    assert_eq!(whole.metadata.as_ref().unwrap().component, "Guest");
    let shown = serde_json::to_value(&whole).unwrap();
    assert_eq!(shown["exports"][2], json!({"name": "process", "type": "() -> i32"}));
    assert_eq!(shown["imports"][0]["type"], "(i64) -> i64");
    assert_eq!(shown["memory"], json!({"min": 131_072, "max": null}));

    let endless = inspect(guest(&format!("{IDLE} (func $s (loop $l (br $l))) (start $s)"))).await;
    assert!(endless.problem.unwrap().contains("do not end"));
    assert!(endless.start);
    assert_eq!(endless.exports.len(), 3);

    let wordless = inspect(metadata("unreachable")).await;
    assert!(wordless.problem.unwrap().contains("`get_metadata` trapped"));
    assert_eq!(wordless.exports.len(), 3);

    let component = inspect(wat::parse_str("(component)").unwrap().into()).await;
    assert!(component.problem.unwrap().contains("component"));
    assert!(component.digest.is_some());

    let missing = soon(on.loader().inspect(Source::File("/no/such/file.wasm".into()))).await;
    assert!(missing.problem.unwrap().contains("cannot read"));
}

async fn validating_keeps_nothing(on: Rig) {
    let loader = on.loader();
    let bytes = guest(IDLE);
    let source = Source::Bytes { name: "x".into(), bytes: bytes.clone() };
    loader.validate(source).await.unwrap();
    let digest = on.load(bytes).await.unwrap().digest();
    assert!(loader.by_digest(&digest).is_none());
}
