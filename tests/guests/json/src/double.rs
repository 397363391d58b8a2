//! The turn of the guest `json`, free of the ABI.
//!
//! Depends on serde alone, so that a benchmark can include this very file and
//! time the same logic as native Rust.

use serde::{Deserialize, Serialize};

/// One turn: the context's JSON in, the answer's JSON out.
///
/// # Errors
/// The context is not JSON, or has no number for the port `value`.
pub fn double(context: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
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
