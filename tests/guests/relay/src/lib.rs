//! Passes on what comes, byte for byte and with its type.
//!
//! For tests of hops: whatever goes into a chain of relays has to come out of it.

use extism_pdk::{FnResult, input_bytes, plugin_fn};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

const METADATA: &str = r#"{
    "component": "Relay",
    "description": "Passes on what comes.",
    "inports": [{ "name": "in", "description": "Anything.", "port_type": "Any", "required": true }],
    "outports": [{ "name": "out", "description": "The same.", "port_type": "Any" }],
    "config_schema": null
}"#;

/// The module's ports.
#[plugin_fn]
pub fn get_metadata() -> FnResult<&'static str> {
    Ok(METADATA)
}

/// The crate's version.
#[plugin_fn]
pub fn get_version() -> FnResult<&'static str> {
    Ok(concat!('"', env!("CARGO_PKG_VERSION"), '"'))
}

/// One message in, the same message out. The message is not even looked into.
#[plugin_fn]
pub fn process() -> FnResult<Vec<u8>> {
    let input = input_bytes();
    let context: Context = serde_json::from_slice(&input)?;
    let answer = Answer { outputs: Outputs { out: context.payload.message } };
    Ok(serde_json::to_vec(&answer)?)
}

#[derive(Deserialize)]
struct Context<'a> {
    #[serde(borrow)]
    payload: Payload<'a>,
}

#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow, rename = "in")]
    message: &'a RawValue,
}

#[derive(Serialize)]
struct Answer<'a> {
    outputs: Outputs<'a>,
}

#[derive(Serialize)]
struct Outputs<'a> {
    out: &'a RawValue,
}
