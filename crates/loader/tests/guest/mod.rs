//! Guests as text, and what a test needs to run them.
//!
//! A guest is written as the functions that differ from the others. In its text
//! `<<some bytes>>` stands for the address and length of those bytes, which are
//! put into its memory.

#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "each file of tests uses a part of the rig"
)]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use reflowd_loader::{EngineKind, Limits, LoadError, LoadErrorKind, LoadedModule, Loader, Source};
use reflowd_runtime::{
    ActorLog, Context, Effects, Engine, EnginePer, Failure, FailureKind, Message, MessageId,
    Module, PrepareError, Program, ProgramSpec, State, TurnLimits,
};
use tokio::time::Instant;

/// Imports and functions that every guest has.
const PRELUDE: &str = r#"
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "length" (func $length (param i64) (result i64)))
  (import "extism:host/env" "load_u8" (func $load (param i64) (result i32)))
  (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "input_load_u8" (func $input_load (param i64) (result i32)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (import "extism:host/env" "error_set" (func $error_set (param i64)))
  (import "extism:host/user" "__send_output" (func $send_output (param i64)))
  (import "extism:host/user" "__get_state" (func $get_state (param i64) (result i64)))
  (import "extism:host/user" "__set_state" (func $set_state (param i64 i64)))
  (import "extism:host/env" "config_get" (func $config_get (param i64) (result i64)))
  (import "extism:host/env" "var_get" (func $var_get (param i64) (result i64)))
  (import "extism:host/env" "var_set" (func $var_set (param i64 i64)))
  (import "extism:host/env" "http_request" (func $http_request (param i64 i64) (result i64)))
  (import "extism:host/env" "http_status_code" (func $http_status (result i32)))
  (import "extism:host/env" "log_info" (func $log_info (param i64)))
  (import "extism:host/env" "get_log_level" (func $log_level (result i32)))
"#;

const HELPERS: &str = r#"
  ;; A block with a copy of the bytes.
  (func $block (param $at i32) (param $len i32) (result i64)
    (local $block i64) (local $i i32)
    (if (i32.eqz (local.get $len)) (then (return (i64.const 0))))
    (local.set $block (call $alloc (i64.extend_i32_u (local.get $len))))
    (loop $next
      (call $store (i64.add (local.get $block) (i64.extend_i32_u (local.get $i)))
                   (i32.load8_u (i32.add (local.get $at) (local.get $i))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $i) (local.get $len))))
    (local.get $block))
  ;; Outputs the bytes; the result of an export that has succeeded.
  (func $answer (param $at i32) (param $len i32) (result i32)
    (call $output_set (call $block (local.get $at) (local.get $len)) (i64.extend_i32_u (local.get $len)))
    (i32.const 0))
  ;; Sets the bytes as the error.
  (func $fail (param $at i32) (param $len i32)
    (call $error_set (call $block (local.get $at) (local.get $len))))
  ;; Outputs {"outputs":{"out":{"type":"Any","data":BLOCK}}}; without a block, null.
  (func $put_block (param $from i64) (result i32)
    (if (i64.eqz (local.get $from)) (then (local.set $from (call $block <<null>>))))
    (call $put (local.get $from) (call $length (local.get $from)) (i32.const 0)))
  ;; Outputs the whole input in the same way.
  (func $put_input (result i32)
    (call $put (i64.const 0) (call $input_length) (i32.const 1)))
  (func $put (param $from i64) (param $len i64) (param $input i32) (result i32)
    (local $block i64) (local $to i64) (local $i i64)
    (local.set $block (call $alloc (i64.add (local.get $len) (i64.const 42))))
    (local.set $to (call $copy (local.get $block) <<{"outputs":{"out":{"type":"Any","data":>>))
    (loop $next
      (if (i64.lt_u (local.get $i) (local.get $len)) (then
        (call $store (local.get $to) (if (result i32) (local.get $input)
          (then (call $input_load (local.get $i)))
          (else (call $load (i64.add (local.get $from) (local.get $i))))))
        (local.set $to (i64.add (local.get $to) (i64.const 1)))
        (local.set $i (i64.add (local.get $i) (i64.const 1)))
        (br $next))))
    (drop (call $copy (local.get $to) <<}}}>>))
    (call $output_set (local.get $block) (i64.add (local.get $len) (i64.const 42)))
    (i32.const 0))
  (func $copy (param $to i64) (param $at i32) (param $len i32) (result i64)
    (local $i i32)
    (loop $next
      (call $store (i64.add (local.get $to) (i64.extend_i32_u (local.get $i)))
                   (i32.load8_u (i32.add (local.get $at) (local.get $i))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $i) (local.get $len))))
    (i64.add (local.get $to) (i64.extend_i32_u (local.get $len))))
"#;

/// Metadata with one port each way.
pub(crate) const METADATA: &str = r#"{"component":"Guest","inports":[{"name":"in","port_type":"Any"}],"outports":[{"name":"out","port_type":"Any"}]}"#;

/// A guest that answers with [`METADATA`] and has these functions.
pub(crate) fn guest(functions: &str) -> Bytes {
    guest_with("", METADATA, functions)
}

/// A guest whose `process` has this body.
pub(crate) fn process(body: &str) -> Bytes {
    guest(&format!(r#"(func (export "process") (result i32) {body})"#))
}

/// A guest that says this of itself.
pub(crate) fn guest_with(imports: &str, metadata: &str, functions: &str) -> Bytes {
    module(&guest_fields(metadata, functions).replacen(PRELUDE, &format!("{PRELUDE} {imports}"), 1))
}

/// The text of a guest, `<<…>>` still in it.
pub(crate) fn guest_fields(metadata: &str, functions: &str) -> String {
    format!(
        r#"{PRELUDE} (memory (export "memory") 2) {HELPERS}
        (func (export "get_metadata") (result i32) (call $answer <<{metadata}>>))
        {functions}"#
    )
}

/// A module with these fields, `<<…>>` replaced.
pub(crate) fn module(fields: &str) -> Bytes {
    let (mut text, mut data, mut at) = (String::from("(module "), String::new(), 1024);
    let mut rest = fields;
    while let Some((before, after)) = rest.split_once("<<") {
        let (bytes, after) = after.split_once(">>").expect("`<<` has its `>>`");
        let escaped: String = bytes.bytes().map(|b| format!("\\{b:02x}")).collect();
        text += &format!("{before}(i32.const {at}) (i32.const {})", bytes.len());
        data += &format!("(data (i32.const {at}) \"{escaped}\")");
        at += bytes.len();
        rest = after;
    }
    text += &format!("{rest} {data})");
    match wat::parse_str(&text) {
        Ok(bytes) => bytes.into(),
        Err(error) => panic!("{error}"),
    }
}

/// Makes a test on each engine of each of these functions.
macro_rules! on_both_engines {
    ($($name:ident)+) => { $(
        mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn direct() {
                super::$name(super::Rig(reflowd_loader::EngineKind::Direct)).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn extism() {
                super::$name(super::Rig(reflowd_loader::EngineKind::Extism)).await;
            }
        }
    )+ };
}
pub(crate) use on_both_engines;

/// What runs a test's guests.
#[derive(Clone, Copy)]
pub(crate) struct Rig(pub(crate) EngineKind);

impl Rig {
    pub(crate) fn loader(self) -> Loader {
        let limits = Limits { metadata_timeout: Duration::from_secs(2), ..Limits::default() };
        Loader::new(limits).with_engine(self.0)
    }

    pub(crate) async fn load(self, bytes: Bytes) -> Result<Arc<LoadedModule>, LoadError> {
        soon(self.loader().load(Source::Bytes { name: "guest.wasm".into(), bytes })).await
    }

    pub(crate) async fn refused(self, bytes: Bytes) -> LoadErrorKind {
        self.load(bytes).await.map(|_| ()).expect_err("the module is refused").kind
    }

    pub(crate) async fn prepare(
        self,
        bytes: Bytes,
        spec: ProgramSpec,
    ) -> Result<Arc<dyn Program>, PrepareError> {
        let module = self.load(bytes).await.expect("the module can be loaded");
        soon(module.prepare(spec)).await
    }

    pub(crate) async fn engine(self, bytes: Bytes) -> Box<dyn Engine> {
        let program = self.prepare(bytes, spec()).await.map_err(|e| e.to_string());
        engine_of(&program.expect("the module can be prepared")).await
    }

    /// The failure of a guest's first turn, whose `process` has this body.
    pub(crate) async fn fails(self, body: &str) -> (FailureKind, bool) {
        let failure = failure(self.engine(process(body)).await, context("null"), LONG).await;
        (failure.kind, failure.engine.is_some())
    }
}

pub(crate) fn spec() -> ProgramSpec {
    let actor: reflowd_runtime::ActorName = "actor".parse().unwrap();
    ProgramSpec {
        actor: actor.clone(),
        config: serde_json::Map::new(),
        env: std::collections::BTreeMap::new(),
        entry_point: None,
        memory: 100 << 20,
        allow_hosts: Vec::new(),
        engine_per: EnginePer::Actor,
        version: None,
        log: ActorLog::new(actor, 1000),
    }
}

pub(crate) async fn engine_of(program: &Arc<dyn Program>) -> Box<dyn Engine> {
    soon(program.instantiate()).await.expect("the program can be instantiated")
}

/// A turn's context with one message, which may be any JSON.
pub(crate) fn context(data: &str) -> Context {
    let message = Message::new(reflowd_runtime::Type::Any, data.to_owned()).unwrap();
    Context {
        payload: vec![("in".parse().unwrap(), message)],
        state: State::default(),
        message: MessageId::new(),
        trace: None,
        meta: None,
        state_in_context: true,
        limits: TurnLimits::default(),
        now: None,
        host_memory: None,
    }
}

pub(crate) fn with_state(state: &str) -> Context {
    Context { state: State::new(state.to_owned()).unwrap(), ..context("null") }
}

pub(crate) fn within(time: Duration) -> Instant {
    Instant::now() + time
}

pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A turn that succeeds.
pub(crate) async fn turn(engine: Box<dyn Engine>, context: Context) -> (Box<dyn Engine>, Effects) {
    match soon(engine.turn(context, within(LONG))).await {
        Ok(turn) => turn,
        Err(failure) => panic!("{failure:?}"),
    }
}

/// A turn that does not.
pub(crate) async fn failure(engine: Box<dyn Engine>, context: Context, time: Duration) -> Failure {
    match soon(engine.turn(context, within(time))).await {
        Ok((_, effects)) => panic!("the turn succeeded: {effects:?}"),
        Err(failure) => failure,
    }
}

/// The data of the only output.
pub(crate) fn data(effects: &Effects) -> String {
    let [(port, message)] = effects.outputs.as_slice() else { panic!("{effects:?}") };
    assert_eq!(port.as_str(), "out");
    String::from_utf8(message.data().to_vec()).unwrap()
}

/// Turns a hang into a failure.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), future)
        .await
        .expect("it ends within two minutes")
}
