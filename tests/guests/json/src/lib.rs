//! Doubles a number: the least that an ordinary actor does with JSON.
//!
//! The benchmarks' yardstick. It reads its input and a state of three keys into
//! values and writes one output, as a first actor of anybody's would. [`double`]
//! is free of the ABI, so that the same logic can be timed as native Rust.

use extism_pdk::{FnResult, input_bytes, plugin_fn};
use serde::{Deserialize, Serialize};

const METADATA: &str = r#"{
    "component": "Json",
    "description": "Doubles a number.",
    "inports": [{ "name": "value", "description": "A number.", "port_type": "Integer", "required": true }],
    "outports": [{ "name": "out", "description": "Twice the number.", "port_type": "Integer" }],
    "config_schema": null
}"#;

/// The module's ports.
#[plugin_fn]
pub fn get_metadata() -> FnResult<&'static str> {
    Ok(METADATA)
}

/// One number in, twice the number out.
#[plugin_fn]
pub fn process() -> FnResult<Vec<u8>> {
    Ok(double(&input_bytes())?)
}

/// One turn: the context's JSON in, the answer's JSON out.
fn double(context: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    let Context { payload, state } = serde_json::from_slice(context)?;
    let Message { ty, data } = payload.value;
    // The state is read into values because that is what costs, not because it matters.
    let turns = state.get("turns").and_then(serde_json::Value::as_i64).unwrap_or_default();
    let data = if turns < 0 { 0 } else { data.saturating_mul(2) };
    serde_json::to_vec(&Answer { outputs: Outputs { out: Message { ty, data } } })
}

#[derive(Deserialize)]
struct Context<'a> {
    #[serde(borrow)]
    payload: Payload<'a>,
    state: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    value: Message<'a>,
}

#[derive(Deserialize, Serialize)]
struct Message<'a> {
    #[serde(rename = "type")]
    ty: &'a str,
    data: i64,
}

#[derive(Serialize)]
struct Answer<'a> {
    outputs: Outputs<'a>,
}

#[derive(Serialize)]
struct Outputs<'a> {
    out: Message<'a>,
}
