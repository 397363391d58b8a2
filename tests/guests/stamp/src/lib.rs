//! Stamps each message with the version that processed it.
//!
//! Built twice, as `stamp-a` and `stamp-b`: two modules that differ in what they
//! put out. A sink that reads the stamps knows which version took which message,
//! and from `sender` and `seq` whether one was lost, doubled or overtaken.

use extism_pdk::{FnResult, input_bytes, plugin_fn};
use serde::{Deserialize, Serialize};

/// What this build puts on every message.
const STAMP: &str = if cfg!(feature = "b") { "b" } else { "a" };

const METADATA: &str = r#"{
    "component": "Stamp",
    "description": "Stamps each message with the version that processed it.",
    "inports": [{ "name": "in", "description": "{sender, seq}", "port_type": "Any", "required": true }],
    "outports": [{ "name": "out", "description": "{sender, seq, stamp}", "port_type": "Object" }],
    "config_schema": null
}"#;

/// The module's ports.
#[plugin_fn]
pub fn get_metadata() -> FnResult<&'static str> {
    Ok(METADATA)
}

/// `1.0.0` for `a`, `2.0.0` for `b`.
#[plugin_fn]
pub fn get_version() -> FnResult<&'static str> {
    Ok(if cfg!(feature = "b") { r#""2.0.0""# } else { r#""1.0.0""# })
}

/// One message in, one message out.
#[plugin_fn]
pub fn process() -> FnResult<Vec<u8>> {
    let input = input_bytes();
    let context: Context = serde_json::from_slice(&input)?;
    let Numbered { sender, seq } = context.payload.message.data;
    let data = Stamped { sender, seq, stamp: STAMP };
    let answer = Answer { outputs: Outputs { out: StampedMessage { ty: "Object", data } } };
    Ok(serde_json::to_vec(&answer)?)
}

#[derive(Deserialize)]
struct Context {
    payload: Payload,
}

#[derive(Deserialize)]
struct Payload {
    #[serde(rename = "in")]
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    data: Numbered,
}

/// Who sent a message, and which of the sender's it is.
#[derive(Deserialize)]
#[serde(expecting = "{sender, seq}")]
struct Numbered {
    sender: u64,
    seq: u64,
}

#[derive(Serialize)]
struct Answer {
    outputs: Outputs,
}

#[derive(Serialize)]
struct Outputs {
    out: StampedMessage,
}

#[derive(Serialize)]
struct StampedMessage {
    #[serde(rename = "type")]
    ty: &'static str,
    data: Stamped,
}

#[derive(Serialize)]
struct Stamped {
    sender: u64,
    seq: u64,
    stamp: &'static str,
}
