//! Scenarios from random bytes: the same bytes, the same scenario.
//!
//! Whoever brings the bytes decides what they are: the test takes them from a
//! seed, a fuzzer from its corpus.

#![allow(dead_code, reason = "a fuzz target uses a part of it")]

use arbitrary::{Result, Unstructured};
use reflowd_runtime::Type;
use serde_json::json;

use crate::{
    guest::{guest_with, process},
    scenario::Scenario,
};

/// Bytes that follow from a seed.
pub(crate) fn bytes(seed: u64, length: usize) -> Vec<u8> {
    // SplitMix64: every seed gives a sequence of its own.
    let mut state = seed;
    let word = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    std::iter::repeat_with(word).take(length / 8 + 1).flatten().take(length).collect()
}

/// A guest that puts out its whole context, and contexts with anything in them.
pub(crate) fn contexts(u: &mut Unstructured<'_>) -> Result<Scenario> {
    let mut scenario = Scenario::new("contexts", process("(call $put_input)"));
    scenario.state = object(u)?;
    scenario.state_in_context = u.arbitrary()?;
    scenario.config = json!({ "k": text(u)?, "n": u.arbitrary::<i64>()? });
    for _ in 0..u.int_in_range(0..=3)? {
        scenario.env.insert(text(u)?, text(u)?);
    }
    if u.arbitrary()? {
        scenario.meta = Some(object(u)?);
    }
    scenario.limits.output = *u.choose(&[0, 100, 1000, 16 << 20])?;
    scenario.turns.clear();
    for _ in 0..u.int_in_range(1..=8)? {
        let mut given = Vec::new();
        for port in 0..u.int_in_range(0..=3)? {
            let ty = *u.choose(&Type::ALL)?;
            given.push((format!("p{port}{}", text(u)?), ty, data(u, ty)?));
        }
        scenario.turns.push(given);
    }
    Ok(scenario)
}

/// Data that fits a type.
fn data(u: &mut Unstructured<'_>, ty: Type) -> Result<String> {
    Ok(match ty {
        Type::Flow => "null".into(),
        Type::Boolean => u.arbitrary::<bool>()?.to_string(),
        Type::Integer => u.arbitrary::<i64>()?.to_string(),
        Type::Float => format!("{}e{}", u.arbitrary::<i32>()?, u.int_in_range(-200..=200)?),
        Type::String | Type::Error => json!(text(u)?).to_string(),
        Type::Object => object(u)?,
        Type::Array => format!("[{},{}]", value(u, 6)?, value(u, 6)?),
        Type::Stream => json!(u.arbitrary::<Vec<u8>>()?).to_string(),
        Type::Event | Type::Optional | Type::Any => value(u, 8)?,
    })
}

fn object(u: &mut Unstructured<'_>) -> Result<String> {
    let mut entries = Vec::new();
    for _ in 0..u.int_in_range(0..=4)? {
        entries.push(format!("{}: {}", json!(text(u)?), value(u, 5)?));
    }
    Ok(format!("{{{}}}", entries.join(",")))
}

/// Any JSON, nested no deeper than `depth`.
fn value(u: &mut Unstructured<'_>, depth: u32) -> Result<String> {
    Ok(match u.int_in_range(0..=if depth == 0 { 4 } else { 6 })? {
        0 => "null".into(),
        1 => u.arbitrary::<bool>()?.to_string(),
        2 => u.arbitrary::<i64>()?.to_string(),
        3 => format!("{}.{}", u.arbitrary::<i16>()?, u.arbitrary::<u16>()?),
        4 => json!(text(u)?).to_string(),
        5 => format!("[{} , {}]", value(u, depth - 1)?, value(u, depth - 1)?),
        _ => format!("{{{}:{}}}", json!(text(u)?), value(u, depth - 1)?),
    })
}

fn text(u: &mut Unstructured<'_>) -> Result<String> {
    let length = u.int_in_range(0..=12)?;
    (0..length).map(|_| u.arbitrary::<char>()).collect()
}

/// A host function: its name, its arguments and what can be told of its result.
struct HostFunction(&'static str, &'static str, Told);

/// What of a result must be the same on every engine.
#[derive(Clone, Copy)]
enum Told {
    /// There is none, or it is the engine's own affair (where its blocks lie).
    Nothing,
    /// A number of 32 bits.
    Number,
    /// A number of 64 bits.
    Wide,
    /// A handle: what is in the block.
    Block,
    /// A handle: how long the block is.
    Length,
}

/// Arguments: `h` any handle, `e` one that is not of a freed block, since the host
/// keeps it, `b` a handle of a block, `n` a size, `z` a size of at most a byte or
/// one that nothing has, `s` one of at most a byte (what lies behind a block is the
/// engine's affair), `o` a place in memory, `i` a place in the input, `y` a byte,
/// `w` eight of them.
const HOST_FUNCTIONS: [HostFunction; 35] = [
    HostFunction("alloc", "n", Told::Length),
    HostFunction("free", "h", Told::Nothing),
    HostFunction("length", "h", Told::Wide),
    HostFunction("length_unsafe", "b", Told::Wide),
    HostFunction("load_u8", "o", Told::Number),
    HostFunction("load_u64", "o", Told::Wide),
    HostFunction("store_u8", "oy", Told::Nothing),
    HostFunction("store_u64", "ow", Told::Nothing),
    HostFunction("input_set", "bz", Told::Nothing),
    HostFunction("input_length", "", Told::Wide),
    HostFunction("input_offset", "", Told::Nothing),
    HostFunction("input_load_u8", "i", Told::Number),
    HostFunction("input_load_u64", "i", Told::Wide),
    HostFunction("output_set", "bs", Told::Nothing),
    HostFunction("output_length", "", Told::Nothing),
    HostFunction("output_offset", "", Told::Nothing),
    HostFunction("error_set", "e", Told::Nothing),
    HostFunction("error_get", "", Told::Length),
    HostFunction("memory_bytes", "", Told::Nothing),
    HostFunction("config_get", "h", Told::Block),
    HostFunction("var_get", "h", Told::Block),
    HostFunction("var_set", "hh", Told::Nothing),
    HostFunction("http_request", "hh", Told::Block),
    HostFunction("http_status_code", "", Told::Number),
    HostFunction("http_headers", "", Told::Block),
    HostFunction("log_trace", "h", Told::Nothing),
    HostFunction("log_debug", "h", Told::Nothing),
    HostFunction("log_info", "h", Told::Nothing),
    HostFunction("log_warn", "h", Told::Nothing),
    HostFunction("log_error", "h", Told::Nothing),
    HostFunction("get_log_level", "", Told::Number),
    HostFunction("__send_output", "h", Told::Nothing),
    HostFunction("__get_state", "h", Told::Block),
    HostFunction("__set_state", "hh", Told::Nothing),
    HostFunction("reset", "", Told::Nothing),
];

/// Numbers that are no handle, size or place on any engine.
const WILD: [i64; 9] = [
    i64::MIN,
    i64::MIN + 1,
    -1 << 32,
    -70_000_000,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 40,
    i64::MAX,
];

/// Sizes that nothing has. The stock engine takes some that are larger still,
/// which is a difference with a test of its own: these it refuses, too.
const HUGE: [i64; 3] = [0x7fff_ffff, 0x9000_0000, -70_000_000];

/// What blocks hold.
const TEXTS: [&str; 14] = [
    "k",
    "n",
    "s",
    "none",
    "é",
    "7",
    "null",
    "[1]",
    r#"{"out":1}"#,
    r#"{"out":{"type":"Integer","data":"x"},"a":null}"#,
    r#"{"a":{"type":"Stream","data":[1,2]}}"#,
    r#"{"url":"http://127.0.0.1:1/","method":"POST"}"#,
    "a text of more than sixteen bytes",
    "{",
];

const NOTES: &str = r#"
  ;; Logs a number as sixteen digits.
  (func $note (param $n i64) (local $i i32)
    (loop $next
      (i32.store8 (i32.add (i32.const 512) (local.get $i))
        (i32.add (i32.const 97) (i32.wrap_i64 (i64.shr_u (local.get $n) (i64.const 60)))))
      (local.set $n (i64.shl (local.get $n) (i64.const 4)))
      (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 16))))
    (call $log_info (call $block (i32.const 512) (i32.const 16))))
  ;; A block whose first argument is logged, so that the host has taken it back.
  (func $used (param $at i32) (param $len i32) (result i64) (local $block i64)
    (local.set $block (call $block (local.get $at) (local.get $len)))
    (call $log_info (local.get $block))
    (local.get $block))
"#;

/// A guest that calls host functions with arguments that may be anything.
pub(crate) fn calls(u: &mut Unstructured<'_>) -> Result<Scenario> {
    let imports: String = HOST_FUNCTIONS.iter().map(import).collect();
    let mut body = String::from("(local $n i64)");
    for _ in 0..u.int_in_range(1..=16)? {
        let HostFunction(name, arguments, told) = u.choose(&HOST_FUNCTIONS)?;
        let mut call = format!("(call ${name}_");
        for (index, kind) in arguments.chars().enumerate() {
            call += &argument(u, kind, index + 1 == arguments.len())?;
        }
        call += ")";
        body += &match told {
            Told::Nothing if has_result(name) => format!("(drop {call})\n"),
            Told::Nothing => format!("{call}\n"),
            Told::Number => format!("(call $note (i64.extend_i32_u {call}))\n"),
            Told::Wide => format!("(call $note {call})\n"),
            Told::Block => format!("(call $log_info {call})\n"),
            Told::Length => format!("(call $note (call $length {call}))\n"),
        };
    }
    body += match u.int_in_range(0..=4)? {
        0 => "(i32.const 0)",
        1 => "(i32.const 1)",
        _ => r#"(call $answer <<{"outputs":{}}>>)"#,
    };
    let functions = format!(r#"{NOTES} (func (export "process") (result i32) {body})"#);
    let mut scenario =
        Scenario::new(&body, guest_with(&imports, crate::guest::METADATA, &functions))
            .turns([(Type::Any, "null"), (Type::String, "\"second\"")]);
    scenario.config = json!({"k": "text", "n": 7});
    scenario.state = r#"{"k":[1], "s":"x"}"#.into();
    Ok(scenario)
}

fn has_result(name: &str) -> bool {
    ["input_offset", "output_offset", "output_length", "memory_bytes"].contains(&name)
}

fn import(HostFunction(name, ..): &HostFunction) -> String {
    let own = name.starts_with("__");
    let namespace = if own { "extism:host/user" } else { "extism:host/env" };
    let (_, _, ty) = reflowd_loader::host_functions()
        .find(|(space, found, _)| *space == namespace && found == name)
        .expect("every name is the host's");
    let (params, results) = ty.split_once(" -> ").expect("a type has an arrow");
    let list = |types: &str| types.trim_matches(['(', ')']).replace(',', " ");
    let (params, results) = (list(params), list(results));
    format!(
        r#"(import "{namespace}" "{name}" (func ${name}_ (param {params}) (result {results})))"#
    )
}

/// One argument. `last` tells whether no block is made between it and the call:
/// where the next block lies, perhaps in one that was freed, is the engine's affair.
fn argument(u: &mut Unstructured<'_>, kind: char, last: bool) -> Result<String> {
    let wild = |u: &mut Unstructured<'_>| Ok(format!("(i64.const {})", u.choose(&WILD)?));
    let huge = |u: &mut Unstructured<'_>| Ok(format!("(i64.const {})", u.choose(&HUGE)?));
    let text = |u: &mut Unstructured<'_>| Ok(format!("<<{}>>", u.choose(&TEXTS)?));
    let block = |u: &mut Unstructured<'_>| Ok(format!("(call $block {})", text(u)?));
    match kind {
        'b' => block(u),
        'h' | 'e' => match u.int_in_range(0..=19)? {
            0 => wild(u),
            1 => Ok("(i64.const 0)".into()),
            2 => Ok(format!("(i64.add {} (i64.const 1))", block(u)?)),
            3 if last && kind == 'h' => Ok(format!("(call $used {})", text(u)?)),
            _ => block(u),
        },
        'n' => match u.int_in_range(0..=9)? {
            0 => huge(u),
            _ => {
                Ok(format!("(i64.const {})", u.choose(&[0, 1, 7, 16, 100, 4096, 65_536, 1 << 20])?))
            }
        },
        's' => Ok(format!("(i64.const {})", u.int_in_range(0..=1)?)),
        'z' => match u.int_in_range(0..=4)? {
            0 => huge(u),
            n => Ok(format!("(i64.const {})", n % 2)),
        },
        'o' => match u.int_in_range(0..=3)? {
            0 => wild(u),
            // Within the longest text, so that eight bytes are too.
            n => Ok(format!("(i64.add (call $block <<{}>>) (i64.const {n}))", TEXTS[12])),
        },
        'i' => match u.int_in_range(0..=3)? {
            0 => wild(u),
            _ => Ok(format!("(i64.const {})", u.int_in_range(0..=300)?)),
        },
        'y' => Ok(format!("(i32.const {})", u.arbitrary::<i32>()?)),
        _ => Ok(format!("(i64.const {})", u.arbitrary::<i64>()?)),
    }
}
